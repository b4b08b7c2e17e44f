"""What does a text model know of words that it does not see? A linear probe of its predictions at hidden tokens.

    python benchmarks/hidden_words.py --text text/valid.txt runs/text_small_v2/checkpoints/last.ckpt [more checkpoints]

In held-out text 15 % of the tokens are hidden, one by one; where it is one of the 50 most frequent, a logistic regression
names it from the student's prediction (three of four to fit, every fourth to test). Beside each checkpoint stands the
same network with random weights; at the end the most frequent word, and a logistic regression on which tokens stand before
and after. One JSON line each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import scipy.sparse as sp
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from d2v_lightning import Data2Vec, VisibleStudent
from d2v_lightning.configurable import build
from d2v_lightning.method.probing import linear_accuracy
from datamodules import TextDataModule

WORDS = 50


class HiddenTokens(pl.Callback):
    """Predictions (P, D) at the hidden tokens of a validation run, the tokens (P,) and their two neighbours (P, 2)."""

    def __init__(self) -> None:
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        predictions, places = pl_module.predictions(batch)
        _, masks, length = batch["mask"].shape
        first = places // length % masks == 0  # one mask a block: every hidden token once
        predictions, places = predictions[first], places[first] // (masks * length) * length + places[first] % length
        around = F.pad(batch["inputs"], (1, 1), value=pl_module.encoder.pad_id).unfold(1, 3, 1).flatten(0, 1)[places]
        self.rows.append((predictions.float().cpu(), around[:, 1].cpu(), around[:, ::2].cpu()))

    def collected(self) -> list[Tensor]:
        return [torch.cat(part) for part in zip(*self.rows, strict=True)]


def hidden_tokens(model: Data2Vec, args: argparse.Namespace) -> list[Tensor]:
    data = TextDataModule(
        files=args.text, val_files=args.text, tokenizer=None, packing="blocks", block_size=args.block, batch_size=64,
        mask_prob=0.15, mask_length=1, num_masks=2 if isinstance(model.student, VisibleStudent) else 1, mask_special=False,
        num_workers=0,
    )  # fmt: skip
    found = HiddenTokens()
    quiet: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(callbacks=[found], enable_model_summary=False, **quiet)
    trainer.validate(model, data, verbose=False)
    return found.collected()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--text", required=True, help="held-out text, a document a line")
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    args = parser.parse_args()
    for path in args.checkpoints:
        model = Data2Vec.load_from_checkpoint(path)
        pl.seed_everything(args.seed, verbose=False)
        untrained = build(model.config)
        untrained.backbone.tokenizer = model.backbone.tokenizer
        row: dict[str, Any] = {"checkpoint": str(path)}
        for name, network in (("pre-trained", model), ("untrained", untrained)):
            predictions, tokens, around = hidden_tokens(network, args)
            frequent = tokens.bincount().topk(WORDS).indices
            known = torch.isin(tokens, frequent).nonzero()[:, 0]
            labels, features, test = tokens[known], predictions[known], torch.arange(len(known)) % 4 == 3
            row[name] = linear_accuracy(features[~test], labels[~test], features[test], labels[test])
        print(json.dumps(row), flush=True)
    often = float((labels[test] == labels[~test].mode().values).float().mean())
    sides = [F.one_hot(around[known, side]).numpy() for side in (0, 1)]
    neighbours = sp.hstack([sp.csr_matrix(side) for side in sides]).tocsr()
    probe = LogisticRegression(max_iter=2000).fit(neighbours[~test.numpy()], labels[~test].numpy())
    told = float(probe.score(neighbours[test.numpy()], labels[test].numpy()))
    print(json.dumps({"hidden tokens": len(known), "the most frequent": often, "from the two neighbours": told}))


if __name__ == "__main__":
    main()
