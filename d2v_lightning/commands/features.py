"""Features of files: what chosen blocks say about pictures, recordings or lines of text.

    python -m d2v_lightning.commands.features photos/ --checkpoint last.ckpt --out features.npy
    python -m d2v_lightning.commands.features '*.flac' --checkpoint base.pt --out clips.safetensors --frames --layers 6 -1
    python -m d2v_lightning.commands.features corpus.txt --checkpoint last.ckpt --tokenizer outputs/bpe --out lines.parquet

Inputs are read as the checkpoint's own evaluation read them; options override that. Batches change nothing but the rounding:
padding is harmless. A recording longer than a minute is read in overlapping windows. What cannot be read is left out and
named. What was computed is kept until all is done: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch

from d2v_lightning.callbacks import PredictionWriter, Preemption
from d2v_lightning.callbacks.prediction_files import FEATURES
from d2v_lightning.checkpoints.backbones import load_backbone
from d2v_lightning.checkpoints.content import Content
from d2v_lightning.checkpoints.own import RUN_KEY
from d2v_lightning.checkpoints.pretrained import read_pretrained
from d2v_lightning.commands.running import USAGE, run_command
from d2v_lightning.commands.signatures import readable, takes
from d2v_lightning.flavour import pl, rank_zero_info
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.encoders import AudioEncoder, Encoder, ImageEncoder, TextEncoder
from d2v_lightning.nn.encoders.audio import RATE
from d2v_lightning.nn.extraction import Extraction
from d2v_lightning.nn.normalization import IMAGENET, normalization_of
from d2v_lightning.support.errors import UserError, naming
from d2v_lightning.types import Batch
from datamodules import ImageDataModule, SpeechDataModule, TextDataModule

BATCH = {ImageEncoder: 64, AudioEncoder: 8, TextEncoder: 64}
SECONDS = 30  # of sound, for each of a batch
WINDOW = 60  # seconds; longer recordings come in windows
OF_DATA = ("crop_share", "interpolation")  # of how pictures are shown; mean and std are the model's
SEEN_AS = ("mean", "std", *OF_DATA)


class Features(pl.LightningModule):
    """Says about the samples of a batch what `Extraction` finds.

    Args:
        backbone: the network.
        extraction: which blocks, and whether every token counts.
    """

    predicts = "features"

    def __init__(self, backbone: Backbone, extraction: Extraction) -> None:
        super().__init__()
        self.backbone, self.extraction = backbone, extraction
        self.config = {"backbone": backbone.config, "layers": extraction.layers, "frames": extraction.frames}

    @property
    def encoder(self) -> Encoder:
        """The backbone's, of which a datamodule asks sizes."""
        return self.backbone.encoder

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """{"features": one (L, D) or (L, N, D) a sample, "index" (R,), "layers": the numbers of the L blocks}."""
        index, rows = self.extraction(self.backbone, batch)
        return {"features": rows, "index": index, "layers": self.extraction.layers}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 after one line that says what is wrong."""
    args = _parser().parse_args(arguments)
    return run_command(lambda: run(args), USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m d2v_lightning.commands.features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", help="files, folders or patterns; of text, every line is a sample")
    parser.add_argument("--checkpoint", required=True, help="file, directory or name on the model hub")
    parser.add_argument("--part", choices=("student", "teacher"), default="student", help="of a pre-trained model")
    parser.add_argument("--modality", help="of a model that was pre-trained on several")
    parser.add_argument("--out", required=True, type=Path, help=f"file to write: {', '.join(FEATURES)}")
    parser.add_argument("--overwrite", action="store_true", help="replace it, and what other settings have left")
    parser.add_argument(
        "--layers", nargs="+", type=int, default=[-1], help="blocks from 0, or from the end; default: last"
    )
    parser.add_argument("--frames", action="store_true", help="every patch, frame or token instead of their mean")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--batch_size",
        type=int,
        help=f"pictures or lines, by default 64; of sound {SECONDS} seconds for each, default 8",
    )
    parser.add_argument("--num_workers", type=int, default=min(4, os.cpu_count() or 1), help="processes that load")
    parser.add_argument("--tokenizer", help="of a text model that holds none: directory or name")
    parser.add_argument("--mean", nargs="+", type=float, help="of pictures, one number or a channel each")
    parser.add_argument("--std", nargs="+", type=float, help="likewise")
    parser.add_argument("--crop_share", type=float, help="share of a picture's side that is seen")
    parser.add_argument("--interpolation", choices=("bicubic", "bilinear", "nearest"), help="of resized pictures")
    sound = parser.add_mutually_exclusive_group()
    sound.add_argument("--raw", dest="normalize", action="store_false", help="recordings as they are")
    sound.add_argument("--normalize", action="store_true", help="recordings with mean 0 and variance 1")
    parser.set_defaults(normalize=None)
    return parser


def run(args: argparse.Namespace) -> None:
    """Compute and write; goes on from what an earlier call left.

    Raises:
        FileExistsError: the output is there already.
        FileNotFoundError, ValueError: no such files, checkpoint or layers; nothing can be read; or the output holds what
            other settings have left.
    """
    if args.out.suffix not in FEATURES:
        raise UserError(f"--out is {args.out}: it must end in {', '.join(FEATURES)}")
    if args.frames and args.out.suffix == ".npy":
        raise UserError(
            "--frames gives arrays of different lengths, which .npy cannot hold: use .safetensors or .parquet"
        )
    found = read_pretrained(args.checkpoint).of_modality(args.modality)
    backbone = load_backbone(found, args.part)
    writer = PredictionWriter(str(args.out), overwrite=args.overwrite)
    writer.options = ("--out FILE", "--overwrite")
    device = torch.device(args.device)
    gpu = device.type == "cuda"
    trainer = pl.Trainer(
        accelerator="gpu" if gpu else device.type,
        devices=[device.index or 0] if gpu else 1,
        callbacks=[writer, Preemption()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    warnings.filterwarnings("ignore", "Couldn't infer the batch indices")
    module = Features(backbone, Extraction(args.layers, args.frames))
    trainer.predict(module, _data(args, found, backbone.encoder), return_predictions=False)


def _data(args: argparse.Namespace, found: Content, encoder: Encoder) -> pl.LightningDataModule:
    """What reads the files, as the checkpoint says."""
    size = args.batch_size or next((BATCH[kind] for kind in BATCH if isinstance(encoder, kind)), 1)
    files: dict[str, Any] = {"predict_files": args.files, "num_workers": args.num_workers}
    if isinstance(encoder, ImageEncoder):
        return ImageDataModule(task="classify", batch_size=size, **files, **_seen_as(args, found, encoder))
    if isinstance(encoder, TextEncoder):
        return TextDataModule(tokenizer=args.tokenizer, batch_size=size, **files)
    if not isinstance(encoder, AudioEncoder):
        raise UserError(f"{args.checkpoint} has a {type(encoder).__name__}: call its backbone's `features` in Python")
    normalize = found.takes_normalized if args.normalize is None else args.normalize
    source = "as asked for" if args.normalize is not None else "as the checkpoint says"
    if normalize is None:
        normalize, source = True, "as most models are trained; the checkpoint does not say (--raw for the other)"
    rank_zero_info(f"recordings {'with mean 0 and variance 1' if normalize else 'as they are'}, {source}")
    samples = size * SECONDS * RATE
    return SpeechDataModule(
        normalize=normalize, batch_samples=samples, max_seconds=None, window_seconds=WINDOW, **files
    )


def _seen_as(args: argparse.Namespace, found: Content, encoder: ImageEncoder) -> dict[str, Any]:
    """How pictures are shown: as options say, or the checkpoint, or the released evaluation. The encoder is told the
    normalisation, which `ImageDataModule` reads off it."""
    given = {name: value for name in SEEN_AS if (value := getattr(args, name)) is not None}
    settings: dict[str, Any] = {name: value for name, value in given.items() if name in OF_DATA}
    wanted = [name for name in OF_DATA if name not in given]
    stored = {name: found.data_arguments[name] for name in wanted if found.data_arguments.get(name) is not None}
    _refuse_unfit(stored, found.path)
    for name in {"mean", "std"} & given.keys():
        if len(given[name]) not in (1, encoder.in_channels):
            raise UserError(f"--{name} has {len(given[name])} numbers, the model {encoder.in_channels} channels")
        given[name] *= encoder.in_channels if len(given[name]) == 1 else 1
    known = encoder.normalization
    published = (known or IMAGENET.of_channels(encoder.in_channels))._asdict()
    seen = {name: given.get(name, published[name]) for name in ("mean", "std")}
    encoder.normalization = normalization_of(**seen, channels=encoder.in_channels, owner="--")
    settings |= stored
    data = ImageDataModule(**settings)
    shown = {name: getattr(data, name) for name in OF_DATA} | seen
    source = "the checkpoint" if stored or known else "the release"
    if known is None and not {"mean", "std"} <= given.keys():
        rank_zero_info(
            f"{found.path} does not say what its pictures were normalised with: ImageNet's values are taken (--mean and "
            "--std for others)"
        )
    options = f", and of {', '.join(f'--{name}' for name in given)}" if given else ""
    rank_zero_info(
        f"pictures as in the evaluation of {source}{options}: "
        + ", ".join(f"{name} {value}" for name, value in shown.items())
    )
    return settings


def _refuse_unfit(stored: dict[str, Any], path: str) -> None:
    """Refuse settings of the data that a file holds and `ImageDataModule` cannot use.

    Raises:
        ValueError: one is of another kind than it takes.
    """
    hints = get_type_hints(ImageDataModule.__init__)
    for name, value in stored.items():
        if isinstance(value, str) != (name == "interpolation") or not takes(hints[name], value):
            raise UserError(f"{path}: {RUN_KEY}.data.init_args.{name} is {value!r}: it must be {readable(hints[name])}")
    with naming(f"{path}: {RUN_KEY}.data.init_args"):
        ImageDataModule(**stored)


if __name__ == "__main__":
    sys.exit(main())
