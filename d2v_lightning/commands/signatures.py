"""What a constructor takes, read off its signature, and what an annotation permits."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from d2v_lightning.configurable import OWN_PACKAGES, public_path
from d2v_lightning.flavour import pl

_PLAIN_TYPES = ("builtins", "collections", "datetime", "os", "pathlib", "typing")
# Of Lightning and of ours: they lack what their subclasses define.
_BASES = (
    "LightningModule",
    "LightningDataModule",
    "Logger",
    "Encoder",
    "Callback",
    "Checkpoint",
    "ProgressBar",
    "BaseFinetuning",
    "BasePredictionWriter",
    "SaveConfigCallback",
)


def parameters_of(cls: type) -> dict[str, inspect.Parameter]:
    """Parameters of a constructor that have a name to call them by."""
    skipped = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = list(inspect.signature(cls.__init__).parameters.items())[1:]  # type: ignore[misc]
    return {name: parameter for name, parameter in parameters if parameter.kind not in skipped}


def takes_anything(cls: type) -> bool:
    """Whether a constructor takes names that its signature does not say."""
    parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def annotations_of(cls: type) -> dict[str, Any]:
    """What each parameter of a constructor is annotated with; nothing where that cannot be found out."""
    try:
        return get_type_hints(cls.__init__)  # type: ignore[misc]
    except NameError:  # names that another package imports for type checking only
        return {}


def classes_in(annotation: Any) -> list[type]:
    """Classes whose instances are configured by class_path, anywhere in an annotation."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return [] if annotation.__module__.partition(".")[0] in _PLAIN_TYPES else [annotation]
    if get_origin(annotation) is Literal:
        return []
    return [cls for argument in get_args(annotation) for cls in classes_in(argument)]


def subclasses(cls: type) -> Iterator[type]:
    """Classes that have been loaded and inherit from a class, at any depth."""
    children: list[type] = cls.__subclasses__()
    for child in children:
        yield child
        yield from subclasses(child)


def is_base(cls: type) -> bool:
    """Whether a class is there for its subclasses alone."""
    known = cls.__module__.partition(".")[0] in (*OWN_PACKAGES, pl.__name__.partition(".")[0])
    return inspect.isabstract(cls) or (known and cls.__name__ in _BASES)


def is_concrete(cls: type) -> bool:
    """Whether a class is one to name: it is no base, nor one of ours that is not public."""
    hidden = cls.__module__.partition(".")[0] in OWN_PACKAGES and public_path(cls).count(".") > 1
    return not (is_base(cls) or hidden)


def allows_none(annotation: Any) -> bool:
    """Whether an annotation permits None."""
    if annotation in (Any, None, type(None)):
        return True
    return get_origin(annotation) in (Union, types.UnionType) and any(map(allows_none, get_args(annotation)))


def holds_nan(value: Any) -> bool:
    """Whether a value is NaN, or a list with one in it."""
    return value != value or (isinstance(value, list) and any(map(holds_nan, value)))


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


def choices(annotation: Any) -> list[str]:
    """The words that an annotation permits."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    if get_origin(annotation) in (Union, types.UnionType):
        return [choice for part in get_args(annotation) for choice in choices(part)]
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
