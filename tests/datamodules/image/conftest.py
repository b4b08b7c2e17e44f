"""A small tree of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import write_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Twelve training, six validation and six test pictures of three classes."""
    return write_tree(tmp_path)
