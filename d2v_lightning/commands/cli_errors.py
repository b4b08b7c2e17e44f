"""What is wrong with a command line or its YAML files: what, where, the nearest valid names, what to do.

jsonargparse decides whether a configuration is valid, but its messages name neither the file nor the whole key. So
where it refuses one, `explain` walks the same files and options against the same constructor signatures and says where.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from d2v_lightning.commands.running import system_error
from d2v_lightning.commands.yaml_files import parsed, read_yaml
from d2v_lightning.support.errors import UsageError

_NOT_SECTIONS = ("config", "print_config", "help", "help_all")
_FLAGS = ("--print_config", "--help", "-h", "--help_all")
_SECTIONS = ("--model", "--data", "--trainer", "--model_checkpoint", "--predictions")
_PLAIN_TYPES = ("builtins", "collections", "datetime", "os", "pathlib", "typing")
_ABSTRACT = ("LightningModule", "LightningDataModule", "Callback", "Logger", "Encoder")
_TREE_KEYS = {"class_path", "init_args", "dict_kwargs"}


@dataclass
class CommandLine:
    """A command line, cut into options but not interpreted.

    Args:
        subcommand: fit, validate, test or predict, or what stands in its place.
        options: (name with dashes, value or None) in order.
    """

    subcommand: str | None
    options: list[tuple[str, str | None]]

    @classmethod
    def read(cls, argv: Sequence[str]) -> CommandLine:
        rest = list(argv)
        subcommand = rest.pop(0) if rest and not rest[0].startswith("-") else None
        options: list[tuple[str, str | None]] = []
        while rest:
            word = rest.pop(0)
            if "=" in word and word.startswith("-"):
                name, _, value = word.partition("=")
                options.append((name, value))
            elif word.startswith("-") and rest and not rest[0].startswith("--") and word not in _FLAGS:
                options.append((word, rest.pop(0)))
            else:
                options.append((word, None))
        return cls(subcommand, [("--config" if name == "-c" else name, value) for name, value in options])

    def has(self, name: str) -> bool:
        return any(option == name for option, _ in self.options)

    @functools.cached_property
    def configs(self) -> list[Source]:
        """The files given by --config."""
        return [Source.file(value) for name, value in self.options if name == "--config" and value is not None]

    def files(self) -> list[Source]:
        """The files given by --config, or for a whole section (`--data FILE`)."""
        sections = [v for name, v in self.options if name in _SECTIONS and v is not None and Path(v).is_file()]
        return [*self.configs, *map(Source.file, sections)]

    def gives(self, section: str) -> bool:
        """Whether "model" or "data" is given by class: where not, a checkpoint may say which it is."""
        if self.has(f"--{section}") or self.has(f"--{section}.class_path"):
            return True
        values = [source.value.get(section) for source in self.configs]
        return any(isinstance(value, str) or (isinstance(value, dict) and "class_path" in value) for value in values)

    def class_paths(self) -> Iterator[str]:
        """Classes that the command line and its files name."""
        trees = [source.value for source in self.configs]
        trees += [Source.option(name, value).value for name, value in self.options if name != "--config"]
        for tree in trees:
            yield from (tree[name] for name in ("model", "data") if isinstance(tree.get(name), str))
            yield from _class_paths(tree)

    def value(self, key: str) -> Any:
        """The last value given for a top-level key, on the command line or else in a file."""
        given = [value for name, value in self.options if name == f"--{key}"]
        files = [source.value[key] for source in self.configs if key in source.value]
        return (given or files or [None])[-1]


@dataclass
class Source:
    """Settings from one place: a file, an option, a checkpoint.

    Args:
        name: of the place.
        value: the settings, a tree.
        lines: line of each key in a file.
        problem: why it could not be read.
    """

    name: str
    value: Any
    lines: dict[tuple[str | int, ...], int] = field(default_factory=dict)
    problem: str | None = None

    @classmethod
    def file(cls, path: str) -> Source:
        try:
            found = read_yaml(path)
        except FileNotFoundError as error:
            near = _nearest(Path(path).name, [file.name for file in Path(path).parent.glob("*.y*ml")])
            hint = f"\n  did you mean: {Path(path).with_name(near[0])}" if near else ""
            return cls(path, {}, problem=f"cannot read {path}: {error.strerror}{hint}")
        except OSError as error:
            return cls(path, {}, problem=f"cannot read {system_error(error)}")
        except UsageError as error:
            return cls(path, {}, problem=str(error))
        if not isinstance(found.value, dict):
            return cls(
                path, {}, problem=f"{path} holds no settings: it must be a YAML file with keys such as model, data"
            )
        return cls(path, found.value, found.lines)

    @classmethod
    def option(cls, name: str, value: str | None) -> Source:
        tree: Any = parsed(value)
        for key in reversed(name.lstrip("-").split(".")):
            tree = {key: tree}
        return cls(name if value is None else f"{name} {value}", tree)

    def place(self, path: tuple[str | int, ...]) -> str:
        return f"{self.name}:{self.lines[path]}" if path in self.lines else self.name


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
            elif name not in _FLAGS:
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
            required = [n for n, p in _parameters(cls).items() if p.default is inspect.Parameter.empty]
            missing = [name for name in required if name not in self.given.get(key, set())]
            if missing:
                raise MistakeError(f"{cls.__name__} needs {', '.join(missing)}", key, [f"set {key}.{missing[0]}"])

    def _check(
        self, annotation: Any, value: Any, key: str, source: Source, path: tuple[str | int, ...], section: bool = False
    ) -> None:
        bases = _classes_in(annotation)
        if value is None and not _allows_none(annotation):
            hints = [f"set it to {readable(annotation)}, or leave the key out"]
            raise MistakeError(f"{key} is empty (null)", self._where(source, path, key), hints)
        if get_origin(annotation) is dict and isinstance(value, dict):
            for name, item in value.items():
                self._check(get_args(annotation)[1], item, f"{key}.{name}", source, (*path, name))
        elif bases and isinstance(value, list):
            for place, item in enumerate(value):
                self._check(annotation, item, f"{key}[{place}]", source, (*path, place))
        elif bases and isinstance(value, (dict, str)) and not (isinstance(value, str) and takes(annotation, value)):
            self._check_tree(
                bases, {"class_path": value} if isinstance(value, str) else value, key, source, path, section
            )
        elif not bases and (_holds_nan(value) or not takes(annotation, value)):
            hints = [f"it must be {readable(annotation)}"]
            hints += _did_you_mean(str(value), _choices(annotation))
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
            if section and not _is_concrete(bases[0]):
                hints = [f"put --config FILE, or --{key} CLASS, before it"]
                raise MistakeError(f"{key} has no class yet", self._where(source, path, key), hints)
            if not _is_concrete(bases[0]):
                names = sorted({cls.__name__ for base in bases for cls in _subclasses(base) if _is_concrete(cls)})
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
        parameters = _parameters(cls)
        hints = _hints(cls)
        for name, value in arguments.items():
            plain_name = str(name).removesuffix("+")
            if plain_name in ("init_args", "help", "class_path"):
                if isinstance(value, dict):
                    self._check_arguments(cls, value, key, source, (*path, name))
                continue
            if plain_name not in parameters:
                if _takes_anything(cls):
                    continue
                where = self._where(source, (*path, name), f"{key}.{name}")
                raise self._unknown(f"unknown key '{name}'", plain_name, list(parameters), where, cls.__name__)
            self.given.setdefault(key, set()).add(plain_name)
            if value is None and parameters[plain_name].default is None:
                continue
            self._check(hints.get(plain_name, Any), value, f"{key}.{plain_name}", source, (*path, name))

    def _resolve(self, bases: list[type], class_path: Any, key: str, where: str) -> type:
        module_name, _, name = str(class_path).rpartition(".")
        known = {cls.__name__: cls for base in bases for cls in (base, *_subclasses(base))}
        if not module_name and name in known:
            return known[name]
        if module_name:
            try:
                cls = getattr(importlib.import_module(module_name), name, None)
            except ImportError:
                cls = None
            if isinstance(cls, type) and issubclass(cls, tuple(bases)):
                return cls
        candidates = {name for name, cls in known.items() if _is_concrete(cls)}
        raise self._unknown(f"unknown class '{class_path}'", name, sorted(candidates), where, key)

    @staticmethod
    def _where(source: Source, path: tuple[str | int, ...], key: str) -> str:
        return f"{source.place(path)}, {key}"

    @staticmethod
    def _unknown(what: str, name: str, known: Sequence[str], where: str, owner: str) -> MistakeError:
        hints = _did_you_mean(name, known)
        shown = [word for word in known if not word.startswith("_")]
        most = 12 if hints else 40
        more = f", ... ({len(shown)} in all)" if len(shown) > most else ""
        return MistakeError(what, where, [*hints, f"{owner} takes: {', '.join(shown[:most])}{more}"])


def _class_paths(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict) and isinstance(tree.get("class_path"), str):
        yield tree["class_path"]
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _class_paths(value)


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    lower = {word.lower(): word for word in known}
    return [lower[word] for word in difflib.get_close_matches(name.lower(), list(lower), n=3, cutoff=0.6)]


def _did_you_mean(name: str, known: Sequence[str]) -> list[str]:
    near = _nearest(name, known)
    return [f"did you mean: {', '.join(near)}"] if near else []


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    skipped = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = list(inspect.signature(cls.__init__).parameters.items())[1:]  # type: ignore[misc]
    return {name: parameter for name, parameter in parameters if parameter.kind not in skipped}


def _takes_anything(cls: type) -> bool:
    parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls.__init__)  # type: ignore[misc]
    except NameError:  # names that another package imports for type checking only
        return {}


def _classes_in(annotation: Any) -> list[type]:
    """Classes whose instances are configured by class_path, anywhere in an annotation."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return [] if annotation.__module__.partition(".")[0] in _PLAIN_TYPES else [annotation]
    if get_origin(annotation) is Literal:
        return []
    return [cls for argument in get_args(annotation) for cls in _classes_in(argument)]


def _subclasses(cls: type) -> Iterator[type]:
    children: list[type] = cls.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)


def _is_concrete(cls: type) -> bool:
    return not inspect.isabstract(cls) and cls.__name__ not in _ABSTRACT


def _allows_none(annotation: Any) -> bool:
    if annotation in (Any, None, type(None)):
        return True
    return get_origin(annotation) in (Union, types.UnionType) and any(map(_allows_none, get_args(annotation)))


def _holds_nan(value: Any) -> bool:
    return value != value or (isinstance(value, list) and any(map(_holds_nan, value)))


def takes(annotation: Any, value: Any) -> bool:
    """Whether jsonargparse takes a value for an annotation."""
    if annotation is Any:
        return True
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=annotation)
    try:
        parser.parse_object({"value": value})
    except ArgumentError:
        return False
    return True


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    if get_origin(annotation) in (Union, types.UnionType):
        return [choice for part in get_args(annotation) for choice in _choices(part)]
    return []


def readable(annotation: Any) -> str:
    """What an annotation permits, in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if annotation in words:
        return words[annotation]
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(readable(part) for part in get_args(annotation))
    if get_origin(annotation) in (list, tuple):
        parts = [readable(part) for part in get_args(annotation) if part is not Ellipsis]
        if get_origin(annotation) is list:
            return f"a list, each {' '.join(parts)}"
        return f"a list [{', '.join(parts)}]"
    return str(getattr(annotation, "__name__", annotation))
