"""Tuning of the language model's weights: it finds what makes fewer errors, and the command line takes what it writes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from torch import Tensor

import cli
from d2v_lightning import AudioEncoder, Backbone, BeamSearch, SpeechCTC, Transformer
from d2v_lightning.commands import tune_decoding
from d2v_lightning.commands.tune_decoding import LM_WEIGHTS, WORD_SCORES, tune
from d2v_lightning.flavour import pl

pytest.importorskip("flashlight")

VOCABULARY = ["<blank>", "|", "A", "B", "C", "T"]
ARPA = """\\data\\
ngram 1=5
ngram 2=1

\\1-grams:
-1.0\t<unk>\t0
-99\t<s>\t0
-1.0\t</s>\t0
-0.5\tCAT\t0
-2.0\tCAB\t0

\\2-grams:
-0.5\t<s> CAT

\\end\\
"""


@pytest.fixture
def arpa(tmp_path: Path) -> str:
    (tmp_path / "lm.arpa").write_text(ARPA)
    return str(tmp_path / "lm.arpa")


def heard(words: str, doubt: float) -> Tensor:
    """Log probabilities of a sentence, where every T sounds a little more like a B."""
    rows = []
    for letter in words.replace(" ", "|"):
        row = torch.full((len(VOCABULARY),), 0.001)
        row[VOCABULARY.index(letter)] = 0.99
        if letter == "T":
            row[VOCABULARY.index("T")], row[VOCABULARY.index("B")] = 0.5 - doubt, 0.5 + doubt
        rows += [row, torch.eye(len(VOCABULARY))[0].clamp_min(0.001)]
    return (torch.stack(rows) / torch.stack(rows).sum(dim=1, keepdim=True)).log()


@pytest.mark.parametrize("jobs", [1, 2])
def test_it_finds_weights_that_make_no_errors(arpa: str, jobs: int) -> None:
    transcripts = ["CAT CAB", "CAB CAT CAT", "CAT"]
    log_probs = [heard(text, doubt=0.2) for text in transcripts]
    decoder = BeamSearch(lm=arpa, beam=50, lm_weight=0.0)
    trials = tune(decoder, log_probs, transcripts, VOCABULARY, trials=12, seed=3, jobs=jobs)
    assert len(trials) == 12
    assert trials[0].wer == 0.0
    assert next(trial.wer for trial in trials if trial[1:] == (0.0, 0.0)) == pytest.approx(4 / 6), "without the LM"
    assert [trial.wer for trial in trials] == sorted(trial.wer for trial in trials)
    for trial in trials:
        assert LM_WEIGHTS[0] <= trial.lm_weight <= LM_WEIGHTS[1]
        assert WORD_SCORES[0] <= trial.word_score <= WORD_SCORES[1]
    assert trials == tune(decoder, log_probs, transcripts, VOCABULARY, trials=12, seed=3)
    assert trials != tune(decoder, log_probs, transcripts, VOCABULARY, trials=12, seed=4)


def test_refusals(arpa: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="trials is 0"):
        tune(BeamSearch(lm=arpa), [heard("CAT", 0.0)], ["CAT"], VOCABULARY, trials=0)
    with pytest.raises(ValueError, match="no clips"):
        tune(BeamSearch(lm=arpa), [], [], VOCABULARY)
    with pytest.raises(SystemExit):
        tune_decoding.main(["none.ckpt", "--lm", arpa])
    assert capsys.readouterr().err == "error: no checkpoint at none.ckpt: give the path of a file that exists\n"
    for output, message in (
        (arpa, "exists: choose another file"),
        ("no/such/x.yaml", "no folder no/such for --output"),
    ):
        with pytest.raises(SystemExit):
            tune_decoding.main(["none.ckpt", "--lm", arpa, "--output", output])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tune_decoding.main(["none.ckpt", "--lm", arpa, "--root", "x"])
    assert "unknown: --root x. Settings of the data are given as --data.KEY VALUE" in capsys.readouterr().err


def test_from_a_checkpoint_to_transcripts_with_the_tuned_decoder(arpa: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = AudioEncoder(
        32, [(8, 10, 5), (8, 8, 8), (8, 8, 8)], position_depth=1, position_width=6, position_groups=4
    )
    model = SpeechCTC(Backbone(encoder, Transformer(32, 1, 2, norm="post", layer_scale=None)), vocabulary=VOCABULARY)
    run = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "tuned.ckpt")
    folder = tmp_path / "data" / "dev" / "1" / "2"
    folder.mkdir(parents=True)
    texts = {"1-2-0": "CAT", "1-2-1": "CAB CAT"}
    for number, name in enumerate(texts):
        times = np.arange(16000 + 4000 * number) / 16000
        soundfile.write(folder / f"{name}.wav", 0.1 * np.sin(2500 * times * times), 16000)
    (folder / "1-2.trans.txt").write_text("".join(f"{name} {text}\n" for name, text in texts.items()))
    data = ["--data.root", str(tmp_path / "data"), "--data.val_split", "dev", "--data.num_workers", "0"]
    output = tmp_path / "decoder.yaml"
    arguments = ["--lm", arpa, "--beam", "20", "--trials", "4", "--jobs", "1", "--output", str(output)]
    arguments += ["--log_add", "false", "--whole_clips"]
    tune_decoding.main([str(tmp_path / "tuned.ckpt"), *arguments, *data])
    written = yaml.safe_load(output.read_text())["model"]["init_args"]["decoder"]["init_args"]
    assert (written["lm"], written["beam"]) == (arpa, 20)
    assert (written["log_add"], written["max_seconds"]) == (False, None)
    cli.main(
        ["predict", "--config", str(output), "--ckpt_path", str(tmp_path / "tuned.ckpt"), "--trainer.accelerator", "cpu",
         "--data", "datamodules.SpeechDataModule", "--data.root", str(tmp_path / "data"), "--data.num_workers", "0",
         "--predictions.output", str(tmp_path / "said.jsonl")]
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["1-2-0.wav", "1-2-1.wav"]
    words = [word for line in lines for word in line["words"]]
    assert {word["word"] for word in words} <= {"CAT", "CAB"}
    assert all(0 <= word["start"] < word["end"] <= 1.25 for word in words)
    assert all(math.isfinite(line["confidence"]) for line in lines)
