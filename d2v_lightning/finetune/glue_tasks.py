"""The tasks of GLUE: how each is stored, its classes, and what it is scored by."""

from __future__ import annotations

from typing import Literal, NamedTuple

GlueTask = Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "custom"]
"""GLUE's nine, and sentences of your own."""


class Stored(NamedTuple):
    """How a task is stored: its folder in GLUE, the columns of its texts and label, its classes; () is a number."""

    folder: str
    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...]
    header: tuple[str, ...] | None = None  # of files that have none

    @property
    def num_classes(self) -> int:
        """Outputs of a head; 1 is a number."""
        return max(1, len(self.classes))


PAIR = ("sentence1", "sentence2")
ENTAILS = ("entailment", "not_entailment")
TASKS = {
    "cola": Stored("CoLA", ("sentence",), "label", ("0", "1"), ("source", "label", "star", "sentence")),
    "sst2": Stored("SST-2", ("sentence",), "label", ("0", "1")),
    "mrpc": Stored("MRPC", ("#1 String", "#2 String"), "Quality", ("0", "1")),
    "stsb": Stored("STS-B", PAIR, "score", ()),
    "qqp": Stored("QQP", ("question1", "question2"), "is_duplicate", ("0", "1")),
    "mnli": Stored("MNLI", PAIR, "gold_label", ("entailment", "neutral", "contradiction")),
    "qnli": Stored("QNLI", ("question", "sentence"), "label", ENTAILS),
    "rte": Stored("RTE", PAIR, "label", ENTAILS),
    "wnli": Stored("WNLI", PAIR, "label", ("0", "1")),
}
METRICS = {
    **dict.fromkeys(TASKS, ("accuracy",)),
    "cola": ("matthews",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
}
"""The mean of these is the published score of a task."""
