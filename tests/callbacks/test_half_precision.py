"""A layer that gives noise in half precision is named at the start of a run; a run that is right is left alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from tiny import Losses, image_batch, loader, tiny_backbone, tiny_image_model, tiny_model, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from d2v_lightning import (
    AudioEncoder,
    Backbone,
    GLUEClassifier,
    ImageClassifier,
    MultimodalData2Vec,
    Objective,
    SpeechCTC,
    TextEncoder,
    Transformer,
)
from d2v_lightning.callbacks import HalfPrecisionCheck
from d2v_lightning.callbacks.half_precision import first_samples
from d2v_lightning.configurable import build
from d2v_lightning.flavour import pl
from tests.test_recipes import CONFIGS, batch_for

POST: dict[str, Any] = {"norm": "post", "final_norm": False, "qkv_bias": "qkv", "layer_scale": None, "init": "normal"}


def said(module: Any, batch: Any, precision: Any, **options: Any) -> list[str]:
    """What the check says of two steps."""
    batches: Any = DataLoader([batch] * 2, batch_size=None)  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer([], 2, precision=precision, **options).fit(module, batches)
    return [str(warning.message) for warning in caught if "gives wrong numbers" in str(warning.message)]


def noisy(layer: nn.Module) -> None:
    """Noise of the right size in place of what the layer makes in half precision."""

    def replace(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        half = output.dtype in (torch.bfloat16, torch.float16)
        return torch.randn_like(output) * output.float().std().to(output.dtype) if half else output

    layer.register_forward_hook(replace)


def images() -> tuple[pl.LightningModule, Any, nn.Module]:
    model = tiny_image_model()
    return model, image_batch(4, 9), model.backbone.encoder.get_submodule("patch_embed")


def several() -> tuple[pl.LightningModule, Any, nn.Module]:
    one = tiny_image_model()
    objective = Objective(one.student, one.make_targets, one.loss)
    model = MultimodalData2Vec({"image": objective}, one.ema_teacher, one.optimization)
    block = objective.teacher.transformer.blocks[1]
    return model, {**image_batch(4, 9), "modality": "image"}, block.get_submodule("mlp.fc2")


def pictures() -> tuple[pl.LightningModule, Any, nn.Module]:
    model = ImageClassifier(5, tiny_backbone(), mixup=0.0, cutmix=0.0)
    return model, {"inputs": image_batch(3, 9)["inputs"], "labels": torch.tensor([0, 1, 4])}, model.head


def speech() -> tuple[pl.LightningModule, Any, nn.Module]:
    encoder = AudioEncoder(32, [[8, 10, 5], [8, 8, 8], [8, 8, 8]], position_groups=4)
    model = SpeechCTC(Backbone(encoder, Transformer(32, 2, 2, **POST)), freeze_trunk_steps=0)
    batch = {
        "inputs": torch.randn(3, 16000),
        "padding_mask": torch.arange(16000) >= torch.tensor([[16000], [9000], [12000]]),
        "labels": torch.randint(1, 20, (3, 5)),
        "label_lengths": torch.tensor([5, 3, 4]),
    }
    return model, batch, encoder.get_submodule("convs.1")


def sentences() -> tuple[pl.LightningModule, Any, nn.Module]:
    model = GLUEClassifier(
        "cola", backbone=Backbone(TextEncoder(32, 40, 20, mask_id=39), Transformer(32, 2, 2, **POST))
    )
    batch = {"inputs": torch.randint(3, 38, (1, 9)), "labels": torch.tensor([1])}
    return model, batch, model.backbone.transformer.blocks[0].get_submodule("attn.qkv")


@pytest.mark.parametrize("make", [images, several, pictures, speech, sentences], ids=lambda make: make.__name__)
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_layer_that_gives_noise_is_named(make: Callable[[], Any], precision: str) -> None:
    torch.manual_seed(0)
    module, batch, _ = make()
    assert said(module, batch, precision) == []
    module, batch, layer = make()
    name = next(name for name, part in module.named_modules() if part is layer)
    noisy(layer)
    (line,) = said(module, batch, precision)
    assert f"{name} ({type(layer).__name__}) is off by" in line
    assert "\n" not in line
    assert said(module, batch, "32-true") == []


def test_attention_and_weights_stored_in_half_precision_are_looked_at() -> None:
    module, batch, _ = pictures()
    assert said(module, batch, "bf16-true") == []
    module, batch, _ = pictures()
    noisy(module.get_submodule("backbone.transformer.blocks.2.attn"))
    (line,) = said(module, batch, "bf16-true")
    assert "backbone.transformer.blocks.2.attn (Attention) is off by" in line


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("path", sorted((CONFIGS / "quickstart").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_quick_starts_are_right(path: Any, precision: str) -> None:
    sections = yaml.safe_load(path.read_text())
    torch.manual_seed(0)
    module = build(sections["model"])
    assert said(module, batch_for(module, sections["data"]["init_args"].get("num_masks", 1)), precision) == []


def test_fields_that_are_none_are_left_out() -> None:
    few = first_samples({"inputs": torch.ones(3, 4), "padding_mask": None, "modality": "image"}, 2)
    assert few["inputs"].shape == (2, 4)
    assert set(few) == {"inputs", "modality"}


def test_the_numbers_of_a_run_do_not_change() -> None:
    losses, modes = {}, {}
    for checked in (True, False):
        model, seen = tiny_model(dropout=0.3), Losses()
        callbacks = [one for one in model.configure_callbacks() if checked or not isinstance(one, HalfPrecisionCheck)]
        model.configure_callbacks = lambda callbacks=callbacks: callbacks  # type: ignore[method-assign, misc]
        trainer([seen], 4, precision="bf16-mixed").fit(model, loader())
        losses[checked], modes[checked] = seen.values, [part.training for part in model.modules()]
        assert not any(part._forward_hooks for part in model.modules())
    assert losses[True] == losses[False]
    assert modes[True] == modes[False]
