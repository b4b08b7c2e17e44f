"""A command line cut into options, and settings with the place that they came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2v_lightning.commands.settings import CommandLine, Source, did_you_mean, nearest


def test_words_become_options_whatever_way_they_are_written() -> None:
    line = CommandLine.read(["fit", "-c", "a.yaml", "--model.lr=1e-3", "--data.shift", "-1", "--print_config", "stray"])
    assert line.subcommand == "fit"
    assert line.options == [
        ("--config", "a.yaml"), ("--model.lr", "1e-3"), ("--data.shift", "-1"), ("--print_config", None), ("stray", None)
    ]  # fmt: skip
    assert CommandLine.read(["--help"]) == CommandLine(None, [("--help", None)])
    assert CommandLine.read(["fit", "--data.root", "--model.lr", "1"]).options[0] == ("--data.root", None)


def test_the_command_line_comes_before_files_and_the_last_one_counts(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.yaml").write_text(
            f"seed_everything: {seed}\nmodel: {{class_path: Of{name}}}\ndata: {{x: 1}}\n"
        )
    files = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    line = CommandLine.read(["fit", *files])
    assert line.value("seed_everything") == 2
    assert CommandLine.read(["fit", *files, "--seed_everything", "7"]).value("seed_everything") == "7"
    assert line.value("trainer") is None
    assert (line.gives("model"), line.gives("data")) == (True, False)
    assert CommandLine.read(["fit", "--data", "ImageDataModule"]).gives("data")
    assert list(line.class_paths()) == ["Ofa", "Ofb"]


def test_a_setting_knows_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("model:\n  class_path: A\n  init_args:\n    lr: 1\n")
    source = Source.file(str(path))
    assert source.place(("model", "init_args", "lr")) == f"{path}:4"
    assert source.place(("data",)) == str(path)
    option = Source.option("--model.optimization.lr", "0.001")
    assert (option.value, option.name) == ({"model": {"optimization": {"lr": 0.001}}}, "--model.optimization.lr 0.001")


@pytest.mark.parametrize(
    ("content", "problem"),
    [("- a\n", "holds no settings: it must be a YAML file"), ("a: [\n", "is not valid YAML"), (None, "cannot read")],
)
def test_a_file_that_is_none_is_a_problem_and_no_exception(content: str | None, problem: str, tmp_path: Path) -> None:
    (tmp_path / "bade.yaml").write_text("a: 1\n")
    if content is not None:
        (tmp_path / "bad.yaml").write_text(content)
    source = Source.file(str(tmp_path / "bad.yaml"))
    assert source.value == {}
    assert source.problem is not None
    assert problem in source.problem
    assert ("did you mean: " + str(tmp_path / "bade.yaml") in source.problem) == (content is None)


def test_nearly_the_same_name_is_offered_whatever_its_case() -> None:
    known = ["batch_size", "Data2Vec", "root"]
    assert nearest("batch_sise", known) == ["batch_size"]
    assert did_you_mean("data2vecc", known) == ["did you mean: Data2Vec"]
    assert did_you_mean("nothing_like_it", known) == []
