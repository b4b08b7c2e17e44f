"""Transformer: attention, block and stack compute what they say, and refuse what fits no trunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import image_batch, tiny_image_model
from torch import Tensor
from torch.nn import functional as F

from d2v_lightning import Alibi, RelativePositionBias, Transformer
from d2v_lightning.nn.transformer import Attention, Block, DropPath, drop_path_rates
from d2v_lightning.support.errors import UserError


def attended(attention: Attention, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention as it is written down: a head after the other."""
    nothing = torch.zeros(x.shape[-1])
    qkv_bias = attention.qkv.bias
    if attention.q_bias is not None and attention.v_bias is not None:
        qkv_bias = torch.cat([attention.q_bias, nothing, attention.v_bias])
    q, k, v = F.linear(x, attention.qkv.weight, qkv_bias).chunk(3, dim=-1)
    heads, width = [], x.shape[-1] // attention.num_heads
    for head in range(attention.num_heads):
        mine = slice(head * width, (head + 1) * width)
        scores = q[..., mine] @ k[..., mine].transpose(1, 2) / width**0.5
        heads.append((scores if bias is None else scores + bias[:, head]).softmax(dim=-1) @ v[..., mine])
    return attention.proj(torch.cat(heads, dim=-1))


@pytest.mark.parametrize("qkv_bias", ["qkv", "qv", "none"])
@pytest.mark.parametrize("biased", [False, True])
def test_attention_is_softmax_of_scaled_scores_over_values(qkv_bias: Any, biased: bool) -> None:
    torch.manual_seed(0)
    attention, x = Attention(12, 3, qkv_bias), torch.randn(2, 5, 12)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    bias = torch.randn(2, 3, 5, 5) if biased else None
    assert [attention.qkv.bias is None, attention.q_bias is None] == [qkv_bias != "qkv", qkv_bias != "qv"]
    expected = attended(attention, x, bias)
    torch.testing.assert_close(attention(x, bias), expected)
    half = attention.bfloat16()(x.bfloat16(), None if bias is None else bias.bfloat16())
    assert (half.float() - expected).norm() < 0.03 * expected.norm(), "on a CPU, bf16 goes another way"


def block(norm: Any, **options: Any) -> Block:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "layer_scale": 0.5, "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "output_dropout": 0.0,
        "drop_path": 0.0,
    }  # fmt: skip
    return Block(8, 2, 16, norm=norm, norm_eps=1e-6, qkv_bias="qkv", **{**settings, **options})


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_norms_before_or_after_and_gives_its_ffn_before_the_residual(norm: Any) -> None:
    made, x = block(norm), torch.randn(2, 5, 8)
    result = made(x)
    if norm == "pre":
        middle = x + 0.5 * made.attn(made.norm1(x))
        ffn = 0.5 * made.mlp(made.norm2(middle))
        expected = middle + ffn
    else:
        middle = made.norm1(x + 0.5 * made.attn(x))
        ffn = 0.5 * made.mlp(middle)
        expected = made.norm2(middle + ffn)
    torch.testing.assert_close(result.ffn, ffn)
    torch.testing.assert_close(result.block, expected)
    torch.testing.assert_close(made.mlp(x), made.mlp.fc2(F.gelu(made.mlp.fc1(x))))


def test_the_ffn_of_a_block_is_not_dropped_out() -> None:
    made, x = block("pre", dropout=0.5, drop_path=0.9, layer_scale=None).train(), torch.randn(64, 3, 8)
    made.attn.proj.weight.data.zero_()
    made.attn.proj.bias.data.zero_()
    result = made(x)
    torch.testing.assert_close(result.ffn, made.mlp(made.norm2(x)))
    assert not torch.allclose(result.block, x + result.ffn)


def test_the_ffn_of_2_0_drops_as_timms_mlp_does_inside_and_after() -> None:
    """`AltBlock` of 2.0 has timm's `Mlp` with `drop=activation_dropout`; 1.0's layers drop inside alone."""
    timm_mlp: Any = pytest.importorskip("timm.layers").Mlp
    x, theirs = torch.randn(64, 5, 8), timm_mlp(8, 32, drop=0.1)
    for twice in (True, False):
        made = trunk(dim=8, depth=1, norm="post", activation_dropout=0.1, activation_dropout_twice=twice).blocks[0]
        made.mlp.load_state_dict(theirs.state_dict())
        torch.manual_seed(1)
        ffn = made.mlp(x)
        share = float((ffn == 0).float().mean())
        assert share == (pytest.approx(0.1, abs=0.03) if twice else 0.0)
        torch.manual_seed(1)
        expected = theirs(x)
        assert torch.equal(ffn, expected) == twice
        torch.testing.assert_close(made.eval().mlp(x), theirs.eval()(x))
        theirs.train()


def linspace(start: float, stop: float, number: int) -> list[float]:
    return torch.linspace(start, stop, number, dtype=torch.float64).tolist()


@pytest.mark.parametrize(
    ("last", "above", "prenet"), [(0.1, 10, 2), (0.2, 24, 0), (0.2, 32, 0), (0.1, 16, 8), (0.3, 9, 1)]
)
def test_dropped_paths_rise_as_the_fine_tuning_of_2_0_has_it(last: float, above: int, prenet: int) -> None:
    """`mae_image_classification.py`: points from 0 to `drop_path_rate`, as many as blocks above the prenet; then
    `np.linspace` again in each part (`images.py`, `data2vec2.py`). Base: 10 and 2, Large 24 and 0, Huge 32 and 0."""
    points = linspace(0.0, last, above)
    parts = [*linspace(0.0, max(0.0, points[prenet - 1]), prenet), *linspace(points[prenet], points[-1], above)]
    assert drop_path_rates(last, above + prenet, prenet) == pytest.approx(parts, rel=1e-12)
    made = trunk(depth=above + prenet, prenet_depth=prenet, drop_path=last)
    assert [block.drop_path.probability for block in made.blocks] == pytest.approx(parts, rel=1e-12)
    if prenet == 2:
        assert parts[:4] == pytest.approx([0.0, 0.0111, 0.0222, 0.0309], abs=1e-4)


def test_a_prenet_as_deep_as_the_rest_leaves_it_the_whole_rate() -> None:
    assert drop_path_rates(0.2, 4, 3) == pytest.approx([0.0, 0.1, 0.2, 0.2])
    assert drop_path_rates(0.2, 1) == [0.0]


def test_a_dropped_path_is_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 3, 2)
    dropped = drop(x)
    kept = dropped[:, 0, 0] > 0
    assert torch.equal(dropped, kept[:, None, None] * x / 0.75)
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.03)
    assert drop.eval()(x) is x


def trunk(**options: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(**{"dim": 16, "depth": 3, "num_heads": 2, "layer_scale": None, **options})


def test_a_stack_goes_through_its_blocks_and_keeps_what_is_wanted() -> None:
    made, x = trunk(input_norm=True), torch.randn(2, 5, 16)
    one = made.blocks[0](made.input_norm(x))
    two = made.blocks[1](one.block)
    three = made.blocks[2](two.block)
    output, results = made(x, keep=[2, 0])
    torch.testing.assert_close(output, made.norm(three.block))
    torch.testing.assert_close(results, [one, three])
    assert trunk(final_norm=False).norm(x) is x


def test_no_token_attends_to_padding() -> None:
    made, x = trunk(position_bias=Alibi(2)).eval(), torch.randn(2, 6, 16)
    mask = torch.arange(6) >= torch.tensor([[4], [6]])
    output, _ = made(x, mask)
    torch.testing.assert_close(output[:1, :4], made(x[:1, :4])[0])
    torch.testing.assert_close(output[1:], made(x[1:])[0])


def test_every_block_has_a_bias_of_its_own_where_there_are_several() -> None:
    shared, several = trunk(position_bias=Alibi(2)), trunk(position_bias=Alibi(2, num_scales=3))
    bias, x = several.position_bias, torch.randn(2, 5, 16)
    assert isinstance(bias, Alibi)
    several.load_state_dict({**shared.state_dict(), "position_bias.scale": torch.ones(3, 2)})
    torch.testing.assert_close(several(x)[0], shared(x)[0])
    bias.scale.data[1] = 0.0
    _, results = several(x, keep=[0, 1])
    _, expected = shared(x, keep=[0])
    torch.testing.assert_close(results[0], expected[0])
    torch.testing.assert_close(results[1], several.blocks[1](results[0].block))


def test_a_dropped_layer_leaves_its_input_in_training_alone() -> None:
    made, x = trunk(layer_drop=1.0), torch.randn(2, 5, 16)
    assert torch.equal(made.train()(x)[0], made.norm(x))
    torch.testing.assert_close(made.eval()(x)[0], trunk()(x)[0])


@torch.no_grad()
def test_start_values_and_dropped_paths_follow_the_layer() -> None:
    vision = Transformer(dim=64, depth=3, num_heads=2, drop_path=0.2)
    assert [block.drop_path.probability for block in vision.blocks] == pytest.approx([0.0, 0.1, 0.2])
    for layer, made in enumerate(vision.blocks, start=1):
        for weight in (made.attn.proj.weight, made.mlp.fc2.weight):
            bound = 0.02 / (2 * layer) ** 0.5
            assert 0.95 * bound < float(weight.abs().max()) <= bound * 1.001
        assert 0.019 < float(made.attn.qkv.weight.abs().max()) <= 0.02
        assert made.scale1.gamma.tolist() == pytest.approx([1e-4] * 64)
    normal = Transformer(dim=64, depth=1, num_heads=2, init="normal").blocks[0]
    for weight in (normal.attn.proj.weight, normal.mlp.fc1.weight):
        assert float(weight.std()) == pytest.approx(0.02, rel=0.05)
    assert not normal.mlp.fc1.bias.any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_heads": 3}, "dim 16 is not a multiple of num_heads 3"),
        ({"prenet_depth": 3}, "prenet_depth is 3: it must lie below depth 3"),
        ({"layer_drop": 1.5}, "layer_drop 1.5: both are probabilities"),
        ({"position_bias": Alibi(2, num_scales=2)}, "position_bias has 2 tables: 1 .* or 3"),
    ],
)
def test_a_trunk_that_cannot_be_made_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        trunk(**arguments)


@pytest.mark.parametrize("bias", [Alibi(1), Alibi(3), RelativePositionBias((2, 2), 1)])
def test_a_bias_for_another_number_of_heads_is_refused(bias: Alibi | RelativePositionBias) -> None:
    heads = bias.tables[0].shape[-1]
    with pytest.raises(ValueError, match=rf"position_bias\.num_heads is {heads}, but the trunk's num_heads is 2"):
        Transformer(dim=16, depth=1, num_heads=2, position_bias=bias)


def test_layer_drop_keeps_every_parameter_in_the_graph() -> None:
    model = tiny_image_model(layer_drop=1.0)
    model.train()
    model.teacher.eval()
    model.training_step(image_batch(2, 9), 0).backward()
    missing = [name for name, p in model.student.named_parameters() if p.grad is None]
    assert not missing


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_image_model(gradient_checkpointing=checkpointing, drop_path=0.5)
        torch.manual_seed(1)
        model.training_step(image_batch(2, 9), 0).backward()
        gradients.append([p.grad for p in model.student.parameters()])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected)
