"""The commands that look into checkpoints and turn them into each other.

    python -m d2v_lightning.commands.checkpoint inspect PATH                what it is, and what would become of each weight
    python -m d2v_lightning.commands.checkpoint inspect PATH --recipe YAML  also what made it, as a recipe for `cli.py fit`
    python -m d2v_lightning.commands.checkpoint import PATH --out DIR       Meta's or Hugging Face's, as a directory of ours
    python -m d2v_lightning.commands.checkpoint export PATH --out DIR       anything, as a directory that `transformers` loads

PATH is whatever `--model.checkpoint` takes: a checkpoint of ours, a file of Meta's, a directory, a name on the model hub.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from d2v_lightning.checkpoints import stored_tokenizer
from d2v_lightning.checkpoints.backbones import backbone_part
from d2v_lightning.checkpoints.card import card, licence_said, settings
from d2v_lightning.checkpoints.content import Content
from d2v_lightning.checkpoints.directory import fill_beside, refuse_existing, write_directory, write_whole
from d2v_lightning.checkpoints.fairseq_dictionary import reorder_embedding
from d2v_lightning.checkpoints.huggingface import huggingface_config, save_huggingface
from d2v_lightning.checkpoints.official import read_dictionary
from d2v_lightning.checkpoints.onnx import export_onnx
from d2v_lightning.checkpoints.own import load_exactly
from d2v_lightning.checkpoints.pretrained import read_pretrained
from d2v_lightning.checkpoints.recipe_of import write_recipe
from d2v_lightning.checkpoints.tables import Row
from d2v_lightning.commands.running import USAGE, run_command
from d2v_lightning.configurable import build, own_class
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.encoders import TextEncoder
from d2v_lightning.support.errors import UsageError, UserError

Part = Literal["student", "teacher"]


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0, or 2 after one line that says what is wrong."""
    args = _parser().parse_args(arguments)
    return run_command(lambda: args.run(args), USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m d2v_lightning.commands.checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="inspect|import|export")
    for name, run, said in (
        ("inspect", inspect, "say what a file is, without converting it"),
        ("import", import_, "write a directory of ours, which every `from_pretrained` and --model.checkpoint reads"),
        ("export", export, "write a directory for transformers, or an ONNX file"),
    ):
        command = commands.add_parser(name, help=said, description=said)
        command.set_defaults(run=run)
        command.add_argument("path", help="file, directory or name on the model hub")
        command.add_argument("--dictionary", help="fairseq's dict.txt of a CTC or text model")
        command.add_argument("--pretrained", help="the file that a fine-tuned one of fairseq's started from")
        if name == "inspect":
            command.add_argument("--weights", action="store_true", help="every weight, not one line for all blocks")
            command.add_argument("--recipe", metavar="YAML", help="write what made the file, for `cli.py fit --config`")
            continue
        command.add_argument(
            "--part", choices=("student", "teacher"), help="the backbone alone, of a pre-trained model"
        )
        command.add_argument("--tokenizer", type=Path, help="directory with a tokenizer or feature extractor to copy")
        if name == "import":
            command.add_argument("--out", required=True, help="directory to write")
            command.add_argument(
                "--image-size", type=int, help="pixels: tables of positions are resized to it (with --part)"
            )
            command.add_argument(
                "--bpe", help="fairseq's encoder.json, where its dict.txt holds numbers (with --tokenizer)"
            )
        else:
            target = command.add_mutually_exclusive_group(required=True)
            target.add_argument("--out", help="directory to write")
            target.add_argument("--onnx", help="file to write: the network with any batch size and length")
            command.add_argument("--push", metavar="REPO", help="upload the directory to the model hub")
    return parser


# ---- commands ----------------------------------------------------------------------------------------------------------


def inspect(args: argparse.Namespace) -> None:
    """Print what a file is, and write what made it."""
    if args.recipe:
        refuse_existing(args.recipe)
    found = _read(args)
    if args.recipe:
        write_recipe(found, args.recipe)
    _say(found)
    print("options")
    print("\n".join(f"  {line}" for line in settings(found.tree["init_args"])))
    _table(found.rows, whole=args.weights)
    if args.recipe:
        print(f"what made it is written to {args.recipe}")


def import_(args: argparse.Namespace) -> None:
    """Write a directory of ours."""
    if args.image_size and not args.part:
        raise UserError("--image-size goes with --part: only a backbone has a size of its own")
    if args.bpe and not (args.tokenizer and args.dictionary):
        raise UserError("--bpe goes with --dictionary and --tokenizer: it leads from the one to the other")
    refuse_existing(args.out)
    found = _read(args)
    _say(found)
    _table(found.rows)
    content = found
    if args.part:
        content = _backbone(found, args.part, args.image_size)
    if args.dictionary and args.tokenizer:
        content = reorder_embedding(content, read_dictionary(args.dictionary), args.tokenizer, args.bpe)
        print(f"the embedding's rows are in the order of the tokenizer in {args.tokenizer}")
    write_directory(content, args.out, beside=args.tokenizer or _directory(args.path))
    print(f"{_short(content.tree)} written to {args.out}")


def export(args: argparse.Namespace) -> None:
    """Write a directory for `transformers`, or an ONNX file."""
    if args.push and not args.out:
        raise UserError("--push uploads a directory: give --out too")
    if args.out and args.out.endswith(".onnx"):
        raise UsageError(f"--out {args.out}: that would be a directory, give --onnx {args.out} for an ONNX file")
    refuse_existing(args.out or args.onnx)
    found = _read(args)
    _say(found)
    pretrained = "student" in found.tree["init_args"]
    content = _backbone(found, args.part or "student") if pretrained or args.part else found
    if pretrained and not args.part:
        print(
            "the student's backbone is exported (--part teacher for the other); head, decoder and targets are left out"
        )
    if args.onnx:
        module = build(content.tree)
        load_exactly(module, content.state, found.path)
        backbone = getattr(module, "backbone", module)
        backbone.licence, backbone.tokenizer = content.licence, content.tokenizer
        export_onnx(module, args.onnx, content.takes_normalized)
        print(f"{_short(content.tree)} written to {args.onnx}, and the same as here in onnxruntime")
        return
    with torch.device("meta"):  # the weights go from file to file
        module = build(content.tree)
    beside = args.tokenizer or _directory(args.path)
    reason = _not_in_transformers(module)
    if reason:
        write_directory(content, args.out, beside)
        print(f"{reason}. Written for d2v_lightning instead: {_short(content.tree)}.from_pretrained({args.out!r})")
    else:
        write_whole(args.out, lambda folder: _fill(folder, module, content, beside))
        print(f"written to {args.out}, for transformers")
    if args.push:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(args.push, exist_ok=True)
        api.upload_folder(repo_id=args.push, folder_path=args.out)
        print(f"uploaded to {args.push}")


def _fill(folder: Path, module: nn.Module, content: Content, beside: Path | None) -> None:
    fill_beside(content, beside, folder)  # first: an image processor that the model came with stays
    architecture = save_huggingface(module, folder, content.state, content.data_arguments, content.takes_normalized)
    (folder / "README.md").write_text(card(content, architecture), encoding="utf-8")
    reads_text = isinstance(getattr(module, "encoder", None), TextEncoder)
    if reads_text and not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        print(
            "no tokenizer is known: --tokenizer DIR puts one beside it, without which pipelines of transformers misread text"
        )


def _not_in_transformers(module: Any) -> str:
    """Why `transformers` has no class for a network; empty where it has."""
    try:
        huggingface_config(module if isinstance(module, Backbone) else module.backbone)
    except ValueError as error:
        return str(error)
    return ""


# ---- parts -------------------------------------------------------------------------------------------------------------


def _read(args: argparse.Namespace) -> Content:
    return read_pretrained(args.path, read_dictionary(args.dictionary) if args.dictionary else None, args.pretrained)


def _directory(path: str) -> Path | None:
    return Path(path) if Path(path).is_dir() else None


def _backbone(found: Content, part: Part, image_size: int | None = None) -> Content:
    """The backbone alone; what is left behind is said."""
    tree, state = backbone_part(found, part, (image_size, image_size) if image_size else None)
    left = Counter(name.partition(".")[0] for name in found.state)
    kept = "backbone" if "student" not in found.tree["init_args"] else part
    others = ", ".join(f"{name} ({count} weights)" for name, count in left.items() if name != kept)
    print(
        f"kept: the {part}'s backbone, {_count(state.values())}"
        + (f"; left out: {others}, and its own head" if others else "")
    )
    kind = f"{found.kind}, the {part}'s backbone"
    return found._replace(tree=tree, state=state, kind=kind, rows=[], normalize=found.takes_normalized)


# ---- what is printed ---------------------------------------------------------------------------------------------------


def _say(found: Content) -> None:
    print(f"{found.path}\n  {found.kind}")
    print(f"  licence     {licence_said(found.licence)}")
    print(f"  module      {_short(found.tree)}")
    if found.tokenizer is not None:
        print(f"  tokenizer   {len(stored_tokenizer.load(found.tokenizer)):,} ids, in the file")
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in found.state.items():
        groups.setdefault(name.partition(".")[0], []).append(tensor)
    for name, tensors in groups.items():
        print(f"  {name:<11} {_count(tensors)}")


def _short(tree: dict[str, Any]) -> str:
    return own_class(tree["class_path"]).__name__


def _count(tensors: Any) -> str:
    tensors = list(tensors)
    return f"{sum(tensor.numel() for tensor in tensors):,} parameters in {len(tensors)} tensors"


def _table(rows: list[Row], whole: bool = False) -> None:
    """What became of each weight: blocks together, unless all are asked for."""
    lines: dict[tuple[str, ...], int] = {}
    for row in rows:
        names = (row.theirs, row.ours) if whole else (_unnumbered(row.theirs), _unnumbered(row.ours))
        key = (names[0], str(row.shape), row.how, names[1])
        lines[key] = lines.get(key, 0) + 1
    widths = [max((len(line[column]) for line in lines), default=0) for column in range(3)]
    print("weights     (# stands for a number)" if not whole else "weights")
    for (theirs, shape, how, ours), count in lines.items():
        times = f"{count:>3} x " if count > 1 else " " * 6
        print(f"  {times}{theirs:<{widths[0]}}  {shape:<{widths[1]}}  {how:<{widths[2]}}  {ours}")
    total = Counter(row.how for row in rows)
    print(
        f"  {total['matched']} matched, {total['converted']} converted (joined or reshaped), "
        f"{total['dropped']} dropped on purpose"
    )


def _unnumbered(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name)


if __name__ == "__main__":
    sys.exit(main())
