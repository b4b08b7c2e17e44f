"""What is wrong with a command line or its YAML files: what, where, the nearest valid names, what to do.

jsonargparse decides whether a configuration is valid, but its messages name neither the file nor the whole key. So
where it refuses one, `explain` walks the same files and options against the same constructor signatures and says where.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from d2v_lightning.commands.settings import FLAGS, CommandLine, Source, did_you_mean
from d2v_lightning.commands.signatures import (
    allows_none,
    annotations_of,
    choices,
    classes_in,
    holds_nan,
    is_base,
    is_concrete,
    parameters_of,
    readable,
    subclasses,
    takes,
    takes_anything,
)
from d2v_lightning.support.errors import UsageError

_NOT_SECTIONS = ("config", "print_config", "help", "help_all")
_TREE_KEYS = {"class_path", "init_args", "dict_kwargs"}


@dataclass
class MistakeError(Exception):
    """One thing that is wrong."""

    what: str
    where: str
    hints: list[str]

    def __str__(self) -> str:
        return "\n  ".join([self.what, f"where: {self.where}", *self.hints])


@dataclass
class Section:
    """A top-level key of the configuration that is a class.

    Args:
        base: the class, or the base of the classes that may be named.
        required: there must be one.
    """

    base: type
    required: bool = False


def explain(
    line: CommandLine, sections: Mapping[str, Section], scalars: Mapping[str, Any], message: str, before: Source
) -> str:
    """A few lines for a person, on a command line that jsonargparse has refused.

    Args:
        line: the command line.
        sections: of the subcommand.
        scalars: its other top-level keys, and the type that each takes.
        message: what jsonargparse says, for what this function does not find.
        before: settings that came before the command line's own (a checkpoint's).
    """
    schema = _Schema(sections, scalars)
    try:
        schema.check(before)
        for name, value in line.options:
            if not name.startswith("-"):
                raise MistakeError(
                    f"'{name}' is not an option", name, ["options begin with --, and each takes one value"]
                )
            if name == "--config":
                schema.check(Source.file(value or ""))
            elif name not in FLAGS:
                if value is None:
                    raise MistakeError(f"{name} needs a value", name, [f"write {name} VALUE"])
                schema.check(Source.option(name, value))
        schema.check_complete()
    except MistakeError as problem:
        return str(problem)
    text = [row.strip()[:200] for row in message.splitlines() if row.strip()]
    return "\n  ".join(text[:4])


class _Schema:
    """Constructor signatures as the schema, with the classes chosen so far."""

    def __init__(self, sections: Mapping[str, Section], scalars: Mapping[str, Any]) -> None:
        self.sections = sections
        self.scalars = {name: kind for name, kind in scalars.items() if name not in _NOT_SECTIONS}
        self.classes: dict[str, type] = {}
        self.given: dict[str, set[str]] = {}

    def check(self, source: Source) -> None:
        if source.problem is not None:
            raise UsageError(source.problem)
        for name, value in source.value.items():
            plain_name = str(name).removesuffix("+")
            if plain_name in self.sections:
                base = self.sections[plain_name].base
                self._check(base, value, plain_name, source, (name,), section=True)
            elif plain_name not in self.scalars:
                known = [*self.sections, *self.scalars]
                raise self._unknown(
                    f"unknown key '{name}'", plain_name, known, source.place((name,)), "a configuration"
                )
            elif value is not None:
                self._check(self.scalars[plain_name], value, plain_name, source, (name,))

    def check_complete(self) -> None:
        for name, section in self.sections.items():
            if section.required and name not in self.classes:
                raise MistakeError(
                    f"no {name} is given",
                    "the command line",
                    [
                        f"give --config FILE (see configs/), or --{name} CLASS",
                        "or --ckpt_path FILE, which knows its own",
                    ],
                )
        for key, cls in self.classes.items():
            required = [n for n, p in parameters_of(cls).items() if p.default is inspect.Parameter.empty]
            missing = [name for name in required if name not in self.given.get(key, set())]
            if missing:
                raise MistakeError(f"{cls.__name__} needs {', '.join(missing)}", key, [f"set {key}.{missing[0]}"])

    def _check(
        self, annotation: Any, value: Any, key: str, source: Source, path: tuple[str | int, ...], section: bool = False
    ) -> None:
        bases = classes_in(annotation)
        if value is None and not allows_none(annotation):
            hints = [f"set it to {readable(annotation)}, or leave the key out"]
            raise MistakeError(f"{key} is empty (null)", self._where(source, path, key), hints)
        if get_origin(annotation) is dict and isinstance(value, dict):
            for name, item in value.items():
                self._check(get_args(annotation)[1], item, f"{key}.{name}", source, (*path, name))
        elif bases and isinstance(value, list):
            for place, item in enumerate(value):
                self._check(annotation, item, f"{key}[{place}]", source, (*path, place))
        elif bases and (
            isinstance(value, dict) or (isinstance(value, str) and (section or not takes(annotation, value)))
        ):
            tree = {"class_path": value} if isinstance(value, str) else value
            self._check_tree(bases, tree, key, source, path, section)
        elif not bases and (holds_nan(value) or not takes(annotation, value)):
            hints = [f"it must be {readable(annotation)}"]
            hints += did_you_mean(str(value), choices(annotation))
            raise MistakeError(f"{key} cannot be {value!r}", self._where(source, path, key), hints)

    def _check_tree(
        self,
        bases: list[type],
        tree: dict[str, Any],
        key: str,
        source: Source,
        path: tuple[str | int, ...],
        section: bool,
    ) -> None:
        wrapped = set(tree) <= _TREE_KEYS
        if "class_path" in tree:
            cls = self._resolve(bases, tree["class_path"], key, self._where(source, (*path, "class_path"), key))
            if self.classes.get(key) is not cls:
                self.classes[key] = cls
        elif key not in self.classes:
            if section and not is_concrete(bases[0]):
                hints = [f"put --config FILE, or --{key} CLASS, before it"]
                raise MistakeError(f"{key} has no class yet", self._where(source, path, key), hints)
            if not is_concrete(bases[0]):
                names = sorted({cls.__name__ for base in bases for cls in subclasses(base) if is_concrete(cls)})
                hints = [f"set {key}.class_path to one of: {', '.join(names)}"]
                raise MistakeError(f"{key} has no class", self._where(source, path, key), hints)
            self.classes[key] = bases[0]
        arguments = (tree.get("init_args") or {}) if wrapped else tree
        below = (*path, "init_args") if wrapped and "init_args" in tree else path
        if isinstance(arguments, dict):
            self._check_arguments(self.classes[key], arguments, key, source, below)

    def _check_arguments(
        self, cls: type, arguments: dict[str, Any], key: str, source: Source, path: tuple[str | int, ...]
    ) -> None:
        parameters = parameters_of(cls)
        hints = annotations_of(cls)
        for name, value in arguments.items():
            plain_name = str(name).removesuffix("+")
            if plain_name in ("init_args", "help", "class_path"):
                if isinstance(value, dict):
                    self._check_arguments(cls, value, key, source, (*path, name))
                continue
            if plain_name not in parameters:
                if takes_anything(cls):
                    continue
                where = self._where(source, (*path, name), f"{key}.{name}")
                raise self._unknown(f"unknown key '{name}'", plain_name, list(parameters), where, cls.__name__)
            self.given.setdefault(key, set()).add(plain_name)
            if value is None and parameters[plain_name].default is None:
                continue
            self._check(hints.get(plain_name, Any), value, f"{key}.{plain_name}", source, (*path, name))

    def _resolve(self, bases: list[type], class_path: Any, key: str, where: str) -> type:
        module_name, _, name = str(class_path).rpartition(".")
        known = {cls.__name__: cls for base in bases for cls in (base, *subclasses(base))}
        candidates = sorted(name for name, cls in known.items() if is_concrete(cls))
        try:
            package = importlib.import_module(module_name or "d2v_lightning")
        except ImportError:
            package = None
        cls = getattr(package, name, None) if module_name or name not in known else known[name]
        if not isinstance(cls, type):
            raise self._unknown(f"unknown class '{class_path}'", name, candidates, where, key)
        needed = f"{key} takes: {', '.join(candidates)}"
        if not issubclass(cls, tuple(bases)):
            raise MistakeError(f"{key} cannot be a {cls.__name__}", where, [needed])
        if is_base(cls):
            raise MistakeError(f"{cls.__name__} is only a base of other classes: name one of those", where, [needed])
        return cls

    @staticmethod
    def _where(source: Source, path: tuple[str | int, ...], key: str) -> str:
        return f"{source.place(path)}, {key}"

    @staticmethod
    def _unknown(what: str, name: str, known: Sequence[str], where: str, owner: str) -> MistakeError:
        hints = did_you_mean(name, known)
        shown = [word for word in known if not word.startswith("_")]
        most = 12 if hints else 40
        more = f", ... ({len(shown)} in all)" if len(shown) > most else ""
        return MistakeError(what, where, [*hints, f"{owner} takes: {', '.join(shown[:most])}{more}"])
