"""A run of a script that goes on with another model than its checkpoint's says so, and no other run does."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from tiny import loader, tiny_image_model, tiny_model, trainer

from d2v_lightning import Data2Vec
from d2v_lightning.checkpoints.model_differences import as_lists, describe_changes, differences, say_changed_model
from d2v_lightning.configurable import build
from datamodules import ImageDataModule


def changed(**arguments: Any) -> Any:
    """A `tiny_model` with other settings: dotted names with __ for the dots."""
    tree = tiny_model().config
    for dotted, value in arguments.items():
        *parents, last = dotted.split("__")
        node = tree["init_args"]
        for parent in parents:
            node = node[parent]["init_args"]
        node[last] = value
    return build(tree)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "step3.ckpt"
    runner = trainer([], 3)
    runner.fit(tiny_model(), loader())
    runner.save_checkpoint(path)
    return path


def said(model: Any, path: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer([], 4).fit(model, loader(), ckpt_path=path)
    return [str(warning.message) for warning in caught if "another model" in str(warning.message)]


def test_a_script_that_goes_on_with_another_model_is_told(saved: Path) -> None:
    (line,) = said(changed(loss__beta=0.5, optimization__lr=1e-4), saved)
    assert line.startswith(f"going on from {saved} with another model: ")
    assert "model.loss.beta is 0.5 now and 2.0 in the checkpoint" in line
    assert "model.optimization.lr is 0.0001 now and 0.001 in the checkpoint" in line


def test_the_same_model_and_what_does_not_change_it_are_not_spoken_of(saved: Path) -> None:
    free = {"student__backbone__transformer__gradient_checkpointing": True, "on_nonfinite": "skip"}
    for model in (tiny_model(), changed(**free)):
        assert not said(model, saved)


def test_a_module_whose_data_tell_it_something_is_the_same(tmp_path: Path) -> None:
    def data() -> ImageDataModule:
        return ImageDataModule(dataset="digits", batch_size=16, num_workers=0, num_masked_patches=2, min_block=1)

    model = Data2Vec.from_recipe("digits")
    runner = trainer([], 1, limit_val_batches=0)
    runner.fit(model, data())
    runner.save_checkpoint(tmp_path / "digits.ckpt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = trainer([], 2, limit_val_batches=0)
        again.fit(Data2Vec.from_recipe("digits"), data(), ckpt_path=tmp_path / "digits.ckpt")
    assert not [one for one in caught if "another model" in str(one.message)]


def test_differences_in_words() -> None:
    one, other = tiny_model().config, tiny_image_model().config
    changes = list(differences(one, other, "model"))
    assert not list(differences(one, tiny_model().config, "model"))
    assert describe_changes(changes).endswith(f"; and {len(changes) - 4} more")
    assert as_lists((1, [(2,)])) == [1, [[2]]]


def test_of_a_tree_that_is_not_ours_nothing_is_said() -> None:
    ours = tiny_model().config
    for now, stored in ((ours, {"class_path": "some.Where", "init_args": {}}), ({"class_path": "Nowhere"}, ours)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            say_changed_model(now, stored, "a.ckpt")
        assert not said
