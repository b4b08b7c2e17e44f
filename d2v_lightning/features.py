"""Features of files: what chosen blocks say about pictures, recordings or lines of text.

    python -m d2v_lightning.features 'photos/**/*.jpg' --checkpoint last.ckpt --out features.npy
    python -m d2v_lightning.features 'speech/*.flac' --checkpoint base.pt --out frames.safetensors --frames --layers 6 -1
    python -m d2v_lightning.features corpus.txt --checkpoint last.ckpt --tokenizer outputs/bpe --out lines.parquet

Each picture, recording or line of text is read as a whole and goes through the network alone, so nothing depends on its
neighbours. What was computed is kept in OUT.parts until all is done: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import glob
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2v_lightning.atomic import atomic_write
from d2v_lightning.backbone import Backbone
from d2v_lightning.checkpoints.directory import read_safetensors, write_safetensors
from d2v_lightning.commands import USAGE, run_command
from d2v_lightning.encoders import AudioEncoder, ImageEncoder, TextEncoder
from d2v_lightning.encoders.audio import shortest_input
from d2v_lightning.errors import ExistsError, NotFoundError, UserError
from d2v_lightning.pretrained import load_backbone
from datamodules.pictures import UNREADABLE as UNREADABLE_PICTURE
from datamodules.pictures import read_picture, refuse_too_small
from datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD, as_channels, evaluation_transform
from datamodules.vocabulary import agreed_tokenizer
from datamodules.waveform import UNREADABLE, normalise, read_waveform

PART = 256  # samples in a file of what is kept
KINDS = (".npy", ".safetensors", ".parquet")
Features = NDArray[np.float32]


class Sample(NamedTuple):
    """One thing to look at: its `name`, and `read`, which gives its inputs with a batch dimension of 1."""

    name: str
    read: Callable[[], Tensor]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 after one line that says what is wrong."""
    args = _parser().parse_args(arguments)
    return run_command(lambda: run(args), USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m d2v_lightning.features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", help="files or patterns; of text, every line is a sample")
    parser.add_argument("--checkpoint", required=True, help="file, directory or name on the model hub")
    parser.add_argument("--part", choices=("student", "teacher"), default="student", help="of a pre-trained model")
    parser.add_argument("--modality", help="of a model that was pre-trained on several")
    parser.add_argument("--out", required=True, type=Path, help=f"file to write: {', '.join(KINDS)}")
    parser.add_argument(
        "--layers", nargs="+", type=int, default=[-1], help="blocks from 0, or from the end; default: last"
    )
    parser.add_argument("--frames", action="store_true", help="every patch, frame or token instead of their mean")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokenizer", help="of a text model that holds none: directory or name")
    parser.add_argument("--mean", nargs="+", type=float, help="of pictures, a channel each; default: ImageNet's")
    parser.add_argument("--std", nargs="+", type=float, help="likewise")
    parser.add_argument("--raw", action="store_true", help="recordings are not brought to mean 0 and variance 1")
    return parser


def run(args: argparse.Namespace) -> None:
    """Compute and write; goes on from what an earlier call left.

    Raises:
        FileExistsError: the output is there already.
        FileNotFoundError, ValueError: no such files, checkpoint or layers; or a file that cannot be read, by its name.
    """
    if args.out.suffix not in KINDS:
        raise UserError(f"--out is {args.out}: it must end in {', '.join(KINDS)}")
    if args.frames and args.out.suffix == ".npy":
        raise UserError(
            "--frames gives arrays of different lengths, which .npy cannot hold: use .safetensors or .parquet"
        )
    if args.out.exists():
        raise ExistsError(f"{args.out} exists: remove it, or write to another file")
    backbone = load_backbone(args.checkpoint, args.part, modality=args.modality).to(args.device)
    samples = _samples(_paths(args.files), backbone, args)
    parts = args.out.with_name(f"{args.out.name}.parts")
    _same_run(parts, args, samples)
    for number in _progress(range(0, len(samples), PART), len(samples)):
        target = parts / f"{number:09d}.safetensors"
        if not target.exists():
            some = samples[number : number + PART]
            found = {f"{number + i:09d}": _look(backbone, sample, args) for i, sample in enumerate(some)}
            with atomic_write(target) as unfinished:
                write_safetensors(found, unfinished)
    _gather(parts, samples, args)
    shutil.rmtree(parts)
    print(f"{len(samples)} samples written to {args.out}")


def _look(backbone: Backbone, sample: Sample, args: argparse.Namespace) -> Tensor:
    """(L, D), or (L, N, D) of every token."""
    try:
        inputs = sample.read()
        layers = backbone.features(inputs.to(args.device), layers=args.layers).layers
    except (*UNREADABLE, *UNREADABLE_PICTURE) as error:
        raise UserError(f"{sample.name}: {str(error).partition(chr(10))[0]}") from error
    found = torch.stack([layer[0].float().cpu() for layer in layers])
    return found if args.frames else found.mean(dim=1)


# ---- what is looked at -----------------------------------------------------------------------------------------------


def _paths(patterns: Sequence[str]) -> list[str]:
    paths: list[str] = []
    for pattern in patterns:
        found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
        if not found:
            raise NotFoundError(f"no file matches {pattern!r}")
        paths += found
    return list(dict.fromkeys(paths))


def _samples(paths: list[str], backbone: Backbone, args: argparse.Namespace) -> list[Sample]:
    encoder = backbone.encoder
    if isinstance(encoder, ImageEncoder):
        mean, std = (
            _per_channel(given, default, encoder.in_channels)
            for given, default in ((args.mean, IMAGENET_MEAN), (args.std, IMAGENET_STD))
        )
        transform = evaluation_transform(encoder.image_size, 1.0, mean, std, "bicubic")
        return [Sample(path, lambda path=path: _picture(path, encoder, transform)) for path in paths]  # type: ignore[misc]
    if isinstance(encoder, AudioEncoder):
        return [Sample(path, lambda path=path: _waveform(path, encoder, args.raw)) for path in paths]  # type: ignore[misc]
    if not isinstance(encoder, TextEncoder):
        raise UserError(f"{args.checkpoint} has a {type(encoder).__name__}: call its backbone's `features` in Python")
    tokenizer = agreed_tokenizer(args.tokenizer, backbone)
    if len(tokenizer) > encoder.vocab_size:
        raise UserError(f"the tokenizer has {len(tokenizer)} tokens, the model knows {encoder.vocab_size}")
    lines = [(f"{path}:{number}", line) for path in paths for number, line in _lines(path)]
    return [Sample(name, lambda text=text: _ids(text, tokenizer, encoder)) for name, text in lines]  # type: ignore[misc]


def _per_channel(given: list[float] | None, default: Sequence[float], channels: int) -> Sequence[float]:
    """One number for each channel; where pictures are not of three, the mean of ImageNet's, as in pre-training."""
    if given is None:
        return default if channels == 3 else [sum(default) / len(default)] * channels
    if len(given) not in (1, channels):
        raise UserError(f"--mean and --std have {len(given)} numbers, the model {channels} channels")
    return given * channels if len(given) == 1 else given


def _lines(path: str) -> list[tuple[int, str]]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text, at byte {error.start}") from error
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _picture(path: str, encoder: ImageEncoder, transform: Any) -> Tensor:
    picture = as_channels(read_picture(path), encoder.in_channels)
    refuse_too_small(picture, encoder.grid)
    return transform(picture)[None]


def _waveform(path: str, encoder: AudioEncoder, raw: bool) -> Tensor:
    waveform = read_waveform(path)
    if len(waveform) < (least := shortest_input(1, encoder.conv_layers)):
        raise UserError(f"it is too short: {len(waveform)} samples at 16 kHz, {least} are needed")
    return torch.from_numpy(waveform if raw else normalise(waveform))[None]


def _ids(text: str, tokenizer: Any, encoder: TextEncoder) -> Tensor:
    return torch.tensor([tokenizer(text, truncation=True, max_length=encoder.max_positions)["input_ids"]])


# ---- files -------------------------------------------------------------------------------------------------------------


def _same_run(parts: Path, args: argparse.Namespace, samples: list[Sample]) -> None:
    """Make the folder of what is computed, or see to it that it is of this very command."""
    names = hashlib.sha256("\n".join(sample.name for sample in samples).encode()).hexdigest()
    size = os.path.getmtime(args.checkpoint) if os.path.exists(args.checkpoint) else 0
    settings = {name: value for name, value in vars(args).items() if name not in ("files", "device", "out")}
    said = json.dumps({**settings, "samples": names, "checkpoint_time": size}, sort_keys=True)
    if not parts.exists():
        with atomic_write(parts) as unfinished:
            unfinished.mkdir()
            (unfinished / "settings.json").write_text(said)
    elif (parts / "settings.json").read_text() != said:
        raise UserError(f"{parts} is left of another command, with other files or settings: remove it")


def _read_parts(parts: Path) -> Iterator[Features]:
    for path in sorted(parts.glob("*.safetensors")):
        part = read_safetensors(path)
        yield from (part[name].numpy() for name in sorted(part))


def _gather(parts: Path, samples: list[Sample], args: argparse.Namespace) -> None:
    """One file of all parts, there as a whole or not at all."""
    with atomic_write(args.out) as unfinished:
        _write_all(parts, samples, args, unfinished)


def _write_all(parts: Path, samples: list[Sample], args: argparse.Namespace, unfinished: Path) -> None:
    if args.out.suffix == ".safetensors":
        arrays = {
            sample.name: torch.from_numpy(array) for sample, array in zip(samples, _read_parts(parts), strict=True)
        }
        write_safetensors(arrays, unfinished)
    elif args.out.suffix == ".npy":
        array = None
        for row, features in enumerate(_read_parts(parts)):
            if array is None:
                shape = (len(samples), *features.shape)
                array = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
            array[row] = features
        assert array is not None
        array.flush()
        with open(args.out.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["row", "name"], *enumerate(sample.name for sample in samples)])
    else:
        _write_parquet(parts, samples, args, unfinished)


def _write_parquet(parts: Path, samples: list[Sample], args: argparse.Namespace, path: Path) -> None:
    """Rows of name, layer and features: a list, or a list of lists of every token."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = pa.list_(pa.list_(pa.float32())) if args.frames else pa.list_(pa.float32())
    schema = pa.schema([("name", pa.string()), ("layer", pa.int32()), ("features", values)])
    with pq.ParquetWriter(path, schema) as writer:
        for sample, features in zip(samples, _read_parts(parts), strict=True):
            rows = {"name": [sample.name] * len(features), "layer": args.layers, "features": features.tolist()}
            writer.write_table(pa.table(rows, schema=schema))


def _progress(numbers: range, total: int) -> Iterator[int]:
    from tqdm import tqdm

    with tqdm(total=total, desc="features", disable=None) as bar:
        for number in numbers:
            yield number
            bar.update(min(PART, total - number))


if __name__ == "__main__":
    sys.exit(main())
