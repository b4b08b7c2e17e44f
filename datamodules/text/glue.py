"""GLUEDataModule: sentences or pairs with labels, from GLUE's own files, `datasets`, or files of your own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from d2v_lightning.configurable import Configurable
from d2v_lightning.finetune.glue_tasks import TASKS, GlueTask, Stored
from d2v_lightning.flavour import pl, rank_zero_warn
from d2v_lightning.recipes import FromRecipe
from d2v_lightning.support.errors import NotFoundError, UserError, at_least
from d2v_lightning.support.lines import decoded, listed, numbered_lines
from datamodules.shared.accumulation import accumulate_to
from datamodules.shared.arguments import enough_for_a_batch
from datamodules.shared.budget_batches import BudgetBatchSampler
from datamodules.shared.files import expanded
from datamodules.shared.loader import ResumableLoader, resume_exactly
from datamodules.shared.samplers import EpochBatchSampler, Key
from datamodules.shared.tables import cell_text, cells_of, json_record, open_table
from datamodules.text.collators import TextCollator
from datamodules.text.vocabulary import agreed_tokenizer

Row = dict[str, Any]
NAMED = 3  # bad lines in a warning


class Rows(NamedTuple):
    """Rows of one file or table.

    name: of it.
    rows: each with the place that messages call it.
    bad: "place: reason" of lines that cannot be read.
    """

    name: str
    rows: list[tuple[str, Row]]
    bad: list[str]


# MNLI has two development and two test sets.
SPLITS = {
    "train": ("train",),
    "val": ("dev", "dev_matched", "dev_mismatched"),
    "test": ("test", "test_matched", "test_mismatched"),
}


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
        at_least(
            1, max_length=max_length, batch_size=batch_size, batch_tokens=batch_tokens, effective_batch=effective_batch
        )
        at_least(0, num_workers=num_workers)
        if batch_tokens is not None and effective_batch is not None:
            raise UserError(
                "effective_batch counts samples, batch_tokens makes batches of any number: give one of them"
            )
        self.save_hyperparameters(logger=False)
        self.task, self.root, self.dataset, self.tokenizer = task, root, dataset, tokenizer
        self.files = TASKS.get(task) or Stored("", tuple(text_columns or ()), label_column, tuple(classes or ()))
        self.max_length, self.batch_size, self.batch_tokens = max_length, batch_size, batch_tokens
        self.effective_batch, self.predict_file = effective_batch, predict_file
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
            return self._read_table(names)
        assert self.root is not None
        folder = expanded(self.root) / self.files.folder
        found = [path for name in names for end in (".tsv", ".jsonl") if (path := folder / f"{name}{end}").is_file()]
        if not found:
            there = ", ".join(sorted(path.name for path in folder.glob("*"))) if folder.is_dir() else "no such folder"
            raise NotFoundError(f"{folder} has no {' or '.join(names)} as .tsv or .jsonl ({there})")
        header = self.files.header if "test" not in found[0].name else None
        return [read_rows(path, header) for path in found]

    def _read_table(self, names: Sequence[str]) -> list[Rows]:
        assert self.dataset is not None
        tables = open_table(self.dataset, self.task, streaming=False)
        wanted = [name for name in (*names, *(name.replace("dev", "validation") for name in names)) if name in tables]
        if not wanted:
            raise NotFoundError(
                f"{self.dataset} ({self.task}) has none of {', '.join(names)}: it has {', '.join(tables)}"
            )
        found = []
        for name in wanted:
            texts = [
                column for column in (*self.files.texts, "sentence1", "sentence2") if column in tables[name].features
            ]
            columns = dict(zip(self.files.texts, texts, strict=False))
            table = f"{self.dataset}[{name}]"
            read = {*columns.values(), *({self.files.label, "label"} & set(tables[name].features))}
            cells = zip(*(cells_of(tables[name], column) for column in read), strict=True)
            rows = [dict(zip(read, row, strict=True)) for row in cells]
            places = [(f"{table} row {n}", self._table_row(row, columns)) for n, row in enumerate(rows)]
            found.append(Rows(table, places, []))
        return found

    def _table_row(self, row: dict[str, Any], columns: dict[str, str]) -> Row:
        """A row of a table under the names of GLUE's files; classes there are numbers in the order of ours."""
        made = {ours: row[theirs] for ours, theirs in columns.items()}
        label = row.get(self.files.label, row.get("label", -1))
        if label not in (-1, None):
            number = isinstance(label, int) and len(self.files.classes) > label >= 0
            made[self.files.label] = self.files.classes[label] if number else str(label)
        return made

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
                texts.append([_text(row, column) for column in self.files.texts])
                if labelled:
                    labels.append(self._label(row.get(self.files.label)))
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
        ids = tokenizer(*columns, truncation=True, max_length=length, padding=False)["input_ids"]
        return Examples(ids, labels if labelled else None, places)

    def _label(self, given: Any) -> int | float:
        if self.files.classes:
            if str(given) not in self.files.classes:
                raise UserError(f"label {given!r}, permitted are {', '.join(self.files.classes)}")
            return self.files.classes.index(str(given))
        try:
            number = float("" if given is None else given)
        except (TypeError, ValueError) as error:
            raise UserError(f"label {given!r}, a number is needed") from error
        if not math.isfinite(number):
            raise UserError(f"label {given!r}, a finite number is needed")
        return number

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
        if self.batch_tokens is None:
            sampler = EpochBatchSampler(len(examples), self.batch_size, self.seed, shuffle=training)
        else:
            sampler = self._budget_sampler([len(ids) for ids in examples.ids], self.batch_tokens, training)
        return ResumableLoader(
            examples,
            sampler,
            TextCollator(self._pad_id),
            self.num_workers,
            pin_memory=torch.cuda.is_available(),
            endless=training and self.trainer is not None,
        )

    def _budget_sampler(self, lengths: Sequence[int], budget: int, training: bool) -> BudgetBatchSampler:
        if max(lengths) > budget:
            raise UserError(
                f"batch_tokens {budget} is smaller than the longest text, {max(lengths)} tokens: raise it, or lower "
                "max_length"
            )
        sampler = BudgetBatchSampler(lengths, budget, self.seed, training)
        world_size = self.trainer.world_size if self.trainer is not None else 1
        if training and len(sampler.batches) < world_size:
            raise UserError(
                f"{len(lengths)} training rows make {len(sampler.batches)} batch(es) of {budget} tokens for {world_size} "
                "devices: lower batch_tokens"
            )
        return sampler


def read_rows(path: Path, header: Sequence[str] | None) -> Rows:
    """Rows of a `.tsv` (without quoting, as GLUE's) or `.jsonl` file.

    Args:
        header: names of the columns, for files whose first line is a row.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another ending, is not text, or its header cannot be read.
    """
    if not path.is_file():
        raise NotFoundError(f"no file at {path}")
    if path.suffix not in (".tsv", ".jsonl"):
        raise UserError(f"{path} must end in .tsv (with a header) or .jsonl")
    names = list(header) if header is not None else None
    found = Rows(str(path), [], [])
    for number, line in numbered_lines(path):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            text = decoded(line)
            if path.suffix == ".jsonl":
                found.rows.append((place, json_record(text)))
            elif names is None:
                names = text.split("\t")
            else:
                found.rows.append((place, dict(zip(names, _as_many(text.split("\t"), len(names)), strict=True))))
        except UserError as error:
            if path.suffix == ".tsv" and names is None:
                raise UserError(f"{place}: {error}") from error
            found.bad.append(f"{place}: {error}")
    return found


def _text(row: Row, column: str) -> str:
    """One text of a row.

    Raises:
        ValueError: it is missing, no text, or not whole.
    """
    if column not in row:
        raise UserError(f"there is no column {column!r}, only {', '.join(name[:40] for name in row)}")
    return cell_text(row[column])


def _as_many(fields: list[str], number: int) -> list[str]:
    if len(fields) != number:
        raise UserError(f"{len(fields)} fields, the header has {number}")
    return fields
