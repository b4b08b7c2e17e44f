"""The English inside Python itself: help topics and docstrings of the standard library, as text files.

    python examples/python_text.py OUT

Writes OUT/train.txt and OUT/valid.txt, a paragraph a line, and OUT/packages.jsonl: docstrings and their packages.
What there is depends on the Python that runs this.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEAST_WORDS = 8
PACKAGES = (
    "asyncio",
    "email",
    "unittest",
    "multiprocessing",
    "tkinter",
    "xml",
    "ctypes",
    "logging",
    "http",
    "concurrent",
)


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of prose on one line each; code and tables are left out."""
    for block in re.split(r"\n\s*\n", text):
        words = " ".join(
            line.strip() for line in block.splitlines() if not line.lstrip().startswith((">>>", "...", "|", "+--"))
        )
        letters = sum(letter.isalpha() or letter == " " for letter in words)
        if len(words.split()) >= LEAST_WORDS and letters > 0.8 * len(words):
            yield words


def docstrings(file: Path) -> Iterator[str]:
    """Docstrings of a module, its classes and functions."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):  # test data of the library's own, meant to be broken
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""


def write_text(out: Path) -> dict[str, int]:
    """The three files; returns how many lines each has."""
    from pydoc_data.topics import topics

    library = Path(sysconfig.get_path("stdlib"))
    out.mkdir(parents=True, exist_ok=True)
    lines, labelled = [line for text in topics.values() for line in paragraphs(text)], []
    for file in sorted(library.rglob("*.py")):
        inside = file.relative_to(library).parts
        if inside[0] in ("site-packages", "test") or "tests" in inside or "test" in inside or "idlelib" in inside:
            continue
        for text in docstrings(file):
            found = list(paragraphs(text))
            lines += found
            if inside[0] in PACKAGES:
                labelled += [{"text": line, "package": inside[0]} for line in found]
    lines = list(dict.fromkeys(lines))
    held_out = [line for line in lines if _fold(line) == 0]
    (out / "train.txt").write_text("\n".join(line for line in lines if _fold(line)) + "\n", encoding="utf-8")
    (out / "valid.txt").write_text("\n".join(held_out) + "\n", encoding="utf-8")
    unique = {row["text"]: row for row in labelled}.values()
    (out / "packages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in unique), encoding="utf-8")
    return {"train": len(lines) - len(held_out), "valid": len(held_out), "labelled": len(unique)}


def _fold(line: str) -> int:
    return int(hashlib.sha1(line.encode()).hexdigest(), 16) % 20


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(write_text(Path(sys.argv[1])))
