"""The batch that every datamodule produces and every model consumes, and the project-wide mask convention.

In every mask of this project `True` means *not there*: hidden from the student (`mask`) or padding (`padding_mask`).

Letters used in shapes: B batch, M masks per sample, N maskable tokens, V visible tokens, P predicted tokens, D width,
H heads, L layers, S waveform samples, T text length.
"""

from __future__ import annotations

from typing import Any, TypedDict

from torch import Tensor

from d2v_lightning.support.errors import UserError


class Batch(TypedDict, total=False):
    """One training or evaluation batch.

    inputs: the clean input, which is also what the teacher sees: images (B, C, H, W), waveforms (B, S) or token ids (B, T).
    mask: (B, M, N) bool, True = hidden from the student. N counts maskable tokens only: no class token.
    padding_mask: (B, S) or (B, T) bool, True = padding; absent where nothing is padded.
    corrupted: (B, M, T) int64, the ids that the student reads instead (text with BERT's 80/10/10); where it is absent
        hidden tokens become `<mask>`.
    hidden: (P,) int64, the flat positions in (B, M, N) at which the loss is taken: what `positions.hidden_positions` makes
        of `mask`. Our collators add it, so that nothing has to be counted on the device; without it the model counts.
    visible: (B, M, V) int64, what `positions.visible_positions` makes of `mask`, for 2.0: our collators add it where M > 1.
    labels: (B,) int64 classes, where the data has them; for transcripts (B, T) int64, padded with 0, which is CTC's blank.
    label_lengths: (B,) int64, letters of each transcript.
    channel_mask: (B, D) bool, True = channel set to 0 in fine-tuning on speech.
    repeated: (B,) bool, True = computed, but not counted in figures, because the sample comes elsewhere: where a rank is a
        batch short, or in place of one that cannot be read. Absent where all count.
    index: (B,) int64, place of each sample in its data set; it names the batch when something goes wrong.
    modality: in a run of several, the name of this batch's.
    """

    inputs: Tensor
    mask: Tensor
    padding_mask: Tensor
    corrupted: Tensor
    hidden: Tensor
    visible: Tensor
    labels: Tensor
    label_lengths: Tensor
    channel_mask: Tensor
    repeated: Tensor
    index: Tensor
    modality: str


def as_batch(batch: Any) -> Any:
    """What a plain `DataLoader` gives as a `Batch`: inputs alone, or (inputs, labels); anything else as it is."""
    if isinstance(batch, Tensor):
        return {"inputs": batch}
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2) and all(isinstance(part, Tensor) for part in batch):
        return dict(zip(("inputs", "labels"), batch, strict=False))
    return batch


class TakesPlainBatches:
    """Mixin for a LightningModule whose loaders may give what `as_batch` takes: steps and callbacks see a `Batch`."""

    def _apply_batch_transfer_handler(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Not the public hook: Lightning warns of one beside any datamodule, and it stays free for a subclass."""
        return as_batch(super()._apply_batch_transfer_handler(batch, *args, **kwargs))  # type: ignore[misc]


def require(batch: Any, *fields: str, remedy: str) -> None:
    """Refuse a batch that is no `Batch` or lacks a field.

    Raises:
        ValueError: naming what is missing, and `remedy`.
    """
    missing = [field for field in fields if not isinstance(batch, dict) or field not in batch]
    if missing:
        raise UserError(f"the batch has no {' and no '.join(map(repr, missing))}: {remedy}")
