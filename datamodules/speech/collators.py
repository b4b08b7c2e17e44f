"""Lists of clips to batches: crops, padding, span masks for pre-training, time and channel masks for fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from d2v_lightning.letters import SEPARATOR
from d2v_lightning.method.masking import drawn_span_count, num_span_masked, span_mask
from d2v_lightning.method.positions import hidden_positions, visible_positions
from d2v_lightning.nn.encoders.audio import CONV_LAYERS, feature_lengths
from d2v_lightning.support.errors import UserError
from d2v_lightning.types import Batch
from datamodules.shared.arguments import one_of
from datamodules.speech.crops import Crops, generator_of


class SpeechCollator:
    """Pads clips to the longest, or crops them to the shortest.

    A sample is a dict with "inputs" (S,) and perhaps "index", "key" (epoch, index), "text" and "unreadable".

    Args:
        crop_to_shortest: crop every clip, at a place that follows from its key, to the shortest of the batch: nothing is
            padded (published pre-training).
        max_samples: longer clips are cropped to this in any case; None for no limit.
        vocabulary: encodes "text" to "labels"; None leaves transcripts out.
        seed: of crops and masks.
    """

    def __init__(
        self,
        crop_to_shortest: bool = False,
        max_samples: int | None = None,
        vocabulary: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        self.crops, self.seed = Crops(crop_to_shortest, max_samples, seed), seed
        self.vocabulary = None if vocabulary is None else {token: number for number, token in enumerate(vocabulary)}

    def __call__(self, samples: Sequence[Any]) -> Batch:
        """Samples -> {"inputs" (B, S), "padding_mask" (B, S) where clips differ in length, "index" (B,), "labels" (B, T)
        padded with 0, "label_lengths" (B,), "repeated" (B,) where one is}. Samples that
        could not be read are left out; where all are, nothing but "unreadable" is left."""
        listed = [entry for sample in samples for entry in sample.get("unreadable", ())]
        samples = [sample for sample in samples if "inputs" in sample]
        if not samples:
            return {"unreadable": listed}  # type: ignore[typeddict-unknown-key]
        clips = [sample["inputs"] for sample in samples]
        limit = self.crops.limit([len(clip) for clip in clips])
        starts = [
            self.crops.start(sample.get("key"), len(clip), limit) for clip, sample in zip(clips, samples, strict=True)
        ]
        clips = [clip[start : start + limit] for clip, start in zip(clips, starts, strict=True)]
        lengths = torch.tensor([len(clip) for clip in clips])
        batch: dict[str, Any] = {"inputs": torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)}
        if (lengths != lengths[0]).any():
            batch["padding_mask"] = torch.arange(int(lengths.max())) >= lengths[:, None]
        if all("index" in sample for sample in samples):
            batch["index"] = torch.tensor([sample["index"] for sample in samples])
        if self.vocabulary is not None and all(sample.get("text") is not None for sample in samples):
            labels = [torch.tensor(self._encode(sample["text"])) for sample in samples]
            batch["labels"] = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True)
            batch["label_lengths"] = torch.tensor([len(label) for label in labels])
        if any(repeated := [bool(sample.get("repeated")) for sample in samples]):
            batch["repeated"] = torch.tensor(repeated)
        if listed:
            batch["unreadable"] = listed
        return batch  # type: ignore[return-value]  # the loader takes the one foreign key out

    def _encode(self, text: str) -> list[int]:
        assert self.vocabulary is not None
        letters = SEPARATOR.join(text.split())
        if unknown := sorted(set(letters) - self.vocabulary.keys()):
            raise UserError(f"the vocabulary lacks {' '.join(unknown)}, which are in the transcript {text!r}")
        return [self.vocabulary[letter] for letter in letters]

    def generator(self, purpose: str, sample: Any) -> torch.Generator | None:
        """See `generator_of`."""
        return generator_of(purpose, self.seed, sample.get("key"))


class SpanMaskCollator(SpeechCollator):
    """Adds span masks for pre-training: "mask" (B, M, N) bool, True = hidden, "hidden" (P,), with M > 1 "visible" (B, M, V).

    Rows of a batch without padding hide the same number of frames. Of a padded clip the same part of its own frames is
    hidden; with `mask_ratio` set, that part of its padding too, where nothing is scored, so that all rows have equal counts.

    Args:
        mask_prob, mask_length: of spans: `mask_prob` / `mask_length` starts a frame (1.0: .65, 10, which hides 49 %).
        mask_ratio: instead of `mask_prob`, the share of frames that is hidden (2.0 Base: .5).
        num_masks: M.
        conv_layers: of the encoder, which say how many frames a clip has.
        crop_to_shortest, max_samples, seed: see `SpeechCollator`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        mask_prob: float = 0.65,
        mask_length: int = 10,
        mask_ratio: float | None = None,
        num_masks: int = 1,
        conv_layers: Sequence[Sequence[int]] = CONV_LAYERS,
        crop_to_shortest: bool = True,
        max_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(crop_to_shortest, max_samples, None, seed)
        if num_masks < 1:
            raise UserError(f"num_masks {num_masks}: permitted is 1 or more")
        if mask_ratio is not None and not 0 < mask_ratio < 1:
            raise UserError(f"mask_ratio {mask_ratio}: permitted is 0 < mask_ratio < 1")
        num_span_masked(1000, mask_prob, mask_length)  # refuses wrong arguments now, not in a worker process
        self.mask_prob, self.mask_length, self.mask_ratio = mask_prob, mask_length, mask_ratio
        self.num_masks, self.conv_layers = num_masks, conv_layers

    def __call__(self, samples: Sequence[Any]) -> Batch:
        batch = super().__call__(samples)
        samples = [sample for sample in samples if "inputs" in sample]
        if not samples:
            return batch
        length = feature_lengths(batch["inputs"].shape[1], self.conv_layers)
        padding_mask = batch.get("padding_mask")
        frames = [length] * len(samples)
        if padding_mask is not None:
            frames = feature_lengths((~padding_mask).sum(dim=1), self.conv_layers).tolist()
        batch["mask"] = torch.stack(
            [self._masks(sample, own, length) for sample, own in zip(samples, frames, strict=True)]
        )
        padding = None if padding_mask is None else torch.arange(length) >= torch.tensor(frames)[:, None]
        batch["hidden"] = hidden_positions(batch["mask"], padding)
        if self.num_masks > 1:
            batch["visible"] = visible_positions(batch["mask"])
        return batch

    def _masks(self, sample: Any, frames: int, length: int) -> Tensor:
        """(M, N) for one sample with so many frames of its own."""
        generator = self.generator("mask", sample)
        rows = torch.zeros(self.num_masks, length, dtype=torch.bool)
        if self.mask_ratio is None:
            count, overhang = num_span_masked(frames, self.mask_prob, self.mask_length), 0
        else:
            whole = int(self.mask_ratio * length)
            own = min(whole, frames - 1, round(self.mask_ratio * frames))  # something of the clip itself stays visible
            count, overhang = max(1, own), self.mask_length // 2
            count = max(count, whole - (length - frames))
            rows[:, frames : frames + whole - count] = True
        for row in rows:
            row[:frames] = span_mask(frames, count, self.mask_length, generator, overhang)
        return rows


class TranscriptCollator(SpeechCollator):
    """Adds what fine-tuning with CTC masks: "mask" (B, 1, N) over time and "channel_mask" (B, D), True = hidden.

    Released models were fine-tuned with fairseq's `compute_mask_indices` and its `require_same_masks`, 2.0 as well
    (fairseq/models/wav2vec/wav2vec2_asr.py, examples/data2vec/models/modalities/base.py). It draws spans in every row, and
    then uncovers single places until all rows hide as many as the row with the fewest. "smallest" hides that number in every
    row: each row draws its own by (seed, epoch, index), and the smallest of the batch counts. Here spans stay whole.

    In batches of 16 that is .083 of 768 channels at .1, .165 at .25, .304 at .5; and .361 of 600 frames at .5, .443 at .65,
    .493 at .75. "expected" hides .099, .229, .404, and .40, .49, .54 in any batch.

    Args:
        vocabulary: of the model.
        dim: width D of the model.
        time_mask_prob, time_mask_length: spans of frames that are hidden in training, as in pre-training.
        channel_mask_prob, channel_mask_length: spans of channels that become 0; no longer than D / 12, as 64 of 768.
        conv_layers, seed: see `SpanMaskCollator`.
        mask_share: "smallest" hides in each row what the row of the batch with the fewest hides (published), "expected" what
            spans hide on average in a row of its length, see `num_span_masked`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        dim: int = 768,
        time_mask_prob: float = 0.65,
        time_mask_length: int = 10,
        channel_mask_prob: float = 0.25,
        channel_mask_length: int = 64,
        conv_layers: Sequence[Sequence[int]] = CONV_LAYERS,
        seed: int = 0,
        mask_share: Literal["smallest", "expected"] = "smallest",
    ) -> None:
        super().__init__(False, None, vocabulary, seed)
        one_of(("smallest", "expected"), mask_share=mask_share)
        for prob, span in ((time_mask_prob, time_mask_length), (channel_mask_prob, channel_mask_length)):
            if prob:
                num_span_masked(1000, prob, span)  # refuses wrong arguments now, not in a worker process
        self.dim, self.conv_layers, self.mask_share = dim, conv_layers, mask_share
        self.time, self.channels = (time_mask_prob, time_mask_length), (channel_mask_prob, channel_mask_length)

    def __call__(self, samples: Sequence[Any]) -> Batch:
        batch = super().__call__(samples)
        samples = [sample for sample in samples if "inputs" in sample]
        if not samples:
            return batch
        generators = [self.generator("mask", sample) for sample in samples]
        drawing = [self.generator("count", sample) for sample in samples]
        padding_mask = batch.get("padding_mask")
        length = feature_lengths(batch["inputs"].shape[1], self.conv_layers)
        frames = [length] * len(samples)
        if padding_mask is not None:
            frames = feature_lengths((~padding_mask).sum(dim=1), self.conv_layers).tolist()
        if self.time[0]:
            batch["mask"] = torch.zeros(len(samples), 1, length, dtype=torch.bool)
            counts = self._counts(frames, *self.time, 1, drawing)
            for row, own, count, generator in zip(batch["mask"][:, 0], frames, counts, generators, strict=True):
                row[:own] = span_mask(own, count, self.time[1], generator)
        if self.channels[0]:
            span = max(1, min(self.channels[1], self.dim // 12))
            counts = self._counts([self.dim] * len(samples), self.channels[0], span, 0, drawing)
            rows = zip(counts, generators, strict=True)
            batch["channel_mask"] = torch.stack(
                [
                    span_mask(self.dim, count, span, generator) if count else torch.zeros(self.dim, dtype=torch.bool)
                    for count, generator in rows
                ]
            )
        return batch

    def _counts(
        self, lengths: Sequence[int], prob: float, span: int, least: int, drawing: Sequence[torch.Generator | None]
    ) -> list[int]:
        """How many of so many places each row hides, which has `least` spans or more."""
        if self.mask_share == "expected":
            return [num_span_masked(length, prob, span) for length in lengths]
        rows = zip(lengths, drawing, strict=True)
        smallest = min(drawn_span_count(length, prob, span, least, generator) for length, generator in rows)
        return [smallest] * len(lengths)
