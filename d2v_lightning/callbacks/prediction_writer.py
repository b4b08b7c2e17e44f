"""PredictionWriter: what `predict` finds out, in a file."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from d2v_lightning.atomic import atomic_write
from d2v_lightning.callbacks.prediction_parts import network_key, part_of, parts_of, read_lines, stamp
from d2v_lightning.configurable import Configurable
from d2v_lightning.errors import ExistsError, NotFoundError, UserError

_ROWS_AT_ONCE = 4096


class PredictionWriter(Configurable, BasePredictionWriter):
    """Streams predictions to disk, and puts the file in its place when it is complete.

    Probabilities (a `predict_step` that returns a dict with "probabilities" (B, C) and "index" (B,)) become a CSV: index,
    path, label, probability, and the next best labels; numbers (a dict with "values" (B,) and "index") one with index, path
    and value. Lines (a dict with "lines", one dictionary a sample, and "index") become JSON lines with the path first.
    Features (a `predict_step` that returns a tensor (B, D)) become a float32 `.npy` (samples, D) and a `.csv` beside it with
    the index and the path of each row.

    Rows are in the order of the data set on any number of devices, each sample once. Every process writes a part beside
    the output, so several machines need a common file system. A sample that could not be read has no row.

    Lines of a run that was stopped or killed are kept in the parts, and the same network goes on from them, on any number of
    devices: a recording that is there still, unchanged, is not transcribed again. Other predictions begin anew.

    Args:
        output: `.csv` for probabilities, `.jsonl` for lines, `.npy` for features; by default predictions.csv,
            predictions.jsonl or features.npy in the Trainer's `default_root_dir`.
        top: labels for each sample, best first.
        overwrite: replace a file that exists.
    """

    def __init__(self, output: str | None = None, top: int = 5, overwrite: bool = False) -> None:
        super().__init__(write_interval="batch")
        if top < 1:
            raise UserError(f"top is {top}: it must be at least 1")
        if output is not None and Path(output).suffix not in (".csv", ".jsonl", ".npy"):
            raise UserError(
                f"output is {output!r}: it must end in .csv (probabilities), .jsonl (transcripts) or .npy (features)"
            )
        self.output, self.top, self.overwrite = output, top, overwrite
        self._target: Path | None = None
        self._part: BinaryIO | None = None
        self._rows = np.dtype([])
        self._seen = 0
        self._key, self._stamps = b"", [""]  # of the network and the recordings, in a run that can be gone on with

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "predict" and self.output is not None:
            self._refuse_existing(Path(self.output))

    def go_on(self, trainer: Trainer, paths: Sequence[str]) -> set[int]:
        """Take over the lines of a stopped run; a datamodule calls it when it makes the loader.

        Args:
            trainer: which predicts, its module with its weights.
            paths: of all recordings.

        Returns:
            The places of those that are done, which the loader leaves out.
        """
        target = Path(self.output or os.path.join(trainer.default_root_dir, "predictions.jsonl"))
        if target.suffix != ".jsonl":
            return set()
        self._refuse_existing(target)
        self._key, self._stamps = network_key(trainer.lightning_module), [stamp(path) for path in paths]
        kept = {part: read_lines(part, self._key) for part in parts_of(target)}
        trainer.strategy.barrier("lines of a stopped run are read")
        for part in kept:
            if kept[part] is None and trainer.is_global_zero:
                rank_zero_warn(f"{part} is of a run with another network, weights or decoder: it is removed")
                part.unlink()
        trainer.strategy.barrier("lines of another run are removed")
        before = {name for lines in kept.values() for name, _ in lines or ()}
        done = {place for place, name in enumerate(self._stamps) if name in before}
        if done:
            self._target = target
            rank_zero_info(f"going on with a stopped run: {len(done)} of {len(paths)} recordings are done")
        return done

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if trainer.received_sigterm:
            kept = "the same command goes on from here" if self._key else "no predictions were written"
            rank_zero_warn(f"stopped by SIGTERM: {kept}")
            raise SystemExit(128 + signal.SIGTERM)
        if dataloader_idx > 0:
            raise UserError("predictions of several dataloaders cannot go to one file: predict them one by one")
        is_dict = isinstance(prediction, dict)
        if is_dict and "lines" in prediction:
            self._append_lines(trainer, prediction["index"].tolist(), prediction["lines"])
            return
        if is_dict and "values" in prediction:
            index = self._index(trainer, prediction, batch_indices, len(prediction["values"]))
            self._append(trainer, "predictions.csv", index, {"value": prediction["values"].float()})
            return
        values = prediction["probabilities"] if is_dict else prediction
        if not isinstance(values, Tensor) or values.ndim != 2:
            raise UserError(
                f"{type(pl_module).__name__}.predict_step gives no features (B, D) and no dict with 'probabilities' "
                "(B, C): write its predictions with a callback of your own"
            )
        index = self._index(trainer, prediction if is_dict else batch, batch_indices, len(values))
        if is_dict:
            best = values.float().topk(min(self.top, values.shape[1]), dim=1)
            fields = {"probability": best.values, "label": best.indices}
        else:
            fields = {"feature": values.float()}
        self._append(trainer, "predictions.csv" if is_dict else "features.npy", index, fields)

    def _append_lines(self, trainer: Trainer, index: list[int], lines: list[dict[str, Any]]) -> None:
        """Add one batch to this process's part, a JSON line for each sample with its place first."""
        if self._part is None:
            self._open(trainer, "predictions.jsonl")
        assert self._part is not None
        for place, line in zip(index, lines, strict=True):
            name = self._stamps[place] if self._key else place
            self._part.write(json.dumps([name, line], ensure_ascii=False).encode() + b"\n")
        self._part.flush()

    def _index(self, trainer: Trainer, source: Any, batch_indices: Sequence[int] | None, size: int) -> np.ndarray:
        """Place of each sample in the data set (B,)."""
        first, self._seen = self._seen, self._seen + size
        if isinstance(source, dict) and "index" in source:
            return np.asarray(source["index"].cpu())
        if batch_indices:
            return np.asarray(batch_indices)
        if trainer.world_size > 1:
            raise UserError(
                "on several devices the order of predictions is unknown without batch['index']: let the datamodule give "
                "it, or predict on one device"
            )
        return np.arange(first, first + size)

    def _append(self, trainer: Trainer, default_name: str, index: np.ndarray, fields: dict[str, Tensor]) -> None:
        """Add one batch to this process's part, a plain array of records."""
        columns = {name: value.cpu().numpy() for name, value in fields.items()}
        if self._part is None:
            self._open(trainer, default_name)
            row = [(name, value.dtype, value.shape[1:]) for name, value in columns.items()]
            self._rows = np.dtype([("index", np.int64), *row])
        rows = np.empty(len(index), self._rows)
        rows["index"] = index
        for name, value in columns.items():
            rows[name] = value
        assert self._part is not None
        self._part.write(rows.tobytes())

    def _open(self, trainer: Trainer, default_name: str) -> None:
        target = Path(self.output or os.path.join(trainer.default_root_dir, default_name))
        wanted = Path(default_name).suffix
        if target.suffix != wanted:
            raise UserError(
                f"output is {str(target)!r}, but this model's predictions need a name that ends in {wanted}"
            )
        self._refuse_existing(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._key = self._key if wanted == ".jsonl" else b""
        part = part_of(target, trainer.global_rank)
        going_on = bool(self._key) and part.is_file()
        self._target = target
        self._part = open(part, "ab" if going_on else "wb")  # noqa: SIM115  # open until the last batch
        if not going_on:
            self._part.write(self._key)

    def _refuse_existing(self, target: Path) -> None:
        for path in (target, target.with_suffix(".csv")) if target.suffix == ".npy" else (target,):
            if path.exists() and not self.overwrite:
                raise ExistsError(
                    f"{path} exists: choose another file with --predictions.output, or --predictions.overwrite true"
                )

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the parts of all ranks, in the order of the data set."""
        if self._part is not None:
            self._part.close()
            if not os.path.exists(self._part.name):
                raise NotFoundError(f"{self._part.name} is gone: another run writes to the same output, see there")
            self._part = None
        if self._target is not None and trainer.is_global_zero:
            self._refuse_existing(self._target)
        self._agree()
        trainer.strategy.barrier("predictions are written")
        if trainer.is_global_zero and self._target is not None:
            if self._target.suffix == ".jsonl":
                self._join_lines(trainer, self._target)
            else:
                self._join(trainer, pl_module, self._target)
        trainer.strategy.barrier("predictions are joined")
        self._target, self._seen, self._key = None, 0, b""

    def _agree(self) -> None:
        """The file and the kind of rows that any rank writes, for all of them: a share of the inputs may be unreadable.

        Raises:
            ValueError: no rank has anything.
        """
        shares: list[Any] = [(self._target, self._rows)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shares = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(shares, (self._target, self._rows))
        found = [share for share in shares if share[0] is not None]
        if not found:
            raise UserError("nothing was predicted and no file written: see the warnings for what could not be read")
        self._target, self._rows = found[0]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing half written, but what the same command goes on from."""
        if self._part is not None and self._target is not None:
            self._part.close()
            self._part = None
            if not self._key:
                part_of(self._target, trainer.global_rank).unlink(missing_ok=True)
        self._target, self._seen, self._key = None, 0, b""

    def _join_lines(self, trainer: Trainer, target: Path) -> None:
        parts = parts_of(target)
        lines = [row for path in parts for row in read_lines(path, self._key) or ()]
        if self._key:  # what was read before, of those recordings that are still there
            places = {name: place for place, name in enumerate(self._stamps)}
            lines = [(places[name], line) for name, line in lines if name in places]
        rows = dict(lines)
        paths: Sequence[str] = getattr(getattr(trainer, "datamodule", None), "predict_paths", None) or []
        with atomic_write(target) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
            for place in sorted(rows):
                file.write(json.dumps({"file": _path(paths, place), **rows[place]}, ensure_ascii=False) + "\n")
        for path in parts:
            path.unlink()
        of = f" of {len(paths)}" if len(paths) > len(rows) else ""
        rank_zero_info(f"predictions for {len(rows)}{of} recordings: {target}")

    def _join(self, trainer: Trainer, pl_module: LightningModule, target: Path) -> None:
        parts = [path for rank in range(trainer.world_size) if (path := part_of(target, rank)).is_file()]
        arrays = [np.memmap(path, self._rows, "r") for path in parts if path.stat().st_size]
        index = np.concatenate([array["index"] for array in arrays])
        # Each sample once: samplers repeat some to give every device the same number, readers replace broken pictures.
        samples, rows = np.unique(index, return_index=True)
        ordered = _in_order(arrays, rows)
        datamodule = getattr(trainer, "datamodule", None)
        paths: Sequence[str] = getattr(datamodule, "predict_paths", None) or []
        if "feature" in (self._rows.names or ()):
            _write_features(target, ordered, len(samples), self._rows["feature"].shape[0])
            _write_csv(target.with_suffix(".csv"), ["index", "path"], ([i, _path(paths, i)] for i in samples))
        elif "value" in (self._rows.names or ()):
            found = (
                [row["index"], _path(paths, row["index"]), f"{row['value']:.6f}"] for part in ordered for row in part
            )
            _write_csv(target, ["index", "path", "value"], found)
        else:
            names: Sequence[str] | None = getattr(pl_module, "class_names", None) or getattr(
                datamodule, "class_names", None
            )
            self._write_labels(target, ordered, paths, names)
        for path in parts:
            path.unlink()
        rank_zero_info(f"predictions for {len(samples)} samples: {target}")
        complete = all(
            count == float("inf") or count == len(loader)
            for count, loader in zip(trainer.num_predict_batches, _loaders(trainer), strict=True)
        )
        if complete and len(samples) < len(paths):
            missing = sorted(set(range(len(paths))) - set(samples.tolist()))
            rank_zero_warn(
                f"{len(missing)} of {len(paths)} samples have no row because they could not be read: "
                f"{', '.join(paths[place] for place in missing[:5])}{', ...' if len(missing) > 5 else ''}"
            )

    def _write_labels(
        self, target: Path, ordered: Iterator[np.ndarray], paths: Sequence[str], names: Sequence[str] | None
    ) -> None:
        best = self._rows["label"].shape[0]
        header = ["index", "path", "label", "probability"]
        header += [f"{name}_{place}" for place in range(2, best + 1) for name in ("label", "probability")]

        def lines() -> Iterator[list[Any]]:
            for rows in ordered:
                for row in rows:
                    line: list[Any] = [int(row["index"]), _path(paths, row["index"])]
                    for label, probability in zip(row["label"], row["probability"], strict=True):
                        line += [names[label] if names else int(label), f"{probability:.6f}"]
                    yield line

        _write_csv(target, header, lines())


def _in_order(arrays: Sequence[np.ndarray], rows: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of the concatenated arrays in the given order, a few at a time, so that they need not fit into memory."""
    ends = np.cumsum([len(array) for array in arrays])
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        wanted = rows[start : start + _ROWS_AT_ONCE]
        source = np.searchsorted(ends, wanted, side="right")
        chunk = np.empty(len(wanted), arrays[0].dtype)
        for place, array in enumerate(arrays):
            mine = source == place
            chunk[mine] = array[wanted[mine] - (ends[place] - len(array))]
        yield chunk


def _write_features(target: Path, ordered: Iterator[np.ndarray], count: int, dim: int) -> None:
    with atomic_write(target) as unfinished:
        features = np.lib.format.open_memmap(unfinished, "w+", np.float32, (count, dim))
        start = 0
        for rows in ordered:
            features[start : start + len(rows)] = rows["feature"]
            start += len(rows)
        features.flush()


def _write_csv(target: Path, header: Sequence[str], lines: Iterator[list[Any]]) -> None:
    with atomic_write(target) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(lines)


def _path(paths: Sequence[str], index: Any) -> str:
    return paths[index] if 0 <= index < len(paths) else ""


def _loaders(trainer: Trainer) -> list[Any]:
    loaders = trainer.predict_dataloaders
    return list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]
