"""Watched: the module, or the modality that is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from d2v_lightning.callbacks.objective_of import objective_of
from d2v_lightning.support.errors import UserError

ONE: Any = SimpleNamespace()
SEVERAL: Any = SimpleNamespace(modalities={"image": "of images", "speech": "of speech"})


def test_the_module_itself_or_what_is_named_is_looked_at() -> None:
    assert objective_of(ONE, None, "Probe") is ONE
    assert objective_of(SEVERAL, "speech", "Probe") == "of speech"


@pytest.mark.parametrize(
    ("module", "modality", "said"),
    [
        (SEVERAL, None, r"set its modality to one of image, speech \(it is None\)"),
        (SEVERAL, "text", r"set its modality to one of image, speech \(it is 'text'\)"),
        (ONE, "image", r"set its modality to null, because this run has one modality \(it is 'image'\)"),
    ],
)
def test_a_modality_that_is_not_there_is_refused(module: Any, modality: str | None, said: str) -> None:
    with pytest.raises(UserError, match=rf"^Probe looks at one modality: {said}$"):
        objective_of(module, modality, "Probe")
