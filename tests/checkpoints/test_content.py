"""What a file holds, in our terms: a part of its weights, one of its modalities, and what its data was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from d2v_lightning.checkpoints.content import Content
from d2v_lightning.support.errors import UserError


def of_one(encoder: str) -> dict[str, Any]:
    backbone = {"init_args": {"encoder": {"class_path": f"d2v_lightning.{encoder}"}}}
    return {"class_path": "d2v_lightning.Objective", "init_args": {"student": {"init_args": {"backbone": backbone}}}}


SEVERAL = Content(
    {
        "class_path": "d2v_lightning.MultimodalData2Vec",
        "init_args": {"modalities": {"image": of_one("ImageEncoder"), "text": of_one("TextEncoder")}},
    },
    {"modalities.image.student.w": torch.zeros(1), "modalities.text.student.w": torch.ones(2)},
    "several",
    None,
    [],
    data={"class_path": "x", "init_args": {"datamodules": {"text": {"class_path": "y", "init_args": {"a": 1}}}}},
    tokenizer="the tokenizer",  # type: ignore[arg-type]
    path="file",
)
ONE = Content({"class_path": "d2v_lightning.Data2Vec", "init_args": {}}, {"student.w": torch.ones(1)}, "", None, [])


def test_a_part_is_the_weights_below_a_prefix() -> None:
    assert list(ONE.part("student.")) == ["w"]
    with pytest.raises(UserError, match=r"file holds a d2v_lightning\.Data2Vec, which has no teacher$"):
        ONE._replace(path="file").part("teacher.")


def test_a_modality_takes_its_own_weights_data_and_tokenizer_along() -> None:
    text = SEVERAL.of_modality("text")
    assert (text.tree, list(text.state), text.state["student.w"].numel()) == (of_one("TextEncoder"), ["student.w"], 2)
    assert (text.data_arguments, text.tokenizer) == ({"a": 1}, "the tokenizer")
    image = SEVERAL.of_modality("image")
    assert (image.data, image.tokenizer) == (None, None)
    assert ONE.of_modality(None) is ONE


def test_modalities_that_are_not_there_or_not_named_are_refused() -> None:
    for given in (None, "sound"):
        with pytest.raises(UserError, match=f"modality is {given!r} for file: choose from its modalities, image, text"):
            SEVERAL.of_modality(given)
    with pytest.raises(UserError, match="it is of one modality: leave modality out"):
        ONE.of_modality("image")


def test_whether_clips_were_normalised_is_asked_of_data_model_and_file_in_this_order() -> None:
    def content(data: Any = None, model: Any = None, file: bool | None = None) -> Content:
        tree = {"class_path": "x", "init_args": {} if model is None else {"normalize": model}}
        run = None if data is None else {"class_path": "y", "init_args": {"normalize": data}}
        return ONE._replace(tree=tree, data=run, normalize=file, path="file")

    assert content().takes_normalized is None
    assert content(file=True).takes_normalized is True
    assert content(model=False, file=True).takes_normalized is False
    assert content(data=True, model=False).takes_normalized is True
    with pytest.raises(UserError, match="file: its normalize is 'yes': it must be true or false"):
        _ = content(data="yes").takes_normalized
