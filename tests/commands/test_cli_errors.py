"""What the command line says of a mistake: where it stands, what is wrong, and which name is nearest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import PRETRAIN, ROOT, fails, write

pytestmark = pytest.mark.usefixtures("in_tmp")


def changed(path: str, value: Any) -> dict[str, Any]:
    """PRETRAIN with one key (dotted) set, or taken out where the value is None."""
    settings: dict[str, Any] = yaml.safe_load(yaml.safe_dump(PRETRAIN))
    *parents, last = path.split(".")
    node = settings
    for parent in parents:
        node = node[parent]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return settings


MODEL = "model.init_args."


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (MODEL + "optimization.lrr", 1, ["unknown key 'lrr'", "model.optimization.lrr", "did you mean: lr\n"]),
        (MODEL + "student.backbone.transformer.depth", "two", ["transformer.depth cannot be 'two'", "a whole number"]),
        (MODEL + "teacher_scope", "backbon", ["cannot be 'backbon'", "one of", "did you mean: backbone"]),
        (MODEL + "loss", None, ["Data2Vec needs loss", "model.loss"]),
        (
            MODEL + "student.backbone.encoder",
            {"dim": 8},
            ["model.student.backbone.encoder has no class", "class_path to one of: AudioEncoder, ImageEncoder"],
        ),
        ("model.class_path", "Data2Vecc", ["unknown class 'Data2Vecc'", "did you mean: Data2Vec\n"]),
        ("data.init_args.batch_sise", 4, ["unknown key 'batch_sise'", "did you mean: batch_size"]),
        ("data.init_args.task", "pretran", ["data.task cannot be 'pretran'", "one of pretrain, classify"]),
        ("trainer.max_step", 3, ["unknown key 'max_step'", "did you mean: max_steps"]),
        (
            "trainer.callbacks",
            [{"class_path": "EarlyStoping"}],
            ["trainer.callbacks[0]", "did you mean: EarlyStopping"],
        ),
        ("trainr", {"max_steps": 3}, ["unknown key 'trainr'", "did you mean: trainer"]),
    ],
)
def test_a_typo_in_a_file_is_named_with_file_line_and_nearest_name(
    key: str, value: Any, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = changed(key, value)
    path = write(tmp_path / "bad.yaml", settings)
    printed = fails(capsys, 2, "fit", "--config", path)
    for words in expected:
        assert words in printed
    assert len(printed.splitlines()) <= 5
    if value is not None:  # the line in the file holds the last part of the key
        line = re.search(r"bad\.yaml:(\d+)", printed)
        assert line is not None
        named = key.rpartition(".")[2] if "callbacks" not in key else "EarlyStoping"
        assert named in Path(path).read_text().splitlines()[int(line[1]) - 1]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["fit", "--config", "CONFIG", "--model.optimization.lrr", "3"], ["unknown key 'lrr'", "did you mean: lr\n"]),
        (["fit", "--config", "CONFIG", "--model.optimization.lr", "high"], ["cannot be 'high'", "a number"]),
        (["fit", "--config", "CONFIG", "--trainer.max_step", "3"], ["unknown key 'max_step'", "max_steps"]),
        (
            ["fit", "--config", "CONFIG", "--seed_everything", "abc"],
            ["seed_everything cannot be 'abc'", "whole number"],
        ),
        (["fit", "--config", "CONFIG", "--seed_everything", "-1"], ["seed_everything is -1", "0 to 4294967295"]),
        (["fit", "--config", "CONFIG", "--data.rot", "x"], ["--data.rot x", "did you mean: root"]),
        (["fit", "--config", "CONFIG", "--data.batch_size"], ["--data.batch_size needs a value"]),
        (
            ["fit", "--config", "CONFIG", "--data", "ImageData"],
            ["unknown class 'ImageData'", "did you mean: ImageDataModule"],
        ),
        (["fit", "--config", "CONFIG", "--model", "torch.nn.Linear"], ["model cannot be a Linear", "Data2Vec"]),
        (
            ["fit", "--config", "CONFIG", "--model", "Pretraining"],
            ["Pretraining is only a base", " Data2Vec,", " ImageClassifier,"],
        ),
        (
            ["fit", "--config", "CONFIG", "--model.student.decoder", "d2v_lightning.Targets"],
            ["model.student.decoder cannot be a Targets", "LinearDecoder, MlpDecoder"],
        ),
        (["fit", "--model", "Data2Vec", "--data", "ImageDataModule"], ["Data2Vec needs student"]),
        (
            ["fit", "--data.root", "x", "--config", "CONFIG"],
            ["--data.root stands before --config", "would override it"],
        ),
        (["fit", "--config", "CONFIG", "stray"], ["'stray' is not an option"]),
        (["fit", "--config", "tiny.yml"], ["cannot read tiny.yml", "did you mean: tiny.yaml"]),
        (["fit"], ["no model is given", "--config FILE"]),
        (["fit", "--model", "Data2Vec"], ["no data is given"]),
        (["fti"], ["'fti' is not a command", "fit, validate, test, predict"]),
        ([], ["say first what to do"]),
        (["predict", "--config", "CONFIG", "--ckpt_path", "last"], ["predict needs a file"]),
    ],
)
def test_a_mistake_on_the_command_line_is_named(
    args: list[str], expected: list[str], config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = fails(capsys, 2, *[config if word == "CONFIG" else word for word in args])
    for words in expected:
        assert words in printed
    assert len(printed.splitlines()) <= 5


def test_yaml_that_does_not_parse_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("model:\n  class_path: Data2Vec\n bad: 1\n")
    assert "bad.yaml:3 is not valid YAML" in fails(capsys, 2, "fit", "--config", "bad.yaml")


def test_what_a_constructor_or_the_data_refuses_is_one_line(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = fails(capsys, 1, "fit", "--config", config, "--model.optimization.lr", "-1")
    assert printed == "error: lr is -1.0: it must not be negative\n"
    for key, said in (("model.student.backbone.encoder", "is 0x0: both sides must be"), ("data", "0: permitted is")):
        printed = fails(capsys, 1, "fit", "--config", config, f"--{key}.patch_size", "0")
        assert printed.startswith(f"error: patch_size {said} 1")
        assert len(printed.splitlines()) == 1
    printed = fails(capsys, 1, "fit", "--config", config, "--data.dataset", "null", "--data.root", "nowhere")
    assert printed.startswith("error: nowhere is not a folder")
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("name", ["digits", "digits_v2"])
def test_what_a_part_of_any_student_refuses_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each class that a student may be is tried: of interest is what the one that was asked for says."""
    config = str(ROOT / "configs" / "quickstart" / f"{name}.yaml")
    printed = fails(capsys, 1, "fit", "--config", config, "--model.student.backbone.encoder.patch_size", "3")
    assert printed.startswith("error: image_size 8x8 is not a whole number of patches of 3x3")
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "mask_noise_std: 0.01",
            "mask_noise_sdt: 0.01",
            ["unknown key 'mask_noise_sdt'", "did you mean: mask_noise_std"],
        ),
        ("mask_noise_std: 0.01", "mask_noise_std: abc", ["mask_noise_std cannot be 'abc'", "it must be a number"]),
        ("masking: inverse_blocks", "maskin: blocks", ["unknown key 'maskin'", "data.datamodules.image.maskin"]),
        ("{image: 1, text: 1}", "{image: 1, text: x}", ["data.turns", "{'image': 1, 'text': 'x'}"]),
    ],
)
def test_a_mistake_in_one_of_several_modalities_is_named(
    old: str, new: str, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "configs" / "pretrain" / "image_text.yaml").read_text().replace(old, new, 1)
    (tmp_path / "bad.yaml").write_text(text)
    printed = fails(capsys, 2, "fit", "--config", "bad.yaml")
    line = text[: text.index(new)].count("\n") + 1
    for words in (*expected, f"bad.yaml:{line}, "):
        assert words in printed
    assert len(printed.splitlines()) <= 4


def test_a_mistake_in_a_modality_on_the_command_line_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "configs" / "pretrain" / "image_text.yaml")
    printed = fails(capsys, 2, "fit", "--config", config, "--data.datamodules.image.rot", "x")
    assert "unknown key 'rot'" in printed
    assert "did you mean: root" in printed
