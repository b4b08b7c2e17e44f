"""Settings in YAML, read so that every way in which a file can be wrong is one line with the line in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from d2v_lightning.support.errors import UsageError, flat

MOST_VALUES = 100_000  # of a file, with all its aliases written out
DEEPEST = 60

KeyPath = tuple[str | int, ...]


@dataclass
class YamlFile:
    """A file's settings, and the line of each key."""

    value: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)


def read_yaml(path: str) -> YamlFile:
    """The settings in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not text in UTF-8 or not YAML, says a key twice, or is deeper or larger than settings can be.
    """
    data = Path(path).read_bytes()
    text = _decoded(data, path)
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None:
            _look_at(node, path)
        value = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}{line} is not valid YAML: {flat(error.problem or error.context)}") from error
    except yaml.reader.ReaderError as error:
        place = text[: error.position].count("\n") + 1
        raise UsageError(f"{path}:{place} holds the control character {error.character:#04x}: take it out") from error
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deeply: {DEEPEST} levels are the most") from error
    except (yaml.YAMLError, ValueError) as error:  # a date or a number that there is none of
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is not valid YAML: {flat(error)}") from error
    return YamlFile(value, {} if node is None else dict(_lines(node, ())))


def parsed(value: str | None) -> Any:
    """The value of an option, as text where it is no YAML."""
    if value is None:
        return None
    try:
        node = yaml.compose(value, yaml.SafeLoader)
        if node is not None:
            _look_at(node, value[:40])
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        return value


def _decoded(data: bytes, path: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        utf_16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        line = "" if utf_16 else f":{data[: error.start].count(10) + 1}"
        what = "is UTF-16, as PowerShell's > writes" if utf_16 else f"is not UTF-8 (byte {data[error.start]:#04x})"
        raise UsageError(f"{path}{line} {what}: save it as UTF-8") from error


def _look_at(node: yaml.Node, path: str) -> None:
    """Refuses what would not end, or would hide a setting."""
    sizes: dict[int, int] = {}
    open_: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        where = f"{path}:{node.start_mark.line + 1}"
        if id(node) in open_:
            raise UsageError(f"{where} holds itself, by an anchor and its alias: write it out")
        if depth > DEEPEST:
            raise UsageError(f"{where} is nested too deeply: {DEEPEST} levels are the most")
        if id(node) not in sizes:
            open_.add(id(node))
            _refuse_twice(node, path)
            sizes[id(node)] = 1 + sum(size(child, depth + 1) for child in _children(node))
            open_.discard(id(node))
            if sizes[id(node)] > MOST_VALUES:
                raise UsageError(f"{where} makes more than {MOST_VALUES:,} values with its aliases: write it out")
        return sizes[id(node)]

    size(node, 0)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _refuse_twice(node: yaml.Node, path: str) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
            continue
        line = key.start_mark.line + 1
        if key.value in seen:
            raise UsageError(f"{path}:{line} says {key.value!r} again, after line {seen[key.value]}: keep one of them")
        seen[key.value] = line


def _lines(node: yaml.Node, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield (*path, key.value), key.start_mark.line + 1
                yield from _lines(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            yield (*path, place), value.start_mark.line + 1
            yield from _lines(value, (*path, place))
