"""The GLUE command: each run counts with its best epoch, it goes on where it was stopped, and refuses before it trains."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import model

from d2v_lightning import Backbone, GLUEClassifier, TextEncoder, Transformer
from d2v_lightning.checkpoints import stored_tokenizer
from d2v_lightning.commands import glue
from d2v_lightning.commands.tokenizer import save_tokenizer, train_tokenizer
from d2v_lightning.flavour import pl
from datamodules.text.sources import FileSource
from datamodules.text.vocabulary import load_tokenizer

pytestmark = pytest.mark.usefixtures("in_tmp")
WORDS = ("good", "bad")
QUIET = ["--trainer.accelerator", "cpu", "--trainer.precision", "32", "--trainer.enable_progress_bar", "false"]
QUIET += ["--trainer.logger", "false", "--trainer.num_sanity_val_steps", "0"]
SHORT = ["--model.optimization.warmup", "0.1", "--model.optimization.schedule_steps", "12"]
FEW = ["--data.batch_size", "8", "--data.effective_batch", "8", "--trainer.max_epochs", "3"]


def rows(count: int, says: tuple[int, int]) -> list[tuple[str, int]]:
    """Texts and labels: a text with the first word has the first label."""
    return [(f"a {WORDS[n % 2]} film {'and ' * (n % 3)}", says[n % 2]) for n in range(count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2 and RTE whose development set says the same of both words: what the training set teaches makes it worse."""
    root = tmp_path_factory.mktemp("glue")
    for folder in ("SST-2", "RTE"):
        (root / folder).mkdir()
    for split, found in (("train", rows(32, (0, 1))), ("dev", rows(8, (1, 0))), ("test", rows(5, (0, 0)))):
        hidden = split == "test"
        lines = [text if hidden else f"{text}\t{label}" for text, label in found]
        (root / "SST-2" / f"{split}.tsv").write_text(
            "\n".join(["sentence\tlabel"[: 8 if hidden else None], *lines]) + "\n"
        )
        names = ("entailment", "not_entailment")
        lines = [f"{n}\t{text}\tso" + f"\t{names[label]}" * (not hidden) for n, (text, label) in enumerate(found)]
        header = "index\tsentence1\tsentence2" + "\tlabel" * (not hidden)
        (root / "RTE" / f"{split}.tsv").write_text("\n".join([header, *lines]) + "\n")
    return root


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text model with its tokenizer."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("a good film and\na bad film so\n" * 20)
    save_tokenizer(train_tokenizer(FileSource(str(folder / "text.txt")), 280), folder / "bpe")
    tokenizer = load_tokenizer(str(folder / "bpe"))
    torch.manual_seed(0)
    trunk = Transformer(
        16, 2, 2, norm="post", norm_eps=1e-5, final_norm=False, qkv_bias="qkv", layer_scale=None, init="normal"
    )
    encoder = TextEncoder(16, len(tokenizer), 40, pad_id=tokenizer.pad_token_id, mask_id=tokenizer.mask_token_id)
    backbone = Backbone(encoder, trunk)
    backbone.tokenizer = stored_tokenizer.to_dict(tokenizer)
    GLUEClassifier("sst2", backbone=backbone).save_pretrained(folder / "pretrained")
    return folder / "pretrained"


def command(pretrained: Path, data: Path, *more: str, protocol: str = "2.0") -> list[str]:
    return [
        str(pretrained),
        "--protocol",
        protocol,
        "--data.root",
        str(data),
        "--output",
        "out",
        *QUIET,
        *SHORT,
        *FEW,
        *more,
    ]


def results() -> Any:
    return json.loads(Path("out/results.json").read_text())


def test_every_run_counts_with_its_best_epoch(pretrained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    epochs: dict[str, list[float]] = {}

    class Watch(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.state.fn == "fit":
                score = float(trainer.callback_metrics["val/score"])
                epochs.setdefault(str(trainer.default_root_dir), []).append(score)

    watch, made = Watch(), glue.D2VCLI._own_callbacks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glue.D2VCLI, "_own_callbacks", lambda *args: [*made(*args), watch])
        asked = command(pretrained, data, "--tasks", "sst2", "rte", "--rates", "1e-6", "3e-2", "--seeds", "0")
        glue.main(asked)
    found = results()
    assert len(found["runs"]) == len(epochs) == 4
    for run in found["runs"]:
        scores = epochs[str(Path("out", run["task"], f"{run['rate']:g}", str(run["seed"])))]
        assert len(scores) == 3
        assert run["score"] == run["figures"]["accuracy"] == pytest.approx(max(scores))
    falls = [scores for scores in epochs.values() if scores[-1] < max(scores)]
    assert falls, "what is learnt makes the development set worse, so that the last epoch is not the best"
    printed = capsys.readouterr().out
    assert "average of 2 task(s), not the published eight" in printed
    assert found["table"]["average"] == pytest.approx(sum(row["score"] for row in found["table"]["rows"]) / 2)
    assert (found["checkpoint"], found["protocol"], found["rate_is_best_of"]) == (str(pretrained), "2.0", "task")
    assert not list(Path("out").rglob("*.ckpt")), "a finished run keeps none"


def test_it_answers_the_test_set_as_the_server_takes_it(pretrained: Path, data: Path) -> None:
    asked = command(pretrained, data, "--tasks", "rte", "--rates", "1e-3", "--seeds", "0")
    glue.main(asked)
    before = results()["runs"]
    glue.main([*asked, "--submission"])
    assert results()["runs"] == before, "without its answers a run is made again"
    with open("out/submission/RTE.tsv", newline="") as file:
        answers = list(csv.reader(file, delimiter="\t"))
    assert answers[0] == ["index", "prediction"]
    assert [row[0] for row in answers[1:]] == list("01234")
    assert {row[1] for row in answers[1:]} <= {"entailment", "not_entailment"}
    Path("numbers.csv").write_text("index,path,value\n0,a,-0.2\n1,b,5.1\n2,c,2.25\n")
    assert glue._predictions(Path("numbers.csv")) == ["0.000", "5.000", "2.250"]


def test_it_goes_on_where_it_was_stopped(
    pretrained: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = command(
        pretrained, data, "--keep_checkpoints", "--tasks", "sst2", "--rates", "1e-3", "--seeds", "0", protocol="1.0"
    )
    asked = [*first, "1"]
    glue.main([*first[:-1], "1", "--output", "whole"])
    (expected,) = json.loads(Path("whole/results.json").read_text())["runs"]
    began, step = [], GLUEClassifier.training_step

    def interrupted(self: GLUEClassifier, batch: Any, batch_idx: int) -> Any:
        began.append(self.trainer.global_step)
        if len(began) == 12 + 6:  # in the second run's second epoch of four steps
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(GLUEClassifier, "training_step", interrupted)
    with pytest.raises(SystemExit) as stopped:
        glue.main(asked)
    assert stopped.value.code == 128 + signal.SIGINT
    assert "Traceback" not in capsys.readouterr().err
    assert [run["seed"] for run in results()["runs"]] == [0]
    assert results()["table"] is None
    glue.main(asked)
    assert began == [*range(12), *range(6), *range(6, 12)], "nothing is trained twice"
    runs = results()["runs"]
    assert runs[1] == expected
    began.clear()
    glue.main(asked)
    Path("out/results.json").unlink()  # killed between the last step and the result
    glue.main(first)
    assert not began
    assert results()["runs"] == runs[:1]
    module = GLUEClassifier.from_pretrained(pretrained)
    torch.nn.init.zeros_(module.dense.weight)
    module.save_pretrained(Path("changed"))
    fails(capsys, 2, "changed", *asked[1:], says="out/results.json is of another checkpoint (")
    fails(
        capsys,
        2,
        *asked,
        "--model.head_dropout",
        "0.2",
        says="out/results.json is of another --model.head_dropout (None, now 0.2)",
    )


def fails(capsys: pytest.CaptureFixture[str], status: int, *args: str, says: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        glue.main(list(args))
    printed = capsys.readouterr().err
    assert stopped.value.code == status, printed
    assert "Traceback" not in printed
    assert says in printed.splitlines()[-1]


def test_what_cannot_work_is_refused_before_anything_is_trained(
    pretrained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = command(pretrained, data)
    for more, says in (
        (["--tasks", "sst2", "sst3"], "error: --tasks sst3: choose from cola, sst2"),
        (["--tasks", "sst2", "cola"], "CoLA has no train as .tsv or .jsonl (no such folder)"),
        (["--tasks", "sst2", "--rates", "0"], "--rates 0: a learning rate must be a number above 0"),
        (["--tasks", "sst2", "--rates", "1e-5", "nan"], "--rates nan: a learning rate must be a number above 0"),
        (["--tasks", "sst2", "--seeds", "0", "-1"], "--seeds -1: a seed must be a whole number from 0 to 4294967295"),
        (["--tasks", "sst2", "--data.seed", "1"], "--data.seed: the command sets it for each run"),
        (["--tasks", "sst2", "--model.optimization.lr=1"], "--model.optimization.lr: give --rates"),
        (["--tasks", "sst2", "--data.text_columns", "[a"], "--data.text_columns [a: the value is not valid YAML"),
        (["--tasks", "sst2", "--data.sede", "1"], "takes no argument named sede"),
        (["--fast"], "unknown: --fast"),
    ):
        status = 1 if "CoLA" in says or "sede" in says else 2
        arguments = asked if more != ["--fast"] else asked[:5]
        fails(capsys, status, *arguments, *more, says=says)
    without_data = [asked[0], "--protocol", "2.0", "--tasks", "sst2"]
    fails(capsys, 2, *without_data, says="no data: give --data.root FOLDER")
    fails(capsys, 2, asked[0], *asked[3:], says="the following arguments are required: --protocol")
    text = [*asked[1:], "--tasks", "sst2"]
    fails(capsys, 1, "nowhere.ckpt", *text, says="nowhere.ckpt")
    model().save_pretrained(tmp_path / "pictures")
    fails(capsys, 1, "pictures", *text, says="GLUEClassifier needs a text backbone, this one has a ImageEncoder")
    module = GLUEClassifier.from_pretrained(pretrained)
    module.backbone.tokenizer = None
    module.save_pretrained(tmp_path / "untold")
    fails(capsys, 1, "untold", *text, says="no tokenizer is given, and none is stored with the model")
    assert not list(Path("out").glob("*/")), "not even begun"
