"""Recordings to pre-train on, to fine-tune on and to transcribe. Long because one constructor documents every setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch

from d2v_lightning.configurable import Configurable
from d2v_lightning.flavour import pl, rank_zero_info, rank_zero_warn
from d2v_lightning.letters import BLANK, SEPARATOR
from d2v_lightning.nn.encoders.audio import CONV_LAYERS, RATE, shortest_input
from d2v_lightning.recipes import FromRecipe
from d2v_lightning.support.errors import UserError, at_least
from d2v_lightning.support.lines import listed
from datamodules.shared.accumulation import accumulate_to
from datamodules.shared.arguments import one_of
from datamodules.shared.attached import attached_model
from datamodules.shared.budget_batches import BudgetBatchSampler
from datamodules.shared.files import RECORDINGS
from datamodules.shared.loader import ResumableLoader, resume_exactly
from datamodules.shared.predicting import PredictLoader, done_before, files_to_predict
from datamodules.shared.samplers import world
from datamodules.shared.streaming import StreamingLoader, count_rows
from datamodules.shared.workers import SafeLoader
from datamodules.speech.collators import SpanMaskCollator, SpeechCollator, TranscriptCollator
from datamodules.speech.keyed_clips import KeyedClips
from datamodules.speech.sources import (
    JoinedSource,
    SpeechSource,
    find_split,
    leave_out,
    open_audio_table,
    open_split,
    open_table_split,
    recordings_of,
)
from datamodules.speech.streaming import StreamedClips
from datamodules.speech.transcripts import refuse_unknown, with_transcripts
from datamodules.speech.windows import SpeechWindows

CONTEXT_SECONDS = 5  # before and after a window of a long recording


class SpeechDataModule(FromRecipe, Configurable, pl.LightningDataModule):
    """Recordings in LibriSpeech's layout, a folder, a manifest or a Hugging Face data set.

    Sound is decoded by soundfile (wav, flac, ogg, mp3, ...), mixed to one channel and resampled to 16 kHz. The defaults are
    data2vec 1.0 Base on LibriSpeech (configs/pretrain/audio_base.yaml).

    Args:
        root: folder that holds the splits, or a single recording; what predict transcribes.
        train_split, val_split, test_split: folders or manifests (`.tsv` with `.ltr` or `.wrd`, `.jsonl`) below `root`, or
            splits of `dataset`; several for a list, which are taken together; "" for all of `root`; null for none.
        task: "pretrain" makes span masks, "ctc" reads transcripts and makes time and channel masks.
        batch_samples: samples in a batch of one device, padding included.
        effective_batch: samples per optimiser step over all devices: sets the Trainer's `accumulate_grad_batches`.
        min_seconds: shorter clips are left out; by default 2 in pre-training, and what makes two frames in fine-tuning.
        max_seconds: in pre-training longer clips are cropped to this, in fine-tuning they are left out; null for no limit.
        crop: "shortest" crops a batch to its shortest clip in pre-training (published), "none" pads.
        normalize: mean 0, variance 1 per clip; has to agree with the model. Fine-tuned models know what they need.
        mask_prob, mask_length, mask_ratio, num_masks: see `SpanMaskCollator`.
        time_mask_prob, time_mask_length, channel_mask_prob, channel_mask_length, mask_share: see `TranscriptCollator`.
        upper: write transcripts in capitals, as the published vocabulary has them.
        num_workers: processes that load.
        seed: of order, crops and masks.
        dataset: instead of `root`: a Hugging Face data set, by its name on the hub, a folder made by `save_to_disk`, or
            parquet (a file, or a folder of them).
        dataset_config: configuration of a data set on the hub ("clean").
        text_column: of the transcripts in `dataset`; by default the one named text, sentence, transcription, ...
        streaming: read the training split of `dataset` while training instead of before, see `StreamingLoader`, and keep
            the others in memory. Lengths are not known before, so a batch has as many clips as fit if all are
            `max_seconds` long, whatever they are.
        samples_per_epoch: clips of a stream; by default all there are, counted first where its description does not say.
        shuffle_buffer: rows of a stream that are shuffled among each other.
        predict_files: recordings to predict, a folder, a file, a pattern or a list of them; by default the test splits, or
            all of `root`.
        window_seconds: longest recording that prediction reads as a whole, see `SpeechWindows`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        root: str | None = None,
        train_split: str | list[str] | None = None,
        val_split: str | list[str] | None = None,
        test_split: str | list[str] | None = None,
        task: Literal["pretrain", "ctc"] = "pretrain",
        batch_samples: int = 3_800_000,
        effective_batch: int | None = None,
        min_seconds: float | None = None,
        max_seconds: float | None = 20.0,
        crop: Literal["shortest", "none"] = "shortest",
        normalize: bool = True,
        mask_prob: float = 0.65,
        mask_length: int = 10,
        mask_ratio: float | None = None,
        num_masks: int = 1,
        time_mask_prob: float = 0.65,
        time_mask_length: int = 10,
        channel_mask_prob: float = 0.25,
        channel_mask_length: int = 64,
        mask_share: Literal["smallest", "expected"] = "smallest",
        upper: bool = True,
        num_workers: int = 6,
        seed: int = 0,
        dataset: str | None = None,
        dataset_config: str | None = None,
        text_column: str | None = None,
        streaming: bool = False,
        samples_per_epoch: int | None = None,
        shuffle_buffer: int = 1_000,
        predict_files: str | list[str] | None = None,
        window_seconds: int = 20,
    ) -> None:
        super().__init__()
        one_of(("pretrain", "ctc"), task=task)
        one_of(("shortest", "none"), crop=crop)
        at_least(1, batch_samples=batch_samples, effective_batch=effective_batch, samples_per_epoch=samples_per_epoch)
        at_least(1, shuffle_buffer=shuffle_buffer, window_seconds=window_seconds)
        at_least(0, num_workers=num_workers)
        if streaming and (dataset is None or not isinstance(train_split, str) or not train_split):
            raise UserError(
                "streaming reads one training split of a Hugging Face data set: set dataset and train_split"
            )
        if streaming and (max_seconds is None or max_seconds * RATE > batch_samples):
            raise UserError(
                f"max_seconds {max_seconds}: a stream needs it, and no more than batch_samples {batch_samples}"
            )
        low = 0.0 if min_seconds is None else min_seconds
        if low < 0 or (max_seconds is not None and max_seconds <= low):
            raise UserError(f"min_seconds {min_seconds}, max_seconds {max_seconds}: permitted is 0 <= min < max")
        SpanMaskCollator(mask_prob, mask_length, mask_ratio, num_masks)  # they refuse wrong arguments now, not in a
        spans = (time_mask_prob, time_mask_length, channel_mask_prob, channel_mask_length)  # worker
        TranscriptCollator([], 768, *spans, mask_share=mask_share)
        self.save_hyperparameters(logger=False)
        self.root, self.task, self.crop, self.normalize = root, task, crop, normalize
        self.dataset, self.dataset_config, self.text_column = dataset, dataset_config, text_column
        self.streaming, self.samples_per_epoch, self.shuffle_buffer = streaming, samples_per_epoch, shuffle_buffer
        self._stream: StreamedClips | None = None
        self.splits = {"train": _names(train_split), "val": _names(val_split), "test": _names(test_split)}
        self.batch_samples, self.effective_batch = batch_samples, effective_batch
        self.min_seconds, self.max_seconds = min_seconds, max_seconds
        self.mask_prob, self.mask_length, self.mask_ratio = mask_prob, mask_length, mask_ratio
        self.num_masks = num_masks
        self.ctc_spans, self.mask_share = spans, mask_share
        self.upper, self.num_workers, self.seed = upper, num_workers, seed
        self.predict_files, self.window_seconds = predict_files, window_seconds
        self.predict_paths: list[str] = []
        self._sources: dict[str, SpeechSource] = {}

    # ------------------------------------------------------------------ setup

    def setup(self, stage: str | None = None) -> None:
        """Reads the lengths of the clips, leaves out those that are too short or long, checks transcripts.

        Raises:
            FileNotFoundError: a folder or split is missing.
            ValueError: nothing is left, the longest clip does not fit into a batch, transcripts are missing, or they have
                letters that the model does not know.
        """
        resume_exactly(self.trainer)
        if stage == "predict":
            if self.root is None and self.predict_files is None:
                raise UserError(
                    "nothing to predict: set data.predict_files, or data.root, to a recording or a folder of them"
                )
            self._find_recordings()
            return
        if self.root is not None and self.dataset is not None:
            raise UserError(f"root {self.root!r} and dataset {self.dataset!r}: set one of them to null")
        if self.root is None and self.dataset is None:
            raise UserError(
                "no data: set data.root to a folder of recordings, or data.dataset to a Hugging Face data set"
            )
        module = attached_model(self)
        normalised = getattr(module, "normalize", self.normalize)
        if normalised != self.normalize:
            raise UserError(
                f"normalize is {self.normalize}, the model was trained with {normalised}: set data.normalize"
            )
        needed = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for split in needed.get(stage or "", ("train", "val", "test")):
            if split in self._sources or (not self.splits[split] and split != "train" and stage in ("fit", None)):
                continue
            if split == "train" and self.streaming:
                self._stream = self._stream or self._streamed()
            else:
                self._sources[split] = self._open(split)
        if stage == "fit" and self.effective_batch is not None:
            accumulate_to(self.trainer, "batch_samples", self.batch_samples, self.effective_batch, "samples")

    def _find_recordings(self) -> None:
        """What is predicted: `predict_files`, or the test splits, or all of `root` where it has none of them."""
        if self.predict_files is not None:
            self.predict_paths = files_to_predict(self.predict_files, RECORDINGS, "recording")
            return
        root = self.root
        assert root is not None
        there = [name for name in self.splits["test"] if find_split(root, name) is not None] or [""]
        self.predict_paths = [path for name in there for path in recordings_of(root, name)]
        within = f", those of {', '.join(there)} (data.test_split)" if there != [""] else ""
        rank_zero_info(f"{len(self.predict_paths)} recordings in {root}{within}")

    def _open(self, split: str) -> SpeechSource:
        names = self.splits[split]
        if not names:
            where = f"below {self.root}" if self.dataset is None else f"of {self.dataset}"
            raise UserError(f"no {split} data: set data.{split}_split to what there is {where}")
        opened = [self._open_one(name) for name in names]
        source = opened[0] if len(opened) == 1 else JoinedSource(opened)
        least = self._least_samples()
        most = None if self.max_seconds is None or self.task == "pretrain" else int(self.max_seconds * RATE)
        source = leave_out(source, split, lambda clip: clip.samples < least, f"shorter than {least / RATE:.2f} s")
        if most is not None:
            source = leave_out(source, split, lambda clip: clip.samples > most, f"longer than {most / RATE:.1f} s")
        if not len(source):
            raise UserError(f"no clip of the {split} split is left: lower min_seconds or raise max_seconds")
        if self.task == "ctc":
            vocabulary = getattr(attached_model(self), "vocabulary", None)
            known = vocabulary if isinstance(vocabulary, list) else None
            source = with_transcripts(source, split, self.upper, self._conv_layers(), known)
        longest = max(self._lengths(source))
        if longest > self.batch_samples:
            raise UserError(
                f"batch_samples {self.batch_samples} is smaller than the longest clip, {longest} samples "
                f"({longest / RATE:.1f} s): raise batch_samples, or lower max_seconds"
            )
        return source

    def _streamed(self) -> StreamedClips:
        assert self.dataset is not None
        assert self.max_seconds is not None
        longest, ctc = int(self.max_seconds * RATE), self.task == "ctc"
        if self.batch_samples // longest < self._least_clips():
            raise UserError(
                f"batch_samples {self.batch_samples} holds one clip of max_seconds {self.max_seconds}, the norm 'position' "
                "needs two: raise batch_samples, or lower max_seconds"
            )
        return StreamedClips(
            *open_audio_table(self.dataset, self.dataset_config, self.splits["train"][0], self.text_column, True),
            self.batch_samples // longest,
            self.seed,
            self.shuffle_buffer,
            self._least_samples(),
            longest if ctc else None,
            self.normalize,
            ctc,
            self.upper,
            getattr(attached_model(self), "vocabulary", None) if ctc else None,
        )

    def _open_one(self, name: str) -> SpeechSource:
        if self.dataset is not None:
            return open_table_split(self.dataset, self.dataset_config, name, self.text_column, self.streaming)
        assert self.root is not None
        return open_split(self.root, name)

    def _lengths(self, source: SpeechSource) -> list[int]:
        """Samples of each clip as a batch has it: in pre-training no longer than `max_seconds`."""
        if self.task == "ctc" or self.max_seconds is None:
            return [clip.samples for clip in source.clips]
        return [min(int(self.max_seconds * RATE), clip.samples) for clip in source.clips]

    def _least_samples(self) -> int:
        least = shortest_input(2, self._conv_layers())
        if self.min_seconds is None and self.task == "pretrain":
            return max(least, min(2 * RATE, int((self.max_seconds or 2.0) * RATE)))
        return max(least, int((self.min_seconds or 0.0) * RATE))

    def _least_clips(self) -> int:
        """In a batch: what the norm "position" of the model's targets takes out of one clip leaves nothing."""
        targets = getattr(attached_model(self), "make_targets", None)
        return 2 if "position" in getattr(targets, "norm_each", ()) else 1

    def _conv_layers(self) -> Sequence[Sequence[int]]:
        encoder = getattr(attached_model(self), "encoder", None)
        layers: Sequence[Sequence[int]] = getattr(encoder, "conv_layers", CONV_LAYERS)
        return layers

    def letters(self) -> list[str]:
        """Letters of the training transcripts, most frequent first.

        Raises:
            ValueError: transcripts of another split that is in use have others.
        """
        if self.streaming:
            raise UserError("a stream cannot be searched for its letters: give model.vocabulary as a list or file")
        if "train" not in self._sources:
            self._sources["train"] = self._open("train")
        counts = Counter(letter for clip in self._sources["train"].clips for letter in (clip.text or ""))
        for split, source in self._sources.items():
            refuse_unknown(source, split, set(counts), "the training split", "give model.vocabulary as a list")
        return [
            letter for letter, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if letter not in " |"
        ]

    # ------------------------------------------------------------------ loaders

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches with masks, restartable in the middle of an epoch.

        Raises:
            ValueError: there are fewer batches than devices.
        """
        collator = self._collator(training=True)
        if self._stream is None:
            return self._loader("train", collator, training=True)
        samples = self.samples_per_epoch or count_rows(self._stream.stream)
        least = self._stream.batch_size * (self.trainer.world_size if self.trainer is not None else 1)
        if samples < least:
            raise UserError(
                f"an epoch of {samples} clips is less than one batch on every device, {least} clips of max_seconds: lower "
                "batch_samples or raise samples_per_epoch"
            )
        return StreamingLoader(
            self._stream,
            samples,
            collator,
            self.num_workers,
            pin_memory=torch.cuda.is_available(),
            endless=self.trainer is not None,
        )

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        """In pre-training with masks, the same in every epoch; nothing without a validation split."""
        return self._loader("val", self._collator(training=False)) if "val" in self._sources else []

    def test_dataloader(self) -> ResumableLoader:
        """As `val_dataloader`, of the test split."""
        return self._loader("test", self._collator(training=False))

    def predict_dataloader(self) -> PredictLoader:
        """Recordings of any length, see `SpeechWindows`; "index" refers to `predict_paths`. Those that a stopped run has
        predicted are left out."""
        normalised = getattr(attached_model(self), "normalize", self.normalize)
        full = (self.window_seconds + 2 * CONTEXT_SECONDS) * RATE
        windows = SpeechWindows(
            self.predict_paths,
            normalised,
            self._conv_layers(),
            self.window_seconds,
            CONTEXT_SECONDS,
            max(1, self.batch_samples // full),
        )
        windows.share = world()
        windows.done = done_before(self, self.predict_paths, [normalised, self.window_seconds], len(self.predict_paths))
        return PredictLoader(
            SafeLoader(
                windows,
                batch_size=None,
                num_workers=self.num_workers,
                generator=torch.Generator(),
            )
        )

    def _loader(self, split: str, collator: SpeechCollator, training: bool = False) -> ResumableLoader:
        source = self._sources[split]
        sampler = BudgetBatchSampler(
            self._lengths(source), self.batch_samples, self.seed, shuffle=training, at_least=self._least_clips()
        )
        if sampler.left_out:
            names = [source.clips[index].name for index in sampler.left_out]
            rank_zero_warn(
                f"{len(names)} of {len(source)} clips of the {split} split left out, because a batch of {self.batch_samples} "
                f"samples holds one of them alone and the norm 'position' needs two: {listed(names, 3)}"
            )
        world_size = self.trainer.world_size if self.trainer is not None else 1
        if training and len(sampler.batches) < world_size:
            raise UserError(
                f"{len(source)} clips make {len(sampler.batches)} batch(es) of {self.batch_samples} samples for "
                f"{world_size} devices: lower batch_samples"
            )
        if training and not collator.crops.to_shortest:
            rank_zero_info(f"{100 * sampler.padding_ratio:.1f} % of the training samples are padding")
            if self.trainer is not None:
                for logger in self.trainer.loggers:
                    logger.log_metrics({"data/padding_ratio": sampler.padding_ratio}, self.trainer.global_step)
        return ResumableLoader(
            KeyedClips(source, self.normalize, training or self.task == "pretrain" or world_size > 1, collator.crops),
            sampler,
            collator,
            self.num_workers,
            pin_memory=torch.cuda.is_available(),
            endless=training and self.trainer is not None,
        )

    def _collator(self, training: bool) -> SpeechCollator:
        layers = self._conv_layers()
        if self.task == "pretrain":
            return SpanMaskCollator(
                self.mask_prob,
                self.mask_length,
                self.mask_ratio,
                self.num_masks,
                layers,
                self.crop == "shortest",
                None if self.max_seconds is None else int(self.max_seconds * RATE),
                self.seed,
            )
        module = attached_model(self)
        vocabulary = getattr(module, "vocabulary", None) or [BLANK, SEPARATOR, *self.letters()]
        if not training:
            return SpeechCollator(vocabulary=vocabulary)
        dim = getattr(getattr(module, "encoder", None), "dim", 768)
        return TranscriptCollator(vocabulary, dim, *self.ctc_spans, layers, self.seed, self.mask_share)


def _names(split: str | list[str] | None) -> list[str]:
    return [] if split is None else [split] if isinstance(split, str) else list(split)
