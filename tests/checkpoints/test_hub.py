"""Names on the model hub: read from its cache as it lies on disk, and written to by `--push`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from golden_case import GoldenCase
from safetensors.torch import load_file

from d2v_lightning import load_backbone
from d2v_lightning.commands.checkpoint import main

NAME, COMMIT = "somebody/data2vec-audio-tiny", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the hub's cache keeps the files of NAME; nothing is there yet, and there is no network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = cache / f"models--{NAME.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return folder / "snapshots" / COMMIT


@pytest.mark.parametrize("older", [False, True], ids=["safetensors", "pytorch_model.bin"])
def test_a_name_is_what_its_cached_files_are(older: bool, snapshot: Path, tmp_path: Path) -> None:
    path = GoldenCase("audio_unpadded").write_official_file(tmp_path)
    assert main(["export", str(path), "--out", str(snapshot), "--part", "teacher"]) == 0
    if older:
        torch.save(load_file(snapshot / "model.safetensors"), snapshot / "pytorch_model.bin")
        (snapshot / "model.safetensors").unlink()
    fetched, direct = load_backbone(NAME), load_backbone(path, "teacher")
    assert fetched.licence == "mit"
    for name, tensor in direct.state_dict().items():
        assert torch.equal(fetched.state_dict()[name], tensor), name


def test_a_name_that_is_nowhere_is_one_line(snapshot: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="nothing at somebody/else, and the model hub gives no such thing"
    ) as error:
        load_backbone("somebody/else")
    assert "\n" not in str(error.value)


def test_push_uploads_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []

    class Recorder:
        def create_repo(self, name: str, exist_ok: bool) -> None:
            done.append((name, exist_ok))

        def upload_folder(self, repo_id: str, folder_path: str) -> None:
            done.append((repo_id, sorted(file.name for file in Path(folder_path).iterdir())))

    monkeypatch.setattr(huggingface_hub, "HfApi", Recorder)
    path, out = GoldenCase("text_padded").write_official_file(tmp_path), tmp_path / "out"
    assert main(["export", str(path), "--out", str(out), "--push", NAME]) == 0
    assert done == [(NAME, True), (NAME, ["README.md", "config.json", "model.safetensors"])]
    assert main(["export", str(path), "--onnx", str(tmp_path / "x.onnx"), "--push", NAME]) == 2
    assert len(done) == 2
