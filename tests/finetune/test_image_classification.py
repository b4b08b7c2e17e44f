"""ImageClassifier: what it starts from."""

from __future__ import annotations

import pytest
from tiny import tiny_backbone

from d2v_lightning import Backbone, GLUEClassifier, ImageClassifier, TextEncoder, Transformer


def test_a_backbone_of_another_modality_is_refused() -> None:
    text = Backbone(TextEncoder(16, 40, 20, mask_id=39), Transformer(dim=16, depth=1, num_heads=2))
    with pytest.raises(ValueError, match="ImageClassifier needs an image backbone, this one has a TextEncoder"):
        ImageClassifier(num_classes=2, backbone=text)
    with pytest.raises(ValueError, match="GLUEClassifier needs a text backbone, this one has a ImageEncoder"):
        GLUEClassifier(backbone=tiny_backbone())
