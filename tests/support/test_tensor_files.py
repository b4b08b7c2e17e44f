"""A damaged file of `torch.save` is never used, by whatever door it comes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import cli
from d2v_lightning import Data2Vec, ImageClassifier, load_backbone
from d2v_lightning.checkpoints.atomic_io import AtomicCheckpointIO
from d2v_lightning.support import tensor_files
from d2v_lightning.support.errors import UserError
from d2v_lightning.support.tensor_files import read_tensors


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after two steps."""
    path = tmp_path_factory.mktemp("run") / "whole.ckpt"
    trainer = tiny.trainer([], 2, path.parent)
    trainer.fit(tiny.tiny_model(), tiny.loader())
    trainer.save_checkpoint(path)
    return path


def of_part(part: str, content: dict[str, Any]) -> bytes:
    """Bytes of a checkpoint that only `part` has."""
    found = {
        "weights": lambda: content["state_dict"]["student.mask_token"].numpy().tobytes(),
        "optimiser": lambda: content["optimizer_states"][0]["state"][0]["exp_avg"].numpy().tobytes(),
        "loops": lambda: b"_batches_that_stepped",
    }[part]()
    return bytes(found)


def flipped(raw: bytes, part: str, content: dict[str, Any]) -> bytes:
    place = raw.index(of_part(part, content)) + (len("_batches_that_stepped") + 3 if part == "loops" else 2)
    return raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]


def damaged(whole: Path, tmp_path: Path, how: str) -> Path:
    raw, content = whole.read_bytes(), torch.load(whole, weights_only=True)
    half = len(raw) // 2
    if how == "zeroed":
        place = raw.index(of_part("weights", content))
        new = raw[: place - 100] + bytes(512) + raw[place + 412 :]
    else:
        new = raw[:half] + bytes(len(raw) - half) if how == "cut" else flipped(raw, how, content)
    assert len(new) == len(raw)
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(new)
    return path


HARMS = ["weights", "optimiser", "loops", "zeroed", "cut"]


@pytest.mark.parametrize("how", HARMS)
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_no_command_uses_a_damaged_checkpoint(
    command: str, how: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = damaged(whole, tmp_path, how)
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--ckpt_path", str(path), "--trainer.default_root_dir", str(tmp_path / "run")])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {path} is damaged or no checkpoint: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", ["weights", "loops"])
@pytest.mark.parametrize("plugins", [[], [AtomicCheckpointIO()]], ids=["Lightning's reader", "ours"])
def test_no_trainer_uses_a_damaged_checkpoint(how: str, plugins: list[Any], whole: Path, tmp_path: Path) -> None:
    path = damaged(whole, tmp_path, how)
    with pytest.raises(
        UserError, match=r"damaged.ckpt is damaged or no checkpoint: its entry .* not as it was written"
    ):
        tiny.trainer([], 3, tmp_path, plugins=plugins).fit(tiny.tiny_model(), tiny.loader(), ckpt_path=path)


DOORS: dict[str, Callable[[Path], object]] = {
    "load_from_checkpoint": Data2Vec.load_from_checkpoint,
    "from_pretrained": Data2Vec.from_pretrained,
    "load_backbone": load_backbone,
    "fine-tuning": lambda path: ImageClassifier(num_classes=2, checkpoint=str(path)),
}


@pytest.mark.parametrize("door", DOORS)
def test_no_door_of_python_opens_a_damaged_checkpoint(door: str, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not as it was written"):
        DOORS[door](damaged(whole, tmp_path, "weights"))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.complex64])
def test_no_door_takes_other_numbers_than_real_ones(door: str, kind: torch.dtype, whole: Path, tmp_path: Path) -> None:
    content = torch.load(whole, weights_only=True)
    content["state_dict"]["student.backbone.encoder.patch_embed.weight"] = content["state_dict"][
        "student.backbone.encoder.patch_embed.weight"
    ].to(kind)
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match=rf"odd.ckpt: .*patch_embed.weight holds {kind}"):
        DOORS[door](tmp_path / "odd.ckpt")


def test_a_process_compares_a_file_once(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = tensor_files.zipfile.ZipFile.testzip

    def note(self: Any) -> str | None:
        read.append(self.filename)
        return original(self)

    monkeypatch.setattr(tensor_files.zipfile.ZipFile, "testzip", note)
    tensor_files._damage.cache_clear()
    read_tensors(whole, map_location="meta")
    load_backbone(whole)
    tiny.trainer([], 3, whole.parent).fit(tiny.tiny_model(), tiny.loader(), ckpt_path=whole)
    assert read == [str(whole)]
    whole.touch()  # written anew, so looked at anew
    load_backbone(whole)
    assert len(read) == 2
