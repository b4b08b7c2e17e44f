"""Names of classes in a configuration of transformers: as many as outputs, or none where they are placeholders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from d2v_lightning.checkpoints.labels import labels_of
from d2v_lightning.support.errors import UserError

HERE = Path("there")


def test_names_come_in_the_order_of_their_numbers_and_placeholders_are_none() -> None:
    assert labels_of(SimpleNamespace(id2label={2: "c", 0: "a", 1: "b"}), 3, HERE) == ["a", "b", "c"]
    assert labels_of(SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"}), 2, HERE) is None
    assert labels_of(SimpleNamespace(id2label={0: "LABEL_0", 1: "b"}), 2, HERE) == ["LABEL_0", "b"]


def test_names_of_other_outputs_and_several_classes_at_once_are_refused() -> None:
    with pytest.raises(UserError, match=r"there/config.json: id2label names \[0, 2\], where 0 to 1 are expected"):
        labels_of(SimpleNamespace(id2label={0: "a", 2: "b"}), 2, HERE)
    several = SimpleNamespace(id2label={0: "a"}, problem_type="multi_label_classification")
    with pytest.raises(UserError, match="problem_type is 'multi_label_classification'"):
        labels_of(several, 1, HERE)
