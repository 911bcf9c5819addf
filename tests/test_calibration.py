"""Calibration on posteriors whose error is known: exact Gaussian ones, and the same made too wide, narrow or biased.

The ranks are those of real samples where the toolkit is asked as well; in the many repetitions that measure rates they
are drawn from the law they have, Binomial(L, F(theta)) with F the posterior's distribution function.
"""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from edmund import metrics
from edmund.errors import InputError
from edmund.metrics.calibration import _holm, _largest_deviation_p

SAMPLES = 500


def ranks_of(draws: int, dim: int, seed: int, *, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Ranks of truths N(0, 1) among samples of N(shift, scale^2), the posterior's error in its own units."""
    generator = np.random.default_rng(seed)
    below = stats.norm.cdf(generator.standard_normal((draws, dim)), shift, scale)
    return generator.binomial(SAMPLES, below)


class GaussianLinear:
    """The task's exact posterior N(x/2, 0.05 I), its samples scaled about their mean; with the toolkit's methods."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    @staticmethod
    def simulate(draws: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        theta = 0.1**0.5 * torch.randn(draws, dim, generator=generator)
        return theta, theta + 0.1**0.5 * torch.randn(draws, dim, generator=generator)

    def sample_batched(self, shape: torch.Size, x: Tensor, **_: object) -> Tensor:
        return x / 2 + self.scale * 0.05**0.5 * torch.randn(*shape, *x.shape)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        return -0.5 * ((theta - x / 2) / self.scale).square().sum(-1) / 0.05


def failing(result: metrics.Calibration) -> set[str]:
    return {test for test, of_test in result.corrected.items() if min(of_test.values()) < result.level}


# The tests, one by one


def test_p_of_one_level_is_the_binomial_test() -> None:
    """With one level the largest deviation is two binomial tails."""
    draws, p, deviation = 50, 0.3, 1.7
    radius = deviation * math.sqrt(draws * p * (1 - p))
    counts = np.arange(draws + 1)
    exact = stats.binom.pmf(counts, draws, p)[np.abs(counts - draws * p) >= radius].sum()
    assert _largest_deviation_p(np.array([p]), draws, deviation) == pytest.approx(exact, rel=1e-10)


def test_p_of_nested_levels_by_enumeration() -> None:
    """All multinomial counts of 12 draws in 4 cells, and a deviation that some of them hit exactly."""
    draws, nominal = 12, np.array([0.25, 0.5, 0.9])
    cells = np.diff([0.0, *nominal, 1.0])
    deviation = 3 / math.sqrt(draws * 0.25 * 0.75)
    total = 0.0
    for a in range(draws + 1):
        for b in range(draws + 1 - a):
            for c in range(draws + 1 - a - b):
                counts = np.array([a, a + b, a + b + c])
                apart = np.abs(counts - draws * nominal) / np.sqrt(draws * nominal * (1 - nominal))
                if apart.max() >= deviation - 1e-9:
                    total += float(stats.multinomial.pmf([a, b, c, draws - a - b - c], draws, cells))
    assert _largest_deviation_p(nominal, draws, deviation) == pytest.approx(total, rel=1e-10)


def test_holm_step_down() -> None:
    """Holm's procedure by hand: 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1, never falling."""
    corrected = _holm({"a": {"x": 0.02, "y": 0.5}, "b": {"x": 0.01, "y": 0.03}})
    assert corrected["b"]["x"] == pytest.approx(0.04)
    assert corrected["a"]["x"] == pytest.approx(0.06)
    assert corrected["b"]["y"] == pytest.approx(0.06)
    assert corrected["a"]["y"] == pytest.approx(0.5)


@pytest.mark.parametrize("samples", [20, 25, 101, 1000])
def test_nominal_coverage_is_that_of_uniform_ranks(samples: int) -> None:
    """Every rank once: empirical coverage is the nominal one exactly, at most 2/(L + 1) below the level asked for."""
    ranks = np.arange(samples + 1)
    levels = np.linspace(0.1, 0.95, 30)
    for nominal, covered in (
        metrics.central_coverage(ranks[:, None], samples, levels),
        metrics.density_coverage(ranks, samples, levels),
    ):
        np.testing.assert_allclose(covered, nominal[None], rtol=1e-12)
        assert (nominal <= levels + 1e-12).all() and (levels - nominal <= 2 / (samples + 1)).all()


def test_central_coverage_counts_intervals() -> None:
    """By quantiles of actual samples: the interval from rank k to rank L - k holds the truth."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(200, 2, generator=generator)
    drawn = torch.randn(99, 200, 2, generator=generator).sort(0).values
    nominal, covered = metrics.central_coverage((drawn < truth).sum(0), 99, [0.5, 0.9])
    np.testing.assert_allclose(nominal, [0.5, 0.9])
    for k, row in ((25, 0), (5, 1)):  # 100 gaps between and beside 99 samples: k of them left out at either end
        inside = ((truth > drawn[k - 1]) & (truth < drawn[99 - k])).double().mean(0)
        np.testing.assert_allclose(covered[:, row], inside)


# Rates


@pytest.mark.parametrize(("dim", "draws", "repeats"), [(2, 200, 250), (10, 500, 60)])
def test_exact_posteriors_fail_no_more_often_than_allowed(dim: int, draws: int, repeats: int) -> None:
    results = [metrics.calibration(ranks_of(draws, dim, seed), SAMPLES) for seed in range(repeats)]
    failed = sum(not result.passed for result in results)
    # what a rate of 5 % exceeds once in a thousand tests
    assert failed <= stats.binom.isf(1e-3, repeats, 0.05)
    for test in ("sbc", "folded", "coverage"):
        p = np.array([value for result in results for value in result.p_values[test].values()])
        # uncorrected p-values are uniform, but for ties: each rate within its own error
        for level in (0.05, 0.3):
            error = math.sqrt(level * (1 - level) / len(p))
            assert level - 4.5 * error - 0.1 * level < (p <= level).mean() < level + 4 * error, (test, level)


@pytest.mark.parametrize("samples", [20, 33])
def test_few_samples_raise_no_false_alarm(samples: int) -> None:
    """2000 ranks on 21 values: a test for continuous values would reject them."""
    generator = np.random.default_rng(1)
    passed = [
        metrics.calibration(generator.integers(0, samples + 1, (2000, 2)), samples, level=0.01).passed
        for _ in range(20)
    ]
    assert sum(passed) >= 18


@pytest.mark.parametrize("dim", [2, 10])
def test_a_width_wrong_by_1_2_is_seen(dim: int) -> None:
    """By folded ranks and coverage in 500 draws, by rank uniformity too in 2000."""
    for seed in range(4):
        for scale, fault in ((1.2, "too wide"), (1 / 1.2, "too narrow")):
            few = metrics.calibration(ranks_of(500, dim, seed, scale=scale), SAMPLES)
            assert {"folded", "coverage"} <= failing(few)
            assert any(fault in words for words in few.faults.values())
            many = metrics.calibration(ranks_of(2000, dim, seed, scale=scale), SAMPLES)
            assert {"folded", "coverage", "sbc"} <= failing(many)
            assert set(many.faults.values()) == {fault} and len(many.faults) == dim
            assert np.mean(list(many.width.values())) == pytest.approx(scale, rel=0.05)
            assert "not calibrated" in many.verdict.lower() and fault in many.verdict


def test_the_visible_width_is_seen_in_four_of_five_cases() -> None:
    factor = metrics.calibration(ranks_of(300, 1, 0), SAMPLES).visible_width
    caught = [
        metrics.calibration(ranks_of(300, 1, seed, scale=factor), SAMPLES).p_values["folded"]["theta_1"] < 0.05 / 3
        for seed in range(300)
    ]
    assert np.mean(caught) == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / 300))
    assert metrics.calibration(ranks_of(20, 10, 0), SAMPLES).visible_width > 2


# The verdict


def test_one_biased_parameter_among_others() -> None:
    ranks = ranks_of(1000, 4, 3)
    ranks[:, 2] = ranks_of(1000, 1, 4, shift=0.4)[:, 0]
    result = metrics.calibration(ranks, SAMPLES, names=["alpha", "beta", "gamma", "delta"])
    assert not result.passed
    assert result.faults == {"gamma": "biased high"}
    assert result.bias["gamma"] == pytest.approx(0.4, abs=0.1)
    assert "gamma is biased high, by about 0." in result.verdict
    assert not any(name in result.verdict for name in ("alpha", "beta", "delta"))
    mirrored = metrics.calibration(SAMPLES - ranks, SAMPLES)
    assert mirrored.faults == {"theta_3": "biased low"}
    assert mirrored.p_values["folded"] == pytest.approx(
        dict(zip(mirrored.p_values["folded"], result.p_values["folded"].values(), strict=True))
    )


def test_of_biased_marginals_the_joint_test_says_no_width() -> None:
    """TARP's sign is that of the width only where nothing is biased."""
    alpha = np.linspace(0, 1, 51)
    for ecp in (np.minimum(1.3 * alpha, 1), np.maximum(1.3 * alpha - 0.3, 0)):
        for scale in (1.0, 0.7):
            ranks = ranks_of(500, 2, 0, scale=scale, shift=0.8)
            result = metrics.calibration(ranks, SAMPLES, tarp=(ecp, alpha))
            assert all("biased high" in result.faults[name] for name in ("theta_1", "theta_2"))
            assert result.faults["joint"] == "off"
            assert "The joint posterior is off (TARP p " in result.verdict and "too wide" not in result.verdict
        unbiased = metrics.calibration(ranks_of(500, 2, 0), SAMPLES, tarp=(ecp, alpha))
        assert unbiased.faults == {"joint": "too wide" if ecp[40] > alpha[40] else "too narrow or biased"}


def test_a_wrong_shape_is_neither() -> None:
    """Two lumps with the mean and about the variance of the truth."""
    generator = np.random.default_rng(0)
    truth = generator.standard_normal((2000, 1))
    ranks = generator.binomial(SAMPLES, (stats.norm.cdf(truth, -0.9, 0.5) + stats.norm.cdf(truth, 0.9, 0.5)) / 2)
    result = metrics.calibration(ranks, SAMPLES)
    assert {"sbc", "coverage"} <= failing(result)
    assert result.faults == {"theta_1": "of the wrong shape"}
    assert "theta_1 is of the wrong shape (rank uniformity p " in result.verdict


@pytest.mark.parametrize(
    ("draws", "scale", "shift"), [(500, 0.1, 0.0), (5000, 0.1, 0.0), (500, 1.0, 9.0), (500, 1.0, 3.0)]
)
def test_truths_outside_all_samples(draws: int, scale: float, shift: float) -> None:
    """Ranks of 0 and L say no more than that: the verdict does not measure by them."""
    result = metrics.calibration(ranks_of(draws, 1, 0, scale=scale, shift=shift), SAMPLES)
    assert result.faults == {"theta_1": "biased high" if shift else "too narrow"}
    assert result.outside["theta_1"] > 0.4
    assert f"{100 * result.outside['theta_1']:.0f} % of the truths outside all samples" in result.verdict
    assert "times" not in result.verdict and "by about" not in result.verdict
    assert failing(result) == {"sbc", "folded", "coverage"}


def test_tarp_of_few_samples_raises_no_false_alarm() -> None:
    """Coverage values on a lattice of 26, as the toolkit's histogram counts them, of 5000 draws."""
    peer = pytest.importorskip("sbi.diagnostics.tarp", reason="the sbi toolkit is not installed")
    ranks, p = np.random.default_rng(0).integers(0, 26, (5000, 1)), []
    for seed in range(40):
        torch.manual_seed(seed)
        theta, x = GaussianLinear.simulate(5000, 1, seed)
        tarp = peer.run_tarp(theta, x, GaussianLinear(), num_posterior_samples=25, show_progress_bar=False)
        p.append(metrics.calibration(ranks, 25, tarp=tarp).p_values["tarp"]["joint"])
    assert np.mean(np.array(p) < 0.05) <= 0.125  # 5 of 40: once in twenty at a rate of 5 %


def test_passing_says_what_goes_unseen() -> None:
    result = metrics.calibration(ranks_of(500, 2, 0), SAMPLES)
    assert result.passed and result.faults == {}
    assert result.verdict.startswith("Calibrated, as far as can be seen (6 tests on 500 draws, joint level 5 %)")
    assert f"{result.visible_width:.2f}" in result.verdict
    assert set(asdict(result)) >= {"p_values", "corrected", "faults", "level"}


# With the toolkit


@pytest.mark.parametrize("dim", [2, 10])
def test_with_the_toolkit_s_ranks_and_curves(dim: int) -> None:
    """run_sbc and run_tarp as they are: exact posteriors pass all tests, those 1.2 times too wide fail all at 2000."""
    diagnostics = pytest.importorskip("sbi.diagnostics", reason="the sbi toolkit is not installed")
    sbc = pytest.importorskip("sbi.diagnostics.sbc")
    for scale, draws in ((1.0, 500), (1.2, 500), (1.2, 2000)):
        torch.manual_seed(draws + dim)
        posterior = GaussianLinear(scale)
        theta, x = posterior.simulate(draws, dim, seed=dim)
        options = {"num_posterior_samples": 200, "show_progress_bar": False}
        ranks, _ = diagnostics.run_sbc(theta, x, posterior, **options)
        density, _ = diagnostics.run_sbc(theta, x, posterior, reduce_fns=posterior.log_prob, **options)
        tarp = diagnostics.run_tarp(theta, x, posterior, **options)
        result = metrics.calibration(ranks, 200, density_ranks=density, tarp=tarp)
        toolkit_p = sbc.check_uniformity_frequentist(ranks, 200)
        if scale == 1.0:
            assert result.passed, result.verdict
            assert (toolkit_p > 0.05 / dim).all()
        elif draws == 500:
            assert {"folded", "coverage", "density coverage"} <= failing(result)
        else:
            assert failing(result) == {"sbc", "folded", "coverage", "density coverage", "tarp"}
            assert (toolkit_p < 0.05 / dim).any()
            assert result.faults["joint"] == "too wide"
            assert "The joint posterior is too wide (coverage of highest-density regions p " in result.verdict


@pytest.mark.parametrize("scale", [1.2, 1 / 1.2])
def test_density_ranks_of_too_wide_and_too_narrow(scale: float) -> None:
    """The truth's squared distance is chi^2; that of a sample scale^2 chi^2: the rank is Binomial of its tail."""
    generator = np.random.default_rng(0)
    far = stats.chi2.sf(stats.chi2.rvs(10, size=500, random_state=generator) / scale**2, 10)
    density = generator.binomial(SAMPLES, far)
    result = metrics.calibration(ranks_of(500, 2, 0), SAMPLES, density_ranks=density)
    assert result.faults == {"joint": "too wide" if scale > 1 else "too narrow or biased"}
    assert result.verdict.count("joint posterior") == 1


def test_a_curve_that_ends_above_1_by_rounding() -> None:
    alpha = torch.linspace(0, 1, 51)
    ecp = torch.cat([alpha[:-1], torch.tensor([1 + 2**-22])])
    assert metrics.calibration(ranks_of(100, 1, 0), SAMPLES, tarp=(ecp, alpha)).p_values["tarp"]["joint"] > 0.99


def test_bad_input() -> None:
    ranks = ranks_of(100, 2, 0)
    cases = [
        ({"samples": 19}, "samples is 19; it must be an integer of at least 20"),
        ({"samples": 100}, "a rank among 100 samples must be a whole number from 0 to 100"),
        ({"ranks": ranks[:19]}, "ranks has 19 samples; at least 20"),
        ({"ranks": ranks / 500}, "must be a whole number"),
        ({"ranks": np.where(ranks > 400, np.nan, ranks)}, "NaN or infinite"),
        ({"ranks": ranks[:, 0]}, r"ranks has shape \(100,\)"),
        ({"level": 1.0}, r"level is 1\.0"),
        ({"level": 0.0}, r"level is 0\.0"),
        ({"names": ["a"]}, r"names is \['a'\]; it must be 2 different names"),
        ({"names": ["a", "joint"]}, "2 different names"),
        ({"names": ["a", "a"]}, "2 different names"),
        ({"density_ranks": ranks}, "density_ranks has shape"),
        ({"density_ranks": ranks[:50, 0]}, "density_ranks has 50 draws and ranks 100"),
        ({"tarp": (np.linspace(0, 1, 5), np.linspace(0, 1, 6))}, "tarp has curves of shapes"),
        ({"tarp": (np.linspace(0, 2, 5), np.linspace(0, 1, 5))}, "tarp has curves of shapes"),
    ]
    for changed, message in cases:
        arguments = {"ranks": ranks, "samples": SAMPLES, **changed}
        with pytest.raises(InputError, match=message):
            metrics.calibration(arguments.pop("ranks"), arguments.pop("samples"), **arguments)
    for levels in ([], [0.5, 0.5], [0.5, 1.0], [0.0], [math.nan], [[0.5]]):
        with pytest.raises(InputError, match="rising probabilities between 0 and 1"):
            metrics.central_coverage(ranks, SAMPLES, levels)
    with pytest.raises(InputError, match=r"levels has 0\.001, which 500 posterior samples do not resolve"):
        metrics.density_coverage(ranks[:, 0], SAMPLES, [0.001])
