"""Properties of the variance split: what it must say of representations whose make-up is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from d2v_lightning.callbacks.collapse_statistics import Spread, effective_rank, spread, token_std


def measure(x: Tensor, present: Tensor | None = None) -> Spread:
    """Of x (B, N, D) at the places `present` (B, N) bool."""
    present = torch.ones(x.shape[:2], dtype=torch.bool) if present is None else present
    samples, positions = present.nonzero().T
    return spread(x[present], samples, positions, x.shape[0], x.shape[1], ranks=True)


def mixture(b: int, n: int, d: int, position: float, sample: float, both: float, seed: int = 0) -> Tensor:
    """Independent normal effects of position, sample and the two together, with these variances, far from zero."""
    draw = torch.Generator().manual_seed(seed)
    effects = torch.randn(1, n, d, generator=draw) * position**0.5, torch.randn(b, 1, d, generator=draw) * sample**0.5
    return 5.0 + effects[0] + effects[1] + torch.randn(b, n, d, generator=draw) * both**0.5


def test_variances_of_a_mixture_are_recovered() -> None:
    moments = measure(mixture(256, 48, 32, position=2.0, sample=0.5, both=1.0))
    assert moments.over_batch == pytest.approx(1.5, rel=0.05)
    assert moments.over_positions == pytest.approx(2.0, rel=0.1)
    assert moments.sample_share == pytest.approx(0.5 / 1.5, rel=0.1)
    assert moments.input_share == pytest.approx(1.5 / 3.5, rel=0.1)
    assert moments.samples == 256


def test_two_samples_give_no_smaller_variance_than_many() -> None:
    rounds = [measure(mixture(2, 16, 32, position=1.0, sample=0.0, both=1.0, seed=seed)) for seed in range(30)]
    assert sum(moments.over_batch for moments in rounds) / 30 == pytest.approx(1.0, rel=0.05)
    assert sum(moments.over_positions for moments in rounds) / 30 == pytest.approx(1.0, rel=0.1)


def test_representations_that_follow_from_position_or_sample_alone() -> None:
    position_only = measure(mixture(32, 16, 8, position=1.0, sample=0.0, both=0.0))
    assert position_only.input_share == pytest.approx(0.0, abs=1e-9)
    sample_only = measure(mixture(32, 16, 8, position=0.0, sample=1.0, both=0.0))
    assert sample_only.sample_share == pytest.approx(1.0, abs=1e-6)
    assert sample_only.input_share == pytest.approx(1.0, abs=1e-6)
    constant = measure(mixture(32, 16, 8, position=0.0, sample=0.0, both=0.0))
    assert constant.total == pytest.approx(0.0, abs=1e-9)
    assert constant.input_share == 0.0
    assert constant.mean_square == pytest.approx(25.0)


def test_a_small_spread_on_a_large_mean_is_not_lost() -> None:
    x = mixture(64, 16, 8, position=0.0, sample=0.0, both=1.0)
    assert measure(1000.0 + 0.1 * x).over_batch == pytest.approx(0.01 * measure(x).over_batch, rel=1e-2)


def test_padding_does_not_count() -> None:
    x = mixture(8, 12, 4, position=1.0, sample=0.5, both=1.0)
    present = torch.arange(12)[None] < torch.tensor([12, 3, 7, 12, 5, 9, 12, 4])[:, None]
    reference = measure(x, present)
    assert measure(x.masked_fill(~present[..., None], 1e6), present) == reference
    # by hand: residuals around the mean of each position over the samples that have it
    mean = (x * present[..., None]).sum(0) / present.sum(0)[:, None]
    residual = ((x - mean) * present[..., None]).square().sum()
    assert reference.over_batch == pytest.approx(float(residual) / (int(present.sum()) - 12) / 4, rel=1e-5)


@pytest.mark.parametrize("directions", [1, 3, 8])
def test_effective_rank_counts_equal_directions_at_any_scale(directions: int) -> None:
    basis, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    covariance = basis[:, :directions] @ basis[:, :directions].T
    assert effective_rank(covariance) == pytest.approx(directions, rel=1e-4)
    assert effective_rank(1e-8 * covariance) == pytest.approx(directions, rel=1e-4)
    assert effective_rank(torch.zeros(4, 4)) == 0.0


def test_rank_is_taken_around_the_means_of_the_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(8, generator=generator)
    one_direction = torch.randn(64, 16, 1, generator=generator) * direction
    moments = measure(one_direction + 3.0 * torch.randn(1, 16, 8, generator=generator))
    assert moments.rank == pytest.approx(1.0, abs=0.01)
    assert moments.rank_tokens > 5.0


def test_standard_deviation_of_tokens_is_the_released_one() -> None:
    """`compute_var`: with one process from `var`, with several from sums and sums of squares over all of them."""
    tokens = 3.0 + torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert token_std(tokens) == pytest.approx(float((tokens.var(dim=0) + 1e-6).sqrt().mean()), rel=1e-6)
    assert token_std(torch.ones(50, 8)) == pytest.approx(1e-3)
    count, total = 50.0, tokens.sum(dim=0)
    squares = tokens.square().sum(dim=0)
    expected = (squares / (count - 1) - total.square() / (count * (count - 1)) + 1e-6).sqrt().mean()
    residuals = (tokens - total / count).square().sum(dim=0)
    for part in tokens.split([20, 30]):
        sums = iter((torch.tensor(count), total, residuals))  # what `add_up` finds over both processes
        assert token_std(part, lambda _, sums=sums: next(sums)) == pytest.approx(float(expected), rel=1e-4)
