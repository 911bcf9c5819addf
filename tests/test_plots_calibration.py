from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.patches import StepPatch
from scipy import stats

from edmund import plots
from edmund.errors import InputError


def uniform_ranks(draws: int, dim: int, samples: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, samples + 1, (draws, dim))


def test_rank_counts_are_exact() -> None:
    """11 ranks in 3 bins: 0 to 3, 4 to 6, 7 to 10; each counted with what its share of the ranks leads to expect."""
    ranks = torch.tensor([[0, 10], [3, 10], [4, 10], [6, 7], [7, 0]])
    edges, counts, expected = plots.rank_counts(ranks, 10, bins=3)
    np.testing.assert_allclose(edges, [0, 4, 7, 11])
    np.testing.assert_array_equal(counts, [[2, 2, 1], [1, 0, 4]])
    np.testing.assert_allclose(expected, 5 * np.array([4, 3, 4]) / 11)
    for draws, bins in ((10, 2), (200, 10), (4000, 20)):
        assert len(plots.rank_counts(uniform_ranks(draws, 1, 100), 100)[2]) == bins
    assert len(plots.rank_counts(uniform_ranks(400, 1, 4), 4)[2]) == 5


def test_histograms_stand_in_the_band_of_exact_posteriors(tmp_path: Path) -> None:
    draws, samples, dim = 1000, 99, 7
    ranks = uniform_ranks(draws, dim, samples)
    figure = plots.rank_histograms(ranks, samples, bins=10, names=list("abcdefg"))
    seen = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in seen] == list("abcdefg")
    outside = 0
    for axes, column in zip(seen, ranks.T, strict=True):
        band, height = (patch.get_data() for patch in axes.patches if isinstance(patch, StepPatch))
        np.testing.assert_allclose(height.values, np.bincount(column // 10, minlength=10) / 100)
        # Binomial(1000, 1/10), 99 %
        np.testing.assert_allclose(band.values, stats.binom.ppf(0.995, draws, 0.1) / 100)
        np.testing.assert_allclose(band.baseline, stats.binom.ppf(0.005, draws, 0.1) / 100)
        outside += int(((height.values > band.values) | (height.values < band.baseline)).sum())
    assert outside <= 4  # of 70
    assert plots.save(figure, tmp_path / "ranks.png").stat().st_size > 10_000


def test_coverage_and_its_distance_from_the_diagonal(tmp_path: Path) -> None:
    nominal = np.linspace(0.1, 0.9, 9)
    empirical = np.stack([nominal, nominal + 0.05, nominal - 0.02])
    figure = plots.coverage_curves(nominal, empirical, 400, names=["right", "wide", "narrow"])
    whole, enlarged = figure.axes
    # the farthest first
    named = [line for line in whole.get_lines() if not line.get_label().startswith("_")]
    assert [line.get_label() for line in named] == ["wide", "narrow", "right"]
    for line, row in zip(named, (1, 2, 0), strict=True):
        np.testing.assert_allclose(line.get_xydata(), np.stack([nominal, empirical[row]], 1))
    np.testing.assert_allclose(enlarged.get_lines()[1].get_ydata(), 0.05)
    (band,) = whole.collections
    corners = band.get_paths()[0].vertices
    at_half = corners[np.isclose(corners[:, 0], 0.5)][:, 1]
    assert at_half.min() == pytest.approx(stats.binom.ppf(0.005, 400, 0.5) / 400)
    assert at_half.max() == pytest.approx(stats.binom.ppf(0.995, 400, 0.5) / 400)
    assert enlarged.get_ylim()[1] == -enlarged.get_ylim()[0] > at_half.max() - 0.5
    assert plots.save(figure, tmp_path / "coverage.png").stat().st_size > 10_000


def test_of_many_parameters_the_farthest_are_named() -> None:
    nominal = np.linspace(0.1, 0.9, 9)
    empirical = nominal + np.linspace(0, 0.09, 10)[:, None]
    whole, _ = plots.coverage_curves(nominal, empirical, 400).axes
    labels = [text.get_text() for text in whole.get_legend().get_texts()]
    assert labels == [f"theta_{k}" for k in (10, 9, 8, 7, 6, 5)]
    assert len(whole.get_lines()) == 1 + 10


def test_tarp_curve_takes_the_toolkit_s_rounding(tmp_path: Path) -> None:
    alpha = torch.linspace(0, 1, 51)
    ecp = torch.cat([alpha[:-1] ** 0.8, torch.tensor([1 + 2**-22])])
    figure = plots.tarp_curve(ecp, alpha, 500)
    whole, enlarged = figure.axes
    np.testing.assert_allclose(whole.get_lines()[1].get_ydata(), ecp)
    np.testing.assert_allclose(enlarged.get_lines()[1].get_ydata(), ecp - alpha, atol=1e-7)
    assert whole.get_legend() is None
    assert plots.save(figure, tmp_path / "tarp.png").stat().st_size > 10_000


def test_bad_input() -> None:
    ranks = uniform_ranks(50, 2, 10)
    levels = np.linspace(0.1, 0.9, 5)
    for call, message in (
        (lambda: plots.rank_histograms(ranks[:, 0], 10), r"ranks has shape \(50,\)"),
        (lambda: plots.rank_histograms(ranks, 5), "ranks has values from 0 to 10; among 5 samples"),
        (lambda: plots.rank_histograms(ranks * math.nan, 10), "ranks has values from nan"),
        (lambda: plots.rank_histograms(ranks, 10, bins=12), "bins is 12; 10 samples have no more than 11 ranks"),
        (lambda: plots.rank_histograms(ranks, 10, names=["a"]), "names is .*2 names"),
        (lambda: plots.rank_histograms(ranks, 10, confidence=1.0), r"confidence is 1\.0"),
        (lambda: plots.coverage_curves(levels, levels[:4], 50), "nominal and empirical have shapes"),
        (lambda: plots.coverage_curves(levels, 2 * levels, 50), "from 0 to 1"),
        (lambda: plots.coverage_curves(levels, levels, 0), "draws is 0"),
        (lambda: plots.tarp_curve(levels, levels[:3], 50), "alpha and ecp have shapes"),
    ):
        with pytest.raises(InputError, match=message):
            call()
