"""A tiny image model and batches for it, for tests that need any network."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from d2v_lightning import (
    Backbone,
    Data2Vec,
    EMATeacher,
    ImageEncoder,
    LinearDecoder,
    MaskTokenStudent,
    Optimization,
    RegressionLoss,
    RelativePositionBias,
    Targets,
    Transformer,
)


def tiny_backbone(image_size: int = 16, **transformer: Any) -> Backbone:
    """3 blocks, width 48; 4 x 4 patches of 4 pixels at the default size."""
    grid = (image_size // 4, image_size // 4)
    trunk = Transformer(
        **{
            "dim": 48,
            "depth": 3,
            "num_heads": 3,
            "layer_scale": 0.1,
            "position_bias": RelativePositionBias(grid, 3),
            **transformer,
        }
    )
    return Backbone(ImageEncoder(image_size=image_size, patch_size=4, dim=48), trunk)


def tiny_image_model(
    ema_teacher: EMATeacher | None = None,
    average_top_k_layers: int = 2,
    on_nonfinite: Literal["stop", "skip"] = "stop",
    **transformer: Any,
) -> Data2Vec:
    """A `Data2Vec` with the same weights at every call."""
    torch.manual_seed(0)
    return Data2Vec(
        student=MaskTokenStudent(tiny_backbone(**transformer), LinearDecoder(48)),
        targets=Targets(average_top_k_layers=average_top_k_layers),
        loss=RegressionLoss(beta=2.0),
        ema_teacher=ema_teacher or EMATeacher(decay_start=0.9, decay_end=0.99, anneal_steps=10),
        optimization=Optimization(lr=1e-3, schedule="constant", warmup=1),
        on_nonfinite=on_nonfinite,
    )


def image_batch(size: int, hidden: int, seed: int = 0) -> dict[str, Tensor]:
    """`size` random images with `hidden` of 16 patches hidden in each row."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(size, 1, 16, generator=generator)
    mask = scores.argsort(dim=-1).argsort(dim=-1) < hidden
    return {"inputs": torch.randn(size, 3, 16, 16, generator=generator), "mask": mask}
