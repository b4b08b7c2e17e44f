"""The model that a datamodule reads sizes from: the whole one, or its own modality's part."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from datamodules.shared.attached import attached_model


def test_it_is_the_trainers_module_or_the_part_for_the_modality_or_nothing() -> None:
    module: Any = SimpleNamespace(modalities={"image": object(), "text": object()})
    trainer = SimpleNamespace(lightning_module=module)

    def found(**attributes: Any) -> Any:
        return attached_model(SimpleNamespace(**attributes))  # type: ignore[arg-type]

    assert found(trainer=trainer) is module
    assert found(trainer=trainer, modality="text") is module.modalities["text"]
    assert found(trainer=None, modality="text") is None
    assert found(trainer=SimpleNamespace(lightning_module=None), modality="text") is None
