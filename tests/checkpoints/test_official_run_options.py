"""Optimiser, schedule, batch and length are what a file's options say; what has no counterpart here is refused."""

from __future__ import annotations

from typing import Any

import pytest
from released_cfg import CLASSES, CYCLICAL, PRETRAINED, RTE, merged

from d2v_lightning.checkpoints.official_run_options import (
    beit_batch,
    beit_optimization,
    beit_trainer,
    fairseq_batch,
    fairseq_optimization,
    fairseq_trainer,
)
from d2v_lightning.checkpoints.options import Options
from d2v_lightning.support.errors import UserError


def cfg(name: str, **changes: Any) -> Options:
    return Options(merged(PRETRAINED[name], changes))


@pytest.mark.parametrize("betas", ["(0.9,0.98)", "[0.9, 0.98]", [0.9, 0.98], (0.9, 0.98)])
def test_betas_are_a_list_or_the_text_of_one(betas: Any) -> None:
    assert fairseq_optimization(cfg("text_base", optimizer={"adam_betas": betas})).betas == (0.9, 0.98)


def test_a_composite_optimiser_is_its_default_group() -> None:
    made = fairseq_optimization(cfg("text_v2_large_1m"))
    assert (made.lr, made.warmup, made.schedule, made.decay_all) == (1e-4, 4000, "fairseq_cosine", True)
    without = cfg("text_v2_large_1m", optimizer={"groups": {"default": {"lr_float": None}}})
    assert fairseq_optimization(without).lr == 3e-4, "then the rate of the run counts"


def test_a_tri_stage_rate_in_steps_is_one_in_shares() -> None:
    steps = {"phase_ratio": None, "warmup_steps": 12_000, "hold_steps": 360_000}
    assert (
        fairseq_optimization(cfg("audio_base", lr_scheduler=steps)).config
        == fairseq_optimization(cfg("audio_base")).config
    )


def test_steps_are_the_same_number_of_steps_again() -> None:
    """14,500 / 400,000 x 400,000 is 14,499.999999999998 in floating point."""
    steps = {"phase_ratio": None, "warmup_steps": 14_500, "hold_steps": 14_500}
    made = fairseq_optimization(cfg("audio_base", lr_scheduler=steps))
    assert [int(made.warmup * 400_000), int(made.hold * 400_000)] == [14_500, 14_500]


def test_a_schedule_may_be_longer_than_the_run() -> None:
    made, settings = fairseq_optimization(Options(RTE)), fairseq_trainer(Options(RTE))
    assert (made.schedule, made.schedule_steps, made.warmup) == ("polynomial", 2036, 122)
    assert settings == {"max_epochs": 10, "max_steps": 2036, "precision": "bf16-mixed"}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("text_base", {"optimizer": None}, "its cfg has no section optimizer"),
        ("text_base", {"optimizer": {"_name": "adafactor"}}, "its option optimizer._name is 'adafactor', only 'adam'"),
        ("text_base", {"optimizer": {"adam_betas": "0.9"}}, "its option optimizer.adam_betas is '0.9', where 2 numbers"),
        ("text_base", {"optimizer": {"adam_betas": ["a", "b"]}}, "adam_betas is .*, where 2 numbers are expected"),
        ("text_base", {"lr_scheduler": {"_name": "fixed"}}, "its schedule lr_scheduler._name is 'fixed'"),
        ("text_base", {"lr_scheduler": {"warmup_init_lr": 1e-7}}, "its warm-up starts at 1e-07"),
        ("text_base", {"optimization": {"lr": [0.0]}}, "its learning rate is 0"),
        ("audio_base", {"lr_scheduler": {"init_lr_scale": 0.1}}, "lr_scheduler.init_lr_scale is 0.1, only 0.01"),
        ("text_v2_base", {"optimizer": {"groups": {"default": {"optimizer": None}}}}, "no section optimizer.groups.default"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused(name: str, changes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fairseq_optimization(cfg(name, **changes))


def test_an_update_has_the_batches_of_all_devices_and_those_accumulated() -> None:
    assert fairseq_batch(cfg("audio_base", optimization={"update_freq": [3]})) == (None, 3_800_000, 48)
    assert fairseq_batch(Options(RTE)) == (16, 4400, 1)
    assert beit_batch(Options({**CLASSES, "update_freq": 2})) == (128, None, 16)
    with pytest.raises(UserError, match=r"dataset\.batch_size and dataset\.max_tokens are not set"):
        fairseq_batch(cfg("audio_base", dataset={"max_tokens": None}))


def test_length_clipping_and_precision() -> None:
    assert fairseq_trainer(cfg("audio_base", common={"fp16": False})) == {"max_steps": 400_000, "precision": "32-true"}
    assert fairseq_trainer(cfg("text_base"))["gradient_clip_val"] == 5.0
    with pytest.raises(UserError, match="its run has no length"):
        fairseq_trainer(cfg("audio_base", optimization={"max_update": 0}))
    assert beit_trainer(Options(CLASSES)) == {"max_epochs": 100, "precision": "bf16-mixed"}


def test_beit_counts_its_warm_up_in_epochs_or_steps() -> None:
    given = CYCLICAL["image_base"]
    assert beit_optimization(Options(given)).warmup == 0.0125
    assert beit_optimization(Options({**given, "warmup_steps": 500})).warmup == 500
    for changed, message in (
        ({"opt": "sgd"}, "its option opt is 'sgd', only 'adamw'"),
        ({"weight_decay_end": 0.1}, "weight_decay_end is 0.1"),
        ({"lr": None}, "its option lr is not set"),
        ({"warmup_epochs": 8, "epochs": 8}, "its warm-up is 1 times its run"),
    ):
        with pytest.raises(UserError, match=message):
            beit_optimization(Options({**given, **changed}))
