"""The quick start runs to its picture however few steps it is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2v_lightning.flavour import pl
from examples import quickstart


@pytest.mark.skipif(pl.__name__ != "pytorch_lightning", reason="the script imports pytorch_lightning by name")
def test_few_steps_are_enough_for_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "FINETUNE_STEPS", 1)
    options = ["--version", "2", "--seeds", "1", "--steps", "3", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["quickstart.py", *options])
    quickstart.main()
    curves = quickstart.read_log(tmp_path / "log" / "seed0" / "metrics.csv")
    assert curves["collapse/target_variance_batch"][0] == [3.0]
    assert len(curves["train/loss"][0]) == 1
    assert (tmp_path / "quickstart.png").stat().st_size > 10_000


def test_no_steps_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["quickstart.py", "--steps", "0"])
    with pytest.raises(SystemExit):
        quickstart.main()
    assert "--steps 0: both must be 1 or more" in capsys.readouterr().err
