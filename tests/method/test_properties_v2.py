"""What is true of any correct data2vec 2.0: the student never sees what is hidden, and M masks are M times one mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from d2v_lightning import (
    Alibi,
    AudioEncoder,
    Backbone,
    ConvDecoder,
    Data2Vec,
    EMATeacher,
    Encoder,
    ImageEncoder,
    Optimization,
    RegressionLoss,
    Targets,
    TextEncoder,
    Transformer,
    VisibleStudent,
)
from d2v_lightning.method.positions import visible_positions
from d2v_lightning.method.teacher import Scope
from d2v_lightning.nn.encoders import Position

CONVS = [(8, 10, 5), (8, 3, 2)]
KINDS = ["image", "audio", "text"]


def model_of(kind: str, noise: float = 0.0) -> Data2Vec:
    """A tiny 2.0 model of each modality, 16 wide."""
    torch.manual_seed(0)
    encoder: Encoder
    scope: Scope
    if kind == "image":
        encoder, scope = ImageEncoder(16, 4, dim=16, positions="sine_cosine", init="xavier"), "backbone"
    elif kind == "audio":
        encoder, scope = AudioEncoder(16, CONVS, position_depth=2, position_width=6, position_groups=4), "context"
    else:
        encoder, scope = TextEncoder(16, 40, 20, mask_id=39), "transformer"
    trunk = Transformer(
        dim=16,
        depth=3,
        num_heads=2,
        norm="post",
        norm_eps=1e-5,
        final_norm=False,
        input_norm=kind != "text",
        qkv_bias="qkv",
        layer_scale=None,
        init="normal",
        position_bias=Alibi(2) if kind == "audio" else None,
        prenet_depth=1,
    )
    decoder = ConvDecoder(16, (4, 4) if kind == "image" else None, depth=2, kernel=3, width=8, groups=4)
    return Data2Vec(
        student=VisibleStudent(Backbone(encoder, trunk), decoder, mask_noise_std=noise),
        targets=Targets(2, "ffn", ["instance"], []),
        loss=RegressionLoss(0.0, "sum", "rsqrt_width"),
        ema_teacher=EMATeacher(0.9, 0.99, 10, 1),
        optimization=Optimization(),
        teacher_scope=scope,
        class_loss=0.01 if kind == "image" else 0.0,
    )


def batch_of(kind: str, samples: int = 2, masks: int = 3, padded: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    batch: dict[str, Tensor] = {}
    if kind == "image":
        batch["inputs"], length = torch.randn(samples, 3, 16, 16, generator=generator), 16
    elif kind == "audio":
        batch["inputs"], length = torch.randn(samples, 200, generator=generator), 19
    else:
        batch["inputs"], length = torch.randint(3, 39, (samples, 12), generator=generator), 12
    scores = torch.rand(samples, masks, length, generator=generator)
    batch["mask"] = scores.argsort(dim=-1).argsort(dim=-1) < length // 2
    if padded:
        whole = batch["inputs"].shape[1]
        batch["padding_mask"] = torch.arange(whole) >= torch.tensor([[whole], [whole - whole // 4]])
    return batch


def loss_of(model: Data2Vec, batch: dict[str, Any]) -> Tensor:
    return model.regress(batch)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_m_masks_cost_the_mean_of_one_mask_each(kind: str) -> None:
    model, batch = model_of(kind), batch_of(kind, masks=4)
    model.class_loss = 0.0  # a sum over rows, see below
    one_by_one = [loss_of(model, {**batch, "mask": batch["mask"][:, m : m + 1]}) for m in range(4)]
    expected = torch.stack(one_by_one).mean()
    torch.testing.assert_close(loss_of(model, batch), expected)


def test_the_class_loss_is_summed_over_rows() -> None:
    model, batch = model_of("image"), batch_of("image", masks=4)
    with_class = loss_of(model, batch)
    model.class_loss = 0.0
    extra = with_class - loss_of(model, batch)
    model.class_loss = 0.01
    singles = [{**batch, "mask": batch["mask"][:, m : m + 1]} for m in range(4)]
    parts = []
    for single in singles:
        model.class_loss = 0.01
        whole = loss_of(model, single)
        model.class_loss = 0.0
        parts.append(whole - loss_of(model, single))
    torch.testing.assert_close(extra, torch.stack(parts).sum(), atol=1e-5, rtol=1e-4)


class ClassTokenPosition(Position):
    """A class token in front, and learned places."""

    num_extra_tokens = 1

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.class_token = torch.nn.Parameter(torch.randn(1, 1, dim))
        self.places = torch.nn.Parameter(torch.randn(1, 40, dim))

    def forward(self, tokens: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        x = tokens + self.places[:, : tokens.shape[1]]
        return torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)


class NumbersEncoder(Encoder):
    """Numbers (B, N) -> tokens (B, N, D), with a class token and padding."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.dim = dim
        self.embed = torch.nn.Linear(1, dim)
        self.position = ClassTokenPosition(dim)

    def features(self, inputs: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self.embed(inputs[..., None]), padding_mask


def test_the_class_loss_of_a_padded_sample_is_what_it_is_alone() -> None:
    torch.manual_seed(0)
    trunk = Transformer(dim=16, depth=3, num_heads=2, norm="post", final_norm=False, layer_scale=None, init="normal")
    model = Data2Vec(
        student=VisibleStudent(Backbone(NumbersEncoder(), trunk), ConvDecoder(16, None, 1, 3, 16, 4), 0.0),
        targets=Targets(2, "ffn", ["layer"], []),
        loss=RegressionLoss(0.0, "sum", "rsqrt_width"),
        ema_teacher=EMATeacher(),
        optimization=Optimization(),
    )

    def class_loss(batch: dict[str, Tensor]) -> Tensor:
        model.class_loss = 0.5
        whole = loss_of(model, batch)
        model.class_loss = 0.0
        return whole - loss_of(model, batch)

    inputs, mask = torch.randn(2, 10), torch.zeros(2, 1, 10, dtype=torch.bool)
    mask[:, :, 1:4] = True
    padding_mask = torch.arange(10) >= torch.tensor([[10], [6]])
    alone = [{"inputs": inputs[:1], "mask": mask[:1]}, {"inputs": inputs[1:, :6], "mask": mask[1:, :, :6]}]
    padded = class_loss({"inputs": inputs, "mask": mask, "padding_mask": padding_mask})
    torch.testing.assert_close(padded, sum(map(class_loss, alone)), atol=1e-5, rtol=1e-5)
    model.encoder.padding = "released_2"
    assert (class_loss({"inputs": inputs, "mask": mask, "padding_mask": padding_mask}) - padded).abs() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_trunk_sees_visible_tokens_only_and_the_teacher_runs_once(kind: str) -> None:
    model, batch = model_of(kind), batch_of(kind, masks=3)
    seen: dict[str, list[tuple[int, ...]]] = {"student": [], "teacher": []}
    model.backbone.transformer.blocks[0].register_forward_pre_hook(lambda _, x: seen["student"].append(x[0].shape))
    model.teacher.transformer.blocks[0].register_forward_pre_hook(lambda _, x: seen["teacher"].append(x[0].shape))
    loss_of(model, batch)
    extra, length = model.backbone.num_extra_tokens, batch["mask"].shape[2]
    visible = length - length // 2
    assert seen["student"] == [(6, extra + visible, 16)]
    assert seen["teacher"] == [(2, extra + length, 16)]


@pytest.mark.parametrize("kind", ["image", "text"])
def test_hidden_content_never_reaches_the_student(kind: str) -> None:
    model, batch = model_of(kind), batch_of(kind, masks=1)
    before, _ = model.predictions(batch)  # type: ignore[arg-type]
    inputs, mask = batch["inputs"].clone(), batch["mask"][:, 0]
    if kind == "text":
        inputs[mask] = 5
    else:
        patches = mask.reshape(2, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
        inputs = inputs.masked_fill(patches, 7.0)
    after, _ = model.predictions({**batch, "inputs": inputs})  # type: ignore[arg-type]
    assert not torch.equal(inputs, batch["inputs"])
    assert torch.equal(before, after)
    assert not torch.allclose(
        model.targets(batch),
        model.targets({**batch, "inputs": inputs}),
        atol=1e-3,  # type: ignore[arg-type]
    )


def test_hidden_frames_of_speech_leak_only_through_samples_that_visible_frames_read() -> None:
    """A frame reads 20 samples every 10 here: what no visible frame reads does not reach the student."""
    model, batch = model_of("audio"), batch_of("audio", masks=1)
    mask = torch.zeros(2, 1, 19, dtype=torch.bool)
    mask[:, :, 5:12] = True
    batch["mask"] = mask
    before, _ = model.predictions(batch)  # type: ignore[arg-type]
    inputs = batch["inputs"].clone()
    last_of_4, first_of_12 = 4 * 10 + 20, 12 * 10
    inputs[:, last_of_4:first_of_12] += 1.0
    after, _ = model.predictions({**batch, "inputs": inputs})  # type: ignore[arg-type]
    assert torch.equal(before, after)
    inputs[:, last_of_4 - 1] += 1.0
    leaked, _ = model.predictions({**batch, "inputs": inputs})  # type: ignore[arg-type]
    assert not torch.equal(before, leaked)


@pytest.mark.parametrize("kind", ["audio", "text"])
def test_a_padded_sample_gives_the_predictions_that_it_gives_alone(kind: str) -> None:
    model, batch = model_of(kind).eval(), batch_of(kind, masks=2, padded=True)
    inside = int((~batch["padding_mask"][1]).sum())
    _, padding = model.encoder.features(batch["inputs"], batch["padding_mask"])
    assert padding is not None
    count = int((~padding[1]).sum())
    length = batch["mask"].shape[2]
    mask = torch.zeros_like(batch["mask"])
    mask[:, 0, 1:5], mask[:, 1, 3:7] = True, True
    batch["mask"] = mask
    predictions, hidden = model.predictions(batch)  # type: ignore[arg-type]
    alone = {"inputs": batch["inputs"][1:, :inside], "mask": mask[1:, :, :count]}
    expected, _ = model.predictions(alone)  # type: ignore[arg-type]
    torch.testing.assert_close(predictions[hidden // length >= 2], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        model.targets(batch)[1, :count],
        model.targets(alone)[0],
        atol=1e-5,
        rtol=1e-5,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter_and_noise_fills_the_gaps(kind: str) -> None:
    model, batch = model_of(kind, noise=0.01), batch_of(kind)
    first, second = loss_of(model, batch), loss_of(model, batch)
    assert first != second, "the decoder begins with noise"
    first.backward()
    missing = [name for name, p in model.student.named_parameters() if p.grad is None]
    assert not missing
    assert all(p.grad is None for p in model.teacher.parameters())


def test_unequal_rows_and_replaced_tokens_are_refused() -> None:
    model, batch = model_of("text"), batch_of("text")
    unequal = batch["mask"].clone()
    unequal[0, 0] = True
    with pytest.raises(ValueError, match="rows of the mask hide 6 to 12 tokens"):
        model.predictions({**batch, "mask": unequal})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"2\.0 drops hidden tokens"):
        model.predictions({**batch, "corrupted": batch["inputs"][:, None]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"class_loss is 0\.01, but TextEncoder makes no class token"):
        Data2Vec(model.student, model.make_targets, model.loss, model.ema_teacher, Optimization(), "transformer", 0.01)


def test_visible_positions_in_the_batch_save_the_counting() -> None:
    model, batch = model_of("image"), batch_of("image")
    batch["visible"] = torch.stack([(~row).nonzero()[:, 0] for row in batch["mask"].flatten(0, 1)]).reshape(2, 3, -1)
    assert torch.equal(loss_of(model, batch), loss_of(model, {k: v for k, v in batch.items() if k != "visible"}))


def test_alibi_is_made_for_visible_tokens_in_the_student_and_once_for_all_samples_in_the_teacher() -> None:
    """Never for M x B samples over the whole length."""
    model, batch = model_of("audio"), batch_of("audio", samples=2, masks=3)
    shapes: dict[str, list[tuple[int, ...]]] = {"student": [], "teacher": []}
    for name, trunk in (("student", model.backbone.transformer), ("teacher", model.teacher.transformer)):
        assert isinstance(trunk.position_bias, Alibi)
        trunk.position_bias.register_forward_hook(
            lambda _, __, biases, name=name: shapes[name].extend(bias.shape for bias in biases)
        )
    loss_of(model, batch)
    visible = 19 - 19 // 2
    assert shapes == {"student": [(6, 2, visible, visible)], "teacher": [(1, 2, 19, 19)]}


def with_alibi() -> Data2Vec:
    """The tiny image model, whose encoder makes a class token, with a bias on the distance of two patches."""
    torch.manual_seed(0)
    trunk = Transformer(
        dim=16,
        depth=2,
        num_heads=2,
        norm="post",
        final_norm=False,
        layer_scale=None,
        init="normal",
        position_bias=Alibi(2),
    )
    encoder = ImageEncoder(16, 4, dim=16, positions="sine_cosine", init="xavier")
    return Data2Vec(
        student=VisibleStudent(Backbone(encoder, trunk), ConvDecoder(16, (4, 4), 1, 3, 16, 4), 0.0),
        targets=Targets(1, "ffn", [], []),
        loss=RegressionLoss(0.0),
        ema_teacher=EMATeacher(),
        optimization=Optimization(),
    )


def test_alibi_is_the_same_in_student_and_teacher_where_there_is_a_class_token() -> None:
    model, batch = with_alibi(), batch_of("image", samples=1, masks=1)
    biases: dict[str, Tensor] = {}
    for name, trunk in (("student", model.backbone.transformer), ("teacher", model.teacher.transformer)):
        assert trunk.position_bias is not None
        trunk.position_bias.register_forward_hook(lambda _, __, made, name=name: biases.update({name: made[0][0]}))
    loss_of(model, batch)
    kept = torch.cat([torch.zeros(1, dtype=torch.long), 1 + (~batch["mask"][0, 0]).nonzero()[:, 0]])
    torch.testing.assert_close(biases["student"], biases["teacher"][:, kept][:, :, kept])
    assert not biases["teacher"][:, 0].any(), "the class token stands nowhere"


def test_a_student_from_whom_nothing_is_hidden_computes_what_the_backbone_does() -> None:
    backbone, images = with_alibi().backbone.eval(), batch_of("image")["inputs"]
    tokens, _ = backbone.encoder.features(images)
    everything = torch.zeros(2, 3, 16, dtype=torch.bool)
    student = VisibleStudent(backbone, ConvDecoder(16, (4, 4), 1, 3, 16, 4))
    visible = visible_positions(everything)
    x, _ = student._drop_hidden(tokens, None, everything, visible)
    seen, _ = backbone.transformer(x, positions=visible.flatten(0, 1))
    expected = backbone(images)
    torch.testing.assert_close(seen, expected.repeat_interleave(3, dim=0))
    features = backbone.features(images, layers=[-1])
    torch.testing.assert_close(torch.cat([features.extra[0], features.layers[0]], dim=1), expected)
