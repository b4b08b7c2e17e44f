"""Lines of text as prediction reads them: each by itself, in batches of like length."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, overload

from torch.utils.data import IterableDataset, get_worker_info

from datamodules.shared.predicting import Done
from datamodules.shared.samplers import world
from datamodules.text.collators import TextCollator
from datamodules.text.sources import FileSource, Skipped
from datamodules.text.vocabulary import Vocabulary

POOL = 64  # batches among whose lines those of like length are found


class LineNames(Sequence[str]):
    """The lines of text files that are to be predicted: "path:number" for people, and what each line says as a number.

    Args:
        source: of the lines.
        skipped: takes note of those that cannot be read.
    """

    def __init__(self, source: FileSource, skipped: Skipped) -> None:
        self._paths: list[str] = []
        self._files, self._numbers, self._texts = array("i"), array("q"), array("Q")
        for path, number, text in source.samples(skipped):
            if not self._paths or self._paths[-1] != path:
                self._paths.append(path)
            self._files.append(len(self._paths) - 1)
            self._numbers.append(number)
            self._texts.append(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[one] for one in range(len(self))[place]]
        return f"{self._paths[self._files[place]]}:{self._numbers[place]}"

    def versions(self) -> Iterator[str]:
        """Each name with what the line says."""
        for name, text in zip(self, self._texts, strict=True):
            yield f"{name}\0{text}"


class LineBatches(IterableDataset[dict[str, Any]]):
    """Batches of lines, tokenised as in pre-training: the token that begins a text, the line's, the one that ends it.

    Of each `POOL` batches in a row, which share a process, lines of like length share a batch. Who shares a batch follows
    from the files alone.

    Args:
        source: of the lines.
        tokenizer: a fast one of transformers.
        vocabulary: of it.
        max_tokens: a longer line is cut, and listed in a batch's "cut".
        batch_size: lines.
        done: (lines,) bool, lines to leave out.
        names: of the lines.
    """

    def __init__(
        self,
        source: FileSource,
        tokenizer: Any,
        vocabulary: Vocabulary,
        max_tokens: int,
        batch_size: int,
        done: Done,
        names: Sequence[str],
    ) -> None:
        self.source, self.tokenizer, self.vocabulary = source, tokenizer, vocabulary
        self.max_tokens, self.batch_size, self.done, self.names = max_tokens, batch_size, done, names
        self.share = world()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """{"inputs" (B, T), "padding_mask" (B, T) where one is padded, "index" (B,), "cut" where lines are}."""
        worker = get_worker_info()
        number, of = (0, 1) if worker is None else (worker.id, worker.num_workers)
        mine, readers = self.share[0] * of + number, self.share[1] * of
        texts, size = self.source.samples(Skipped()), POOL * self.batch_size
        for pool, start in enumerate(range(0, len(self.done), size)):
            lines = [text for _, _, text in islice(texts, size)]
            if pool % readers == mine and not self.done[start : start + size].all():
                yield from self._pool(lines, start)

    def _pool(self, lines: Sequence[str], start: int) -> Iterator[dict[str, Any]]:
        encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(list(lines), add_special_tokens=False)
        first, last = [self.vocabulary.first_id], [self.vocabulary.last_id]
        room = self.max_tokens - 2
        ids = [first + encoding.ids[:room] + last for encoding in encodings]
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        for begin in range(0, len(order), self.batch_size):
            chosen = [place for place in order[begin : begin + self.batch_size] if not self.done[start + place]]
            if not chosen:
                continue
            samples = [{"inputs": ids[place], "index": start + place} for place in chosen]
            batch: dict[str, Any] = {**TextCollator(self.vocabulary.pad_id)(samples)}
            if cut := [self.names[start + place] for place in chosen if len(encodings[place].ids) > room]:
                batch["cut"] = cut
            yield batch
