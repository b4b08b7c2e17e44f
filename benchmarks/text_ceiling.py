"""What is there to win from text.npz? Linear probes of movie reviews on token counts, random and count-based embeddings.

    python benchmarks/text_ceiling.py --data text.npz

The data and the probe of text_curve.py. "counts" is a logistic regression on how often each token comes. The others average
a 256-dimensional vector a token: random ones, which is about what an untrained network does; and the singular vectors of
positive pointwise mutual information within a window of the pre-training text (Levy and Goldberg, 2014), which is what
anything that predicts tokens from their neighbours can be expected to find in it.
"""

from __future__ import annotations

import argparse

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import svds
from sklearn.linear_model import LogisticRegression
from text_curve import Text
from torch import Tensor

from d2v_lightning.method.probing import linear_accuracy

WIDTH = 256


def counts(rows: Tensor, size: int) -> sp.csr_matrix:
    """How often each of `size` tokens comes in each of the padded rows (n, T): (n, size)."""
    row, column = np.nonzero(rows.numpy() != 1)
    return sp.csr_matrix((np.ones(len(row)), (row, rows.numpy()[row, column])), shape=(len(rows), size))


def mutual_information(blocks: Tensor, size: int, window: int) -> sp.csr_matrix:
    """Positive pointwise mutual information of tokens within `window`, nearer ones counted more: (size, size)."""
    ids, pairs = blocks.numpy(), sp.csr_matrix((size, size))
    for distance in range(1, window + 1):
        left, right = ids[:, :-distance].ravel(), ids[:, distance:].ravel()
        pairs = pairs + sp.csr_matrix((np.full(len(left), 1 / distance), (left, right)), shape=(size, size))
    both = (pairs + pairs.T).tocoo()
    often = np.bincount(both.row, both.data, size)
    smoothed = often**0.75 / (often**0.75).sum()
    value = np.log(both.data / (often[both.row] * smoothed[both.col]))
    kept = value > 0
    return sp.csr_matrix((value[kept], (both.row[kept], both.col[kept])), shape=(size, size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    args = parser.parse_args()
    text = Text(args.data, 128)
    (train, train_labels), (dev, dev_labels) = text.train, text.dev
    seen, unseen = counts(train, text.size), counts(dev, text.size)
    probe = LogisticRegression(C=1.0, max_iter=2000).fit(seen, train_labels)
    print(f"counts of {text.size} tokens         {probe.score(unseen, dev_labels):.3f}", flush=True)

    def averaged(embedding: np.ndarray) -> float:
        means = [np.asarray(matrix @ embedding / matrix.sum(axis=1)) for matrix in (seen, unseen)]
        return linear_accuracy(torch.tensor(means[0]), train_labels, torch.tensor(means[1]), dev_labels)

    for seed in range(3):
        embedding = np.random.default_rng(seed).normal(size=(text.size, WIDTH))
        print(f"random embeddings, seed {seed}      {averaged(embedding):.3f}", flush=True)
    for window in (2, 5):
        vectors, _, _ = svds(mutual_information(text.blocks, text.size, window), k=WIDTH, random_state=0)
        embedding = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
        print(f"mutual information, window {window}   {averaged(embedding):.3f}", flush=True)


if __name__ == "__main__":
    main()
