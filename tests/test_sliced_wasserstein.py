"""Wasserstein distances against closed forms of shifts and Gaussians, and against SciPy and repeated samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edmund import metrics
from edmund.errors import InputError


def normal(n: int, dim: int, seed: int) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(n: int) -> Tensor:
    """n points [n, 1] at the middle quantiles of N(0, 1): its law but for O(1/n)."""
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]


@pytest.mark.parametrize("dim", [2, 5])
def test_a_shift(dim: int) -> None:
    """Moved by m, every projection moves by m . theta: SW_2^2 = |m|^2/D, SW_1 = |m| E|theta_1|."""
    shift = torch.arange(1.0, dim + 1, dtype=torch.float64)
    x = normal(40, dim, 1)
    y = (x + shift)[torch.randperm(40, generator=torch.Generator().manual_seed(2))]
    assert metrics.sliced_wasserstein(x, y, directions=5000) == pytest.approx(float(shift.norm()) / dim**0.5, rel=0.02)
    mean_cosine = math.gamma(dim / 2) / (math.sqrt(math.pi) * math.gamma((dim + 1) / 2))
    assert metrics.sliced_wasserstein(x, y, p=1, directions=5000) == pytest.approx(
        float(shift.norm()) * mean_cosine, rel=0.02
    )
    for p in (1, 2):
        torch.testing.assert_close(metrics.marginal_wasserstein(x, y, p=p), shift)


def test_gaussians_on_a_line() -> None:
    """W_2^2 = (m_1 - m_2)^2 + (s_1 - s_2)^2 (Dowson & Landau 1982), also from 4000 points to 3001."""
    x, y = spread(4000), 1.0 + 1.5 * spread(3001)
    for distance in (metrics.sliced_wasserstein(x, y), float(metrics.marginal_wasserstein(x, y))):
        assert distance == pytest.approx(math.hypot(1.0, 0.5), rel=1e-3)


def test_isotropic_gaussians() -> None:
    """N(0, I) and N(0, s^2 I): every projection is |s - 1| away; samples of one law are near 0 only."""
    x, y = normal(10_000, 3, 1), 1.7 * normal(12_000, 3, 2)
    assert metrics.sliced_wasserstein(x, y, directions=50) == pytest.approx(0.7, abs=0.05)  # 3.5 standard errors
    assert metrics.sliced_wasserstein(x, normal(20_000, 3, 3), directions=50) < 0.04


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (6, 4), (13, 5), (12, 12)])
def test_unequal_counts_are_those_of_repeated_samples(n: int, m: int) -> None:
    """Repeating every sample changes no law: with n m of each, the distance is that of the sorted pairs."""
    from scipy.stats import wasserstein_distance

    x, y = normal(n, 2, n), 1 + normal(m, 2, 10 + m)
    many_x, many_y = x.repeat_interleave(m, 0).sort(0).values, y.repeat_interleave(n, 0).sort(0).values
    for p in (1, 2):
        exact = (many_x - many_y).abs().pow(p).mean(0) ** (1 / p)
        torch.testing.assert_close(metrics.marginal_wasserstein(x, y, p=p), exact, rtol=1e-12, atol=1e-14)
    for k in range(2):
        assert float(metrics.marginal_wasserstein(x, y, p=1)[k]) == pytest.approx(
            wasserstein_distance(x[:, k].numpy(), y[:, k].numpy()), rel=1e-12
        )


def test_laws_of_a_metric() -> None:
    x, y, z = normal(30, 4, 1), normal(20, 4, 2) + 0.5, 2 * normal(25, 4, 3)
    for p in (1, 2):
        options = {"p": p, "directions": 30, "seed": 3}
        xy, yz, xz = (metrics.sliced_wasserstein(*pair, **options) for pair in ((x, y), (y, z), (x, z)))
        assert metrics.sliced_wasserstein(y, x, **options) == pytest.approx(xy, rel=1e-12)
        assert metrics.sliced_wasserstein(x, x.flip(0), **options) == pytest.approx(0, abs=1e-12)
        assert xz <= xy + yz
    assert metrics.sliced_wasserstein(x, y, seed=1) == metrics.sliced_wasserstein(x, y, seed=1)
    assert metrics.sliced_wasserstein(x, y, seed=1) != metrics.sliced_wasserstein(x, y, seed=2)


def test_bad_input() -> None:
    x = normal(5, 2, 1)
    for p in (0, 3, 1.5, True, math.inf):
        with pytest.raises(InputError, match=r"p is .*; it must be 1 or 2"):
            metrics.sliced_wasserstein(x, x, p=p)
        with pytest.raises(InputError, match=r"p is .*; it must be 1 or 2"):
            metrics.marginal_wasserstein(x, x, p=p)
    with pytest.raises(InputError, match="directions is 0"):
        metrics.sliced_wasserstein(x, x, directions=0)
    with pytest.raises(InputError, match="first has 0 samples"):
        metrics.sliced_wasserstein(x[:0], x)
