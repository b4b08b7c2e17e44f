"""A text checkpoint carries its tokenizer: it is all that fine-tuning and prediction need, and no other one passes."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from d2v_lightning import Data2Vec, GLUEClassifier, load_backbone
from d2v_lightning.checkpoints import stored_tokenizer
from d2v_lightning.commands.command_line import D2VCLI
from d2v_lightning.commands.features import main as features
from d2v_lightning.commands.tokenizer import save_tokenizer, train_tokenizer
from d2v_lightning.flavour import pl
from datamodules.text.sources import FileSource
from datamodules.text.vocabulary import load_tokenizer

SENTENCES = ["the cat sat on the mat", "a dog ran, and the cat slept", "no dog sat on the cat", "rain fell on the hat"]
ROOT = Path(__file__).parents[2]
SMALL = {
    "model.init_args.student.init_args.backbone.init_args": {
        "encoder": {
            "class_path": "TextEncoder",
            "init_args": {"dim": 16, "vocab_size": 280, "max_positions": 32, "mask_id": 279},
        },
        "transformer": {"dim": 16, "depth": 2, "num_heads": 2, "norm": "post", "final_norm": False},
    }
}
TRAINER = {"accelerator": "cpu", "max_steps": 2, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, two tokenizers of one size, reviews, and a pre-trained model whose tokenizer is gone."""
    made = tmp_path_factory.mktemp("text")
    (made / "text.txt").write_text("\n".join(SENTENCES * 20))
    (made / "other.txt").write_text("\n".join(line[::-1] for line in SENTENCES * 20))
    for name, text in (("bpe", "text.txt"), ("other", "other.txt")):
        save_tokenizer(train_tokenizer(FileSource(str(made / text)), 280), made / name)
    (made / "SST-2").mkdir()
    rows = "".join(f"{line}\t{number % 2}\n" for number, line in enumerate(SENTENCES * 4))
    for split in ("train", "dev"):
        (made / "SST-2" / f"{split}.tsv").write_text(f"sentence\tlabel\n{rows}")
    backbone = SMALL["model.init_args.student.init_args.backbone.init_args"]
    pretrain = {
        "model": {
            "class_path": "Data2Vec",
            "init_args": {
                "student": {
                    "class_path": "MaskTokenStudent",
                    "init_args": {
                        "backbone": {"class_path": "Backbone", "init_args": backbone},
                        "decoder": {"class_path": "LinearDecoder", "init_args": {"dim": 16}},
                    },
                },
                "targets": {"average_top_k_layers": 1},
                "loss": {"class_path": "RegressionLoss"},
                "ema_teacher": {"class_path": "EMATeacher"},
                "optimization": {"class_path": "Optimization"},
                "teacher_scope": "transformer",
            },
        },
        "data": {
            "class_path": "TextDataModule",
            "init_args": {
                "files": str(made / "text.txt"), "tokenizer": str(made / "bpe"), "cache_dir": str(made / "cache"),
                "packing": "blocks", "block_size": 16, "batch_size": 4, "num_workers": 0,
            },
        },
        "trainer": TRAINER,
    }  # fmt: skip
    (made / "pretrain.yaml").write_text(yaml.safe_dump(pretrain))
    finetune = {
        "model": {"class_path": "GLUEClassifier", "init_args": {"task": "sst2"}},
        "data": {"class_path": "GLUEDataModule", "init_args": {"task": "sst2", "root": str(made), "batch_size": 4}},
        "trainer": TRAINER,
    }
    (made / "finetune.yaml").write_text(yaml.safe_dump(finetune))
    run("fit", "--config", made / "pretrain.yaml", "--trainer.default_root_dir", made / "pre")
    run(
        *("fit", "--config", made / "finetune.yaml", "--model.checkpoint", made / "pre/checkpoints/last.ckpt"),
        *("--trainer.default_root_dir", made / "fine"),
    )
    shutil.move(made / "bpe", made / "moved")
    return made


def run(*arguments: Any) -> D2VCLI:
    return D2VCLI([str(argument) for argument in arguments])


def last(folder: Path, name: str) -> Path:
    return folder / name / "checkpoints" / "last.ckpt"


def test_it_is_the_same_tokenizer(folder: Path) -> None:
    plain = torch.load(last(folder, "pre"), weights_only=True)["d2v_lightning"]["tokenizer"]
    ours, theirs = stored_tokenizer.load(plain), load_tokenizer(str(folder / "moved"))
    texts = ["the cat", "a <mask> dog", "Ünïcode\n"]
    assert ours(texts)["input_ids"] == theirs(texts)["input_ids"]
    assert ours("a", "b")["input_ids"] == theirs("a", "b")["input_ids"]
    assert (ours.pad_token_id, ours.mask_token_id, ours.cls_token_id) == (1, 279, 0)
    assert stored_tokenizer.to_dict(ours) == plain == stored_tokenizer.to_dict(theirs)


def test_predict_needs_a_checkpoint_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "new.tsv").write_text("sentence\nthe dog ran\nno rain\n")
    out = ("--predictions.output", tmp_path / "out.csv", "--trainer.accelerator", "cpu")
    run("predict", "--ckpt_path", last(folder, "fine"), "--data.predict_file", tmp_path / "new.tsv", *out)
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"{tmp_path / 'new.tsv'}:{line}" for line in (2, 3)]
    model = GLUEClassifier.load_from_checkpoint(last(folder, "fine")).eval()
    ids = load_tokenizer(str(folder / "moved"))("no rain", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = model(ids).softmax(dim=-1).max()
    assert float(rows[1]["probability"]) == pytest.approx(float(best), abs=1e-5)


def test_another_tokenizer_is_refused_wherever_it_meets_the_model(folder: Path, tmp_path: Path) -> None:
    other = ("--data.tokenizer", folder / "other", "--trainer.default_root_dir", tmp_path)
    refused = "other' is not the one stored with the model: set data.tokenizer to null"
    fine, pre = last(folder, "fine"), last(folder, "pre")
    for command in (
        ("fit", "--config", folder / "finetune.yaml", "--model.checkpoint", pre),
        ("fit", "--config", folder / "pretrain.yaml", "--model.checkpoint", pre),
        ("validate", "--ckpt_path", fine),
        ("predict", "--ckpt_path", fine),
    ):
        with pytest.raises(ValueError, match=refused):
            run(*command, *other)
    same = ("--data.tokenizer", folder / "moved", "--trainer.default_root_dir", tmp_path / "validated")
    run("validate", "--ckpt_path", fine, *same)


def test_a_run_goes_on_without_the_directory(folder: Path) -> None:
    cli = run("fit", "--ckpt_path", last(folder, "pre"), "--trainer.max_steps", 4)
    assert cli.trainer.global_step == 4


def test_in_python_the_checkpoint_is_compared_when_it_is_loaded(folder: Path) -> None:

    from datamodules import GLUEDataModule

    model = GLUEClassifier.load_from_checkpoint(last(folder, "fine"))
    model.backbone.tokenizer = None
    data = GLUEDataModule("sst2", root=str(folder), tokenizer=str(folder / "other"))
    trainer = pl.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    with pytest.raises(ValueError, match="the tokenizer of the data is not the one stored"):
        trainer.validate(model, data, ckpt_path=last(folder, "fine"))


def test_a_model_without_one_says_what_to_set(folder: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(last(folder, "pre"), weights_only=True)
    checkpoint["d2v_lightning"].pop("tokenizer")  # as files of earlier versions
    torch.save(checkpoint, tmp_path / "old.ckpt")
    command = ("fit", "--config", folder / "finetune.yaml", "--model.checkpoint", tmp_path / "old.ckpt")
    with pytest.raises(
        ValueError, match=r"no tokenizer is given, and none is stored with the model: set data\.tokenizer"
    ):
        run(*command, "--trainer.default_root_dir", tmp_path / "run")
    checkpoint["d2v_lightning"]["tokenizer"] = {"json": "{}", "special_tokens": {}, "model_max_length": 9}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match="the tokenizer stored with the model is damaged"):
        run(*command, "--trainer.default_root_dir", tmp_path / "run")


def test_directories_and_features_have_it(folder: Path, tmp_path: Path) -> None:
    model = Data2Vec.load_from_checkpoint(last(folder, "pre"))
    model.save_pretrained(tmp_path / "saved")
    assert Data2Vec.from_pretrained(tmp_path / "saved").backbone.tokenizer == model.backbone.tokenizer
    assert load_backbone(tmp_path / "saved").tokenizer == model.backbone.tokenizer
    assert load_tokenizer(str(tmp_path / "saved")).mask_token_id == 279
    arguments = [str(folder / "text.txt"), "--checkpoint", str(last(folder, "fine")), "--out", str(tmp_path / "x.npy")]
    assert features(arguments) == 0
    assert (tmp_path / "x.npy").is_file()
