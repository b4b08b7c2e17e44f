"""Arguments that several datamodules have are checked in the same words, and whatever is permitted passes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from datamodules.shared.arguments import enough_for_a_batch, held_out_share, one_of


def test_a_choice_is_one_of_those_given() -> None:
    one_of(("pretrain", "ctc"), task="ctc", other="pretrain")
    with pytest.raises(ValueError, match=r"^task 'asr': permitted are 'pretrain', 'ctc'$"):
        one_of(("pretrain", "ctc"), task="asr")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5])
def test_a_share_lies_between_none_and_all(share: float) -> None:
    for permitted in (None, 0.01, 0.99):
        held_out_share(permitted)
    with pytest.raises(ValueError, match=f"val_fraction {share}: permitted is 0 < val_fraction < 1"):
        held_out_share(share)


def test_every_device_needs_a_whole_batch() -> None:
    trainer: Any = SimpleNamespace(world_size=3)
    enough_for_a_batch(trainer, 4, 12, "clips")
    enough_for_a_batch(None, 11, 11, "clips")
    with pytest.raises(ValueError, match=r"batch_size 4 x 3 device\(s\) is more than 11 clips: .* at most 3$"):
        enough_for_a_batch(trainer, 4, 11, "clips")
    with pytest.raises(ValueError, match=r"at most 1$"):
        enough_for_a_batch(trainer, 4, 2, "clips")
