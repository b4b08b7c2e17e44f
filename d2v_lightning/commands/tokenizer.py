"""Trains a tokenizer: `python -m d2v_lightning.commands.tokenizer FILES --out DIR --vocab_size N`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from d2v_lightning.commands.running import USAGE, run_command
from d2v_lightning.support.atomic import atomic_write
from d2v_lightning.support.errors import ExistsError, UserError
from datamodules.text.sources import FileSource, Skipped, TextSource
from datamodules.text.vocabulary import all_cores

FIRST, PAD, LAST, UNKNOWN, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
SMALLEST = 256 + 5  # bytes and special tokens


def train_tokenizer(source: TextSource, vocab_size: int = 50265, skipped: Skipped | None = None) -> Any:
    """Byte-level BPE with RoBERTa's special tokens: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, `<mask>` last.

    Args:
        source: of lines.
        vocab_size: ids in all; a small corpus may not have that many pairs to join, then there are fewer.
        skipped: takes note of lines that cannot be read.

    Returns:
        A fast tokenizer of transformers.

    Raises:
        ValueError: `vocab_size` has no room for all bytes, or there is no text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < SMALLEST:
        raise UserError(f"vocab_size {vocab_size}: permitted is {SMALLEST} (256 bytes, 5 special tokens) or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=[FIRST, PAD, LAST, UNKNOWN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with all_cores():
        tokenizer.train_from_iterator(_texts(source, Skipped() if skipped is None else skipped), trainer)
    tokenizer.add_special_tokens([AddedToken(MASK, lstrip=True, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{FIRST} $A {LAST}",
        pair=f"{FIRST} $A {LAST} {LAST} $B {LAST}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (FIRST, LAST)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=FIRST,
        cls_token=FIRST,
        eos_token=LAST,
        sep_token=LAST,
        pad_token=PAD,
        unk_token=UNKNOWN,
        mask_token=AddedToken(MASK, lstrip=True, special=True),
    )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes the directory as a whole or not at all.

    Raises:
        FileExistsError: there is something already.
    """
    if folder.exists():
        raise ExistsError(f"{folder} exists: remove it, or write to another directory")
    with atomic_write(folder) as unfinished:
        tokenizer.save_pretrained(unfinished)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m d2v_lightning.commands.tokenizer",
        description="Trains byte-level BPE with RoBERTa's special tokens on text files or JSON lines.",
    )
    parser.add_argument("files", nargs="+", help="text files, .jsonl files, or patterns such as '/data/**/*.txt'")
    parser.add_argument("--out", required=True, type=Path, help="directory to write, for data.tokenizer")
    parser.add_argument("--vocab_size", type=int, default=50265, help="ids in all; RoBERTa has 50265")
    parser.add_argument("--text_field", default="text", help="of a record of JSON lines")
    given = parser.parse_args(arguments)
    return run_command(lambda: _run(given), USAGE)


def _run(given: argparse.Namespace) -> None:
    skipped = Skipped()
    if given.out.exists():
        raise ExistsError(f"{given.out} exists: remove it, or write to another directory")
    tokenizer = train_tokenizer(FileSource(given.files, text_field=given.text_field), given.vocab_size, skipped)
    save_tokenizer(tokenizer, given.out)
    if skipped.count:
        print(skipped, file=sys.stderr)
    print(f"{len(tokenizer)} ids, <mask> is {tokenizer.mask_token_id}: --data.tokenizer {given.out}")
    if len(tokenizer) < given.vocab_size:
        print(f"the text has no more pairs to join: set the encoder's vocab_size to {len(tokenizer)}", file=sys.stderr)


def _texts(source: TextSource, skipped: Skipped) -> Iterator[str]:
    there_is_text = False
    with tqdm(total=source.size, desc="reading", unit_scale=True, disable=None, leave=False) as bar:
        for line in source.lines(skipped):
            there_is_text = True
            bar.update(line.size)
            yield line.text
    if not there_is_text:
        raise UserError("no text: all lines are empty or cannot be read")


if __name__ == "__main__":
    sys.exit(main())
