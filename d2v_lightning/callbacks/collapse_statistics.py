"""How a batch of representations (B, N, D) varies: over the batch, over positions, in how many directions.

One reading of (B, N, D) is the sum of what its position, its sample and the two together say. Variances are estimated as
in a two-way analysis of variance, without the bias of small batches, per channel and then averaged over D; all sums are
added up over ranks before anything is divided, so that 2 ranks x 32 samples give the numbers of 64 samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d2v_lightning.flavour import pl

Sum = Callable[[Tensor], Tensor]

ROUNDING = 1e-9  # a part of the sum of squares that float32 cannot tell from none


class Spread(NamedTuple):
    """Variances per channel, averaged over D, and effective ranks.

    mean_square: mean of the squared values: the size that variances are to be compared with.
    over_batch: variance over the samples at a fixed position, averaged over positions.
    over_positions: variance over positions of the mean over samples, less what chance puts there in a finite batch.
    sample_share: part of `over_batch` that all positions of a sample have in common.
    samples: how many samples there were, over all ranks.
    rank: effective rank of the tokens after the mean of their position is taken off; 0 where not asked for.
    rank_tokens: the same after the overall mean is taken off.
    """

    mean_square: float
    over_batch: float
    over_positions: float
    sample_share: float
    samples: float
    rank: float = 0.0
    rank_tokens: float = 0.0

    @property
    def total(self) -> float:
        """Variance of all tokens around their overall mean."""
        return self.over_batch + self.over_positions

    @property
    def input_share(self) -> float:
        """Part of the variance that the position does not explain: 0 where the position says it all."""
        return self.over_batch / self.total if self.total > 0.0 else 0.0


def no_reduction(x: Tensor) -> Tensor:
    """The sum over one rank."""
    return x


@torch.no_grad()
def spread(
    values: Tensor,
    samples: Tensor,
    positions: Tensor,
    num_samples: int,
    num_positions: int,
    add_up: Sum = no_reduction,
    ranks: bool = False,
) -> Spread:
    """Moments of tokens that stand at given places.

    Args:
        values: tokens (T, D).
        samples: which sample each token is of (T,) int64 below `num_samples`, those of this rank.
        positions: which position each token is at (T,) int64 below `num_positions`.
        num_samples: samples of this rank.
        num_positions: N, the same on all ranks.
        add_up: sum of a tensor over ranks. It is called with the same shapes in the same order on all of them.
        ranks: compute the effective ranks, which needs the eigenvalues of two D x D matrices.
    """
    values = values.float()
    width = values.shape[1]
    ones = values.new_ones(len(values))
    counts = add_up(values.new_zeros(num_positions).index_add_(0, positions, ones))
    sums = add_up(values.new_zeros(num_positions, width).index_add_(0, positions, values))
    means = sums / counts.clamp_min(1.0)[:, None]
    mean = sums.sum(dim=0) / counts.sum().clamp_min(1.0)

    # Second pass around the known means: a mean of squares minus a squared mean would lose a small spread to rounding.
    residual = values - means[positions]
    lengths = values.new_zeros(num_samples).index_add_(0, samples, ones)
    sample_means = values.new_zeros(num_samples, width).index_add_(0, samples, residual)
    sample_means = sample_means / lengths.clamp_min(1.0)[:, None]
    totals = torch.stack(
        [
            values.square().sum(),
            residual.square().sum(),
            (lengths[:, None] * sample_means.square()).sum(),
            (lengths > 0).sum().to(values.dtype),
        ]
    )
    square_sum, within_sum, sample_sum, present_samples = add_up(totals).tolist()
    offsets = (means - mean) * counts.sqrt()[:, None]
    between_sum = float(offsets.square().sum())
    varies = within_sum > ROUNDING * square_sum
    if not varies:
        within_sum = sample_sum = 0.0
    if between_sum <= ROUNDING * square_sum:
        between_sum = 0.0

    tokens, present_positions = float(counts.sum()), float((counts > 0).sum())
    over_batch = within_sum / max(1.0, tokens - present_positions)
    # What one variance of position adds to the mean square between positions: tokens per position, or a little less.
    per_position = (tokens - float(counts.square().sum()) / max(1.0, tokens)) / max(1.0, present_positions - 1.0)
    between = between_sum / max(1.0, present_positions - 1.0)
    over_positions = max(0.0, (between - over_batch) / max(1.0, per_position))
    sample_degrees = max(1.0, present_samples - 1.0)
    rest = max(0.0, within_sum - sample_sum) / max(1.0, tokens - present_positions - sample_degrees)
    per_sample = max(1.0, tokens / max(1.0, present_samples))
    common = max(0.0, (sample_sum / sample_degrees - rest) / per_sample)
    result = Spread(
        mean_square=square_sum / max(1.0, tokens) / width,
        over_batch=over_batch / width,
        over_positions=over_positions / width,
        sample_share=common / (common + rest) if common + rest > 0.0 else 0.0,
        samples=present_samples,
    )
    if not ranks:
        return result
    if not varies:  # the directions would be those of rounding errors
        return result._replace(rank_tokens=effective_rank((offsets.T @ offsets).cpu()))
    covariance = add_up(residual.T @ residual).cpu().double()
    offsets = offsets.cpu().double()
    return result._replace(
        rank=effective_rank(covariance), rank_tokens=effective_rank(covariance + offsets.T @ offsets)
    )


def effective_rank(covariance: Tensor) -> float:
    """Exp of the entropy of the singular values (Roy and Vetterli, 2007) of features with this (D, D) covariance.

    The singular values are the roots of the eigenvalues, at any scale. 1 for one direction, D for D equal ones, 0 for
    features that do not vary.
    """
    eigenvalues = torch.linalg.eigvalsh(covariance.double()).clamp_min(0.0)
    singular = eigenvalues.sqrt()
    singular = singular * (singular > singular.max() * 1e-6)
    if not singular.any():
        return 0.0
    share = singular / singular.sum()
    return float(torch.special.entr(share).sum().exp())


def measure(trainer: pl.Trainer, objective: Any, batch: Any) -> dict[str, float] | None:
    """All values of one check, reduced over ranks; None where all ranks together have a single sample."""

    def add_up(x: Tensor) -> Tensor:
        return trainer.strategy.reduce(x.clone(), reduce_op="sum")

    targets = objective.targets(batch)
    padding_mask = None
    if batch.get("padding_mask") is not None:
        padding_mask = objective.encoder.features(batch["inputs"], batch["padding_mask"])[1]
    num_samples, length, _ = targets.shape
    longest = torch.tensor(length, device=targets.device)
    positions_everywhere = int(trainer.strategy.reduce(longest, reduce_op="max"))
    samples, positions = _places(num_samples, length, padding_mask, targets.device)

    def spread_of(x: Tensor, ranks: bool = False) -> Spread:
        return spread(x[samples, positions], samples, positions, num_samples, positions_everywhere, add_up, ranks)

    target = spread_of(targets, ranks=True)
    results = objective.teacher_layer_results(batch)
    layers = [spread_of(result) for result in results]
    predictions, hidden = objective.predictions(batch)
    rows, columns = hidden // (batch["mask"].shape[1] * length), hidden % length
    prediction = spread(predictions, rows, columns, num_samples, positions_everywhere, add_up)
    hidden_targets = targets[rows, columns]
    errors = predictions.float() - hidden_targets
    target_std, prediction_std = token_std(hidden_targets, add_up), token_std(predictions, add_up)
    error, count = add_up(torch.stack([errors.square().sum(), errors.new_tensor(errors.numel())]))
    if target.samples < 2:
        return None
    reading = {
        "target_std": target_std,
        "prediction_std": prediction_std,
        "target_variance": target.total,
        "target_variance_batch": target.over_batch,
        "target_variance_positions": target.over_positions,
        "target_relative": _relative(target),
        "target_input_share": target.input_share,
        "target_sample_share": target.sample_share,
        "target_rank": target.rank,
        "target_rank_tokens": target.rank_tokens,
        "prediction_variance": prediction.total,
        "prediction_variance_batch": prediction.over_batch,
        "prediction_variance_positions": prediction.over_positions,
        "prediction_ratio": prediction.over_batch / target.over_batch if target.over_batch > 0.0 else 0.0,
        "prediction_error": float(error / count) / target.total if target.total > 0.0 else 1.0,
    }
    if "position" in objective.make_targets.norm_each:
        reading["raw_input_share"] = sum(layer.input_share for layer in layers) / len(layers)
    numbers = getattr(objective, "averaged_layers", range(len(layers)))
    for number, layer in zip(numbers, layers, strict=True):
        reading[f"layer{number}_variance"] = layer.total
        reading[f"layer{number}_std"] = layer.total**0.5
        reading[f"layer{number}_relative"] = _relative(layer)
        reading[f"layer{number}_input_share"] = layer.input_share
    return reading


def token_std(tokens: Tensor, add_up: Sum = no_reduction) -> float:
    """Standard deviation of tokens (P, D) per channel, with 1e-6 added to the variance, averaged over channels.

    That is `compute_var` of the released models (examples/data2vec/models/data2vec_audio.py and data2vec2.py): over the
    hidden tokens of all ranks and masks.
    """
    tokens = tokens.float()
    count = add_up(tokens.new_tensor(float(len(tokens))))
    residual = tokens - add_up(tokens.sum(dim=0)) / count
    variance = add_up(residual.square().sum(dim=0)) / (count - 1).clamp_min(1.0)
    return float((variance + 1e-6).sqrt().mean())


def _relative(moments: Spread) -> float:
    return moments.total / moments.mean_square if moments.mean_square > 1e-12 else 0.0


def _places(samples: int, length: int, padding_mask: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sample and position (T,) of every token that is not padding; padding_mask (B, N) bool, True = padding."""
    if padding_mask is None:
        place = torch.arange(samples * length, device=device)
        return place // length, place % length
    present = (~padding_mask).nonzero()
    return present[:, 0], present[:, 1]
