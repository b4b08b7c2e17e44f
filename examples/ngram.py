"""A small n-gram language model of words, from transcripts, as an ARPA file that `d2v_lightning.BeamSearch` reads.

    python examples/ngram.py data/LibriSpeech/train-clean-100 words.arpa --order 3

Reads every `*.trans.txt` below a folder ("<id> WORDS" a line), or a text file with a sentence a line. Witten-Bell smoothing,
interpolated (Chen & Goodman 1998, section 2.5): enough for minutes of transcripts; for millions of words use KenLM's `lmplz`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from d2v_lightning.support.errors import UserError
from d2v_lightning.support.lines import good_lines, listed
from datamodules.shared.files import TRANSCRIPTS, files_below

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
Gram = tuple[str, ...]


def sentences(source: Path) -> list[list[str]]:
    """Words of each sentence.

    Raises:
        ValueError: there are none.
    """
    bad: list[str] = []
    if source.is_dir():
        lines = [
            line.partition(" ")[2] for path in files_below(source, [TRANSCRIPTS]) for _, line in good_lines(path, bad)
        ]
    else:
        lines = [line for _, line in good_lines(source, bad)]
    found = [words for line in lines if (words := line.split())]
    if not found:
        raise UserError(f"{source} holds no transcripts: give a folder with *.trans.txt, or a file of sentences")
    if bad:
        print(f"{len(bad)} line(s) are left out: {listed(bad)}", file=sys.stderr)
    return found


def train(text: Iterable[list[str]], order: int) -> tuple[list[dict[Gram, float]], dict[Gram, float]]:
    """Probabilities of the n-grams of each order from 1 up, and the weight with which each context backs off."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for words in text:
        marked = [BEGIN, *words, END]
        for size in range(1, order + 1):
            grams = zip(*(marked[start:] for start in range(size)), strict=False)
            counts[size - 1].update(gram for gram in grams if gram != (BEGIN,))
    total, kinds = counts[0].total(), len(counts[0])
    share = 1 / (kinds + 1)  # of each word, and of the unknown one, before anything is heard
    heard = {gram: (count + kinds * share) / (total + kinds) for gram, count in counts[0].items()}
    probabilities: list[dict[Gram, float]] = [{**heard, (UNKNOWN,): kinds * share / (total + kinds)}]
    backoff: dict[Gram, float] = {}
    for size in range(2, order + 1):
        follow: dict[Gram, list[int]] = defaultdict(list)
        for gram, count in counts[size - 1].items():
            follow[gram[:-1]].append(count)
        lower = probabilities[-1]
        probabilities.append({})
        for gram, count in counts[size - 1].items():
            seen, different = sum(follow[gram[:-1]]), len(follow[gram[:-1]])
            probabilities[-1][gram] = (count + different * lower[gram[1:]]) / (seen + different)
            backoff[gram[:-1]] = different / (seen + different)
    return probabilities, backoff


def write_arpa(path: Path, probabilities: list[dict[Gram, float]], backoff: dict[Gram, float]) -> None:
    """Logarithms to the base of 10, as ARPA has them."""
    lines = ["\\data\\"]
    probabilities[0] = {(BEGIN,): 1e-99, **probabilities[0]}  # never predicted
    lines += [f"ngram {size}={len(grams)}" for size, grams in enumerate(probabilities, start=1)]
    for size, grams in enumerate(probabilities, start=1):
        lines += ["", f"\\{size}-grams:"]
        for gram, probability in sorted(grams.items()):
            weight = f"\t{math.log10(backoff[gram]):.6f}" if gram in backoff else ""
            lines.append(f"{math.log10(probability):.6f}\t{' '.join(gram)}{weight}")
    path.write_text("\n".join([*lines, "", "\\end\\", ""]), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--order", type=int, default=3, help="words of the longest n-gram, 2 or more: default %(default)s"
    )
    args = parser.parse_args()
    if args.order < 2:
        parser.error("--order: KenLM reads bigrams or more")
    text = sentences(args.source)
    probabilities, backoff = train(text, args.order)
    write_arpa(args.output, probabilities, backoff)
    sizes = ", ".join(f"{len(grams)} of {size} words" for size, grams in enumerate(probabilities, start=1))
    print(f"{len(text)} sentences, n-grams: {sizes}: {args.output}")


if __name__ == "__main__":
    main()
