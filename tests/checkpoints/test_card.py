"""The model card says how a directory is loaded, under which licence, with which scores, data and recipe."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from d2v_lightning.checkpoints.card import card, licence_said, settings
from d2v_lightning.checkpoints.content import FREE, NON_COMMERCIAL, Content

TREE = {
    "class_path": "d2v_lightning.ImageClassifier",
    "init_args": {
        "num_classes": 3,
        "optimization": {"class_path": "d2v_lightning.Optimization", "init_args": {"lr": 1}},
    },
}
CONTENT = Content(TREE, {}, "a classifier", None, [])


def test_it_says_which_class_of_which_package_loads_the_directory() -> None:
    ours, theirs = card(CONTENT, None), card(CONTENT, "BeitForImageClassification")
    assert 'model = ImageClassifier.from_pretrained("this directory")' in ours
    assert "it loads with the package d2v_lightning only" in ours
    assert "library_name: d2v_lightning\n---" in ours
    assert 'model = BeitForImageClassification.from_pretrained("this directory")' in theirs
    assert "library_name: transformers\n---" in theirs
    assert "\n# A classifier\n" in ours


@pytest.mark.parametrize(
    ("licence", "header", "said"),
    [
        (None, None, "Not recorded: the weights are their trainer's."),
        (NON_COMMERCIAL, "license: cc-by-nc-4.0", "are for non-commercial use"),
        (FREE, "license: mit", "Meta's released weights of this kind: mit."),
    ],
)
def test_the_licence_travels_in_header_and_words(licence: str | None, header: str | None, said: str) -> None:
    text = card(CONTENT._replace(licence=licence), None)
    assert said in licence_said(licence)
    assert licence_said(licence) in text
    assert ("license:" in text) == (header is not None)
    assert header is None or header in text.split("---")[1]


def test_scores_data_and_recipe_are_there_where_they_are_known() -> None:
    bare = card(CONTENT, None)
    assert "None recorded." in bare
    assert "Not recorded.\n\n## Recipe" in bare
    data = {"class_path": "datamodules.ImageDataModule", "init_args": {"dataset_config": "x" * 200}}
    full = card(CONTENT._replace(metrics=MappingProxyType({"val/b": 0.123456, "val/a": 2.0}), data=data), None)
    assert "- val/a: 2\n- val/b: 0.1235" in full
    assert f"data: ImageDataModule\n  dataset_config: {'x' * 97}...\n" in full
    assert "num_classes: 3\noptimization: Optimization\n  lr: 1\n```" in full
    assert settings({"a": {"class_path": "x.B", "init_args": None}}) == ["a: B"]
