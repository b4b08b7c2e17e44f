"""What a checkpoint names is never run, and a bad one is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import checkpoint, model

import cli
from d2v_lightning import (
    Data2Vec,
    EMATeacher,
    ImageClassifier,
    Optimization,
    load_backbone,
)
from d2v_lightning.checkpoints.atomic_io import AtomicCheckpointIO
from d2v_lightning.commands import command_line
from d2v_lightning.flavour import pl

COMMANDS = ["fit", "validate", "test", "predict"]


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def attacks(marker: Path) -> dict[str, dict[str, Any]]:
    """Checkpoints that each try to run code in another way."""
    pickled = checkpoint()
    pickled["state_dict"]["bomb"] = Bomb(marker)
    process = checkpoint()
    process["hyper_parameters"] = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(marker)]}}
    imported = checkpoint()
    imported["hyper_parameters"] = {"class_path": "evil_module.Evil", "init_args": {}}
    nested = checkpoint()
    nested["hyper_parameters"]["init_args"]["optimization"] = {"class_path": "evil_module.Evil", "init_args": {}}
    lightning = checkpoint()  # the form that LightningCLI itself merges
    lightning["hyper_parameters"] = {"_class_path": "evil_module.Evil", "_instantiator": "evil_module.build"}
    data = checkpoint()
    data["run"]["data"] = {"class_path": "evil_module.Evil", "init_args": {}}
    deep = checkpoint()
    deep["run"]["data"]["init_args"]["mean"] = [{"class_path": "evil_module.Evil"}]
    smuggled = checkpoint()
    smuggled["hyper_parameters"]["dict_kwargs"] = {"optimization": "evil_module.Evil"}
    prefixed = checkpoint()
    prefixed["hyper_parameters"]["class_path"] = "d2v_lightning.configurable.importlib.import_module"
    return {
        "pickle": pickled,
        "process": process,
        "import": imported,
        "nested": nested,
        "lightning": lightning,
        "data": data,
        "deep": deep,
        "smuggled": smuggled,
        "prefixed": prefixed,
    }


IN_THE_MODEL = ["pickle", "process", "import", "nested", "lightning", "prefixed"]


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears if anything of the attacks is run; a module that makes it is importable."""
    marker = tmp_path / "code_was_run"
    (tmp_path / "evil_module.py").write_text(
        f"open({str(marker)!r}, 'w')\nfrom pytorch_lightning import LightningModule\n"
        "class Evil(LightningModule):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return marker


def test_the_trap_works(marker: Path) -> None:
    """Lightning's own reading of such a file does run it: otherwise the tests below would show nothing."""
    path = marker.with_name("pickle.ckpt")
    torch.save(attacks(marker)["pickle"], path)
    torch.load(path, weights_only=False)
    assert marker.exists()
    marker.unlink()
    __import__("evil_module")
    assert marker.exists()


@pytest.mark.parametrize("attack", list(attacks(Path("x"))))
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_that_a_checkpoint_names_is_run_by_the_command_line(
    command: str, attack: str, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = marker.with_name("attack.ckpt")
    torch.save(attacks(marker)[attack], path)
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--ckpt_path", str(path), "--trainer.accelerator", "cpu"])
    printed = capsys.readouterr().err
    assert stopped.value.code == 1, printed
    assert printed.startswith("error: ")
    assert len(printed.splitlines()) == 1
    assert not marker.exists()


@pytest.mark.parametrize("attack", IN_THE_MODEL)
def test_nothing_is_run_by_load_from_checkpoint(attack: str, marker: Path) -> None:
    path = marker.with_name("attack.ckpt")
    torch.save(attacks(marker)[attack], path)
    with pytest.raises((ValueError, KeyError)):
        Data2Vec.load_from_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("attack", [name for name in IN_THE_MODEL if name != "pickle"])
def test_a_backbone_from_such_a_file_is_refused_as_by_the_command_line(
    attack: str, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = marker.with_name("attack.ckpt")
    torch.save(attacks(marker)[attack], path)
    with pytest.raises(SystemExit):
        cli.main(["fit", "--ckpt_path", str(path)])
    said = capsys.readouterr().err.removeprefix("error: ").strip()
    for load in (lambda: load_backbone(path), lambda: ImageClassifier(num_classes=10, checkpoint=str(path))):
        with pytest.raises(ValueError, match=r"not (a class of|.*checkpoint of) d2v_lightning|form") as error:
            load()
        assert str(error.value) == said
    assert not marker.exists()


def test_the_good_checkpoint_loads(marker: Path) -> None:
    """The attacks fail because of what they add, not because their carrier is broken."""
    path = marker.with_name("good.ckpt")
    torch.save(checkpoint(), path)
    assert isinstance(Data2Vec.load_from_checkpoint(path), Data2Vec)
    cli.main(["predict", "--ckpt_path", str(path), "--trainer.accelerator=cpu", "--trainer.limit_predict_batches=1"])
    assert marker.with_name("features.npy").exists()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "no checkpoint at"),
        ("empty", "damaged or no checkpoint: it is empty"),
        ("truncated", "damaged or no checkpoint"),
        ("text", "damaged or no checkpoint: it begins with b'no'"),
        ("foreign", "not a checkpoint of d2v_lightning"),
        ("newer", "upgrade d2v_lightning"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "predict", "warm start"])
def test_a_bad_file_is_one_line(
    command: str, kind: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{kind}.ckpt"
    content = checkpoint()
    if kind == "foreign":
        content = {"state_dict": {}, "hyper_parameters": {}}
    elif kind == "newer":
        content["d2v_lightning"]["format_version"] = 99
    if kind != "missing":
        torch.save(content, path)
    if kind in ("empty", "truncated", "text"):
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"no checkpoint"}[kind])
    if command == "warm start":
        if kind == "foreign":  # a warm start takes the files of Meta's as well
            reason = "is of another project"
        with pytest.raises((ValueError, FileNotFoundError), match=reason) as error:
            ImageClassifier(num_classes=10, checkpoint=str(path))
        printed = str(error.value)
    else:
        with pytest.raises(SystemExit) as stopped:
            cli.main([command, "--ckpt_path", str(path)])
        printed = capsys.readouterr().err
        assert stopped.value.code == 1
        assert printed.startswith("error: ")
    assert reason in printed
    assert str(path) in printed
    assert len(printed.splitlines()) == 1


def test_a_checkpoint_is_given_as_text_or_as_a_path(tmp_path: Path) -> None:
    path = tmp_path / "good.ckpt"
    torch.save(checkpoint(), path)
    whole = model()
    for given in (path, str(path)):
        warm = Data2Vec(
            whole.student,
            whole.make_targets,
            whole.loss,
            EMATeacher(),
            Optimization(),
            checkpoint=given,  # type: ignore[arg-type]
        )
        classifier = ImageClassifier(num_classes=10, checkpoint=given)  # type: ignore[arg-type]
        assert warm.config["init_args"]["checkpoint"] is None
        assert classifier.config["init_args"]["checkpoint"] is None


def test_the_command_line_writes_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "good.ckpt"
    torch.save(checkpoint(), path)
    written: list[str] = []
    original = AtomicCheckpointIO.save_checkpoint

    def note(self: AtomicCheckpointIO, content: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        written.append(Path(path).name)
        original(self, content, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", note)
    from tiny_runs import PRETRAIN, write

    config = write(tmp_path / "tiny.yaml", PRETRAIN)
    cli.main(["fit", "--config", config, "--trainer.max_steps", "1"])
    assert "last.ckpt" in written


@pytest.mark.parametrize(
    ("signalled", "code"), [(pl.utilities.exceptions.SIGTERMException, 143), (KeyboardInterrupt, 130)]
)
def test_a_signal_outside_training_does_not_pass_for_success(
    signalled: type[BaseException], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(args: object) -> None:
        raise signalled

    monkeypatch.setattr(command_line, "D2VCLI", interrupted)
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["test"])
    assert stopped.value.code == code
