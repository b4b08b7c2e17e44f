"""A user's own subclass of a module: it is saved and loads again, and nothing that a file names is imported for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_image_model

from d2v_lightning import Data2Vec, EMATeacher
from d2v_lightning.flavour import pl
from d2v_lightning.support.errors import UserError


class Mine(Data2Vec):
    """Own arguments beside the inherited ones."""

    def __init__(self, colour: str = "red", **inherited: Any) -> None:
        super().__init__(**inherited)
        self.colour = colour


def parts() -> dict[str, Any]:
    """Arguments of a tiny `Data2Vec`."""
    model = tiny_image_model()
    return {
        "student": model.student,
        "targets": model.make_targets,
        "loss": model.loss,
        "ema_teacher": EMATeacher(),
        "optimization": model.optimization,
    }


def save(model: pl.LightningModule, path: Path) -> dict[str, Any]:
    content: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(content)
    torch.save(content, path)
    return content


def test_a_subclass_loads_its_own_file(tmp_path: Path) -> None:
    model = Mine("blue", **parts())
    save(model, tmp_path / "mine.ckpt")
    loaded = Mine.load_from_checkpoint(tmp_path / "mine.ckpt")
    assert type(loaded) is Mine
    assert loaded.colour == "blue"
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_the_file_of_a_script_loads_where_the_script_is_imported(tmp_path: Path) -> None:
    content = save(Mine(**parts()), tmp_path / "mine.ckpt")
    content["hyper_parameters"]["class_path"] = "__main__.Mine"
    torch.save(content, tmp_path / "mine.ckpt")
    assert type(Mine.load_from_checkpoint(tmp_path / "mine.ckpt")) is Mine


@pytest.mark.parametrize("class_path", ["elsewhere.Mine", "test_subclass.Other", "Mine", ".Mine"])
def test_another_class_is_refused_and_nothing_imported(
    class_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    content = save(Mine(**parts()), tmp_path / "mine.ckpt")
    content["hyper_parameters"]["class_path"] = class_path
    torch.save(content, tmp_path / "mine.ckpt")
    for cls in (Mine, Data2Vec):
        with pytest.raises(ValueError, match="not a class of d2v_lightning"):
            cls.load_from_checkpoint(tmp_path / "mine.ckpt")
    assert not (tmp_path / "run").exists()


def test_foreign_arguments_of_a_subclass_are_refused(tmp_path: Path) -> None:
    content = save(Mine(**parts()), tmp_path / "mine.ckpt")
    content["hyper_parameters"]["init_args"]["loss"] = {
        "class_path": "subprocess.Popen",
        "init_args": {"args": ["true"]},
    }
    torch.save(content, tmp_path / "mine.ckpt")
    with pytest.raises(ValueError, match=r"'subprocess\.Popen' is not a class of d2v_lightning"):
        Mine.load_from_checkpoint(tmp_path / "mine.ckpt")


def test_arguments_without_a_name_are_refused_before_they_are_lost() -> None:
    class Positional(Data2Vec):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)

    with pytest.raises(UserError, match=r"Positional takes \*arguments: give its arguments by name"):
        Positional(*parts().values())
