"""Data, batches and masks are what a file's options say; what has no counterpart here is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from golden_case import GoldenCase
from released_cfg import CYCLICAL, PRETRAINED, RTE, merged

from d2v_lightning.checkpoints.content import Content
from d2v_lightning.checkpoints.official_data_options import data_of, glue_task
from d2v_lightning.checkpoints.options import Options
from d2v_lightning.checkpoints.pretrained import read_pretrained
from d2v_lightning.configurable import Tree
from d2v_lightning.recipes import recipe_path
from d2v_lightning.support.errors import UserError


def read(name: str, options: Tree, fairseq: bool = True) -> Tree:
    """Arguments of the datamodule of a published row's network under these options."""
    tree = yaml.safe_load(recipe_path(name).read_text())["model"]
    return data_of(Content(tree, {}, "", None, [], options=Options(options)), Options(options), fairseq)["init_args"]


def test_blocks_of_text_come_of_tokens_or_of_samples() -> None:
    assert read("text_base", PRETRAINED["text_base"])["batch_size"] == 16
    few = merged(PRETRAINED["text_base"], {"dataset": {"batch_size": 3, "max_tokens": None}})
    assert (read("text_base", few)["batch_size"], read("text_base", few)["effective_batch"]) == (3, 3 * 16 * 512)


def test_clips_are_as_long_as_the_samples_say() -> None:
    task = {"max_sample_size": None, "min_sample_size": 16_000, "sample_rate": 8_000, "enable_padding": True}
    arguments = read("audio_base", merged(PRETRAINED["audio_base"], {"task": task}))
    assert (arguments["max_seconds"], arguments["min_seconds"], arguments["crop"]) == (None, 2.0, "none")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("text_base", {"task": {"sample_break_mode": "eos"}}, "task.sample_break_mode is 'eos'"),
        ("text_base", {"task": {"mask_stdev": 1.0}}, "task.mask_stdev is 1.0, only 0.0"),
        ("text_base", {"dataset": {"max_tokens": 100}}, "dataset.max_tokens is 100: that is no block of 512 tokens"),
        ("image_v2_base", {"model": {"modalities": {"image": {"inverse_mask": False}}}}, "image.inverse_mask is false"),
        ("image_v2_base", {"dataset": {"batch_size": None, "max_tokens": 9}}, "dataset.batch_size is not set"),
        ("audio_v2_base", {"model": {"mask_channel_prob": 0.1}}, "model.mask_channel_prob is 0.1, only 0.0"),
        ("audio_base", {"dataset": {"batch_size": 9, "max_tokens": None}}, "dataset.max_tokens is not set"),
    ],
)
def test_what_has_no_counterpart_is_refused(name: str, changes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(name, merged(PRETRAINED[name], changes))


def test_beits_masks_have_no_dropout_here() -> None:
    given = CYCLICAL["image_base"]
    assert read("image_base", given, fairseq=False)["num_masked_patches"] == 120
    with pytest.raises(UserError, match=r"mask_dropout_prob is 0\.1"):
        read("image_base", {**given, "mask_dropout_prob": 0.1}, fairseq=False)


@pytest.mark.parametrize(
    ("place", "task"),
    [("/glue/RTE-bin", "rte"), ("/data/SST-2", "sst2"), ("/GLUE/STS-B-bin/", "stsb"), ("/mine", None), (None, None)],
)
def test_a_task_is_told_by_its_folder(place: str | None, task: str | None) -> None:
    assert glue_task(Options(merged(RTE, {"task": {"data": place}}))) == task


def test_a_file_remembers_which_options_were_read(tmp_path: Any) -> None:
    options = read_pretrained(GoldenCase("text_padded").write_official_file(tmp_path)).options
    assert options is not None
    assert {"model.average_top_k_layers", "model.transformer.dropout"} <= options.read
    assert "model.max_positions" not in options.read
