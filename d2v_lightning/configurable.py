"""Constructor arguments as plain data: every module of ours records how it was built, and can be built again from that.

A recorded tree is `{"class_path": "d2v_lightning.Backbone", "init_args": {...}}`, nested where an argument is a module of
ours. A class is recorded by its public name, never by the file that it stands in, so that files may move. Checkpoints store
such trees, YAML recipes hold them and LightningCLI reads them: a model made in Python and one made from YAML save and load
alike. A class path is code: `build` makes classes of this project, and `Configurable` classes of modules that the running
program has imported. It never imports anything else for a file.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Iterator
from types import ModuleType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from d2v_lightning.support.errors import UserError

OWN_PACKAGES = ("d2v_lightning", "datamodules")
_DEEPEST, _MOST = 50, 100_000  # levels and branches of a stored tree

# By annotation: what such an argument is, and what to call it.
_NUMBERS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "tuple[int, int]": ((list,), "two whole numbers"),
    "tuple[float, float]": ((list,), "two numbers"),
}

Tree = dict[str, Any]


class Configurable:
    """Mixin that records the constructor arguments of an instance, defaults included, in `config`."""

    config: Tree

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        instance = super().__new__(cls)
        # bind_partial: copy and pickle call __new__ without arguments and restore `config` afterwards.
        bound = inspect.signature(cls.__init__).bind_partial(instance, *args, **kwargs)
        bound.apply_defaults()
        given = dict(list(_by_name(cls, bound).items())[1:])
        arguments = {name: plain(value, f"{cls.__name__}'s argument {name}") for name, value in given.items()}
        parameters, annotations = bound.signature.parameters, _annotations(cls)
        for name, value in arguments.items():
            kind = parameters[name].annotation if name in parameters else Any
            _refuse_odd(cls.__name__, name, value, kind)
            _refuse_wrong_part(cls.__name__, name, given[name], annotations.get(name, Any))
        instance.__dict__["config"] = {"class_path": public_path(cls), "init_args": arguments}
        return instance


def _refuse_odd(owner: str, name: str, value: Any, annotation: Any) -> None:
    """Look at a plain argument before a constructor computes with it.

    Args:
        annotation: of the argument; those of numbers, pairs of numbers, text and choices say what it must be.

    Raises:
        ValueError: it is something else where these are needed, or not finite, or holds a number that is not.
    """
    kinds = str(annotation if isinstance(annotation, str) else getattr(annotation, "__name__", annotation)).split(" | ")
    if all(kind in (*_NUMBERS, "None") for kind in kinds) and not any(_is_of(kind, value) for kind in kinds):
        needed = " or ".join(_NUMBERS[kind][1] for kind in kinds if kind != "None")
        raise UserError(f"{name} is {value!r}: {owner} needs {needed}")
    if value is None and all(kind in (*_NUMBERS, "bool", "str") or kind.startswith("Literal[") for kind in kinds):
        raise UserError(f"{name} is None: {owner} needs a value, leave it out for the default")
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(
                f"{name} is {value}: {owner} needs {'a finite number' if number is value else 'finite numbers'}"
            )


def _refuse_wrong_part(owner: str, name: str, value: Any, annotation: Any) -> None:
    """Look at an argument that is to be a module of ours. A `Configurable` of the user's may stand in for any.

    Raises:
        ValueError: it is something else.
    """
    if get_origin(annotation) is dict and isinstance(value, dict):
        for key, item in value.items():
            _refuse_wrong_part(owner, f"{name}.{key}", item, get_args(annotation)[1])
        return
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if not all(isinstance(kind, type) for kind in kinds) or isinstance(value, kinds):
        return
    needed = [kind.__name__ for kind in kinds if issubclass(kind, Configurable)]
    if needed and not (isinstance(value, Configurable) and not _is_ours(type(value))):
        found = f"a {type(value).__name__}" if isinstance(value, Configurable) else repr(value)[:60]
        raise UserError(f"{name} is {found}: {owner} needs {' or '.join(needed)}")


def _annotations(cls: type) -> dict[str, Any]:
    """Of the arguments of a constructor, and of those that it hands on as **kwargs; without what cannot be resolved."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        constructor = vars(base)["__init__"]
        try:
            hints = get_type_hints(constructor)
        except (NameError, TypeError, AttributeError):  # what another package imports for type checking only
            hints = {}
        parameters = inspect.signature(constructor).parameters
        for name in parameters:
            found.setdefault(name, hints.get(name, Any))
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return found


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in OWN_PACKAGES


def _is_of(kind: str, value: Any) -> bool:
    if kind == "None":
        return value is None
    if kind.startswith("tuple"):
        return (
            isinstance(value, list) and len(value) == 2 and all(_is_of(kind[6:-1].partition(",")[0], v) for v in value)
        )
    return isinstance(value, _NUMBERS[kind][0]) and not isinstance(value, bool)


def public_path(cls: type) -> str:
    """What files call a class: `d2v_lightning.Data2Vec`, or the module and name of a class that is not this project's."""
    package = cls.__module__.partition(".")[0]
    public = package in OWN_PACKAGES and getattr(sys.modules[package], cls.__name__, None) is cls
    return f"{package if public else cls.__module__}.{cls.__qualname__}"


def plain(value: Any, name: str = "an argument") -> Any:
    """A constructor argument as data: modules of ours become trees, tuples become lists, paths become text.

    Args:
        value: the argument.
        name: what messages call it.

    Raises:
        ValueError: the value is neither plain data nor a `Configurable`, so that no checkpoint could describe it.
    """
    if isinstance(value, Configurable):
        return value.config
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return [plain(item, name) for item in value]
    if isinstance(value, dict):
        return {key: plain(item, name) for key, item in value.items()}
    raise UserError(
        f"{name} is of type {type(value).__name__}, which no checkpoint can hold: "
        "pass plain data, or a module that inherits from d2v_lightning.Configurable"
    )


def _by_name(cls: type, bound: inspect.BoundArguments) -> dict[str, Any]:
    """Arguments by name, those that a subclass takes as **kwargs included."""
    arguments: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL and value:
            raise UserError(f"{cls.__name__} takes *{name}: give its arguments by name, so that a checkpoint can too")
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= value
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            arguments[name] = value
    return arguments


def build(tree: Any, root: type | None = None) -> Any:
    """Instantiate a recorded tree, innermost first.

    Args:
        tree: the recorded tree.
        root: the class of the outermost node, where the caller has it; otherwise what `own_class` gives.

    Raises:
        ValueError: the tree names a class that `own_class` refuses, or arguments which its constructor does not take.
    """
    if isinstance(tree, list):
        return [build(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "class_path" not in tree:
        return {key: build(value) for key, value in tree.items()}
    cls = root or own_class(tree["class_path"])
    arguments = tree.get("init_args") or {}
    parameters = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])  # type: ignore[misc]
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = {"self"} & set(arguments) if takes_any else set(arguments) - set(parameters)
    if unknown:
        raise UserError(f"{public_path(cls)} takes no argument named {', '.join(sorted(unknown))}")
    return cls(**{name: build(value) for name, value in arguments.items()})


def own_class(class_path: str) -> type:
    """The class behind a full path, or behind a short public name such as `Backbone`.

    It is one of this project, or a `Configurable` of a module that is imported already: a path may come from a file, and
    no file is to decide what is imported.

    Raises:
        ValueError: it is neither.
    """
    module_name, _, name = str(class_path).rpartition(".")
    if module_name in ("", *OWN_PACKAGES):
        packages = [own_package(package) for package in OWN_PACKAGES if module_name in ("", package)]
        module = next((package for package in packages if name in vars(package)), None)
    else:
        module = sys.modules.get(module_name)
    # Not getattr: a module may have a __getattr__ that imports.
    cls = vars(module).get(name) if isinstance(module, ModuleType) else None
    if isinstance(cls, type) and issubclass(cls, Configurable):
        return cls
    if _is_inside_another(module_name):
        raise UserError(
            f"'{class_path}' is defined inside a class or function, where no file finds it. Nothing was run: load the file "
            f"with the `load_from_checkpoint` of {name} itself, or move {name} to the top level of its module and save again"
        )
    raise UserError(
        f"'{class_path}' is not a class of d2v_lightning, nor a Configurable one of a module that is imported. Nothing was "
        "run: if it is yours, import its module first, or name the class on the command line or in a --config"
    )


def _is_inside_another(owner: str) -> bool:
    """Whether what stands before the last dot of a class path is a class, or the inside of a function."""
    module_name, _, name = owner.rpartition(".")
    module = sys.modules.get(module_name)
    return name == "<locals>" or (isinstance(module, ModuleType) and isinstance(vars(module).get(name), type))


def refuse_foreign(tree: Any, root: type | None = None) -> None:
    """Look through a stored tree without making anything of it.

    Args:
        tree: the stored tree.
        root: see `build`.

    Raises:
        ValueError: it names a class that `own_class` refuses, is not of the form of such a tree, or leads to another file.
    """
    for node in _nodes(tree):
        if "class_path" in node:
            path, arguments = node["class_path"], node.get("init_args", {})
            if not set(node) <= {"class_path", "init_args"} or not isinstance(arguments, dict):
                raise UserError(f"the settings stored for {path!r} are not of this project's form")
            if odd := [name for name in arguments if not isinstance(name, str)]:
                raise UserError(f"the settings stored for {path!r} have an argument named {odd[0]!r}, which is no name")
            _refuse_another_file(root if root is not None and node is tree else own_class(path), arguments)


def is_known(tree: Any) -> bool:
    """Whether a tree names only classes that `own_class` gives."""
    try:
        refuse_foreign(tree)
    except UserError:
        return False
    return True


def is_ours(tree: Any, root: type | None = None) -> bool:
    """Whether all classes of a stored tree are this project's, see `build`."""
    paths = [node["class_path"] for node in _nodes(tree) if "class_path" in node and not (root and node is tree)]
    return all(map(_is_ours, [*map(own_class, paths), *([root] if root else [])]))


def _refuse_another_file(cls: type, arguments: dict[str, Any]) -> None:
    """A module of ours that starts from a file forgets its name: no stored tree may send its reader to another file.

    Raises:
        ValueError: this one would.
    """
    given = arguments.get("checkpoint")
    ours = [base for base in cls.__mro__ if _is_ours(base)]
    if given is not None and any("checkpoint" in inspect.signature(base).parameters for base in ours):
        raise UserError(
            f"its stored settings name another file, checkpoint: {str(given)[:200]!r}. Nothing was read from there: a file "
            "holds its own weights, so this one was changed by hand"
        )


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a tree.

    Raises:
        ValueError: it is deeper, or has more branches, than settings ever are.
    """
    waiting, seen = [(tree, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > _DEEPEST or seen > _MOST:
            raise UserError("its stored settings are nested without end")
        if isinstance(value, dict):
            yield value
        inside = value.values() if isinstance(value, dict) else value
        waiting += [(item, depth + 1) for item in inside if isinstance(item, (dict, list, tuple))]


def own_package(name: str) -> ModuleType:
    """`d2v_lightning` or `datamodules`, imported.

    Raises:
        ValueError: another project's `datamodules` stands before ours on the path.
    """
    package = importlib.import_module(name)
    # A folder without an __init__.py is a package too, and has no __file__. A single file has no __path__.
    found = [os.path.realpath(path) for path in getattr(package, "__path__", [str(package.__file__)])]
    expected = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), name)
    if found != [expected]:
        raise UserError(
            f"{found[0]} hides the package {name} of d2v_lightning: rename it, or start from another folder"
        )
    return package
