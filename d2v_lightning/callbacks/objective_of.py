"""What a callback looks at in a run of one modality or of several."""

from __future__ import annotations

from typing import Any

from d2v_lightning.flavour import pl
from d2v_lightning.support.errors import UserError


def objective_of(pl_module: pl.LightningModule, modality: str | None, callback: str) -> Any:
    """The module itself, or what it trains one of its modalities for.

    Raises:
        ValueError: the module is of several modalities and none of them is named, or it has none of that name.
    """
    modalities: Any = getattr(pl_module, "modalities", {})
    if modality is None and not modalities:
        return pl_module
    if modality not in modalities:
        there = f"one of {', '.join(modalities)}" if modalities else "null, because this run has one modality"
        raise UserError(f"{callback} looks at one modality: set its modality to {there} (it is {modality!r})")
    return modalities[modality]
