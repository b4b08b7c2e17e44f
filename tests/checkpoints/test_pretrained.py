"""A file of ours read back: its kind, scores and weights; what it names is ours and what it describes is what it holds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import checkpoint, model

from d2v_lightning import Data2Vec, ImageClassifier
from d2v_lightning.checkpoints.pretrained import FromPretrained, read_pretrained
from d2v_lightning.support.errors import UserError


def stored(folder: Path, change: Any = None) -> Path:
    content = checkpoint()
    content["global_step"] = 1200
    watched = {"monitor": "val/loss", "current_score": torch.tensor(0.5)}
    content["callbacks"] = {"one": watched, "two": {"monitor": None, "current_score": None}}
    content["hyper_parameters"] = copy.deepcopy(content["hyper_parameters"])
    if change is not None:
        change(content)
    torch.save(content, folder / "a.ckpt")
    return folder / "a.ckpt"


def test_it_says_what_it_is_how_good_and_what_became_of_each_weight(tmp_path: Path) -> None:
    found = read_pretrained(stored(tmp_path))
    assert found.kind == "Data2Vec of d2v_lightning at step 1,200"
    assert found.metrics == {"val/loss": 0.5}
    assert found.path == str(tmp_path / "a.ckpt")
    assert found.data == {
        "class_path": "datamodules.ImageDataModule", "init_args": {"dataset": "digits", "num_workers": 0}
    }  # fmt: skip
    assert {row.theirs for row in found.rows} == set(model().state_dict())
    assert all(row.how == "matched" and row.ours == row.theirs for row in found.rows)


def test_a_module_goes_into_a_directory_and_comes_back_as_its_own_class_only(tmp_path: Path) -> None:
    module = model()
    module.save_pretrained(tmp_path / "made")
    for cls in (Data2Vec, FromPretrained):
        again: Any = cls.from_pretrained(tmp_path / "made")
        assert type(again) is Data2Vec
        assert again.config == module.config
        assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in module.state_dict().items())
    with pytest.raises(UserError, match=r"holds a Data2Vec, not a ImageClassifier; ImageClassifier\(checkpoint=...\)"):
        ImageClassifier.from_pretrained(tmp_path / "made")
    with pytest.raises(FileExistsError):
        module.save_pretrained(tmp_path / "made")


def deeper(content: dict[str, Any]) -> None:
    trunk = content["hyper_parameters"]["init_args"]["student"]["init_args"]["backbone"]["init_args"]["transformer"]
    trunk["init_args"]["depth"] = 10_000_000


def smaller(content: dict[str, Any]) -> None:
    encoder = content["hyper_parameters"]["init_args"]["student"]["init_args"]["backbone"]["init_args"]["encoder"]
    encoder["init_args"]["patch_size"] = 3


def poisoned(content: dict[str, Any]) -> None:
    content["state_dict"]["student.mask_token"] = torch.full_like(
        content["state_dict"]["student.mask_token"], torch.nan
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (deeper, "describes a network with 10000000 parts of a kind, but has"),
        (smaller, "not a whole number of patches of 3x3"),
        (poisoned, "NaN or infinity"),
        (
            lambda content: content["d2v_lightning"].update(format_version=True),
            "is not a whole checkpoint: it lacks format",
        ),
        (lambda content: content.update(global_step=True), "global_step is 'True', where a count is expected"),
        (lambda content: content.pop("d2v_lightning"), "is of another project: it holds entries"),
        (
            lambda content: content["hyper_parameters"].update(
                {"class_path": "d2v_lightning.Optimization", "init_args": {}}
            ),
            "holds a Optimization, which is no network",
        ),
        (lambda content: content["hyper_parameters"].update(class_path="torch.nn.Linear"), "not a class of"),
    ],
)
def test_what_it_describes_must_be_what_it_holds(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_pretrained(stored(tmp_path, change))
    assert str(tmp_path / "a.ckpt") in str(error.value)
