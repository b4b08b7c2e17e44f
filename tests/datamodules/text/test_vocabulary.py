"""Tokenizers are loaded without running what comes with them, and a broken one is refused in one line."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from d2v_lightning.support.errors import UserError
from datamodules.text.vocabulary import load_tokenizer


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", {"model": {"type": "Nothing"}}),
        ("tokenizer.json", {"version": None}),
        ("tokenizer_config.json", {"model_max_length": [1]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": None}}),
        ("tokenizer_config.json", []),
    ],
)
def test_a_broken_tokenizer_is_refused_in_one_line(tmp_path: Path, bpe: str, name: str, change: Any) -> None:
    folder = shutil.copytree(bpe, tmp_path / "broken")
    content = {**json.loads((folder / name).read_text()), **change} if change else change
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tokenizer '.*/broken' cannot be loaded \(.+\): give a name") as error:
        load_tokenizer(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["Unheard", "PreTrainedTokenizerFast"])
def test_code_that_comes_with_a_tokenizer_is_neither_run_nor_asked_about(
    tmp_path: Path, bpe: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, done = shutil.copytree(bpe, tmp_path / "foreign"), tmp_path / "done"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    foreign = {"auto_map": {"AutoTokenizer": [None, "code.Foreign"]}, "tokenizer_class": kind}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **foreign}))
    (folder / "code.py").write_text(f"open({str(done)!r}, 'w')\nclass Foreign: pass\n")
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    with suppress(UserError):
        load_tokenizer(str(folder))
    assert not done.exists()
