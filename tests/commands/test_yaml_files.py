"""Settings in YAML: each way in which a file can be wrong is one line, and none of them runs anything or never ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_runs import PRETRAIN, fails, write

import cli
from d2v_lightning.commands.yaml_files import parsed, read_yaml
from d2v_lightning.support.errors import UsageError

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("model: 1\n# café\n".encode("latin-1"), "x.yaml:2 is not UTF-8 (byte 0xe9): save it as UTF-8"),
        ("model: 1\n".encode("utf-16"), "x.yaml is UTF-16, as PowerShell's > writes: save it as UTF-8"),
        (b"model: 1\nx: \x00\n", "x.yaml:2 holds the control character 0x00: take it out"),
        (b"model: 1\nx: &x\n  - *x\n", "x.yaml:2 holds itself, by an anchor and its alias: write it out"),
        (BOMB.encode(), "makes more than 100,000 values with its aliases: write it out"),
        (b"data: 1\nmodel: 1\ndata: 2\n", "x.yaml:3 says 'data' again, after line 1: keep one of them"),
        (b"model:\n\tx: 1\n", "x.yaml:2 is not valid YAML: found character '\\t'"),
        (b"x: !!python/object/apply:os.system ['exit 1']\n", "x.yaml:1 is not valid YAML: could not determine"),
        (b"x: 2020-13-45\n", "x.yaml is not valid YAML: month must be in 1..12"),
        (b"x: " + 100 * b"[" + 100 * b"]", "x.yaml:1 is nested too deeply"),
        (b"x: " + 3000 * b"[" + 3000 * b"]", "x.yaml is nested too deeply"),
        (b"x: 1\n---\nx: 2\n", "x.yaml:2 is not valid YAML"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_yaml(str(path))
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_good_file_is_read_with_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfbase: &b {lr: 1.0}\nmodel:\n  <<: *b\n  parts: [5, *b]\n")
    found = read_yaml(str(path))
    assert found.value == {"base": {"lr": 1.0}, "model": {"lr": 1.0, "parts": [5, {"lr": 1.0}]}}
    assert found.lines["model", "parts", 0] == 4


def test_an_option_is_a_value_or_text() -> None:
    assert parsed("[1, 2]") == [1, 2]
    assert parsed("{") == "{"
    assert parsed("!!python/name:os.system") == "!!python/name:os.system"
    with pytest.raises(UsageError, match="values with its aliases"):
        parsed("{" + BOMB.replace("\n", ", ") + "}")


def test_a_metric_that_nobody_logs_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    stopping = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/lost"}}
    settings = {**PRETRAIN, "trainer": {**PRETRAIN["trainer"], "max_epochs": 1, "limit_train_batches": 1}}
    settings["trainer"]["callbacks"] = [stopping]
    printed = fails(capsys, 1, "fit", "--config", write(tmp_path / "tiny.yaml", settings))
    assert printed.startswith("error: Early stopping conditioned on metric `val/lost` which is not available")
    assert len(printed.splitlines()) == 1


def test_barebones_runs_without_our_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {**PRETRAIN, "trainer": {"accelerator": "cpu", "max_steps": 1, "barebones": True}}
    cli.main(["fit", "--config", write(tmp_path / "tiny.yaml", settings)])
    assert sorted(os.listdir("runs/tiny")) == ["config.yaml"]
