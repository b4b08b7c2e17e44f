"""Lightning under either of its names: the one that is imported first, and `pytorch_lightning` where none is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from d2v_lightning import flavour

PACKAGES = ["pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"]
UTILITIES = "class utilities:\n    rank_zero_info = rank_zero_only = rank_zero_warn = __name__\n"


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("sys", PACKAGES[:2]),
        ("pytorch_lightning", PACKAGES[:2]),
        ("lightning.pytorch", PACKAGES[2:]),
        ("lightning.pytorch, pytorch_lightning", PACKAGES[2:]),
        ("pytorch_lightning, lightning.pytorch", PACKAGES[:2]),
    ],
)
def test_the_name_that_is_imported_first_is_taken(before: str, expected: list[str], tmp_path: Path) -> None:
    """With packages that hold nothing else, in a process of their own."""
    for package in PACKAGES:
        folder = tmp_path / package.replace(".", "/")
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(UTILITIES)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {before}, runpy; "
        f"found = runpy.run_path({flavour.__file__!r}); "
        "print(found['pl'].__name__, found['fabric'].__name__, found['rank_zero_warn'])"
    )
    printed = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [*expected, expected[0]]
