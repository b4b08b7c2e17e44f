"""Options of foreign files as plain data: read, never evaluated."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from d2v_lightning.support.errors import UserError
from d2v_lightning.support.tensor_files import Inert

_LAYERS = re.compile(r"\[((?:\(\d+,\d+,\d+\),?)+)\](?:\*(\d+))?")
_ELSEWHERE = re.compile(r"\$\{([\w.]+)\}")  # "${optimization.max_update}"
_DEEPEST = 50  # sections within sections


class Options(dict[str, Any]):
    """Options of a file, in sections, which remember which of them were asked for.

    Args:
        given: options by name; a section is a mapping.
        read: dotted names of those that were asked for, shared by all sections.
        place: what stands before the names of this section: "model.".
    """

    def __init__(self, given: Mapping[str, Any], read: set[str] | None = None, place: str = "") -> None:
        self.read: set[str] = set() if read is None else read
        self.place = place
        super().__init__({str(name): self._section(str(name), value) for name, value in given.items()})

    def _section(self, name: str, value: Any) -> Any:
        return Options(value, self.read, f"{self.place}{name}.") if isinstance(value, dict) else value

    def __getitem__(self, name: str) -> Any:
        self.read.add(self.place + name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(self.place + name)
        return super().get(name, default)

    def changed(self, **others: Any) -> Options:
        """The same with other values for some; what is read of the one counts as read of the other."""
        return Options({**self, **others}, self.read, self.place)

    def leaves(self) -> Iterator[tuple[str, Any]]:
        """(dotted name, value) of every option."""
        for name, value in self.items():
            if isinstance(value, Options):
                yield from value.leaves()
            else:
                yield self.place + name, value


def as_options(given: Any) -> dict[str, Any] | None:
    """A Namespace or a mapping as a dictionary; None where it is neither."""
    if isinstance(given, Options):
        return given
    if isinstance(given, argparse.Namespace):
        return vars(given)
    return dict(given) if isinstance(given, Mapping) else None


def plain_options(given: Any) -> Any:
    """The options of a file with the objects of omegaconf that older ones hold unwrapped, and references followed.

    Raises:
        ValueError: sections are nested without end.
    """
    whole = _unwrapped(given)
    return _resolved(whole, whole)


def _unwrapped(value: Any, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise UserError("its options are nested without end")
    if isinstance(value, Inert):
        inside = vars(value)
        if "_content" in inside:  # omegaconf's DictConfig or ListConfig
            return _unwrapped(inside["_content"], depth + 1)
        if "_val" in inside:  # its leaves; those of enumerations know the names of their values
            names = {number: name for name, number in (as_options(inside.get("fields")) or {}).items()}
            leaf = _unwrapped(inside["_val"], depth + 1)
            return names.get(leaf, leaf) if isinstance(leaf, (int, str)) else leaf
        return _unwrapped(value.given[0], depth + 1) if len(value.given) == 1 else None  # an enumeration's value
    if (section := as_options(value)) is not None:
        return {_unwrapped(name, depth + 1): _unwrapped(item, depth + 1) for name, item in section.items()}
    if isinstance(value, (list, tuple)):
        return [_unwrapped(item, depth + 1) for item in value]
    return None if isinstance(value, str) and value == "???" else value  # omegaconf's "missing"


def _resolved(value: Any, whole: Any) -> Any:
    if isinstance(value, dict):
        return {name: _resolved(item, whole) for name, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, whole) for item in value]
    match = _ELSEWHERE.fullmatch(value) if isinstance(value, str) else None
    return _at(whole, match[1]) if match else value


def _at(value: Any, dotted: str) -> Any:
    """What stands at a dotted name; None where nothing does, or another reference."""
    for part in dotted.split("."):
        value = (as_options(value) or {}).get(part)
    return None if isinstance(value, str) and _ELSEWHERE.fullmatch(value) else value


def option(options: Mapping[str, Any], *names: str, default: Any) -> Any:
    """The first of these options that is set; a dotted name leads through sections.

    Raises:
        ValueError: it is no number, no finite one or no truth value where `default` is one, or no text where that is text.
    """
    for name in names:
        value = _at(options, name)
        if value is None:
            continue
        kinds: tuple[type, ...] = (bool, int) if isinstance(default, bool) else (int, float)
        kinds = (str,) if isinstance(default, str) else kinds if isinstance(default, (int, float)) else (object,)
        if not isinstance(value, kinds) or (isinstance(value, float) and not math.isfinite(value)):
            raise UserError(f"its option {name} is {value!r}, where one such as {default!r} is expected")
        return value
    return default


def truth(value: Any, name: str) -> bool | None:
    """A truth value of an option, None where it is not set.

    Raises:
        ValueError: it is anything else, which nobody should guess.
    """
    if value is None or isinstance(value, bool):
        return value
    raise UserError(f"its option {name} is {value!r}, where true or false is expected")


def refuse_contradictions(options: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Compare options with what the weights say, `found` by the options' dotted names.

    Raises:
        ValueError: an option is set and says something else.
    """
    for name, value in found.items():
        said = _at(options, name)
        close = isinstance(said, float) and math.isclose(said, value, rel_tol=1e-3)
        if said is not None and said != value and not close:
            raise UserError(f"its option {name} is {said!r}, its weights are those of {value!r}")


def refuse_unknown(options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Compare options with the only values that ours computes with, `known` by the options' dotted names.

    Raises:
        ValueError: an option is set to another value, under which the weights mean other numbers.
    """
    for name, value in known.items():
        if (said := option(options, name, default=value)) != value:
            place = options.place if isinstance(options, Options) else ""
            raise UserError(f"its option {place}{name} is {said!r}, only {value!r} is known")


def parse_conv_layers(spec: Any) -> list[tuple[int, int, int]]:
    """(channels, kernel, stride) of each convolution, from text such as `[(512, 10, 5)] + [(512, 3, 2)] * 4`.

    Raises:
        ValueError: it is written in another way.
    """
    text = re.sub(r"\s", "", spec) if isinstance(spec, str) else ""
    layers: list[tuple[int, int, int]] = []
    for part in text.split("+"):
        match = _LAYERS.fullmatch(part)
        if match is None:
            raise UserError(
                f"its convolutions are given as {spec!r}, expected text such as '[(512, 10, 5)] + [(512, 3, 2)] * 4'"
            )
        numbers = [int(number) for number in re.findall(r"\d+", match[1])]
        layers += list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)) * min(int(match[2] or 1), 1000)
    return layers


def target_norms(options: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Norms of each layer result and of their average, in the order in which fairseq's models apply them.

    Raises:
        ValueError: there is one that ours does not have.
    """
    if options.get("group_norm_target_layer"):
        raise UserError("its option group_norm_target_layer is set, which no released model has")
    each = [kind for kind in ("batch", "instance", "layer") if options.get(f"{kind}_norm_target_layer")]
    after = [kind for kind in ("layer", "instance") if options.get(f"{kind}_norm_targets")]
    return each, after


def model_options(cfg: dict[str, Any], path: str) -> dict[str, Any]:
    """The section of a configuration that describes the network.

    Raises:
        ValueError: there is none.
    """
    options = as_options(cfg.get("model"))
    if options is None:
        raise UserError(f"{path}: its entry 'cfg' has no section 'model', which says what network this is")
    return options


def learning_rate(cfg: dict[str, Any], default: float) -> float:
    """The rate of a configuration, which keeps it as a list of one for each epoch; a composite optimiser has its own."""
    given = option(cfg, "optimizer.groups.default.lr_float", "optimization.lr", default=[default])
    rates = {"lr": given[0] if isinstance(given, list) and given else given}
    return float(option(rates, "lr", default=default))


def ema_anneal_steps(options: Mapping[str, Any], cfg: Mapping[str, Any]) -> int:
    """Updates over which the EMA's decay rises: the whole run where nothing is said, as fairseq's classes have it."""
    return int(option(options, "ema_anneal_end_step", default=option(cfg, "optimization.max_update", default=0)))
