"""Students: parts of other sizes, and masks that leave nothing to see or to predict, are refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from d2v_lightning import (
    Backbone,
    ConvDecoder,
    Encoder,
    ImageEncoder,
    LinearDecoder,
    MaskTokenStudent,
    MlpDecoder,
    TextEncoder,
    Transformer,
    VisibleStudent,
)
from d2v_lightning.method.positions import hidden_positions, visible_positions
from d2v_lightning.nn.encoders import Position


class OwnGrid(Encoder):
    """An encoder of one's own whose tokens stand on a grid."""

    def __init__(self, grid: tuple[int, int] = (2, 3), dim: int = 16) -> None:
        super().__init__()
        self.grid, self.dim, self.position = grid, dim, Position()


def backbone_of(encoder: Encoder) -> Backbone:
    return Backbone(encoder, Transformer(dim=16, depth=1, num_heads=2))


def images() -> ImageEncoder:
    return ImageEncoder(16, 4, dim=16, positions="sine_cosine")


def texts() -> TextEncoder:
    return TextEncoder(16, 40, 20, mask_id=39)


def decoder(grid: tuple[int, int] | None, dim: int = 16) -> ConvDecoder:
    return ConvDecoder(dim, grid, depth=1, width=16, groups=4)


@pytest.mark.parametrize(
    ("encoder", "grid", "message"),
    [
        (images(), None, r"decoder\.grid is None, but ImageEncoder makes a grid of \(4, 4\): set .* to \[4, 4\]"),
        (images(), (2, 8), r"decoder\.grid is \(2, 8\), but ImageEncoder makes a grid of \(4, 4\)"),
        (texts(), (4, 4), r"TextEncoder makes a sequence without a grid: set decoder\.grid to null"),
        (OwnGrid(), (3, 2), r"decoder\.grid is \(3, 2\), but OwnGrid makes a grid of \(2, 3\)"),
    ],
)
def test_a_decoder_for_another_grid_is_refused(encoder: Encoder, grid: tuple[int, int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisibleStudent(backbone_of(encoder), decoder(grid))


def test_a_decoder_of_the_encoders_grid_is_taken_and_one_for_sequences_by_an_encoder_of_ones_own() -> None:
    for encoder, grid in ((images(), (4, 4)), (texts(), None), (OwnGrid(), (2, 3)), (OwnGrid(), None)):
        assert VisibleStudent(backbone_of(encoder), decoder(grid)).decoder.grid == grid


def test_a_decoder_of_another_width_is_refused() -> None:
    makers: list[Any] = [
        lambda backbone: VisibleStudent(backbone, decoder((4, 4), dim=32)),
        lambda backbone: MaskTokenStudent(backbone, LinearDecoder(32)),
        lambda backbone: MaskTokenStudent(backbone, MlpDecoder(32)),
    ]
    for make in makers:
        with pytest.raises(ValueError, match=r"decoder\.dim is 32, backbone\.dim is 16: make them equal"):
            make(backbone_of(images()))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("hides", "words"), [(True, "all 16 tokens"), (False, "none of 16 tokens")])
def test_a_mask_that_hides_everything_or_nothing_is_refused(hides: bool, words: str, given: bool) -> None:
    student = VisibleStudent(backbone_of(images()), decoder((4, 4)))
    mask = torch.full((2, 3, 16), hides)
    visible: Tensor | None = visible_positions(mask) if given else None
    with pytest.raises(ValueError, match=f"every row of the mask hides {words}"):
        student(torch.randn(2, 16, 16), None, mask, hidden_positions(mask), visible=visible)


class Speech(Encoder):
    """Tokens whose places depend on their neighbours."""

    class Mixing(Position):
        mixes_tokens = True

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.position = 16, self.Mixing()


@pytest.mark.parametrize(
    ("encoder", "input_norm", "once"), [(texts(), False, True), (images(), True, False), (Speech(), True, False)]
)
def test_input_dropout_is_the_same_for_all_masks_of_a_text(encoder: Encoder, input_norm: bool, once: bool) -> None:
    """2.0: `TextLocalEncoder` drops before the batch is cloned, `prenet_dropout` (images, speech) after it."""
    torch.manual_seed(0)
    trunk = Transformer(dim=16, depth=1, num_heads=2, input_dropout=0.5, input_norm=input_norm, final_norm=False)
    grid = encoder.grid if isinstance(encoder, ImageEncoder) else None
    student = VisibleStudent(Backbone(encoder, trunk), decoder(grid)).train()
    seen: list[Tensor] = []
    trunk.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    row = torch.arange(16) < 4
    mask = row.expand(2, 3, 16)
    student(torch.randn(2, 16, 16), None, mask, hidden_positions(mask))
    student.eval()(torch.randn(2, 16, 16), None, mask, hidden_positions(mask))
    dropped, whole = (x.unflatten(0, (2, 3)) for x in seen)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert not (whole == 0).any()
    alike = [torch.equal(dropped[:, 0], dropped[:, other]) for other in (1, 2)]
    assert alike == [once] * 2
    assert not torch.equal(dropped[0], dropped[1])
