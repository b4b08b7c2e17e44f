"""Small data of every kind, tiny tasks, and the comparison of two runs."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from PIL import Image

from tests.chaos.child import run

ROOT = Path(__file__).parents[2]
SENTENCE = "the a small red fox bird house river stone sees under over jumps near old green blue letter window garden"
WORDS = SENTENCE.split(" ")
AUDIO = {"dim": 32, "conv_layers": [[8, 10, 5], [8, 8, 8], [8, 8, 8]], "position_groups": 4}
TRUNK = {"dim": 32, "depth": 2, "num_heads": 2}
FIT = {
    **{"max_steps": 24, "max_epochs": -1, "accelerator": "cpu", "log_every_n_steps": 1, "limit_train_batches": 6},
    **{"enable_progress_bar": False, "enable_model_summary": False},
}


def make_data(root: Path) -> Path:
    """root/{pictures,spoken,text}: a few dozen small files each."""
    if (root / "done").exists():
        return root
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 8)):
        for number in range(count):
            folder = root / "pictures" / split / ("cat" if number % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:02d}.{('png', 'jpg', 'webp')[number % 3]}")
    for split, count in (("train", 17), ("dev", 5)):
        folder = root / "spoken" / split
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for number in range(count):
            wave = 0.1 * random.standard_normal(14000 + 1200 * number)
            soundfile.write(folder / f"{number}.{('flac', 'wav', 'ogg')[number % 3]}", wave, 16000)
            lines.append(f"{number} {WORDS[number]} {WORDS[number + 1]}\n".upper())
        (folder / "t.trans.txt").write_text("".join(lines))
    (root / "text").mkdir(exist_ok=True)
    for name, count in (("train.txt", 900), ("valid.txt", 60)):
        sentences = (" ".join(random.choice(WORDS, random.integers(5, 20))) for _ in range(count))
        (root / "text" / name).write_text("".join(f"{sentence}.\n" for sentence in sentences))
    arguments = [root / "text/train.txt", "--out", root / "text/bpe", "--vocab_size", 300]
    made = run("tokenizer", arguments, root, root / "tokenizer.log")
    assert made.code == 0, made.text
    (root / "done").write_text("")
    return root


def tasks(folder: Path, data: Path) -> dict[str, list[str]]:
    """Arguments of `fit` for each tiny task, without the run's folder: pre-training of each kind, CTC and classification."""
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, list[str]] = {}

    def recipe(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        tree = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
        tree.pop("model_checkpoint", None)
        return tree, tree["model"]["init_args"], tree["data"]["init_args"]

    def keep(name: str, tree: dict[str, Any], **trainer: Any) -> None:
        tree["trainer"] |= FIT | trainer
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        made[name] = ["fit", "--config", str(path)]

    for name, source in (("image", "quickstart/digits"), ("image2", "quickstart/digits_v2")):
        tree, model, settings = recipe(source)
        settings |= {"batch_size": 16}
        model["student"]["init_args"]["backbone"]["init_args"]["transformer"]["init_args"] |= {"depth": 2}
        model["targets"]["init_args"]["average_top_k_layers"] = 2
        keep(name, tree, limit_val_batches=2, num_sanity_val_steps=1)
    tree, model, settings = recipe("pretrain/audio_small")
    _shrink(model["student"]["init_args"]["backbone"]["init_args"])
    model["student"]["init_args"]["decoder"]["init_args"]["dim"] = 32
    model["targets"]["init_args"]["average_top_k_layers"] = 1
    settings |= {"root": str(data / "spoken"), "train_split": "train", "val_split": "dev", "batch_samples": 120000}
    settings |= {"min_seconds": 0.5, "max_seconds": 1.5}
    keep("audio", tree, limit_val_batches=2)
    tree, model, settings = recipe("finetune/speech_small_scratch")
    _shrink(model["backbone"]["init_args"])
    model["freeze_trunk_steps"] = 3
    settings |= {"root": str(data / "spoken"), "batch_samples": 90000}
    keep("ctc", tree, val_check_interval=4, limit_train_batches=1.0)
    tree, model, settings = recipe("quickstart/text")
    backbone = model["student"]["init_args"]["backbone"]["init_args"]
    backbone["encoder"]["init_args"] |= {"dim": 32, "vocab_size": 300, "mask_id": 299}
    backbone["transformer"]["init_args"] |= TRUNK
    model["student"]["init_args"]["decoder"]["init_args"]["dim"] = 32
    text = data / "text"
    settings |= {"files": str(text / "train.txt"), "val_files": str(text / "valid.txt"), "tokenizer": str(text / "bpe")}
    settings |= {"batch_size": 4, "cache_dir": str(data / "cache"), "packing": "blocks"}
    keep("text", tree, limit_val_batches=2)
    return made


def _shrink(backbone: dict[str, Any]) -> None:
    backbone["encoder"]["init_args"] = dict(AUDIO)
    backbone["transformer"]["init_args"] |= TRUNK | {"layer_drop": 0.3}


# ---- comparing -------------------------------------------------------------------------------------------------------


def differences(one: Any, other: Any, at: str = "") -> list[str]:
    """Places at which two checkpoints (nested plain data and tensors) differ."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(torch.nan_to_num(one.float()), torch.nan_to_num(other.float()))
        return [] if same else [at]
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        return [place for key in keys for place in differences(one.get(key), other.get(key), f"{at}.{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [place for number, pair in pairs for place in differences(*pair, f"{at}[{number}]")]
    return [] if one == other or (one != one and other != other) else [f"{at}: {str(one)[:40]} / {str(other)[:40]}"]


def compare(reference: Path, run: Path) -> list[str]:
    """What differs between the last checkpoints of two runs: all but the folders' names."""
    one, other = (_comparable(folder / "checkpoints/last.ckpt") for folder in (reference, run))
    return differences(one, other)


def _comparable(path: Path) -> dict[str, Any]:
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    loop = checkpoint["loops"]["fit_loop"]["state_dict"]
    kept = {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}
    kept["data"] = loop.get("combined_loader")
    callbacks = checkpoint["callbacks"].items()
    # Paths and scores of ModelCheckpoint name the folder.
    return kept | {"callbacks": {name: state for name, state in callbacks if not name.startswith("ModelCheckpoint")}}


def metrics(folder: Path) -> dict[tuple[str, str], set[str]]:
    """{(step, name): values} of all metrics.csv of a run."""
    values: dict[tuple[str, str], set[str]] = {}
    for path in sorted(folder.glob("metrics/version_*/metrics.csv")):
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name not in ("step", "epoch") and not re.search("time|per_second|^lr-", name):
                        values.setdefault((row["step"], name), set()).add(value)
    return values
