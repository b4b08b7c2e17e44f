"""The parser of a command line: help whose options exist, a configuration that is one, and values that no run can have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from tiny_runs import PRETRAIN, fails, write

import cli

pytestmark = pytest.mark.usefixtures("in_tmp")


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help_is_short_and_its_options_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--help", "--help_all"):
        with pytest.raises(SystemExit) as stopped:
            cli.main([command, word])
        assert not stopped.value.code
    short, _, full = capsys.readouterr().out.partition("\nusage: ")
    assert len(short.splitlines()) < 25
    assert short.count(f"python cli.py {command} ") == 2
    for option in re.findall(r"--\w+(?:\.[a-z_]+)?\b", short):
        if (
            option not in ("--help_all", "--trainer", "--model", "--data", "--model_checkpoint")
            and "--data." not in option
        ):
            assert option in full or option.startswith("--model."), option


def test_print_config_is_a_configuration(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (config, str(tmp_path / "printed.yaml")):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["fit", "--config", path, "--model.optimization.lr", "0.5", "--print_config"])
        assert not stopped.value.code
        printed = capsys.readouterr().out
        (tmp_path / "printed.yaml").write_text(printed)
    settings = yaml.safe_load(printed)
    assert settings["model"]["init_args"]["optimization"]["init_args"]["lr"] == 0.5
    assert settings["seed_everything"] == 0


def test_an_argument_of_an_argument_can_be_null(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It comes to the inner parser of jsonargparse 4.53 as the text "None", which that refuses."""
    given = ["--model.optimization.layer_decay", "null", "--model.student.backbone.transformer.layer_scale", "null"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["fit", "--config", config, "--model.optimization.layer_decay", "0.5", *given, "--print_config"])
    assert not stopped.value.code
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert model["optimization"]["init_args"]["layer_decay"] is None
    trunk = model["student"]["init_args"]["backbone"]["init_args"]["transformer"]["init_args"]
    assert trunk["layer_scale"] is None


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--model.optimization.lr", "null"], 1, "error: lr is None: Optimization needs a number"),
        (["--model.optimization.lr", ".nan"], 2, "lr is nan: it must be a number"),
        (
            ["--model.optimization.betas=[.9,.nan]"],
            2,
            "error: model.optimization.betas cannot be [0.9, nan]\n  where: --",
        ),
        (
            ["--trainer.val_check_interval", "00:00:00:01", "--trainer.accelerator", "abacus"],
            1,
            "error: Trainer cannot",
        ),
        (["--model.optimization.lr", ".inf"], 1, "error: lr is inf: Optimization needs a finite number"),
        (["--model.loss", "null"], 2, "error: model.loss is empty (null)"),
        (["--config", "empty_section.yaml"], 2, "error: model_checkpoint is empty (null)"),
        (["--config", "folder.yaml"], 2, "error: cannot read folder.yaml: Is a directory: give the path of a file\n"),
        (["--data", "latin.yaml"], 2, "error: latin.yaml:1 is not UTF-8"),
        (["--trainer.accumulate_grad_batches", "0"], 2, "accumulate_grad_batches is 0: it must be more than 0"),
        (["--trainer.accelerator", "abacus"], 1, "error: Trainer cannot be made with these settings: You selected"),
        (
            ["--trainer.callbacks", "LearningRateFinder"],
            1,
            "error: LearningRateFinder sets `lr` of a module",
        ),
    ],
)
def test_values_that_no_run_can_have(
    options: list[str],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.yaml").mkdir()
    Path("latin.yaml").write_bytes("# é".encode("latin-1"))
    Path("empty_section.yaml").write_text("model_checkpoint:\n")
    printed = fails(capsys, status, "fit", "--config", write(tmp_path / "tiny.yaml", PRETRAIN), *options)
    assert said in printed
    assert len(printed.splitlines()) <= 3
