"""No folder of its trainer's computer is given away with a model, and names of public data sets are."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_backbone

import d2v_lightning
import datamodules
from d2v_lightning import ImageClassifier
from d2v_lightning.checkpoints.card import card
from d2v_lightning.checkpoints.content import Content
from d2v_lightning.checkpoints.directory import write_directory
from d2v_lightning.checkpoints.shareable import NAMES, PLACES, TEXTS, decoder_with_files, shareable
from d2v_lightning.configurable import Configurable

# Arguments that are words: columns, configurations, policies, names of modalities and signals.
WORDS = {
    *("modality", "modalities", "text_columns", "label_column", "dataset_config", "image_column", "text_column"),
    *("text_field", "rand_augment", "datamodules", "turns", "signals", "shown"),
}
SECRET = "/home/jane/secret"


def classes() -> set[type[Configurable]]:
    """All of ours."""
    found: set[type[Configurable]] = set()
    for package in (d2v_lightning, datamodules):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            members = vars(importlib.import_module(module.name)).values()
            found |= {member for member in members if isinstance(member, type) and issubclass(member, Configurable)}
    return found


def test_every_text_argument_is_known_for_what_it_is() -> None:
    """A new one belongs into `PLACES`, `NAMES`, `TEXTS` or the words above."""
    arguments = {
        name
        for one in classes()
        for name, parameter in inspect.signature(one.__init__).parameters.items()
        if "str" in (annotation := str(parameter.annotation)) and "Literal" not in annotation and name != "self"
    }
    assert arguments <= PLACES | NAMES | TEXTS | WORDS
    assert not PLACES & (NAMES | TEXTS | WORDS)


@pytest.mark.parametrize("name", sorted(PLACES))
def test_places_are_left_out_wherever_they_stand(name: str) -> None:
    for value in ("data", SECRET, [SECRET], "~/x", "C:\\x", 1):
        assert shareable({"a": {"init_args": {name: value, "seed": 0}}}) == {"a": {"init_args": {"seed": 0}}}
    assert shareable({name: None}) == {name: None}


def test_public_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"dataset": "zh-plus/tiny-imagenet", "tokenizer": "roberta-base", "train_split": ["train-clean-100"]}
    assert shareable(named) == named
    Path("zh-plus/tiny-imagenet").mkdir(parents=True)
    assert shareable(named) == {name: value for name, value in named.items() if name != "dataset"}
    for value in (SECRET, "~/tables", "./tables", "a/b/c", "tables.parquet", "../x", ""):
        assert shareable({"dataset": value, "val_split": value}) == {}
    assert shareable({"train_split": ["dev-clean", f"{SECRET}/clips.tsv"]}) == {"train_split": ["dev-clean"]}


def test_what_looks_like_a_place_is_one_and_letters_and_classes_are_not() -> None:
    kept = {"vocabulary": ["/", "~", "a"], "class_names": ["/m/09x0r", "AC/DC"], "rand_augment": "rand-m9-mstd0.5-inc1"}
    assert shareable(kept) == kept
    odd = {"table": SECRET, "other": "file:x", "list": ["a", SECRET, ["~/b"]], "share": "1/2"}
    assert shareable(odd) == {"list": ["a", []], "share": "1/2"}


def content(data: Any, **arguments: Any) -> Content:
    model = ImageClassifier(2, backbone=tiny_backbone(), mixup=0, cutmix=0)
    model.config["init_args"].update(arguments)
    return Content(model.config, model.state_dict(), "a classifier", None, [], data)


def test_neither_card_nor_config_has_a_folder(tmp_path: Path) -> None:
    inside = {"root": SECRET, "predict_files": [f"{SECRET}/1.png"], "dataset": None, "batch_size": 7}
    image = {"class_path": "datamodules.ImageDataModule", "init_args": inside}
    text = {"files": f"{SECRET}/*.txt", "tokenizer": f"{SECRET}/bpe", "cache_dir": SECRET, "block_size": 64}
    parts = {"image": image, "text": {"class_path": "datamodules.TextDataModule", "init_args": text}}
    data = {"class_path": "datamodules.MultimodalDataModule", "init_args": {"datamodules": parts, "turns": None}}
    found = content(data, extra={"class_path": "mine.Encoder", "init_args": {"table": SECRET, "width": 3}})
    for written in (card(found, None), card(found, "Data2VecVisionModel")):
        assert "jane" not in written
        assert "    image: ImageDataModule\n      dataset: None\n      batch_size: 7" in written
        assert "block_size: 64" in written
        assert "extra: Encoder\n  width: 3" in written
    del found.tree["init_args"]["extra"]
    write_directory(found, tmp_path / "out")
    assert "jane" not in (tmp_path / "out" / "config.json").read_text()
    assert "jane" not in (tmp_path / "out" / "README.md").read_text()


def test_a_decoder_that_reads_files_stays_behind_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = {"class_path": "d2v_lightning.BeamSearch", "init_args": {"lm": f"{SECRET}/4gram.arpa", "beam": 50}}
    caplog.set_level("INFO")
    write_directory(content(None, decoder=decoder), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["init_args"]["decoder"] is None
    assert "it is written without its decoder: give model.decoder where it is used" in caplog.text
    assert "jane" not in (tmp_path / "out" / "README.md").read_text()
    alone = {"class_path": "d2v_lightning.BeamSearch", "init_args": {"lm": None, "lexicon": None, "beam": 50}}
    assert decoder_with_files({"init_args": {"decoder": alone}}) is None
    assert decoder_with_files({"init_args": None}) is None
