"""MMD against its closed form between Gaussians, against sums written out, and against another implementation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edmund import metrics
from edmund.errors import InputError


def normal(n: int, dim: int, seed: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return mean + std * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expected_kernels(dim: int, h: float, mean: float, std: float) -> tuple[float, float, float]:
    """E k(x, x'), E k(y, y'), E k(x, y) of x ~ N(0, I), y ~ N(mean, std^2 I): the differences are Gaussian too."""

    def of(variance: float, shift: float = 0.0) -> float:
        total = h**2 + variance
        return (h**2 / total) ** (dim / 2) * math.exp(-0.5 * dim * shift**2 / total)

    return of(2.0), of(2 * std**2), of(1 + std**2, mean)


@pytest.mark.parametrize(("dim", "h", "mean", "std"), [(1, 0.5, 0.7, 1.0), (3, 1.3, 0.0, 1.5), (10, 4.0, 0.3, 0.8)])
def test_expectation_between_gaussians(dim: int, h: float, mean: float, std: float) -> None:
    """Small sets, many times: the unbiased estimate is right on average, the biased one too large by what is known."""
    n, m, repeats = 7, 5, 1500
    xx, yy, xy = expected_kernels(dim, h, mean, std)
    exact = xx + yy - 2 * xy
    found = torch.tensor(
        [
            [
                metrics.mmd(x, y, bandwidth=h, biased=biased)
                for x, y in zip(
                    normal(n * repeats, dim, 1).split(n), normal(m * repeats, dim, 2, mean, std).split(m), strict=True
                )
            ]
            for biased in (False, True)
        ]
    )
    error = found.std(1) / repeats**0.5
    assert float((found[0].mean() - exact).abs()) < 4 * float(error[0])
    assert float((found[1].mean() - exact - (1 - xx) / n - (1 - yy) / m).abs()) < 4 * float(error[1])
    assert found[1].min() >= 0
    assert found[0].min() < 0


def test_one_large_set_is_near_the_closed_form() -> None:
    xx, yy, xy = expected_kernels(2, 1.0, 0.5, 1.0)
    found = metrics.mmd(normal(4000, 2, 1), normal(3000, 2, 2, 0.5), bandwidth=1.0)
    assert found == pytest.approx(xx + yy - 2 * xy, rel=0.1)


@pytest.mark.parametrize("chunk", [1, 7, 50, 10_000])
def test_chunks_do_not_change_the_sums(chunk: int) -> None:
    x, y = normal(50, 3, 1), normal(41, 3, 2, 0.4)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-(a[:, None] - b[None]).square().sum(2) / (2 * 0.9**2))

    biased = float(kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean())
    apart = [float(kernel(a, a).fill_diagonal_(0).sum()) / (len(a) * (len(a) - 1)) for a in (x, y)]
    unbiased = sum(apart) - 2 * float(kernel(x, y).mean())
    assert metrics.mmd(x, y, bandwidth=0.9, biased=True, chunk=chunk) == pytest.approx(biased, rel=1e-12)
    assert metrics.mmd(x, y, bandwidth=0.9, chunk=chunk) == pytest.approx(unbiased, rel=1e-12)
    # far from the origin nothing is lost but the digits of the data themselves
    assert metrics.mmd(x + 1e6, y + 1e6, bandwidth=0.9, chunk=chunk) == pytest.approx(unbiased, rel=1e-7)


def test_against_the_toolkit() -> None:
    peer = pytest.importorskip("sbi.utils.metrics", reason="the sbi toolkit is not installed")
    x, y = normal(60, 2, 1), normal(60, 2, 2, 0.3)
    h = 1.2
    assert metrics.mmd(x, y, bandwidth=h) == pytest.approx(float(peer.unbiased_mmd_squared(x, y, h)), rel=1e-9)
    biased = metrics.mmd(x, y, bandwidth=h, biased=True)
    assert biased == pytest.approx(float(peer.biased_mmd(x, y, h)) ** 2, rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 30, 61])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_the_median_is_that_of_all_pairs(n: int, chunk: int) -> None:
    x = normal(n, 4, n, mean=3.0)
    for rows in (x, x * 1e-200, x.round(), torch.cat([x[1:], 1e9 * x[:1]])):
        assert metrics.median_distance(rows, chunk=chunk) == pytest.approx(
            float(torch.pdist(rows).median()), rel=1e-12, abs=0
        )


def test_the_bandwidth_by_default_is_the_reference_s_median_distance() -> None:
    x, y = normal(80, 2, 1), normal(50, 2, 2, 2.0)
    h = float(torch.pdist(x).median())
    assert metrics.mmd(x, y) == pytest.approx(metrics.mmd(x, y, bandwidth=h), rel=1e-12)
    # so the number has no unit
    assert metrics.mmd(1e3 * x, 1e3 * y) == pytest.approx(metrics.mmd(x, y), rel=1e-12)


def test_bad_input() -> None:
    x = normal(10, 2, 1)
    with pytest.raises(InputError, match=r"bandwidth is -1\.0; it must be a finite number above 0"):
        metrics.mmd(x, x, bandwidth=-1.0)
    with pytest.raises(InputError, match="median distance of 0"):
        metrics.mmd(torch.cat([x[:1].expand(30, 2), x]), x)
    with pytest.raises(InputError, match="samples has 1 samples; at least 2"):
        metrics.mmd(x, x[:1])
    with pytest.raises(InputError, match="chunk is 0"):
        metrics.mmd(x, x, chunk=0)
    with pytest.raises(InputError, match=r"samples of shape \(2,\) and samples of \(1,\)"):
        metrics.mmd(x, x[:, :1])
