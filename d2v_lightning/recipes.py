"""Published rows by name: the YAML files in `configs/` as Python objects."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import yaml

from d2v_lightning.configurable import Tree, build, own_class
from d2v_lightning.flavour import pl
from d2v_lightning.support.errors import UserError


def recipe_path(name: str) -> Path:
    """The YAML file behind a recipe's name: `image_base` is `configs/pretrain/image_base.yaml`.

    Raises:
        ValueError: there is no recipe of that name.
    """
    here = Path(__file__).parent
    root = here / "configs" if (here / "configs").is_dir() else here.parent / "configs"
    recipes = {path.stem: path for path in sorted(root.glob("*/**/*.yaml")) if path.parent.name != "logging"}
    if name not in recipes:
        raise UserError(f"no recipe {name!r}: choose from {', '.join(sorted(recipes))}")
    return recipes[name]


class FromRecipe:
    """Mixin for what a section of a recipe builds: a LightningDataModule ("data") or a LightningModule ("model")."""

    @classmethod
    def from_recipe(cls, name: str, overrides: dict[str, Any] | None = None) -> Self:
        """What a published row says, built from the YAML that the command line reads. A subclass of yours takes its place.

        Args:
            name: a file's name below `configs/`, such as "image_base".
            overrides: dotted constructor arguments, such as `{"optimization.lr": 1e-3}` or `{"root": "/data/imagenet"}`.

        Raises:
            ValueError: there is no such recipe or argument, or it is another class's.
        """
        tree = _section(name, "data" if issubclass(cls, pl.LightningDataModule) else "model", overrides)
        named = own_class(tree["class_path"])
        if not issubclass(named, cls) and not issubclass(cls, named):
            raise UserError(f"recipe {name!r} is a {named.__name__}, not a {cls.__name__}")
        made: Self = build(tree, cls if issubclass(cls, named) else named)
        return made


def from_recipe(name: str, section: str, overrides: dict[str, Any] | None = None) -> Any:
    """Build one section of a recipe.

    Args:
        name: see `recipe_path`.
        section: "model" or "data".
        overrides: dotted constructor arguments, `{"student.backbone.transformer.depth": 2}`.

    Raises:
        ValueError: there is no such recipe, or an override names an argument that the recipe does not set.
    """
    return build(_section(name, section, overrides))


def _section(name: str, section: str, overrides: dict[str, Any] | None) -> Tree:
    tree: Tree = yaml.safe_load(recipe_path(name).read_text())[section]
    return overridden(tree, overrides or {})


def overridden(tree: Tree, overrides: dict[str, Any]) -> Tree:
    """A copy of a constructor tree with dotted arguments replaced.

    Raises:
        ValueError: a dotted name leads through something that is no module.
    """
    tree = copy.deepcopy(tree)
    for dotted, value in overrides.items():
        *parents, last = dotted.split(".")
        node = tree.setdefault("init_args", {})
        for parent in parents:
            child = node.get(parent)
            if not isinstance(child, dict) or "class_path" not in child:
                raise UserError(f"override {dotted!r}: there is no module {parent!r} among {', '.join(node)}")
            node = child.setdefault("init_args", {})
        node[last] = value
    return tree
