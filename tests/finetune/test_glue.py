"""GLUEClassifier: parity with transformers' head, metrics against scikit-learn and SciPy, learning, frozen parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Data2VecTextConfig, Data2VecTextForSequenceClassification

from d2v_lightning import Backbone, GLUEClassifier, Optimization, TextEncoder, Transformer, load_backbone
from d2v_lightning.flavour import pl


def backbone(**transformer: Any) -> Backbone:
    torch.manual_seed(0)
    trunk = Transformer(
        16, 2, 2, norm="post", norm_eps=1e-5, final_norm=False, qkv_bias="qkv", layer_scale=None, init="normal",
        **transformer,
    )  # fmt: skip
    return Backbone(TextEncoder(16, 40, 20, mask_id=39), trunk)


def trainer(**options: Any) -> pl.Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return pl.Trainer(accelerator="cpu", **{**quiet, **options})


def rows(labels: Tensor, size: int = 8) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 38, (len(labels), 9), generator=generator)
    ids[:, 1] = 5 + (labels > 0).long() * 7  # what the label can be read off
    padding = torch.zeros(len(labels), 9, dtype=torch.bool)
    padding[::2, 6:] = True
    batch = {"inputs": ids.masked_fill(padding, 1), "padding_mask": padding, "labels": labels}
    return [{name: tensor[at : at + size] for name, tensor in batch.items()} for at in range(0, len(labels), size)]


def loader(batches: list[dict[str, Tensor]]) -> Any:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def test_the_head_is_that_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Data2VecTextConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, vocab_size=30, num_labels=3
    )
    theirs = Data2VecTextForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    theirs.save_pretrained(tmp_path)
    ours = GLUEClassifier("mnli", backbone=load_backbone(tmp_path)).eval()
    for name in ("dense", "out_proj"):
        getattr(ours, name).load_state_dict(getattr(theirs.classifier, name).state_dict())
    ids = torch.randint(3, 30, (3, 10))
    padding = torch.arange(10) >= torch.tensor([[10], [7], [3]])
    ids = ids.masked_fill(padding, 1)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=(~padding).long()).logits
        torch.testing.assert_close(ours(ids, padding), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("task", ["cola", "mrpc", "sst2"])
def test_scores_are_those_of_scikit_learn(task: Any) -> None:
    model = GLUEClassifier(task, backbone=backbone())
    labels = torch.randint(0, 2, (60,), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        model.out_proj.weight.normal_(std=3.0)
    batches = rows(labels, 7)
    run = trainer()
    values = run.validate(model, loader(batches), verbose=False)[0]
    model.eval()
    with torch.no_grad():
        guesses = torch.cat([model(b["inputs"], b["padding_mask"]).argmax(-1) for b in batches])
    expected = {
        "cola": [("matthews", matthews_corrcoef(labels, guesses))],
        "mrpc": [("accuracy", accuracy_score(labels, guesses)), ("f1", f1_score(labels, guesses))],
        "sst2": [("accuracy", accuracy_score(labels, guesses))],
    }[task]
    for name, value in expected:
        assert values[f"val/{name}"] == pytest.approx(value, abs=1e-5)
    assert values["val/accuracy"] == pytest.approx(accuracy_score(labels, guesses), abs=1e-5), (
        "1.0 keeps an epoch by it"
    )
    assert values["val/score"] == pytest.approx(sum(value for _, value in expected) / len(expected), abs=1e-5)


def test_similarities_are_scored_as_scipy_does() -> None:
    model = GLUEClassifier("stsb", backbone=backbone())
    with torch.no_grad():
        model.out_proj.weight.normal_(std=3.0)
    labels = torch.rand(30, generator=torch.Generator().manual_seed(2)) * 5
    batches = rows(labels, 7)
    values = trainer().validate(model, loader(batches), verbose=False)[0]
    model.eval()
    guesses = torch.cat([model.predict_step(b, 0)["values"] for b in batches]).detach()  # type: ignore[arg-type]
    expected = [pearsonr(guesses, labels)[0], spearmanr(guesses, labels)[0]]
    assert values["val/pearson"] == pytest.approx(expected[0], abs=1e-4)
    assert values["val/spearman"] == pytest.approx(expected[1], abs=1e-4)
    assert values["val/score"] == pytest.approx(sum(expected) / 2, abs=1e-4)


def test_matched_and_mismatched_pairs_are_scored_apart() -> None:
    model = GLUEClassifier("mnli", backbone=backbone())
    matched, mismatched = rows(torch.zeros(16, dtype=torch.long)), rows(torch.full((16,), 2))
    with torch.no_grad():
        model.out_proj.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    values = trainer().validate(model, [loader(matched), loader(mismatched)], verbose=False)
    merged = {name: value for row in values for name, value in row.items()}
    assert merged["val/accuracy"] == merged["val/score"] == 1.0
    assert merged["val/mismatched_accuracy"] == 0.0


@pytest.mark.parametrize(("task", "score"), [("sst2", 0.95), ("stsb", 0.9)])
def test_it_learns_and_comes_back(task: Any, score: float, tmp_path: Path) -> None:
    pl.seed_everything(0)
    labels = torch.randint(0, 2, (64,), generator=torch.Generator().manual_seed(1))
    batches = rows(labels if task == "sst2" else labels * 5.0)
    optimization = Optimization(lr=1e-2, betas=(0.9, 0.98), schedule="polynomial", warmup=0.1, final_lr=0.0)
    model = GLUEClassifier(task, backbone=backbone(), head_dropout=0.0, optimization=optimization)
    run = trainer(max_epochs=8)
    run.fit(model, loader(batches))
    values = run.validate(model, loader(batches), verbose=False)[0]
    assert values["val/score"] > score
    run.save_checkpoint(tmp_path / "last.ckpt")
    again = GLUEClassifier.load_from_checkpoint(tmp_path / "last.ckpt")
    batch = batches[0]
    with torch.no_grad():
        whole = model.eval()(batch["inputs"], batch["padding_mask"])
        torch.testing.assert_close(again.eval()(batch["inputs"], batch["padding_mask"]), whole)
        alone = model(batch["inputs"][:1, :6])
    torch.testing.assert_close(whole[:1], alone, atol=1e-5, rtol=1e-5)


def test_a_frozen_backbone_stays_as_it_was() -> None:
    model = GLUEClassifier(
        "sst2", backbone=backbone(dropout=0.1), freeze_backbone=True, optimization=Optimization(lr=0.1)
    )
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    trainer(max_steps=2).fit(model, loader(rows(torch.randint(0, 2, (32,)))))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.backbone.state_dict().items())
    assert not model.backbone.training


def test_what_does_not_fit_is_refused() -> None:
    for arguments, message in (
        ({}, "exactly one of"),
        ({"task": "colla", "backbone": backbone()}, "task is 'colla': choose from cola"),
        ({"task": "custom", "backbone": backbone()}, "give num_classes for 'custom'"),
        ({"task": "rte", "num_classes": 2, "backbone": backbone()}, "and only there"),
    ):
        with pytest.raises(ValueError, match=message):
            GLUEClassifier(**arguments)  # type: ignore[arg-type]
