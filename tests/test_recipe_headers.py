"""The header of every recipe says its status, source, length and rate; sizes of sets are those in docs/recipes.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from d2v_lightning.configurable import build
from d2v_lightning.finetune.glue_tasks import TASKS
from d2v_lightning.nn.encoders.audio import RATE
from d2v_lightning.optim.optimization import Optimization

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path for path in (ROOT / "configs").glob("*/**/*.yaml") if path.parent.name != "logging")
FAIRSEQ, BEIT = "fairseq examples", "data2vec_vision beit/README.md"
V2 = f"{FAIRSEQ}/data2vec/config/v2"
CTC = {
    f"librispeech{version}_{split}{size}": f"{FAIRSEQ}/wav2vec/config/finetuning/{theirs}_{split}.yaml"
    for version in ("", "_v2")
    for split in ("10m", "1h", "10h", "100h", "960h")
    for size, theirs in (("", "base"), ("_large", "vox"))
}
# What each row is, as README's table says it too. All others are ours, and reproduce nothing.
PUBLISHED = {
    "image_base": f"{BEIT}, ViT-B",
    "image_large": f"{BEIT}, ViT-L",
    "image_large_second_half": f"{BEIT}, ViT-L, further pre-training",
    "image_v2_base": f"{V2}/base_images_only_task.yaml",
    "image_v2_large": f"{V2}/large_images_only_task.yaml",
    "image_v2_huge": f"{V2}/huge_images14_only_task.yaml",
    "image_v2_huge16": f"{V2}/huge_images_only_task.yaml",
    "imagenet_base": f"{BEIT}, ViT-B, fine-tuning",
    "imagenet_large": f"{BEIT}, ViT-L, fine-tuning",
    "imagenet_v2_base": f"{FAIRSEQ}/data2vec/config/vision/finetuning/mae_imagenet_clean.yaml",
    "imagenet_v2_large": f"{FAIRSEQ}/data2vec/config/vision/finetuning/mae_imagenet_large_clean.yaml",
    "imagenet_v2_huge": f"{FAIRSEQ}/data2vec/config/vision/finetuning/mae_imagenet_huge_clean.yaml",
    "audio_base": f"{FAIRSEQ}/data2vec/config/audio/pretraining/base_librispeech.yaml",
    "audio_v2_base": f"{V2}/base_audio_only_task.yaml",
    "audio_v2_large": f"{V2}/large_audio_only_task.yaml",
    "text_base": f"{FAIRSEQ}/data2vec/config/text/pretraining/base.yaml",
    "text_v2_base": f"{V2}/base_text_only_task.yaml",
    "text_v2_large": f"{V2}/large_text_only_task.yaml",
    "text_v2_large_1m": f"{V2}/large_text_only_task_pgrp_1M.yaml",
    **CTC,
    **{task: f"{V2}/text_finetuning/{task}.yaml" for task in ("cola", "mnli", "mrpc", "qnli", "qqp", "rte")},
    "sst2": f"{V2}/text_finetuning/sst_2.yaml",
    "stsb": f"{V2}/text_finetuning/sts_b.yaml",
}
PAPERS = {"text_base_bert": "data2vec 1.0 (arXiv 2202.03555), section 4.3 and footnote 7"}
OURS = {
    "audio_large": "audio_base.yaml on the network of Large; no recipe of the released Large is published",
    "wnli": "rte.yaml, the released file of the set that is most like it; none is released for WNLI",
}


def sizes() -> dict[str, tuple[float, str]]:
    """Size and unit of each set in the table of docs/recipes.md."""
    rows = re.findall(r"^\| ([\w./ -]+) \| ([\d,.]+) (\w+) \|", (ROOT / "docs/recipes.md").read_text(), re.MULTILINE)
    return {name: (float(size.replace(",", "")), unit.rstrip("s") + "s") for name, size, unit in rows}


SIZES = sizes()


UNITS = {
    "ImageDataModule": "pictures",
    "GLUEDataModule": "texts",
    "SpeechDataModule": "samples",
    "TextDataModule": "tokens",
}


class Batch(NamedTuple):
    """What an optimiser step sees: `step` in `unit`s, in batches of `device` a device; `said` is such a batch in words."""

    step: int
    device: int
    unit: str
    said: str


def batch_of(data: dict[str, Any], kind: str) -> Batch:
    if kind == "SpeechDataModule":
        device = data["batch_samples"]
        return Batch(data.get("effective_batch", device), device, "samples", f"{device:,} samples")
    if "batch_tokens" in data:
        return Batch(
            data["batch_tokens"], data["batch_tokens"], "tokens", f"{data['batch_tokens']:,}, padding included"
        )
    device = data["batch_size"]
    if kind == "TextDataModule":
        tokens = device * data["block_size"]
        said = f"{device} blocks of {data['block_size']}"
        return Batch(data.get("effective_batch", tokens), tokens, "tokens", said)
    said = f"{device}" + (f", at most {data['max_tokens']:,} tokens" if "max_tokens" in data else "")
    return Batch(data.get("effective_batch", device), device, UNITS[kind], said)


def set_of(path: Path, sections: dict[str, Any]) -> float | None:
    """Size of the training set in the batch's units; None where it is yours, or not published."""
    data = sections["data"]["init_args"]
    if data.get("dataset") == "digits":
        return SIZES["digits"][0]
    if "fashion_mnist" in path.stem:
        return SIZES["Fashion-MNIST"][0]
    if "/data/imagenet" in path.read_text():
        return SIZES["ImageNet-1K"][0]
    if data.get("task") in TASKS:
        return SIZES[TASKS[data["task"]].folder][0]
    splits = data.get("train_split")
    known = (
        ["Libri-light"] if "/data/libri-light" in path.read_text() else [splits] if isinstance(splits, str) else splits
    )
    if not known or not all(split in SIZES for split in known):
        return None
    return sum(size * {"hours": 3600, "minutes": 60}[unit] for size, unit in map(SIZES.__getitem__, known)) * RATE


def header(path: Path) -> list[str]:
    """The three lines that a recipe's header must have."""
    sections = yaml.safe_load(path.read_text())
    name, trainer = path.stem, sections["trainer"]
    kind = sections["data"]["class_path"].rpartition(".")[2]
    status = "published" if name in PUBLISHED else "the paper's" if name in PAPERS else "ours"
    source = (PUBLISHED | PAPERS | OURS).get(name)
    lines = [f"Status: {status}. " + (f"Source: {source}." if source else "It reproduces nothing published.")]
    updates = trainer.get("max_steps")
    if kind == "MultimodalDataModule":
        parts = sections["data"]["init_args"]["datamodules"].values()
        batches = [batch_of(part["init_args"], part["class_path"].rpartition(".")[2]) for part in parts]
        said = " or ".join(f"{batch.step:,} {batch.unit}" for batch in batches)
        lines.append(f"Length: {updates:,} updates of {said}.")
    else:
        batch, size = batch_of(sections["data"]["init_args"], kind), set_of(path, sections)
        if updates is None and size is not None and kind == "ImageDataModule":
            updates = trainer["max_epochs"] * int(size // batch.step)
        lines.append(f"Length: {_length(batch, size, updates, trainer.get('max_epochs'), UNITS[kind])}.")
    lines.append(f"Rate: {_rate(build(sections['model']['init_args']['optimization']), updates)}.")
    return lines


def _length(batch: Batch, size: float | None, updates: int | None, epochs: int | None, unit: str) -> str:
    many = batch.step // batch.device
    assert many * batch.device == batch.step, "a whole number of batches"
    step = f"{batch.step:,} {batch.unit}"
    if batch.unit == "samples":
        minutes = batch.step / RATE / 60
        step = f"{minutes:.1f} minutes" if minutes >= 10 else f"{minutes * 60:g} seconds"
    taken = f"updates of {step} ({many} x {batch.said})"
    whole = "your data" if size is None else f"{size:,.0f} {unit}"
    if size is not None and unit == "samples":
        hours = size / RATE / 3600
        whole = f"{hours:,.1f} hours".replace(".0 ", " ") if hours > 1 else f"{hours * 60:.0f} minutes"
    if epochs is not None:
        return f"{epochs} epochs of {whole}: {'' if updates is None else f'{updates:,} '}{taken}"
    assert updates is not None
    return f"{updates:,} {taken}" + ("" if size is None else f": {updates * batch.step / size:,.1f} epochs of {whole}")


def _rate(optimization: Optimization, updates: int | None) -> str:
    warmup, updates = optimization.warmup, optimization.schedule_steps or updates
    if updates is not None:
        warmed = f"{int(warmup * updates) if 0 < warmup < 1 else int(warmup):,} updates of warm-up"
    else:
        warmed = f"a warm-up of {100 * warmup:g} % of the run"
    end = f"{optimization.final_lr:g}"
    if optimization.schedule_steps:
        end += f" at update {optimization.schedule_steps:,}"
    then = {
        "cosine": f"then a cosine to {end}",
        "fairseq_cosine": f"then a cosine to {end}",
        "tri_stage": f"held for {int(optimization.hold * (updates or 0)):,}, then an exponential to {end}",
        "polynomial": f"then a line to {end}",
        "constant": "then constant",
    }[optimization.schedule]
    return f"{optimization.lr:g} after {warmed}, {then}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_header_says_what_the_file_is(path: Path) -> None:
    said = [line.removeprefix("# ") for line in path.read_text().partition("seed_everything")[0].splitlines()]
    found = [line for line in said if re.match(r"(Status|Length|Rate): ", line)]
    assert found == header(path)
    assert not re.search(r"\d(,\d+)* (updates|epochs|steps)\b", said[0]), "numbers of the run stand in its line"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_stands_beside_a_warm_up_is_true(path: Path) -> None:
    """`# warm-up: 10 of 800 epochs`, `# 10,000 updates`: as a share, or in updates of the whole run."""
    sections = yaml.safe_load(path.read_text())
    optimization = build(sections["model"]["init_args"]["optimization"])
    for line in path.read_text().splitlines():
        setting, _, comment = line.partition(" # ")
        if "warmup:" not in setting:
            continue
        for part, whole in re.findall(r"(\d+) of (\d+) epochs", comment):
            assert sections["trainer"]["max_epochs"] == int(whole)
            assert optimization.warmup == int(part) / int(whole)
        for updates in re.findall(r"([\d,]+) (?:steps|updates)", comment):
            assert int(optimization.warmup * sections["trainer"]["max_steps"]) == int(updates.replace(",", ""))


def test_every_row_is_there() -> None:
    assert {*PUBLISHED, *PAPERS, *OURS} <= {path.stem for path in RECIPES}
