"""TextDataModule: text for pre-training, tokenised once and packed into blocks."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils.data import Dataset

from d2v_lightning.configurable import Configurable
from d2v_lightning.flavour import pl, rank_zero_info, rank_zero_warn
from d2v_lightning.recipes import FromRecipe
from d2v_lightning.support.errors import UserError, at_least
from d2v_lightning.support.lines import listed
from datamodules.shared.accumulation import accumulate_to
from datamodules.shared.arguments import enough_for_a_batch, held_out_share, one_of
from datamodules.shared.attached import attached_model
from datamodules.shared.loader import ResumableLoader, resume_exactly
from datamodules.shared.predicting import PredictLoader, done_before, files_to_predict
from datamodules.shared.samplers import EpochBatchSampler, Key, derived_seed
from datamodules.shared.workers import SafeLoader
from datamodules.text.collators import TextMaskCollator, check_masking
from datamodules.text.corpus import Packing, TokenCorpus, tokenized
from datamodules.text.lines import LineBatches, LineNames
from datamodules.text.sources import JSON_SUFFIXES, Documents, FileSource, Skipped, TextSource, open_tables
from datamodules.text.vocabulary import Vocabulary, agreed_tokenizer, content_hash, vocabulary_of

Split = Literal["train", "val"]
PADDED_TO = 64  # multiples of this, so that a compiled step meets few shapes
WASTEFUL = 0.5
TEXT_SUFFIXES = (".txt", *JSON_SUFFIXES)  # in a folder


class TextBlocks(Dataset[dict[str, Any]]):
    """Blocks of a corpus by (epoch, index), or by index alone: the token that begins a text, then the block's tokens.

    Args:
        corpus: all tokens.
        ends: (blocks,) where in the corpus each block ends.
        first_id: begins every block.
        places: (samples,) which blocks, in which order; None for all of them.
    """

    def __init__(
        self,
        corpus: TokenCorpus,
        ends: np.ndarray[Any, np.dtype[np.int64]],
        first_id: int,
        places: np.ndarray[Any, np.dtype[np.int64]] | None = None,
    ) -> None:
        self.corpus, self.ends, self.first_id, self.places = corpus, ends, first_id, places

    def __len__(self) -> int:
        return len(self.ends if self.places is None else self.places)

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        """{"inputs" (T,) int64, "index", "key"}; "index" is the sample's place in this data set."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index}: permitted is 0..{len(self) - 1}")
        place = index if self.places is None else int(self.places[index])
        start = int(self.ends[place - 1]) if place else 0
        tokens = self.corpus.tokens[start : int(self.ends[place])].astype(np.int64)
        inputs = torch.from_numpy(np.concatenate([[self.first_id], tokens]))
        return {"inputs": inputs, "index": index, "key": (epoch, index)}


class TextDataModule(FromRecipe, Configurable, pl.LightningDataModule):
    """Blocks of text with masks for pre-training.

    Batches: "inputs" (B, T) int64, "padding_mask" (B, T) where blocks differ in length, "index" (B,), "hidden" (P,), and
    "mask" (B, M, T) bool, True = hidden. `TextMaskCollator` says what else. Everything random follows from (seed, epoch,
    index). A run that is stopped anywhere goes on with the batches it would have had.

    The defaults are data2vec 1.0's released command (configs/pretrain/text_base.yaml). 2.0 has `packing` "blocks",
    `mask_prob` .48 (Large: .5), `mask_length` 1, `num_masks` 8, `batch_size` 4 (Large: 2).

    The text is tokenised once, on all cores, into a cache that is read from the disk; it is made anew when a file or the
    tokenizer changes. Lines that are not UTF-8 are left out, counted and named.

    Args:
        files: text files (a document a line, see `documents`) or JSON lines, as paths or patterns, `/data/**/*.txt`.
        dataset: instead of `files`: a Hugging Face data set, by its name on the hub, a folder made by `save_to_disk`, or
            parquet (a file, or a folder of them). Its validation split is used where there is one.
        dataset_config: configuration of a data set on the hub.
        text_field: of a record of JSON lines, or column of a data set.
        documents: how text files hold documents: one a "lines", or separated by "blank_lines" with a sentence a line.
        tokenizer: name on the Hugging Face hub, or directory, of a fast tokenizer with `<mask>`; train one by
            `python -m d2v_lightning.commands.tokenizer`. It is stored with the model, and a model that has another refuses
            it; null takes the one that is stored.
        cache_dir: folder for tokens; by default d2v_lightning/text in $XDG_CACHE_HOME or ~/.cache.
        packing: "complete_documents": whole lines of one document, as many as fit (1.0). "blocks": `block_size` tokens
            whatever they are, documents one after the other (2.0).
        block_size: tokens of a block with the one that begins it.
        val_files: as `files`, for validation.
        val_fraction: share of the blocks to hold out where there is nothing else for validation.
        batch_size: blocks per device.
        effective_batch: tokens per optimiser step over all devices, full blocks assumed: sets the Trainer's
            `accumulate_grad_batches`.
        mask_prob, mask_length, num_masks, leave_unmasked_prob, random_token_prob, whole_words, mask_special: see
            `TextMaskCollator`.
        num_workers: processes that load.
        seed: of order, masks and `val_fraction`.
        predict_files: text to predict, as `files`, or folders of it: every line that is not empty, or record, by itself.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        files: str | list[str] | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        text_field: str = "text",
        documents: Documents = "lines",
        tokenizer: str | None = "roberta-base",
        cache_dir: str | None = None,
        packing: Packing = "complete_documents",
        block_size: int = 512,
        val_files: str | list[str] | None = None,
        val_fraction: float | None = None,
        batch_size: int = 16,
        effective_batch: int | None = None,
        mask_prob: float = 0.35,
        mask_length: int = 4,
        num_masks: int = 1,
        leave_unmasked_prob: float = 0.0,
        random_token_prob: float = 0.0,
        whole_words: bool = False,
        mask_special: bool = True,
        num_workers: int = 2,
        seed: int = 0,
        predict_files: str | list[str] | None = None,
    ) -> None:
        super().__init__()
        if files is not None and dataset is not None:
            raise UserError(f"files {files!r} and dataset {dataset!r}: give one of them, and set the other to null")
        if val_files is not None and val_fraction is not None:
            raise UserError(f"val_files {val_files!r} and val_fraction {val_fraction}: give one of them")
        held_out_share(val_fraction)
        at_least(8, block_size=block_size)
        at_least(1, batch_size=batch_size, effective_batch=effective_batch)
        at_least(0, num_workers=num_workers)
        one_of(get_args(Documents), documents=documents)
        one_of(get_args(Packing), packing=packing)
        check_masking(mask_prob, mask_length, num_masks, leave_unmasked_prob, random_token_prob)
        self.save_hyperparameters(logger=False)
        self.files, self.dataset, self.dataset_config = files, dataset, dataset_config
        self.text_field, self.documents, self.tokenizer_name = text_field, documents, tokenizer
        self.cache_dir, self.packing, self.block_size = cache_dir, packing, block_size
        self.val_files, self.val_fraction = val_files, val_fraction
        self.batch_size, self.effective_batch = batch_size, effective_batch
        self.mask_prob, self.mask_length, self.num_masks = mask_prob, mask_length, num_masks
        self.leave_unmasked_prob, self.random_token_prob = leave_unmasked_prob, random_token_prob
        self.whole_words, self.mask_special = whole_words, mask_special
        self.num_workers, self.seed = num_workers, seed
        self.predict_files = predict_files
        self.predict_paths: Sequence[str] = []
        self._tokenizer: Any = None
        self._vocabulary: Vocabulary | None = None
        self._blocks: dict[Split, TextBlocks] = {}

    # ------------------------------------------------------------------ setup

    def setup(self, stage: str | None = None) -> None:
        """Loads the tokenizer, agrees with the model on it, tokenises what is not in the cache, and sets accumulation for
        `effective_batch`.

        Raises:
            FileNotFoundError: no file matches, or a data set or split is missing.
            ValueError: there is no text, the tokenizer or the model does not fit, or `effective_batch` is smaller than one
                batch.
        """
        resume_exactly(self.trainer)
        if stage == "test":
            raise UserError("text for pre-training has nothing to test: use fit or validate")
        if stage == "predict" and self.predict_files is None:
            raise UserError("nothing to predict: set data.predict_files to text or .jsonl files")
        if stage != "predict" and self.files is None and self.dataset is None:
            raise UserError("no data: set files to text or .jsonl files, or dataset to a Hugging Face data set")
        if self._tokenizer is None:
            backbone = getattr(attached_model(self), "backbone", None)
            self._tokenizer = agreed_tokenizer(self.tokenizer_name, backbone)
            self._vocabulary = vocabulary_of(self._tokenizer)
        self._check_model(self.block_size if stage != "predict" else 0)
        if stage == "predict":
            self._find_lines()
            return
        if not self._blocks:
            self._blocks = self._opened()
        if stage == "validate" and "val" not in self._blocks:
            raise UserError("there is no text to validate: set val_files or val_fraction")
        if stage == "fit" and self.effective_batch is not None:
            per_device = self.batch_size * self.block_size
            accumulate_to(self.trainer, "batch_size x block_size", per_device, self.effective_batch, "tokens")

    def _find_lines(self) -> None:
        assert self.predict_files is not None
        paths, skipped = files_to_predict(self.predict_files, TEXT_SUFFIXES, "text file"), Skipped()
        self._source = FileSource(paths, text_field=self.text_field)
        self.predict_paths = LineNames(self._source, skipped)
        if skipped.count:
            rank_zero_warn(str(skipped))
        if not len(self.predict_paths):
            raise UserError(f"no text in {listed(paths, 3)}: all lines are empty or cannot be read")

    def _check_model(self, block_size: int) -> None:
        """Refuse a tokenizer that does not fit; `block_size` is 0 in prediction."""
        assert self._vocabulary is not None
        most = self._tokenizer.model_max_length
        if block_size > most:
            raise UserError(f"block_size {block_size}: tokenizer {self.tokenizer_name!r} is for {most} at most")
        encoder = getattr(attached_model(self), "encoder", None)
        most = getattr(encoder, "max_positions", block_size)
        if block_size > most:
            raise UserError(f"block_size {block_size}: the model has max_positions {most}, set one of them")
        size = getattr(encoder, "vocab_size", self._vocabulary.size)
        if self._vocabulary.size > size:
            raise UserError(
                f"tokenizer {self.tokenizer_name!r} has {self._vocabulary.size} ids, the model vocab_size {size}: set "
                f"the encoder's vocab_size to {self._vocabulary.size}"
            )
        for name in ("pad_id", "mask_id") if block_size else ("pad_id",):  # prediction masks nothing
            mine = getattr(self._vocabulary, name)
            if getattr(encoder, name, mine) != mine:
                raise UserError(
                    f"the model's {name} is {getattr(encoder, name)}, tokenizer {self.tokenizer_name!r} has {mine}: set "
                    f"the encoder's {name} to {mine}"
                )

    def _opened(self) -> dict[Split, TextBlocks]:
        sources = self._sources()
        if self.val_files is not None:
            sources["val"] = FileSource(self.val_files, self.documents, self.text_field)
        elif "val" not in sources and self.val_fraction is not None:
            return self._held_out(self._packed(sources["train"]), self.val_fraction)
        return {split: self._packed(source) for split, source in sources.items()}  # type: ignore[misc]

    def _sources(self) -> dict[str, TextSource]:
        if self.files is not None:
            return {"train": FileSource(self.files, self.documents, self.text_field)}
        assert self.dataset is not None
        return {**open_tables(self.dataset, self.dataset_config, self.text_field)}

    def _held_out(self, blocks: TextBlocks, share: float) -> dict[Split, TextBlocks]:
        number = max(1, round(share * len(blocks)))
        if number >= len(blocks):
            raise UserError(f"val_fraction {share} of {len(blocks)} block(s) leaves nothing to train on")
        order = np.random.default_rng(derived_seed("held out", self.seed)).permutation(len(blocks))
        val, train = (
            TextBlocks(blocks.corpus, blocks.ends, blocks.first_id, np.sort(places))
            for places in (order[:number], order[number:])
        )
        return {"train": train, "val": val}

    def _packed(self, source: TextSource) -> TextBlocks:
        assert self._vocabulary is not None
        corpus = tokenized(source, self._tokenizer, self._vocabulary.last_id, self._cache())
        capacity = self.block_size - 1
        ends = corpus.block_ends(self.packing, capacity)
        full = len(corpus.tokens) / (capacity * len(ends))
        rank_zero_info(f"{len(ends):,} blocks of up to {self.block_size} tokens, on average {100 * full:.0f} % full")
        if full < WASTEFUL:
            rank_zero_warn(
                f"blocks are {100 * full:.0f} % full, because none holds two documents: set data.packing blocks, or where a "
                "line is no document, data.documents blank_lines"
            )
        return TextBlocks(corpus, ends, self._vocabulary.first_id)

    def _cache(self) -> Path:
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "d2v_lightning" / "text"

    # ------------------------------------------------------------------ loaders

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled blocks with masks, restartable in the middle of an epoch.

        Raises:
            ValueError: there are fewer blocks than one batch on every device needs.
        """
        blocks = self._blocks["train"]
        enough_for_a_batch(self.trainer, self.batch_size, len(blocks), f"training blocks of {self.block_size} tokens")
        return self._loader("train", training=True)

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        """Blocks in their order with masks, the same in every epoch; nothing where there is no validation."""
        return self._loader("val", training=False) if "val" in self._blocks else []

    def predict_dataloader(self) -> PredictLoader:
        """Lines by themselves, see `LineBatches`; "index" refers to `predict_paths`. Lines that a stopped run has predicted
        are left out."""
        names = self.predict_paths
        if self._vocabulary is None or not isinstance(names, LineNames):
            raise UserError("nothing to predict: call setup('predict') first")
        done = done_before(self, names.versions(), content_hash(self._tokenizer), len(names))
        most = getattr(getattr(attached_model(self), "encoder", None), "max_positions", self.block_size)
        lines = LineBatches(self._source, self._tokenizer, self._vocabulary, most, self.batch_size, done, names)
        return PredictLoader(
            SafeLoader(
                lines,
                batch_size=None,
                num_workers=self.num_workers,
                generator=torch.Generator(),
            )
        )

    def _loader(self, split: Split, training: bool) -> ResumableLoader:
        assert self._vocabulary is not None
        blocks = self._blocks[split]
        collator = TextMaskCollator(
            self._vocabulary,
            self.mask_prob,
            self.mask_length,
            self.num_masks,
            self.leave_unmasked_prob,
            self.random_token_prob,
            self.whole_words,
            self.mask_special,
            math.gcd(self.block_size, PADDED_TO),
            self.seed,
        )
        return ResumableLoader(
            blocks,
            EpochBatchSampler(len(blocks), self.batch_size, self.seed, shuffle=training),
            collator,
            self.num_workers,
            pin_memory=torch.cuda.is_available(),
            endless=training and self.trainer is not None,
        )
