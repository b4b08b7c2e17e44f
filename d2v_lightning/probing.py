"""What frozen features know: k-nearest neighbours, a linear probe and few-label probes, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def knn_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 20) -> float:
    """Accuracy of a vote of the `k` nearest training features by cosine, after centring; ties go to the closer ones.

    Args:
        train, test: features (n, D). train_labels, test_labels: classes (n,), int64.
    """
    mean = train.float().mean(dim=0, keepdim=True)
    train, test = (F.normalize(features.float() - mean, dim=1) for features in (train, test))
    classes, hits = int(train_labels.max()) + 1, 0
    for chunk, labels in zip(test.split(1024), test_labels.split(1024), strict=True):
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
