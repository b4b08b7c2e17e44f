"""Compiled runs: how many graphs texts of different lengths make, and what is said when the compiler gives up."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
import yaml
from tiny import trainer
from torch.utils.data import DataLoader

from d2v_lightning import Backbone, GLUEClassifier, TextEncoder, Transformer
from d2v_lightning.configurable import build
from d2v_lightning.flavour import pl
from d2v_lightning.method.positions import hidden_positions
from d2v_lightning.nn.encoders.audio import feature_lengths
from d2v_lightning.recipes import overridden, recipe_path
from tests.test_recipes import made_small

CONVS = [[8, 10, 5], [8, 8, 8], [8, 8, 8]]  # of `made_small`


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is compiled, by a backend that only counts."""
    found: list[Any] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> object:
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=count))
    return found


class Counts(pl.Callback):
    """Graphs that there are after each batch."""

    def __init__(self, graphs: list[Any]) -> None:
        self.graphs = graphs
        self.values: list[int] = []

    def on_train_batch_end(self, *args: Any, **options: Any) -> None:
        self.values.append(len(self.graphs))


def fit(module: Any, batches: list[Any], *callbacks: pl.Callback) -> list[str]:
    """What is said about the compiler in a run over these batches."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer([*callbacks], len(batches)).fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return [str(warning.message) for warning in caught if "torch.compile" in str(warning.message)]


def text_batch(length: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, 1, length, generator=generator) < 0.4
    inputs = torch.randint(3, 40, (3, length), generator=generator)
    return {"inputs": inputs, "mask": mask, "hidden": hidden_positions(mask)}


def audio_batch(samples: int) -> dict[str, Any]:
    mask = torch.arange(feature_lengths(samples, CONVS)) % 2 == torch.zeros(2, 1, 1)
    return {"inputs": torch.randn(2, samples), "mask": mask, "hidden": hidden_positions(mask)}


def pretraining(name: str) -> Any:
    """A pre-training of one block, to be compiled."""
    tree = made_small(yaml.safe_load(recipe_path(name).read_text())["model"])
    module = build(
        overridden(tree, {"student.backbone.transformer.depth": 1, "targets.average_top_k_layers": 1, "compile": True})
    )
    return module


def finetuning() -> Any:
    trunk = Transformer(16, 1, 2, norm="post", final_norm=False, qkv_bias="qkv", layer_scale=None, init="normal")
    return GLUEClassifier("cola", backbone=Backbone(TextEncoder(16, 40, 20, mask_id=39), trunk), compile=True)


def test_texts_of_different_lengths_make_few_graphs(graphs: list[Any]) -> None:
    batches, counts = [text_batch(max(20, 16 + seed), seed) for seed in range(10)], Counts(graphs)
    assert len({len(batch["hidden"]) for batch in batches[:5]}) > 3
    assert fit(pretraining("text_base"), batches, counts) == []
    assert counts.values[4] == 1, "one length, as many hidden tokens as happen to be"
    assert counts.values[-1] == 2, "one more for all lengths"


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_it_is_said_once_when_the_compiler_gives_up(graphs: list[Any], task: str) -> None:
    if task == "pretrain":
        module, batches = pretraining("audio_base"), [audio_batch(size) for size in (6400, 9600, 12800)]
    else:
        sizes, labels = (2, 3, 4), torch.tensor([0, 1, 1, 0])
        module = finetuning()
        batches = [{"inputs": torch.randint(3, 38, (size, 9)), "labels": labels[:size]} for size in sizes]
    with torch._dynamo.config.patch(recompile_limit=1):
        lines = fit(module, batches)
    assert len(lines) == 1
    assert lines[0].startswith("torch.compile has given up at step 2: ")
    assert "raise torch._dynamo.config.recompile_limit" in lines[0]
    assert "\n" not in lines[0]
    assert len(graphs) == 1
