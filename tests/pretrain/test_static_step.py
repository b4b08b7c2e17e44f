"""With masks of our collators nothing in a step depends on the data: one graph, no breaks, whatever the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from d2v_lightning.configurable import build
from d2v_lightning.method.positions import hidden_positions, visible_positions
from tests.test_recipes import CONFIGS, batch_for, made_small

RECIPES = sorted((CONFIGS / "pretrain").glob("*_base.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_step_is_one_graph_and_gives_the_same_loss(path: Path) -> None:
    torch._dynamo.reset()
    sections = yaml.safe_load(path.read_text())
    model = build(made_small(sections["model"])).train()
    model.log = lambda *args, **kwargs: None
    num_masks = sections["data"]["init_args"].get("num_masks", 1)
    batches = []
    for seed in range(2):
        torch.manual_seed(seed)
        batch = batch_for(model, num_masks)
        batch["hidden"] = hidden_positions(batch["mask"])
        if num_masks > 1:
            batch["visible"] = visible_positions(batch["mask"])
        batches.append(batch)
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model.regress, fullgraph=True, dynamic=False, backend=count)
    for batch in batches:
        torch.manual_seed(7)
        expected = model.regress(batch)[0]
        torch.manual_seed(7)
        torch.testing.assert_close(compiled(batch)[0], expected)
    assert len(graphs) == 1  # other data, the same graph
