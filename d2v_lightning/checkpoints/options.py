"""Options of foreign files as plain data: read, never evaluated."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

_LAYERS = re.compile(r"\[((?:\(\d+,\d+,\d+\),?)+)\](?:\*(\d+))?")


def as_options(given: Any) -> dict[str, Any] | None:
    """A Namespace or a mapping as a dictionary; None where it is neither."""
    if isinstance(given, argparse.Namespace):
        return vars(given)
    return dict(given) if isinstance(given, Mapping) else None


def option(options: Mapping[str, Any], *names: str, default: Any) -> Any:
    """The first of these options that is set; a dotted name leads through sections."""
    for name in names:
        value: Any = options
        for part in name.split("."):
            section = as_options(value)
            value = None if section is None else section.get(part)
        if value is not None:
            return value
    return default


def parse_conv_layers(spec: Any, path: str) -> list[tuple[int, int, int]]:
    """(channels, kernel, stride) of each convolution, from text such as `[(512, 10, 5)] + [(512, 3, 2)] * 4`.

    Raises:
        ValueError: it is written in another way.
    """
    text = re.sub(r"\s", "", spec) if isinstance(spec, str) else ""
    layers: list[tuple[int, int, int]] = []
    for part in text.split("+"):
        match = _LAYERS.fullmatch(part)
        if match is None:
            raise ValueError(
                f"{path}: its convolutions are given as {spec!r}, expected text such as '[(512, 10, 5)] + [(512, 3, 2)] * 4'"
            )
        numbers = [int(number) for number in re.findall(r"\d+", match[1])]
        layers += list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)) * min(int(match[2] or 1), 1000)
    return layers


def target_norms(options: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Norms of each layer result and of their average, in the order in which fairseq's models apply them."""
    each = [kind for kind in ("batch", "instance", "layer") if options.get(f"{kind}_norm_target_layer")]
    after = [kind for kind in ("layer", "instance") if options.get(f"{kind}_norm_targets")]
    return each, after
