"""Mean and deviation of pictures: what they may be, what they do, and what becomes of published ones in grey."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from d2v_lightning import ImageEncoder
from d2v_lightning.nn.normalization import IMAGENET, INCEPTION, Normalization, normalization_of
from d2v_lightning.support.errors import UserError


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5] * 3, None, r"mean is \[0.5, 0.5, 0.5\], std is None: give both, or neither"),
        ([0.5], [0.5], "mean has 1 values for 3 channels: give one per channel"),
        ([0.5] * 3, [0.5] * 4, "std has 4 values for 3 channels"),
        ([0.5] * 3, [0.5, 0.5, 0.0], r"std is \[0.5, 0.5, 0.0\]: give numbers above 0"),
        ([0.5] * 3, [0.5, -1.0, 0.5], "give numbers above 0"),
        ([0.5, float("nan"), 0.5], [0.5] * 3, "mean is .*: it must be a list of finite numbers"),
        ([0.5] * 3, [float("inf")] * 3, "std is .*: it must be a list of finite numbers"),
        (["a"] * 3, [0.5] * 3, "mean is .*: it must be a list of finite numbers"),
        ([True] * 3, [0.5] * 3, "mean is .*: it must be a list of finite numbers"),
        ("abc", [0.5] * 3, "mean is 'abc': it must be a list of numbers"),
        ({"r": 1}, [0.5] * 3, "mean is .*: it must be a list of numbers"),
    ],
)
def test_what_is_no_normalisation_is_refused_in_one_line(mean: Any, std: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        normalization_of(mean, std, 3)
    assert "\n" not in str(error.value)


def test_any_number_of_channels_is_at_least_one() -> None:
    assert normalization_of([0.5] * 7, [1] * 7, None) == ([0.5] * 7, [1.0] * 7)
    with pytest.raises(UserError, match="mean has 0 values for 1 channels"):
        normalization_of([], [], None)
    with pytest.raises(UserError, match=r"mean is 0\.5: it must be a list of numbers"):
        normalization_of(0.5, 0.5, None)


def test_pictures_are_shifted_and_scaled_channel_by_channel() -> None:
    images = torch.rand(2, 3, 4, 5)
    found = IMAGENET(images)
    torch.testing.assert_close(found[:, 1], (images[:, 1] - 0.456) / 0.224)
    assert found.shape == images.shape
    torch.testing.assert_close(IMAGENET.undone(found), images)


def test_published_values_of_other_channels_are_the_average() -> None:
    assert IMAGENET.of_channels(3) is IMAGENET
    grey, four = IMAGENET.of_channels(1), IMAGENET.of_channels(4)
    assert grey.mean == pytest.approx([0.449])
    assert grey.std == pytest.approx([0.226])
    assert four.mean == grey.mean * 4
    assert INCEPTION.of_channels(1) == ([0.5], [0.5])


def test_rounding_of_another_library_is_no_difference() -> None:
    single = Normalization(torch.tensor(IMAGENET.mean).tolist(), torch.tensor(IMAGENET.std).tolist())
    assert single != IMAGENET
    assert single.agrees(IMAGENET)
    assert not INCEPTION.agrees(IMAGENET)
    assert not IMAGENET.agrees(IMAGENET.of_channels(4))


def test_an_encoder_carries_it_in_its_configuration() -> None:
    encoder = ImageEncoder(8, 4, 1, 8)
    assert encoder.normalization is None
    encoder.normalization = Normalization([0.5], [0.25])
    assert encoder.config["init_args"]["mean"] == [0.5]
    assert ImageEncoder(**encoder.config["init_args"]).normalization == ([0.5], [0.25])
    with pytest.raises(UserError, match="mean has 3 values for 1 channels"):
        encoder.normalization = IMAGENET
