"""Extraction: a row for each sample that is complete, which neighbours, padding and windows do not change."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from d2v_lightning import AudioEncoder, Backbone, TextEncoder, Transformer
from d2v_lightning.nn.extraction import Extraction


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    encoder = TextEncoder(16, 40, 20, mask_id=39)
    return Backbone(encoder, Transformer(16, 2, 2, layer_scale=None))


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 38, (3, 8), generator=torch.Generator().manual_seed(1))


def test_a_row_is_the_mean_over_the_tokens_of_its_sample(backbone: Backbone, ids: torch.Tensor) -> None:
    lengths = [8, 3, 5]
    padding_mask = torch.arange(8) >= torch.tensor(lengths)[:, None]
    batch: Any = {"inputs": ids, "padding_mask": padding_mask, "index": torch.tensor([4, 9, 2])}
    index, rows = Extraction([-1, 0])(backbone, batch)
    assert index is not None
    assert index.tolist() == [4, 9, 2]
    for row, sample, length in zip(rows, ids, lengths, strict=True):
        alone = backbone.features(sample[None, :length], layers=[1, 0]).layers
        expected = torch.stack([layer[0].mean(dim=0) for layer in alone])
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)


def test_frames_are_every_token_but_padding(backbone: Backbone, ids: torch.Tensor) -> None:
    padding_mask = torch.arange(8) >= torch.tensor([[8], [3], [5]])
    index, rows = Extraction(frames=True)(backbone, {"inputs": ids, "padding_mask": padding_mask})
    assert index is None
    assert [tuple(row.shape) for row in rows] == [(1, 8, 16), (1, 3, 16), (1, 5, 16)]
    alone = backbone.features(ids[1:2, :3], layers=[-1]).layers[0]
    torch.testing.assert_close(rows[1], alone, atol=1e-5, rtol=1e-5)


def test_released_padding_which_leaks_does_not_leak_here() -> None:
    torch.manual_seed(0)
    convs = [(8, 10, 5), (8, 3, 2), (8, 2, 2)]
    encoder = AudioEncoder(
        16, convs, "group", position_depth=3, position_width=9, position_groups=4, padding="released_1"
    )
    backbone = Backbone(encoder, Transformer(16, 2, 2, layer_scale=None))
    clips = torch.randn(2, 1500)
    padding_mask = torch.arange(1500) >= torch.tensor([[900], [1500]])
    _, rows = Extraction()(backbone, {"inputs": clips, "padding_mask": padding_mask})
    _, alone = Extraction()(backbone, {"inputs": clips[:1, :900]})
    torch.testing.assert_close(rows[0], alone[0], atol=1e-5, rtol=1e-5)
    leaking = backbone.features(clips, padding_mask, layers=[-1])
    assert not torch.allclose(leaking.layers[0][0, : leaking.lengths[0]].mean(dim=0), alone[0][0], atol=1e-3)
    assert encoder.padding == "released_1"


@pytest.mark.parametrize("frames", [False, True])
def test_a_recording_in_windows_is_complete_with_its_last(frames: bool, backbone: Backbone, ids: torch.Tensor) -> None:
    extraction, whole = Extraction(frames=frames), backbone.features(ids, layers=[-1]).layers[0]
    first: Any = {"inputs": ids[:1], "index": torch.tensor([6]), "keep": torch.tensor([[0, 8]])}
    index, rows = extraction(backbone, {**first, "last": torch.tensor([False])})
    assert index is not None
    assert (index.tolist(), rows) == ([], [])
    rest: Any = {"inputs": ids[1:], "index": torch.tensor([6, 8]), "keep": torch.tensor([[3, 5], [0, 8]])}
    index, rows = extraction(backbone, {**rest, "last": torch.tensor([True, True])})
    assert index is not None
    assert index.tolist() == [6, 8]
    for row, expected in zip(rows, (torch.cat([whole[0], whole[1, 3:5]]), whole[2]), strict=True):
        torch.testing.assert_close(row[0], expected if frames else expected.mean(dim=0), atol=1e-5, rtol=1e-5)
