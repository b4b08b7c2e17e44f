"""What is true of any correct data2vec: who sees the mask, where the loss is taken, how gradients and teacher move."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import image_batch, tiny_backbone, tiny_image_model
from torch import Tensor
from torch.utils.data import DataLoader

from d2v_lightning import Data2Vec, EMATeacher, ImageClassifier, Optimization, Targets
from d2v_lightning.flavour import pl
from d2v_lightning.method.masking import hidden_positions
from d2v_lightning.method.teacher import Teacher
from d2v_lightning.support.errors import UserError


def plain_trainer(**options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def batches(masks: list[int], size: int = 2) -> list[dict[str, Tensor]]:
    """Batches with the given numbers of hidden patches."""
    return [image_batch(size, hidden, seed=number) for number, hidden in enumerate(masks)]


def loader(rows: list[dict[str, Tensor]]) -> Any:
    return DataLoader(rows, batch_size=None)  # type: ignore[arg-type]


def test_the_teacher_never_sees_the_mask() -> None:
    model, batch = tiny_image_model(), image_batch(3, 9)
    other = {**batch, "mask": ~batch["mask"]}
    assert torch.equal(model.targets(batch), model.targets(other))
    assert not torch.equal(model.training_step(batch, 0), model.training_step(other, 0))


def test_the_student_never_sees_hidden_patches() -> None:
    model, batch = tiny_image_model(), image_batch(3, 9)
    changed = batch["inputs"].clone()
    patches = changed.unfold(2, 4, 4).unfold(3, 4, 4)  # a view: (B, C, 4, 4, 4, 4)
    hidden = batch["mask"][:, 0].reshape(3, 1, 4, 4, 1, 1)
    patches.copy_(torch.where(hidden, torch.randn_like(patches), patches))
    predictions, _ = model.predictions(batch)
    other, _ = model.predictions({**batch, "inputs": changed})
    assert torch.equal(predictions, other)


def test_only_hidden_positions_enter_the_loss() -> None:
    model, batch = tiny_image_model(), image_batch(3, 9)
    hidden = hidden_positions(batch["mask"])
    targets = model.targets(batch)
    predictions, positions = model.predictions(batch)
    assert torch.equal(positions, hidden)
    expected = torch.nn.functional.smooth_l1_loss(predictions, targets.reshape(-1, 48)[hidden], beta=2.0)
    torch.testing.assert_close(model.training_step(batch, 0), expected)


class Witness(pl.Callback):
    """Keeps weights and modes at the moments that matter."""

    def __init__(self) -> None:
        self.teacher_modes: list[bool] = []
        self.steps: list[tuple[list[Tensor], list[Tensor]]] = []

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        self.teacher_modes += [part.training for part in pl_module.teacher.modules()]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx > 0:
            self.keep(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.keep(pl_module)

    def keep(self, pl_module: Any) -> None:
        pairs = pl_module.teacher.pairs(pl_module.backbone)
        self.steps.append(copy.deepcopy([[t.detach() for t in side] for side in pairs]))  # type: ignore[arg-type]


def test_the_teacher_is_in_eval_mode_and_moves_once_per_optimiser_step_by_the_formula() -> None:
    model = tiny_image_model(ema_teacher=EMATeacher(decay_start=0.5, decay_end=0.9, anneal_steps=4, first_update=1))
    witness = Witness()
    start = copy.deepcopy([t.detach() for t in model.teacher.pairs(model.backbone)[0]])
    plain_trainer(max_steps=3, accumulate_grad_batches=2, callbacks=[witness]).fit(model, loader(batches([9] * 6)))
    assert witness.teacher_modes
    assert not any(witness.teacher_modes)
    teacher = start
    for micro_batch, (moved, student) in enumerate(witness.steps):
        if micro_batch % 2:
            decay = {1: 0.6, 3: 0.7, 5: 0.8}[micro_batch]
            teacher = [decay * t + (1 - decay) * s for t, s in zip(teacher, student, strict=True)]
        for ours, expected in zip(moved, teacher, strict=True):
            torch.testing.assert_close(ours, expected)


def trained(rows: list[dict[str, Tensor]], accumulate: int, steps: int = 2, clip: float | None = 0.5) -> Data2Vec:
    model = tiny_image_model()
    trainer = plain_trainer(max_steps=steps, accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    trainer.fit(model, loader(rows))
    return model


@pytest.mark.parametrize("counts", [[9, 9, 9, 9], [3, 12, 9, 5]], ids=["equal", "unequal"])
def test_accumulating_four_batches_of_two_equals_one_batch_of_eight(counts: list[int]) -> None:
    small = batches(counts * 2)
    large = [
        {key: torch.cat([row[key] for row in small[start : start + 4]]) for key in ("inputs", "mask")}
        for start in (0, 4)
    ]
    accumulated, whole = trained(small, 4), trained(large, 1)
    for ours, expected in zip(accumulated.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-4)


def test_a_last_incomplete_accumulation_window_has_the_full_gradient() -> None:
    rows = batches([9, 9, 9])
    whole = [
        {key: torch.cat([row[key] for row in part]) for key in ("inputs", "mask")} for part in (rows[:2], rows[2:])
    ]
    for ours, expected in zip(trained(rows, 2).parameters(), trained(whole, 1).parameters(), strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-4)


def test_a_skipped_batch_leaves_no_trace_in_the_student_and_is_named() -> None:
    rows = batches([9, 9])
    rows[1]["inputs"][1, 0, 0, 0] = float("nan")
    rows[1]["index"] = torch.tensor([70, 71])
    model = tiny_image_model(on_nonfinite="skip")
    with pytest.warns(
        UserWarning, match=r"loss is nan at optimiser step 1; .* samples 71: this micro-batch is left out"
    ):
        plain_trainer(max_steps=2).fit(model, loader(rows))
    expected = trained(rows[:1], 1, steps=1, clip=None)
    for ours, theirs in zip(model.student.parameters(), expected.student.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_features_are_deterministic_and_leave_the_mode_alone() -> None:
    model = tiny_image_model(drop_path=0.5, attention_dropout=0.5).train()
    inputs = image_batch(3, 9)["inputs"]
    first, second = (model.backbone.features(inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.layers, second.layers, strict=True))
    assert model.backbone.transformer.training
    assert not torch.equal(model.backbone(inputs), model.backbone(inputs))


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


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_half_stored_weights_are_refused(precision: Any) -> None:
    with pytest.raises(ValueError, match="bf16-mixed"):
        plain_trainer(max_steps=1, precision=precision).fit(tiny_image_model(), loader(batches([9])))


def test_half_stored_weights_are_refused_where_the_device_calls_them_float32() -> None:
    """As XLA does under `bf16-true`."""
    model = tiny_image_model()
    for precision in ("bf16-true", "16-true"):
        with pytest.raises(UserError, match=f"trainer.precision '{precision}': at a decay of") as error:
            model.ema_teacher.on_fit_start(SimpleNamespace(precision=precision), model)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    model.ema_teacher.on_fit_start(SimpleNamespace(precision="32-true"), model)  # type: ignore[arg-type]


class GradientNorms(pl.Callback):
    """Norms of the gradient that the optimiser got."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))


def test_mixed_precision_clips_gradients_with_the_fused_optimiser() -> None:
    norms = {}
    for clip in (None, 0.01):
        seen = GradientNorms()
        trainer = plain_trainer(max_steps=2, gradient_clip_val=clip, precision="bf16-mixed", callbacks=[seen])
        trainer.fit(tiny_image_model(), loader(batches([9, 9])))
        assert trainer.optimizers[0].defaults["fused"]
        norms[clip] = seen.norms
    assert min(norms[None]) > 0.02
    assert norms[0.01] == pytest.approx([0.01, 0.01], rel=1e-3)


def test_a_checkpoint_does_not_bring_the_kernel_of_another_device() -> None:
    model = tiny_image_model()
    optimizer = model.optimization.configure(model, 10)["optimizer"]
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["fused"] = None  # as written on a device that has none
    optimizer.load_state_dict(state)
    assert all(group["fused"] for group in optimizer.param_groups)


def test_bf16_mixed_moves_the_teacher() -> None:
    model = tiny_image_model(ema_teacher=EMATeacher(decay_start=0.9999, decay_end=0.9999))
    before = copy.deepcopy(model.teacher.state_dict())
    plain_trainer(max_steps=4, precision="bf16-mixed").fit(model, loader(batches([9] * 4)))
    moved = {name for name, tensor in model.teacher.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "transformer.blocks.0.attn.qkv.weight" in moved


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"average_top_k_layers": 0}, "at least one block"),
        ({"norm_each": ["group"]}, "unknown norm 'group'"),
        ({"layer_results": "end"}, "choose 'block' or 'ffn'"),
    ],
)
def test_bad_targets_are_refused_by_name(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Targets(**arguments)
    with pytest.raises(ValueError, match="the trunk has 3 blocks"):
        tiny_image_model(average_top_k_layers=4)


def test_an_image_or_mask_of_another_size_is_refused_by_name() -> None:
    model, batch = tiny_image_model(), image_batch(2, 9)
    with pytest.raises(ValueError, match=r"images are \(3, 20, 20\)"):
        model.training_step({**batch, "inputs": torch.zeros(2, 3, 20, 20)}, 0)
    with pytest.raises(ValueError, match=r"mask is \(2, 1, 25\)"):
        model.training_step({**batch, "mask": torch.zeros(2, 1, 25, dtype=torch.bool)}, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_backbone(norm="Post"), "norm is 'Post': choose from pre, post"),
        (lambda: tiny_backbone(qkv_bias="kv"), "qkv_bias is 'kv'"),
        (lambda: tiny_backbone(init="xavier"), "init is 'xavier'"),
        (lambda: tiny_backbone(depth=0), "depth is 0"),
        (lambda: tiny_backbone(drop_path=1.0), "drop_path is 1.0"),
        (lambda: Teacher(tiny_backbone(), "everything"), "teacher_scope is 'everything'"),  # type: ignore[arg-type]
        (lambda: Optimization(betas=(0.9, 2.0)), "betas is"),
        (lambda: ImageClassifier(backbone=tiny_backbone(), label_smoothing=2.0), "label_smoothing is 2.0"),
        (lambda: ImageClassifier(backbone=tiny_backbone(), mixup=-1.0), "mixup is -1.0"),
    ],
)
def test_a_misspelt_or_impossible_argument_is_refused_in_python_too(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_batch_without_masks_or_labels_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="has no 'mask': pre-training needs"):
        tiny_image_model().training_step({"inputs": torch.randn(2, 3, 16, 16)}, 0)
    with pytest.raises(ValueError, match="has no 'inputs' and no 'labels': classification needs"):
        ImageClassifier(backbone=tiny_backbone()).training_step([torch.randn(2, 3, 16, 16)], 0)  # type: ignore[arg-type]
