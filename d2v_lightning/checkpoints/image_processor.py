"""How pictures are shown to an image model of `transformers`: its `preprocessor_config.json`, read and written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2v_lightning.checkpoints.directory import read_json
from d2v_lightning.checkpoints.options import truth
from d2v_lightning.configurable import Tree
from d2v_lightning.flavour import rank_zero_info
from d2v_lightning.nn.encoders.image import ImageEncoder
from d2v_lightning.nn.normalization import Normalization, is_finite, normalization_of
from d2v_lightning.support.errors import UserError, naming

PREPROCESSOR = "preprocessor_config.json"
FILES = (PREPROCESSOR, "processor_config.json")
RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # Pillow's numbers
LARGEST = 2**20  # bytes of a file
CROP_SHARE = 0.875  # 224 of 256 pixels, as in the released evaluation of 1.0 and 2.0


def read_processor(directory: Path, encoder: ImageEncoder, name: str) -> Tree | None:
    """Tell an encoder what its pictures are normalised with, where a directory says so; where it does not, say that.

    Args:
        directory: of `transformers`.
        encoder: of the network in it.
        name: what messages call the directory.

    Returns:
        The `ImageDataModule` that shows pictures alike: "crop_share" and "interpolation", as far as they are known. Where
        theirs squeezes a whole picture into a square, ours shows the largest square in its middle.

    Raises:
        ValueError: the file is damaged, or holds other things than numbers where numbers belong.
    """
    path = next((directory / file for file in FILES if (directory / file).is_file()), None)
    options = {} if path is None else _options(path)
    if path is not None:
        with naming(path):
            encoder.normalization = _normalization(options, encoder.in_channels, path)
    if encoder.normalization is None:
        reason = f"no {PREPROCESSOR}" if path is None else f"no image_mean and image_std in {path.name}"
        rank_zero_info(f"{name} does not say what its pictures are normalised with: there is {reason}")
    seen = _evaluation(options)
    return {"class_path": "datamodules.ImageDataModule", "init_args": seen} if seen else None


def write_processor(encoder: ImageEncoder, directory: Path, evaluation: Mapping[str, Any]) -> None:
    """Write the file for a network, whose pixels are then those of our evaluation; where it cannot be, say so.

    Theirs resizes the shorter side and takes the centre, as ours does. A file that is there already stays, where it says mean
    and deviation.

    Args:
        encoder: of the network.
        directory: to write to.
        evaluation: "crop_share" and "interpolation" of the data, as far as they are known; else the released ones.

    Raises:
        ValueError: a file is there that says something else of the normalisation than the network does.
    """
    seen, path, (height, width) = encoder.normalization, directory / PREPROCESSOR, encoder.image_size
    there = next((directory / file for file in FILES if (directory / file).is_file()), None)
    if there is not None:
        theirs = _normalization(_options(there), encoder.in_channels, there)
        if seen is not None and theirs is not None and not theirs.agrees(seen):
            raise UserError(f"{there.name} says {theirs}, the model was trained with {seen}: leave that file out")
        if theirs is not None:
            return
    if seen is None or height != width:
        reason = "the model does not say what its pictures are normalised with"
        if seen is not None:
            reason = f"its resizing knows squares only, and the model reads {height}x{width} pixels"
        rank_zero_info(f"no {PREPROCESSOR} was written: {reason}")
        return
    share, interpolation = evaluation.get("crop_share") or CROP_SHARE, evaluation.get("interpolation") or "bicubic"
    if type(share) not in (int, float) or not 0 < share <= 1 or interpolation not in RESAMPLE:
        raise UserError(
            f"the model's data has crop_share {share!r} and interpolation {interpolation!r}: there are no such"
        )
    colour = encoder.in_channels == 3
    if not colour:
        rank_zero_info(
            f"pipelines of transformers turn every picture into three channels, this model reads {encoder.in_channels}: "
            "call its image processor yourself"
        )
    processor = {
        "image_processor_type": "BeitImageProcessor",
        "do_convert_rgb": colour,
        "do_resize": True,
        "size": {"shortest_edge": int(height / share + 1e-6)},
        "resample": RESAMPLE[interpolation],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": seen.mean,
        "image_std": seen.std,
    }
    path.write_text(json.dumps(processor, indent=1) + "\n", encoding="utf-8")


def _options(path: Path) -> dict[str, Any]:
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes: settings of an image processor are expected")
    options = read_json(path)
    options = options.get("image_processor", options)
    if not isinstance(options, dict):
        raise UserError(f"{path}: image_processor is {options!r}, where its options are expected")
    return options


def _normalization(options: dict[str, Any], channels: int, path: Path) -> Normalization | None:
    """Theirs is of values in 0..255 times `rescale_factor`; ours of values in 0..1."""
    factor = options.get("rescale_factor", 1 / 255)
    if not is_finite(factor) or factor <= 0:
        raise UserError(f"{path}: rescale_factor is {factor!r}, where a number above 0 is expected")
    one = 255 * factor if truth(options.get("do_rescale", True), f"do_rescale of {path}") else 255.0
    mean, std = options.get("image_mean"), options.get("image_std")
    if not truth(options.get("do_normalize", True), f"do_normalize of {path}"):
        mean, std = 0.0, 1.0
    mean, std = ([value] * channels if is_finite(value) else value for value in (mean, std))
    found = normalization_of(mean, std, channels, f"{path}: image_")
    if found is None or math.isclose(one, 1.0):
        return found
    return Normalization([value / one for value in found.mean], [value / one for value in found.std])


def _evaluation(options: dict[str, Any]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    resized, cropped = _side(options.get("size")), _side(options.get("crop_size"))
    if options.get("do_center_crop") is False:
        seen["crop_share"] = 1.0
    elif options.get("do_center_crop") is True and resized and cropped and cropped <= resized <= 10 * cropped:
        seen["crop_share"] = cropped / resized
    names = {number: name for name, number in RESAMPLE.items()}
    if type(options.get("resample")) is int and options["resample"] in names:
        seen["interpolation"] = names[options["resample"]]
    return seen


def _side(size: Any) -> int | None:
    """Pixels of the shorter side, of a number or a description of theirs."""
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("height"))
    return size if type(size) is int and size > 0 else None
