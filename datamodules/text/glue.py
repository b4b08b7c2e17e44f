"""GLUEDataModule: sentences or pairs with labels, from GLUE's own files, `datasets`, or files of your own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from d2v_lightning.configurable import Configurable
from d2v_lightning.finetune.glue_tasks import TASKS, GlueTask, Stored
from d2v_lightning.flavour import pl, rank_zero_warn
from d2v_lightning.recipes import FromRecipe
from d2v_lightning.support.errors import UserError, at_least
from d2v_lightning.support.lines import listed
from datamodules.shared.accumulation import accumulate_to
from datamodules.shared.arguments import enough_for_a_batch
from datamodules.shared.budget_batches import BudgetBatchSampler
from datamodules.shared.files import expanded
from datamodules.shared.loader import ResumableLoader, resume_exactly
from datamodules.shared.samplers import EpochBatchSampler, Key
from datamodules.text.collators import TextCollator
from datamodules.text.glue_rows import SPLITS, Rows, folder_rows, label_of, read_rows, table_rows, text_of
from datamodules.text.vocabulary import agreed_tokenizer

NAMED = 3  # bad lines in a warning


class Examples(Dataset[dict[str, Any]]):
    """Tokenised texts by (epoch, index), or by index: {"inputs" (T,), "index", "key", "label" where there are labels}.

    `places` says for people where each of them comes from.
    """

    def __init__(
        self, ids: Sequence[Sequence[int]], labels: Sequence[int | float] | None, places: Sequence[str]
    ) -> None:
        self.ids, self.labels, self.places = ids, labels, list(places)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample = {"inputs": torch.tensor(self.ids[index]), "index": index, "key": (epoch, index)}
        return sample if self.labels is None else {**sample, "label": self.labels[index]}


class GLUEDataModule(FromRecipe, Configurable, pl.LightningDataModule):
    """Sentences or pairs with labels.

    Args:
        task: one of GLUE's nine, or "custom" for files of your own.
        root: GLUE's folder (root/SST-2/train.tsv, ...), or for "custom" the folder of train, dev and test files.
        dataset: instead of `root`: a Hugging Face data set with a configuration per task, such as "nyu-mll/glue".
        text_columns, label_column, classes: of "custom" `.tsv` (with a header) or `.jsonl` files; no classes: a number.
        tokenizer: name on the Hugging Face hub, or directory, of a fast tokenizer; by default the one that is stored with
            the model since its pre-training. A model that has another refuses it.
        max_length: longer texts are cut; pairs at their longer half.
        batch_size: samples per device; or
        batch_tokens: tokens per device, padding included, of samples of like length.
        effective_batch: samples per optimiser step over all devices: sets the Trainer's `accumulate_grad_batches`.
        max_tokens: beside `batch_size`, tokens that a training batch holds at most, padding included. Batches are then cut
            once, from a random order, and every epoch takes them in another order, as fairseq does (released: 4,400).
        predict_file: `.tsv` with a header or `.jsonl` of texts; by default the test set. Labels in it are not looked at.
        num_workers: processes that load.
        seed: of the order.

    Raises:
        ValueError: an argument is out of its range, or arguments contradict each other.
    """

    def __init__(
        self,
        task: GlueTask = "sst2",
        root: str | None = None,
        dataset: str | None = None,
        text_columns: list[str] | None = None,
        label_column: str = "label",
        classes: list[str] | None = None,
        tokenizer: str | None = None,
        max_length: int = 512,
        batch_size: int = 16,
        batch_tokens: int | None = None,
        effective_batch: int | None = None,
        max_tokens: int | None = None,
        predict_file: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if task not in (*TASKS, "custom"):
            raise UserError(f"task {task!r}: permitted are {', '.join(TASKS)} and custom")
        if (task == "custom") != (text_columns is not None):
            raise UserError(
                f"task {task!r}, text_columns {text_columns}: give text_columns for 'custom', and only there"
            )
        if root is not None and dataset is not None:
            raise UserError(f"root {root!r} and dataset {dataset!r}: give one of them")
        at_least(1, max_length=max_length, batch_size=batch_size, batch_tokens=batch_tokens)
        at_least(1, effective_batch=effective_batch, max_tokens=max_tokens)
        at_least(0, num_workers=num_workers)
        if batch_tokens is not None and effective_batch is not None:
            raise UserError(
                "effective_batch counts samples, batch_tokens makes batches of any number: give one of them"
            )
        if batch_tokens is not None and max_tokens is not None:
            raise UserError(
                "max_tokens limits batches of batch_size, batch_tokens stands in its place: give one of them"
            )
        self.save_hyperparameters(logger=False)
        self.task, self.root, self.dataset, self.tokenizer = task, root, dataset, tokenizer
        self.files = TASKS.get(task) or Stored("", tuple(text_columns or ()), label_column, tuple(classes or ()))
        self.max_length, self.batch_size, self.batch_tokens = max_length, batch_size, batch_tokens
        self.effective_batch, self.max_tokens, self.predict_file = effective_batch, max_tokens, predict_file
        self.num_workers, self.seed = num_workers, seed
        self.predict_paths: list[str] = []
        self._pad_id = 1
        self._examples: dict[str, list[Examples]] = {}

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of their numbers; empty where the label is a number."""
        return list(self.files.classes)

    # ------------------------------------------------------------------ setup

    def setup(self, stage: str | None = None) -> None:
        """Reads and tokenises the splits that `stage` needs.

        Raises:
            FileNotFoundError: a split is missing.
            ValueError: half of the rows or more cannot be used, or one of a test set, because a column is missing or a label
                is none of the task's; or the tokenizer does not fit the model.
        """
        resume_exactly(self.trainer)
        if self.root is None and self.dataset is None and (stage != "predict" or self.predict_file is None):
            raise UserError("no data: set data.root to GLUE's folder, or data.dataset to nyu-mll/glue")
        module = getattr(self.trainer, "lightning_module", None)
        tokenizer = agreed_tokenizer(self.tokenizer, getattr(module, "backbone", None))
        self._pad_id = tokenizer.pad_token_id
        encoder = getattr(module, "encoder", None)
        size, room = getattr(encoder, "vocab_size", None), getattr(encoder, "max_positions", None)
        if size is not None and size != len(tokenizer):
            raise UserError(
                f"tokenizer {self.tokenizer!r} has {len(tokenizer)} tokens, the model's vocab_size is {size}: set "
                "data.tokenizer to the one that the model was pre-trained with"
            )
        needed = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
        length = min(self.max_length, room or self.max_length)
        for split in needed.get(stage or "", ("train", "val")):
            if split not in self._examples:
                self._examples[split] = [self._encode(rows, split, tokenizer, length) for rows in self._read(split)]
        if stage == "fit" and self.effective_batch is not None:
            accumulate_to(self.trainer, "batch_size", self.batch_size, self.effective_batch, "samples")
        if stage == "predict":
            self.predict_paths = self._examples["predict"][0].places

    def _read(self, split: str) -> list[Rows]:
        """Rows of the files of one split."""
        if split == "predict" and self.predict_file is not None:
            return [read_rows(expanded(self.predict_file), None)]
        names = SPLITS["test" if split == "predict" else split]
        if self.dataset is not None:
            return table_rows(self.dataset, self.task, self.files, names)
        assert self.root is not None
        return folder_rows(self.root, self.files, names)

    def _encode(self, found: Rows, split: str, tokenizer: Any, length: int) -> Examples:
        """Tokenises the rows that can be used.

        Answers to a test set are handed in by their place, so no row of it may be missing. Of other rows those that cannot
        be used are left out, counted and named.

        Raises:
            ValueError: a row of a test set cannot be used, or half of all rows or more.
        """
        if not found.rows and not found.bad:
            raise UserError(f"{found.name} holds no rows")
        labelled = split != "predict" and any(self.files.label in row for _, row in found.rows)
        bad = list(found.bad)
        texts: list[list[str]] = []
        labels: list[int | float] = []
        places: list[str] = []
        for place, row in found.rows:
            try:
                texts.append([text_of(row, column) for column in self.files.texts])
                if labelled:
                    labels.append(label_of(row.get(self.files.label), self.files.classes))
            except UserError as error:
                bad.append(f"{place}: {error}")
                del texts[len(places) :]
                continue
            places.append(place)
        if bad and (split == "test" or (split == "predict" and self.predict_file is None)):
            raise UserError(f"{bad[0]}: no row of a test set may be missing, {len(bad)} cannot be used")
        if bad and len(bad) >= len(places):
            raise UserError(f"{len(bad)} of {len(bad) + len(places)} lines cannot be used: {listed(bad, NAMED)}")
        if bad:
            rank_zero_warn(f"{len(bad)} line(s) are left out: {listed(bad, NAMED)}")
        if empty := [place for place, row in zip(places, texts, strict=True) if not all(text.strip() for text in row)]:
            rank_zero_warn(f"{len(empty)} row(s) have an empty text and are kept: {listed(empty, NAMED)}")
        columns = [list(column) for column in zip(*texts, strict=True)]
        special = tokenizer.num_special_tokens_to_add(pair=len(columns) > 1)
        if length < (least := special + len(columns)):
            raise UserError(
                f"max_length {length} has room for nothing but {special} special tokens: {least} is the least"
            )
        ids = tokenizer(*columns, truncation=True, max_length=length, padding=False)["input_ids"]
        return Examples(ids, labels if labelled else None, places)

    # ------------------------------------------------------------------ loaders

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled; restartable in the middle of an epoch.

        Raises:
            ValueError: there are no labels, or fewer rows than one batch on every device needs.
        """
        examples = self._examples["train"][0]
        if examples.labels is None:
            raise UserError(f"the training rows have no column {self.files.label!r}")
        if self.batch_tokens is None:
            enough_for_a_batch(self.trainer, self.batch_size, len(examples), "training rows")
        return self._loader(examples, training=True)

    def val_dataloader(self) -> list[ResumableLoader]:
        """One for each development set: two for MNLI."""
        return [self._loader(examples) for examples in self._examples["val"]]

    def test_dataloader(self) -> list[ResumableLoader]:
        """As `val_dataloader`, of the test sets, which need labels; GLUE's own have none: use predict.

        Raises:
            ValueError: there are no labels.
        """
        if any(examples.labels is None for examples in self._examples["test"]):
            raise UserError(
                "the test set has no labels, so it cannot be scored here: predict writes answers to hand in"
            )
        return [self._loader(examples) for examples in self._examples["test"]]

    def predict_dataloader(self) -> ResumableLoader:
        """Texts without labels."""
        examples = self._examples["predict"][0]
        return self._loader(Examples(examples.ids, None, examples.places))

    def _loader(self, examples: Examples, training: bool = False) -> ResumableLoader:
        lengths = [len(ids) for ids in examples.ids]
        sampler = EpochBatchSampler(len(examples), self.batch_size, self.seed, shuffle=training)
        if self.batch_tokens is not None:
            sampler = self._budget_sampler(lengths, "batch_tokens", self.batch_tokens, training)
        elif training and self.max_tokens is not None:
            limits = {"at_most": self.batch_size, "by_length": False}
            sampler = self._budget_sampler(lengths, "max_tokens", self.max_tokens, training, **limits)
        return ResumableLoader(
            examples,
            sampler,
            TextCollator(self._pad_id),
            self.num_workers,
            pin_memory=torch.cuda.is_available(),
            endless=training and self.trainer is not None,
        )

    def _budget_sampler(
        self, lengths: Sequence[int], name: str, budget: int, training: bool, **limits: Any
    ) -> BudgetBatchSampler:
        if max(lengths) > budget:
            raise UserError(
                f"{name} {budget} is smaller than the longest text, {max(lengths)} tokens: raise it, or lower max_length"
            )
        sampler = BudgetBatchSampler(lengths, budget, self.seed, training, **limits)
        world_size = self.trainer.world_size if self.trainer is not None else 1
        if training and len(sampler.batches) < world_size:
            raise UserError(
                f"{len(lengths)} training rows make {len(sampler.batches)} batch(es) of {budget} tokens for {world_size} "
                f"devices: lower {name}"
            )
        return sampler
