"""Small data of every kind, tiny tasks, and the comparison of two runs."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
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
    """root/{pictures,spoken,text,picture_tables,spoken_tables,glue}: a few dozen small files or rows each."""
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
    _make_tables(root)
    folder = root / "glue/SST-2"
    folder.mkdir(parents=True, exist_ok=True)
    sentences = (root / "text/valid.txt").read_text().splitlines()
    for name, some in (("train", sentences[:22]), ("dev", sentences[22:28])):
        rows = (f"{sentence}\t{number % 2}\n" for number, sentence in enumerate(some))
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    (root / "done").write_text("")
    return root


def _make_tables(root: Path) -> None:
    """The pictures and recordings as parquet, training in two files."""
    import datasets

    quiet = datasets.utils.logging
    quiet.disable_progress_bar()
    for name, folder, splits in (
        ("picture_tables", root / "pictures", {"train": "train", "validation": "val"}),
        ("spoken_tables", root / "spoken", {"train": "train", "validation": "dev"}),
    ):
        (root / name).mkdir(exist_ok=True)
        column = "image" if name == "picture_tables" else "audio"
        for split, source in splits.items():
            files = sorted(path for path in (folder / source).rglob("*") if path.is_file() and path.suffix != ".txt")
            cells = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
            rows: dict[str, Any] = {column: cells, "label": [int(path.parent.name == "cat") for path in files]}
            shards = 2 if split == "train" else 1
            for shard in range(shards):
                some = {key: values[shard::shards] for key, values in rows.items()}
                datasets.Dataset.from_dict(some).to_parquet(root / name / f"{split}-{shard}.parquet")


def tasks(folder: Path, data: Path) -> dict[str, list[str]]:
    """Arguments of `fit` for each tiny task, without the run's folder: pre-training of each kind, from streams and of two
    modalities, and fine-tuning: CTC, images, GLUE."""
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
    _more(data, recipe, keep)
    return made


def _more(data: Path, recipe: Callable[[str], Any], keep: Callable[..., None]) -> None:
    """Classification of pictures and sentences, streams, and two modalities."""
    tree, model, settings = recipe("finetune/fashion_mnist_scratch")
    _shrink_image(model["backbone"]["init_args"], {"drop_path": 0.2})
    model |= {"num_classes": 2, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}
    settings |= {"root": str(data / "pictures"), "batch_size": 8, "val_fraction": None, "random_erasing": 0.25}
    settings |= {"mean": [0.5], "std": [0.5], "colour_jitter": 0.4, "rand_augment": "rand-m9-mstd0.5-inc1"}
    keep("classify", tree, limit_val_batches=1.0, limit_train_batches=1.0)
    settings |= {"root": None, "dataset": str(data / "picture_tables"), "streaming": True, "shuffle_buffer": 8}
    keep("classify_stream", tree, limit_val_batches=1.0, limit_train_batches=1.0)
    tree, model, settings = recipe("finetune/glue/sst2_small_scratch")
    model["backbone"]["init_args"]["encoder"]["init_args"] |= {"dim": 32, "vocab_size": 300, "mask_id": 299}
    model["backbone"]["init_args"]["transformer"]["init_args"] |= TRUNK | {"dropout": 0.1}
    settings |= {"root": str(data / "glue"), "tokenizer": str(data / "text/bpe"), "batch_tokens": 160}
    keep("glue", tree, limit_train_batches=1.0)
    tree, model, settings = recipe("pretrain/audio_small")
    _shrink(model["student"]["init_args"]["backbone"]["init_args"])
    model["student"]["init_args"]["decoder"]["init_args"]["dim"] = 32
    model["targets"]["init_args"]["average_top_k_layers"] = 1
    settings |= {
        "root": None,
        "dataset": str(data / "spoken_tables"),
        "train_split": "train",
        "val_split": "validation",
    }
    settings |= {"batch_samples": 96000, "min_seconds": 0.5, "max_seconds": 1.5, "streaming": True, "shuffle_buffer": 4}
    keep("audio_stream", tree, limit_val_batches=2, limit_train_batches=1.0)
    tree, model, settings = recipe("pretrain/image_text")
    for name, objective in model["modalities"].items():
        parts = objective["init_args"]
        backbone = parts["student"]["init_args"]["backbone"]["init_args"]
        parts["student"]["init_args"]["decoder"]["init_args"] |= {"dim": 32, "width": 32, "depth": 1}
        parts["targets"]["init_args"]["average_top_k_layers"] = 1
        if name == "image":
            _shrink_image(backbone, {})
            parts["student"]["init_args"]["decoder"]["init_args"]["grid"] = [4, 4]
        else:
            backbone["encoder"]["init_args"] |= {"dim": 32, "vocab_size": 300, "mask_id": 299}
    images, texts = (settings["datamodules"][name]["init_args"] for name in ("image", "text"))
    images |= {"root": str(data / "pictures"), "batch_size": 8, "probe_samples": 16}
    texts |= {"files": str(data / "text/valid.txt"), "tokenizer": str(data / "text/bpe"), "batch_size": 2}
    texts |= {"cache_dir": str(data / "cache")}
    images["num_workers"] = texts["num_workers"] = 0
    settings["turns"] = {"image": 2, "text": 1}
    tree["trainer"]["callbacks"].pop()  # the probe, which has no labels to spare
    keep("image_text", tree)


def _shrink_image(backbone: dict[str, Any], trunk: dict[str, Any]) -> None:
    backbone["encoder"]["init_args"] |= {"image_size": 8, "patch_size": 2, "in_channels": 1, "dim": 32}
    transformer = backbone["transformer"]["init_args"]
    transformer |= TRUNK | trunk
    if transformer.get("position_bias"):
        transformer["position_bias"]["init_args"] |= {"grid": [4, 4], "num_heads": 2}


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
