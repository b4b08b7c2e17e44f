"""Exported models of speech and text are whole for `transformers.pipeline`, which says what ours says.

Pictures are in test_image_processor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import pipeline

from d2v_lightning import GLUEClassifier, SpeechCTC
from d2v_lightning.checkpoints import stored_tokenizer
from d2v_lightning.commands.checkpoint import main
from d2v_lightning.commands.tokenizer import save_tokenizer, train_tokenizer
from datamodules import load_tokenizer
from datamodules.text.sources import FileSource
from tests.checkpoints.test_task_heads import TEXT, theirs


@pytest.mark.parametrize("name", ["Data2VecAudio", "Wav2Vec2"])
@pytest.mark.parametrize("normalize", [True, False])
def test_clips_are_transcribed_alike(name: str, normalize: bool, tmp_path: Path) -> None:
    theirs(name, tmp_path / "theirs")
    model: Any = SpeechCTC.from_pretrained(tmp_path / "theirs").eval()
    model.normalize = model.config["init_args"]["normalize"] = normalize
    sounds = [np.random.default_rng(seed).normal(0.3, 0.2, 2000).astype("float32") for seed in range(3)]
    clips = [torch.from_numpy(sound) for sound in sounds]
    if normalize:
        clips = [(clip - clip.mean()) / clip.std(correction=0) for clip in clips]
    with torch.no_grad():  # a head that tells its frames apart
        found = model.backbone.features(torch.stack(clips), layers=[-1]).layers[0].flatten(0, 1)
        model.head.weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(20 / found.std(dim=0))
        model.head.bias.copy_(-model.head.weight @ found.mean(dim=0))
        ours = [model.decode(*model(clip[None]))[0].text for clip in clips]
    assert len(set(ours)) == 3
    model.save_pretrained(tmp_path / "own")
    assert main(["export", str(tmp_path / "own"), "--out", str(tmp_path / "out")]) == 0
    transcribe = pipeline("automatic-speech-recognition", str(tmp_path / "out"), device="cpu")
    # Theirs writes two spaces where nothing but blanks lies between two separators.
    assert [" ".join(transcribe(sound)["text"].split()) for sound in sounds] == ours


def test_sentences_are_classed_alike_by_the_tokenizer_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines.txt").write_text("the cat sat on the mat\na dog ran, and the cat slept\n" * 20)
    save_tokenizer(train_tokenizer(FileSource(str(tmp_path / "lines.txt")), 300), tmp_path / "bpe")
    tokenizer = load_tokenizer(str(tmp_path / "bpe"))
    names = ["calm", "wild"]
    options = TEXT | {"vocab_size": len(tokenizer), "num_labels": 2, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    network = transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**options))
    network.save_pretrained(tmp_path / "theirs")
    model: Any = GLUEClassifier.from_pretrained(tmp_path / "theirs").eval()
    model.class_names = model.config["init_args"]["class_names"] = names
    torch.nn.init.normal_(model.out_proj.weight, std=2.0)
    model.save_pretrained(tmp_path / "untold")
    assert main(["export", str(tmp_path / "untold"), "--out", str(tmp_path / "mute")]) == 0
    assert "no tokenizer is known: --tokenizer DIR puts one beside it" in capsys.readouterr().out
    model.backbone.tokenizer = stored_tokenizer.to_dict(tokenizer)
    model.save_pretrained(tmp_path / "own")
    assert main(["export", str(tmp_path / "own"), "--out", str(tmp_path / "out")]) == 0
    assert "no tokenizer" not in capsys.readouterr().out
    classify = pipeline("text-classification", str(tmp_path / "out"), device="cpu", top_k=2)
    for line in ("the dog sat", "a cat, and a cat"):
        ids = torch.tensor([tokenizer(line)["input_ids"]])
        ours = model(ids).softmax(dim=-1)[0]
        found = {one["label"]: one["score"] for one in classify(line)[0]}
        assert [found[name] for name in names] == pytest.approx(ours.tolist(), abs=1e-5)
