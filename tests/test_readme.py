"""README's Python examples run as they stand, each in a file of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from d2v_lightning.commands.command_line import main
from d2v_lightning.flavour import pl

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a step for twenty, and the Lightning that the tests run with."""
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", str(ROOT / "configs/quickstart/digits.yaml"), "--trainer.max_steps", "1"])  # as it says
    ran: list[dict[str, Any]] = []
    for example in EXAMPLES:
        ran.append({})
        one_step = example.replace("max_steps=20", "max_steps=1").replace("pytorch_lightning", pl.__name__)
        exec(compile(one_step, "README.md", "exec"), ran[-1])
    assert ran[0]["model"].global_step == 1
    assert ran[1]["data"].trainer.global_step == 1
    assert ran[2]["patches"].shape == (2, 16, ran[2]["classifier"].encoder.dim)
