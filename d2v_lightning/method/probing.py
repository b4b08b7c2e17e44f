"""What frozen features know: pooled features, and k-nearest neighbours, linear and few-label probes on the CPU."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Part = Literal["teacher", "student"]


def knn_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 20) -> float:
    """Accuracy of a vote of the `k` nearest training features by cosine, after centring; ties go to the closer ones.

    Computed in float32, also within a 16-bit run.

    Args:
        train, test: features (n, D). train_labels, test_labels: classes (n,), int64.
    """
    mean = train.float().mean(dim=0, keepdim=True)
    train, test = (F.normalize(features.float() - mean, dim=1) for features in (train, test))
    classes, hits = int(train_labels.max()) + 1, 0
    for chunk, labels in zip(test.split(1024), test_labels.split(1024), strict=True):
        with torch.autocast(chunk.device.type, enabled=False):
            similarity, neighbours = (chunk @ train.T).topk(min(k, len(train)), dim=1)
        votes = torch.zeros(len(chunk), classes).scatter_add_(1, train_labels[neighbours], 1.0 + 1e-3 * similarity)
        hits += int((votes.argmax(dim=1) == labels).sum())
    return hits / len(test)


def linear_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Accuracy of logistic regression (scikit-learn, C = 1) on features (n, D) standardised by the training set."""
    from sklearn.linear_model import LogisticRegression

    mean, std = train.double().mean(dim=0), train.double().std(dim=0).clamp_min(1e-6)
    probe = LogisticRegression(C=1.0, max_iter=2000)
    probe.fit(((train.double() - mean) / std).numpy(), train_labels.numpy())
    return float(probe.score(((test.double() - mean) / std).numpy(), test_labels.numpy()))


def few_label_indices(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """`per_class` places of every class, drawn with `seed`: (classes x per_class,) int64."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = [order[labels[order] == label][:per_class] for label in labels.unique()]
    return torch.cat(chosen)


@torch.no_grad()
def pooled_features(pl_module: Any, inputs: Tensor, padding_mask: Tensor | None, part: Part) -> Tensor:
    """Output of the last block, averaged over the tokens that are not padding (B, D), in the mode the module is in.

    Args:
        pl_module: a `Data2Vec`.
        inputs: clean inputs, see `Batch`.
        padding_mask: as in `Batch`, True = padding, or None.
        part: "teacher" or "student".
    """
    backbone = pl_module.backbone
    last = [backbone.transformer.depth - 1]
    tokens, padding_mask = backbone.encoder.features(inputs, padding_mask)
    if part == "teacher":
        results = pl_module.teacher(backbone, inputs, tokens, padding_mask, keep=last)
    else:
        _, results = backbone.contextualize(tokens, padding_mask, keep=last)
    block = results[0].block[:, backbone.num_extra_tokens :]
    if padding_mask is None:
        return block.mean(dim=1)
    present = (~padding_mask)[..., None]
    return (block * present).sum(dim=1) / present.sum(dim=1)
