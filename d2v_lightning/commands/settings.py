"""Where settings come from: a command line, cut into options but not interpreted, and YAML files."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2v_lightning.commands.running import system_error
from d2v_lightning.commands.yaml_files import parsed, read_yaml
from d2v_lightning.support.errors import UsageError

FLAGS = ("--print_config", "--help", "-h", "--help_all")
_SECTIONS = ("--model", "--data", "--trainer", "--model_checkpoint", "--predictions")


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
            elif word.startswith("-") and rest and not rest[0].startswith("--") and word not in FLAGS:
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
            near = nearest(Path(path).name, [file.name for file in Path(path).parent.glob("*.y*ml")])
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


def _class_paths(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict) and isinstance(tree.get("class_path"), str):
        yield tree["class_path"]
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _class_paths(value)


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """Up to three known names that are spelt nearly like one."""
    lower = {word.lower(): word for word in known}
    return [lower[word] for word in difflib.get_close_matches(name.lower(), list(lower), n=3, cutoff=0.6)]


def did_you_mean(name: str, known: Sequence[str]) -> list[str]:
    """The hint that names them, where there are any."""
    near = nearest(name, known)
    return [f"did you mean: {', '.join(near)}"] if near else []
