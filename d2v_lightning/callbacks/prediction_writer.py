"""PredictionWriter: what `predict` finds out, in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2v_lightning.callbacks.prediction_files import SUFFIXES, Row, write_rows, written_name
from d2v_lightning.callbacks.prediction_parts import (
    Ids,
    Part,
    Rows,
    contents,
    ids_of,
    joined,
    network_key,
    part_of,
    parts_of,
    read_part,
    stamp,
)
from d2v_lightning.configurable import Configurable
from d2v_lightning.flavour import pl, rank_zero_info, rank_zero_warn
from d2v_lightning.support.errors import ExistsError, NotFoundError, UserError
from d2v_lightning.support.locks import LOCK, only_one

_KNOWN = tuple(dict.fromkeys(suffix for suffixes in SUFFIXES.values() for suffix in suffixes))


class PredictionWriter(Configurable, pl.callbacks.BasePredictionWriter):
    r"""Streams predictions to disk, and puts the file in its place when it is complete.

    Probabilities (a `predict_step` that returns a dict with "probabilities" (B, C) and "index" (B,)) become a CSV: index,
    path, label, probability, and the next best labels; numbers (a dict with "values" (B,) and "index") one with index, path
    and value. Lines (a dict with "lines", one dictionary a sample, and "index") become JSON lines with the path first.
    Features are a `predict_step` that returns a tensor (B, ...), or a dict with "features", one tensor a sample, and "index".
    "layers" in the dict says which blocks the L of (L, D) are. They become a float32 `.npy` (samples, ...) with a `.csv`
    beside it, which has the number and the path of each row; or `.safetensors`, with a tensor for each path; or `.parquet`.

    Rows are in the order of the data set on any number of devices, each sample once. Every process writes a part beside
    the output, so several machines need a common file system. A sample that could not be read has no row. In paths a byte
    that is not UTF-8 is written as ``\xNN``, and a backslash as two.

    What a stopped or killed run has predicted for files is kept in the parts. The same command goes on from them, on any
    number of devices: a file that is there still, unchanged, is not predicted again. Parts of another network or of other
    settings are refused. Predictions for what is no file of its own, such as rows of a data set, begin anew.

    Args:
        output: `.csv` for probabilities and numbers, `.jsonl` for lines, `.npy`, `.safetensors` or `.parquet` for features;
            by default predictions.csv, predictions.jsonl or features.npy in the Trainer's `default_root_dir`.
        top: labels for each sample, best first.
        overwrite: replace a file that exists, and parts that are of another run.
    """

    options = ("output=...", "overwrite=True")
    """What messages call them; a command puts its own in their place."""

    def __init__(self, output: str | None = None, top: int = 5, overwrite: bool = False) -> None:
        super().__init__(write_interval="batch")
        if top < 1:
            raise UserError(f"top is {top}: it must be at least 1")
        if output is not None and Path(output).suffix not in _KNOWN:
            raise UserError(
                f"output is {output!r}: it must end in .csv (probabilities), .jsonl (transcripts), or .npy, .safetensors or "
                ".parquet (features)"
            )
        self.output, self.top, self.overwrite = output, top, overwrite
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._target: Path | None = None
        self._pair = False  # whether the file beside the output may not exist either
        self._held = ExitStack()  # the lock of the output, as long as this process writes to it
        self._part: Part | None = None
        self._kind: dict[str, Any] = {}
        self._key = b""  # of a run that can be gone on with
        self._ids: Ids | None = None  # of its inputs, by their places
        self._seen = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "predict" and (target := self._known_target(trainer)) is not None:
            self._take(trainer, target)

    def _take(self, trainer: pl.Trainer, target: Path) -> None:
        """Claim the output for this run.

        Raises:
            FileExistsError: it is there already.
            ValueError: another command writes to it.
        """
        if self._target is None:
            # Only a run that was killed between the two renames leaves the one without the other, and parts.
            self._pair = target.suffix == ".npy" and not parts_of(target)
            self._refuse_existing(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            if trainer.is_global_zero:
                lock = target.with_name(f".{target.name}{LOCK}")
                self._held.enter_context(only_one(lock, str(target), "output"))
            self._target = target

    def _refuse_existing(self, target: Path) -> None:
        for path in (target, target.with_suffix(".csv")) if self._pair else (target,):
            if path.exists() and not self.overwrite:
                output, overwrite = self.options
                raise ExistsError(f"{path} exists: choose another file ({output}), or overwrite it ({overwrite})")

    def go_on(self, trainer: pl.Trainer, paths: Iterable[str], settings: Any) -> NDArray[np.bool_] | None:
        """Take over what a stopped run has predicted; a datamodule calls it when it makes the loader.

        Args:
            trainer: which predicts, its module with its weights.
            paths: of all inputs. What is no path is known by its name alone, which then has to say what it is.
            settings: plain data, how the inputs are read.

        Returns:
            (paths,) bool, True = done, to be left out by the loader; None where the caller of `predict` wants all
            predictions, or where the output is not known before there is one.
        """
        if trainer.predict_loop.return_predictions or self._target is None:
            return None
        settings = [settings, self.top, str(trainer.precision)]
        self._key = network_key(trainer.lightning_module, settings)
        self._ids = ids_of(stamp(path) for path in paths)
        found = self._kept(self._target)
        trainer.strategy.barrier("rows of a stopped run are read")
        if trainer.is_global_zero:
            for part in (path for path, rows in found.items() if rows is None):
                part.unlink()
        trainer.strategy.barrier("rows of another run are removed")
        kept = [rows for rows in found.values() if rows is not None]
        if not kept:
            return np.zeros(len(self._ids), bool)
        done = joined(kept).of(self._ids) >= 0
        self._kind = kept[0].kind
        if done.any():
            rank_zero_info(f"going on with a stopped run: {done.sum()} of {len(done)} samples are done")
        return done

    def _known_target(self, trainer: pl.Trainer) -> Path | None:
        """The output, where it is given or the module says by its `predicts`, a key of `SUFFIXES`, what comes."""
        kind = getattr(trainer.lightning_module, "predicts", None)
        if self.output is not None:
            return Path(self.output)
        return None if kind is None else Path(trainer.default_root_dir, _default_name(kind))

    def _kept(self, target: Path) -> dict[Path, Rows | None]:
        """The parts of earlier runs, and None for one that is to go.

        Raises:
            ValueError: one is of another network or other settings.
        """
        found: dict[Path, Rows | None] = {}
        for part in parts_of(target):
            with open(part, "rb") as file:
                own = file.readline()
            if own:
                found[part] = read_part(part, self._key) if self._key else None
            if own in (b"", b"\n") or found[part] is not None:  # empty, or of a run that cannot be gone on with
                continue
            if not self.overwrite:
                raise UserError(
                    f"{part} is left of a run with another network, weights, decoder or other settings: repeat that "
                    "command to go on with it, remove it to lose it, or choose another output"
                )
            rank_zero_warn(f"{part} is of a run with another network, weights, decoder or settings: it is removed")
        return found

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if dataloader_idx > 0:
            raise UserError("predictions of several dataloaders cannot go to one file: predict them one by one")
        kind, rows = self._rows(pl_module, prediction)
        source = prediction if isinstance(prediction, dict) else batch
        index = self._index(trainer, source, batch_indices, len(rows))
        if not rows:
            return
        if self._part is None:
            self._open(trainer, kind)
        assert self._part is not None
        self._part.append(index.astype(np.uint64) if self._ids is None else self._ids[index], rows)

    def _rows(self, module: pl.LightningModule, prediction: Any) -> tuple[dict[str, Any], list[bytes]]:
        """What kind of rows a prediction is, see `write_rows`, and one for each sample."""
        found = prediction if isinstance(prediction, dict) else {"features": prediction}
        if "lines" in found:
            return {"rows": "lines"}, [json.dumps(line, ensure_ascii=False).encode() for line in found["lines"]]
        if "values" in found:
            return {"rows": "values"}, [json.dumps(value).encode() for value in found["values"].float().tolist()]
        if "probabilities" in found:
            values = found["probabilities"].float()
            best = values.topk(min(self.top, values.shape[1]), dim=1)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            rows = [json.dumps(list(zip(*pair, strict=True))).encode() for pair in pairs]
            return {"rows": "labels", "top": best.indices.shape[1]}, rows
        features = found.get("features")
        if not isinstance(features, list) and (not isinstance(features, Tensor) or features.ndim < 2):
            raise UserError(
                f"{type(module).__name__}.predict_step gives no features (B, D) and no dict with 'probabilities' "
                "(B, C): write its predictions with a callback of your own"
            )
        shape = list(features[0].shape) if len(features) else []
        layers = found.get("layers", list(range(shape[0])) if len(shape) > 1 else [-1])
        if isinstance(features, list) and len(shape) == 3:  # as many vectors as the sample has tokens
            shape[1] = -1
        rows = [feature.float().cpu().contiguous().numpy().tobytes() for feature in features]
        return {"rows": "features", "shape": shape, "layers": list(layers)}, rows

    def _index(
        self, trainer: pl.Trainer, source: Any, batch_indices: Sequence[int] | None, size: int
    ) -> NDArray[np.int64]:
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

    def _open(self, trainer: pl.Trainer, kind: dict[str, Any]) -> None:
        default = Path(trainer.default_root_dir, _default_name(kind["rows"]))
        self._take(trainer, self._target or Path(self.output or default))
        assert self._target is not None
        wanted = SUFFIXES[kind["rows"]]
        if self._target.suffix not in wanted:
            raise UserError(
                f"output is {str(self._target)!r}, but this model's predictions need a name that ends in "
                f"{' or '.join(wanted)}"
            )
        if -1 in kind.get("shape", ()) and self._target.suffix == ".npy":
            raise UserError(
                f"output is {str(self._target)!r}, but features of every token have different lengths, which .npy cannot "
                "hold: use .safetensors or .parquet"
            )
        part = part_of(self._target, trainer.global_rank)
        if not self._key and part in self._kept(self._target):
            os.truncate(part, 0)
        self._kind, self._part = kind, Part(part, self._key, kind)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Join the parts of all ranks, in the order of the data set."""
        if self._part is not None:
            self._part.close()
            if not self._part.path.exists():
                raise NotFoundError(f"{self._part.path} is gone: another run writes to the same output, see there")
        self._agree()
        trainer.strategy.barrier("predictions are written")
        if trainer.is_global_zero and self._target is not None:
            self._refuse_existing(self._target)
            self._join(trainer, pl_module, self._target)
        trainer.strategy.barrier("predictions are joined")
        self._release()

    def _release(self) -> None:
        with self._held:
            if self._part is not None:
                self._part.close()
        self._begin_anew()

    def _agree(self) -> None:
        """The file and the kind of rows that any rank writes, for all of them: a share of the inputs may be unreadable.

        Raises:
            ValueError: no rank has anything.
        """
        shares: list[Any] = [(self._target, self._kind)]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shares = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(shares, (self._target, self._kind))
        found = [share for share in shares if share[1]]
        if not found:
            raise UserError("nothing was predicted and no file written: see the warnings for what could not be read")
        self._target, self._kind = found[0]

    def kept(self) -> str:
        """What a run that is stopped now leaves, in words."""
        return "the same command goes on from here" if self._key else "no predictions were written"

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave nothing half written, but what the same command goes on from, and say so."""
        if self._part is not None and (not self._key or self._part.is_empty):
            self._part.path.unlink(missing_ok=True)
        if self._key and self._kind and self._target is not None and parts_of(self._target):
            exception.add_note(f"What was predicted is kept beside {self._target}: the same command goes on from it")
        self._release()

    def _join(self, trainer: pl.Trainer, pl_module: pl.LightningModule, target: Path) -> None:
        paths = parts_of(target) if self._key else [part_of(target, rank) for rank in range(trainer.world_size)]
        read = {path: rows for path in paths if path.is_file() and (rows := read_part(path, self._key)) is not None}
        found = joined(list(read.values()))
        # Each sample once: samplers repeat some to give every device the same number, readers replace broken pictures.
        wanted = np.unique(found.ids) if self._ids is None else self._ids
        numbers = found.of(wanted)
        places = np.flatnonzero(numbers >= 0) if self._ids is not None else wanted.astype(np.int64)
        where = found.where[numbers[numbers >= 0]]
        datamodule = getattr(trainer, "datamodule", None)
        names: Sequence[str] = getattr(datamodule, "predict_paths", None) or []

        def in_order() -> Iterator[Row]:
            for place, row in zip(places.tolist(), contents(list(read), where), strict=True):
                yield place, written_name(names[place]) if 0 <= place < len(names) else "", row

        classes = getattr(pl_module, "class_names", None) or getattr(datamodule, "class_names", None)
        write_rows(target, self._kind, in_order, classes)
        for path in parts_of(target):
            path.unlink()
        whole = max(len(names), len(places))
        rank_zero_info(
            f"predictions for {len(places)}{f' of {whole}' if whole > len(places) else ''} samples: {target}"
        )


def _default_name(kind: str) -> str:
    return f"{'features' if kind == 'features' else 'predictions'}{SUFFIXES[kind][0]}"
