"""The model that a datamodule reads sizes from."""

from __future__ import annotations

from typing import Any

from d2v_lightning.flavour import pl


def attached_model(data: pl.LightningDataModule) -> Any:
    """The Trainer's module, or of a module of several modalities the part for this datamodule's; None without a Trainer."""
    module = getattr(data.trainer, "lightning_module", None)
    modality = getattr(data, "modality", None)  # `MultimodalDataModule` says it
    return module if module is None or modality is None else module.modalities[modality]
