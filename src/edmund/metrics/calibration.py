r"""Calibration: is the truth where the posterior says it is, as often as it says so?

Of parameters drawn from the prior and posteriors of data simulated from them, the rank r of each true parameter among L
posterior samples is uniform on 0 .. L when the posterior is exact (simulation-based calibration, SBC: Talts et al.
2018, arXiv 1804.06788). The ranks are the toolkit's to make (`sbi.diagnostics.run_sbc`), and the TARP curve
(`run_tarp`); what they say is decided here, by tests that are valid for any number of draws N and samples L:

- `sbc`, a parameter at a time: the Kolmogorov-Smirnov distance of the ranks from their uniform law. Sees anything, but
  a wrong width late: about 2000 draws for a factor of 1.2.
- `folded`, a parameter at a time: the mean of |r - L/2|, which is too small where the posterior is too wide. Of wrong
  widths nearly the best test there is: 500 draws are plenty for 1.2 (a shift of 4.5 standard errors).
- `coverage`, a parameter at a time: how often the central intervals of `LEVELS` hold the truth; the largest deviation
  in units of its binomial error. The intervals are nested, so the counts \(X_1 \le X_2 \le \dots\) are a Markov chain,
  \(X_{k+1} - X_k \mid X_k \sim \mathrm{Bin}(N - X_k, (p_{k+1} - p_k)/(1 - p_k))\), and the p-value is exact.
- `density coverage`, once: the same for highest-density regions of the joint posterior, from the rank of the truth's
  log density among the samples' (Deistler et al. 2022, arXiv 2210.04815).
- `tarp`, once: the Kolmogorov-Smirnov distance of the TARP curve from the diagonal (Lemos et al. 2023, arXiv
  2302.03026). The toolkit's `check_tarp` compares the two axes as samples of one number a bin: its p-value does not
  know the number of draws, and never fell below 5 % where this one always did (2000 draws, widths wrong by 1.2).

All p-values of all tests are corrected together (Holm 1979), so that an exact posterior fails in at most `level` of all
cases. How the posterior is wrong is read from the normal scores \(\Phi^{-1}\) of the ranks: for a Gaussian posterior
they are the truth's distances from its mean in its standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch

from edmund.errors import InputError, check_count, check_positive
from edmund.metrics.features import Data, flatten

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""The credible levels that the coverage tests look at."""
JOINT = "joint"
"""What the tests of the joint posterior are filed under."""

_WORDS = {
    "sbc": "rank uniformity",
    "folded": "folded ranks",
    "coverage": "coverage of central intervals",
    "density coverage": "coverage of highest-density regions",
    "tarp": "TARP",
}
# Fewer draws or samples than this carry no 95 % interval.
_LEAST = 20
# More truths beyond all samples than this, and the normal scores are too much cut off to measure with.
_MANY_OUTSIDE = 0.15


@dataclass(frozen=True)
class Calibration:
    """What the ranks say of the posterior: `passed`, and in words `verdict`."""

    draws: int
    """N, simulated truths."""
    samples: int
    """L, posterior samples a draw."""
    level: float
    """How often an exact posterior may fail any test."""
    p_values: dict[str, dict[str, float]]
    """p_values[test][parameter], uncorrected; the joint tests are under `JOINT`."""
    corrected: dict[str, dict[str, float]]
    """The same after Holm's correction for all of them: a test fails where this is below `level`."""
    bias: dict[str, float]
    """How far the posterior of each parameter lies above the truth, in its standard deviations; error 1/sqrt(N)."""
    width: dict[str, float]
    """The posterior's standard deviation over what would be right, for each parameter; error 1/sqrt(2 N)."""
    outside: dict[str, float]
    """The share of truths below or above all L samples, 2/(L + 1) if right. How far out these are is unknown: where
    they are many, `bias` and `width` are nearer to 0 and 1 than the posterior is.
    """
    faults: dict[str, str]
    """What is wrong, by parameter (or `JOINT`), of those with a failed test."""

    @property
    def passed(self) -> bool:
        """Whether no test fails."""
        return not self.faults

    @property
    def visible_width(self) -> float:
        r"""The factor by which a Gaussian posterior must be too wide for `folded` to see it in four of five cases.

        The folded rank's mean is \((2/\pi) \arctan(1/\text{factor})\) of its range; infinite where N is too small.
        """
        count = sum(len(of_test) for of_test in self.p_values.values())
        normal = NormalDist()
        errors = normal.inv_cdf(1 - self.level / (2 * count)) + normal.inv_cdf(0.8)
        shift = errors / math.sqrt(12 * self.draws)
        return 1 / math.tan(math.pi / 2 * (0.5 - shift)) if shift < 0.5 else math.inf

    @property
    def verdict(self) -> str:
        """The result in words: how which parameters are wrong and by which tests; or what may have gone unseen."""
        count = sum(len(of_test) for of_test in self.p_values.values())
        family = f"{count} tests on {self.draws} draws, joint level {100 * self.level:g} %"
        if self.passed:
            return (
                f"Calibrated, as far as can be seen ({family}): no test fails. "
                f"A width wrong by a factor of less than {self.visible_width:.2f} may go unseen."
            )
        alone = {name: fault for name, fault in self.faults.items() if name != JOINT}
        sentences = [
            self._sentence(fault, [name for name in alone if alone[name] == fault])
            for fault in dict.fromkeys(alone.values())
        ]
        if JOINT in self.faults:
            sentences.append(f"The joint posterior is {self.faults[JOINT]} ({self._reasons([JOINT])}).")
        return f"Not calibrated ({family}). " + " ".join(sentences)

    def _sentence(self, fault: str, names: list[str]) -> str:
        """What is said of all parameters with one fault."""
        if 3 < len(names) == len(self.width):
            who = f"All {len(names)} parameters are"
        else:
            who = f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"
        sizes = []
        outside = np.mean([self.outside[name] for name in names])
        if outside > _MANY_OUTSIDE:
            sizes.append(f"{100 * outside:.0f} % of the truths outside all samples")
        elif "biased" in fault:
            sizes.append(f"by about {abs(np.mean([self.bias[name] for name in names])):.2f} standard deviations")
        if "too" in fault and outside <= _MANY_OUTSIDE:
            sizes.append(f"about {np.mean([self.width[name] for name in names]):.2f} times as wide as right")
        return f"{who} {', '.join([fault, *sizes])} ({self._reasons(names)})."

    def _reasons(self, names: list[str]) -> str:
        """The tests that fail for any of the parameters, with their smallest corrected p-value."""
        reasons = []
        for test, words in _WORDS.items():
            found = [p for name, p in self.corrected.get(test, {}).items() if name in names and p < self.level]
            if found:
                reasons.append(f"{words} p {_p(min(found))}" + (f" in {len(found)}" if len(names) > 1 else ""))
        return "; ".join(reasons)


def calibration(
    ranks: Data,
    samples: int,
    *,
    density_ranks: Data | None = None,
    tarp: tuple[Data, Data] | None = None,
    names: Sequence[str] | None = None,
    level: float = 0.05,
) -> Calibration:
    """Test the `ranks` [N, D] of true parameters among `samples` = L posterior samples each: whole numbers 0 .. L.

    density_ranks: [N] or [N, 1], the rank of the truth's log density among the samples' (`run_sbc` with the posterior's
    `log_prob`). tarp: (ecp [K], alpha [K]) as `run_tarp` returns them, of equally many draws and samples. names: of the
    D parameters; None: theta_1 ... level: the probability that an exact posterior fails, in (0, 1).

    Errors: fewer than 20 draws or samples, ranks that are not whole or not in 0 .. L, another number of density ranks,
    of names, or of the two curves' points.
    """
    check_count("samples", samples, least=_LEAST)
    if check_positive("level", level) >= 1:
        raise InputError(f"level is {level!r}; it must be a probability between 0 and 1")
    rows = _whole("ranks", ranks, samples)
    known = _names(names, rows.shape[1])
    raw = {
        "sbc": dict(zip(known, _ks_p(_ks_distance(rows, samples), len(rows)), strict=True)),
        "folded": dict(zip(known, _folded_p(rows, samples), strict=True)),
        "coverage": dict(zip(known, _coverage_p(*central_coverage(rows, samples), len(rows)), strict=True)),
    }
    signs = {}
    if density_ranks is not None:
        density = _density("density_ranks", density_ranks, samples)
        if len(density) != len(rows):
            raise InputError(f"density_ranks has {len(density)} draws and ranks {len(rows)}; they must be as many")
        raw["density coverage"] = {JOINT: _coverage_p(*density_coverage(density, samples), len(rows))[0]}
        signs["density coverage"] = float(density.mean() - samples / 2)
    if tarp is not None:
        ecp, alpha = _curves(tarp)
        # of exact posteriors the curve is that of a lattice of L + 1 values: within 1/(L + 1) of the diagonal
        distance = np.maximum(np.abs(ecp - alpha).max(keepdims=True) - 1 / (samples + 1), 0)
        raw["tarp"] = {JOINT: _ks_p(distance, len(rows))[0]}
        signs["tarp"] = float((ecp - alpha)[alpha > 0.5].sum())
    corrected = _holm(raw)
    quantiles = _normal_scores(samples)
    scores = quantiles[rows] / quantiles.std()
    outside = ((rows == 0) | (rows == samples)).mean(0)
    faults = {}
    for k, name in enumerate(known):
        if any(of_test.get(name, 1.0) < level for of_test in corrected.values()):
            faults[name] = _fault(scores[:, k], outside[k] > _MANY_OUTSIDE)
    failed = [sign for test, sign in signs.items() if corrected[test][JOINT] < level]
    if failed:
        # a biased posterior misses the truth as a narrow one does, and by TARP may look wide too
        biased = any("biased" in fault for fault in faults.values())
        width = "too wide" if all(sign > 0 for sign in failed) else "too narrow or biased"
        faults[JOINT] = "off" if biased else width
    return Calibration(
        draws=len(rows),
        samples=samples,
        level=level,
        p_values=raw,
        corrected=corrected,
        bias=dict(zip(known, (-scores.mean(0)).tolist(), strict=True)),
        width={name: 1 / std if std else math.inf for name, std in zip(known, scores.std(0).tolist(), strict=True)},
        outside=dict(zip(known, outside.tolist(), strict=True)),
        faults=faults,
    )


def central_coverage(
    ranks: Data, samples: int, levels: Sequence[float] | np.ndarray = LEVELS
) -> tuple[np.ndarray, np.ndarray]:
    """How often central credible intervals hold the truth: nominal [K] and empirical [D, K] coverage, float64.

    Of `ranks` [N, D] among `samples` = L. The interval of mass a holds the truth if |2 r - L| + 1 <= a (L + 1); of
    exact posteriors that happens with a probability of a or up to 2/(L + 1) less, and this is the nominal value that is
    returned. levels: rising, in (0, 1).
    """
    check_count("samples", samples)
    return _coverage(
        np.abs(2 * _whole("ranks", ranks, samples) - samples) + 1, _central_lattice(samples), samples, levels
    )


def density_coverage(
    density_ranks: Data, samples: int, levels: Sequence[float] | np.ndarray = LEVELS
) -> tuple[np.ndarray, np.ndarray]:
    """How often highest-density regions hold the truth: nominal [K] and empirical [1, K] coverage, float64.

    Of `density_ranks` [N] or [N, 1], how many of `samples` = L have a lower density than the truth. The region of mass
    a holds the truth if L - r + 1 <= a (L + 1); the nominal values are as in `central_coverage`.
    """
    check_count("samples", samples)
    rows = _density("density_ranks", density_ranks, samples)
    return _coverage(samples + 1 - rows, np.arange(1, samples + 2), samples, levels)


def _coverage(
    credibility: np.ndarray, lattice: np.ndarray, samples: int, levels: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Nominal [K] and empirical [D, K] coverage of truths [N, D] at the edge of a region of credibility / (L + 1), all
    values of the `lattice` [L + 1] being as likely.
    """
    asked = np.asarray(levels, dtype=np.float64)
    if (
        asked.ndim != 1
        or not len(asked)
        or not (asked > 0).all()
        or not (asked < 1).all()
        or (np.diff(asked) <= 0).any()
    ):
        raise InputError(f"levels is {levels!r}; it must be rising probabilities between 0 and 1")
    nominal = np.searchsorted(np.sort(lattice / (samples + 1)), asked, side="right") / (samples + 1)
    if nominal[0] == 0:
        raise InputError(f"levels has {asked[0]:g}, which {samples} posterior samples do not resolve")
    counts = [np.searchsorted(np.sort(column / (samples + 1)), asked, side="right") for column in credibility.T]
    return nominal, np.array(counts) / len(credibility)


def _ks_distance(ranks: np.ndarray, samples: int) -> np.ndarray:
    """Kolmogorov-Smirnov distance [D] from the uniform law on 0 .. L, whose distribution has its steps there too."""
    cumulative = np.stack([np.bincount(column, minlength=samples + 1).cumsum() for column in ranks.T]) / len(ranks)
    distance: np.ndarray = np.abs(cumulative - np.arange(1, samples + 2) / (samples + 1)).max(1)
    return distance


def _ks_p(distance: np.ndarray, draws: int) -> list[float]:
    """p-values of distances [D]: exact for a continuous law, on the safe side for ranks, which have ties."""
    from scipy.stats import kstwo

    return [float(kstwo.sf(value, draws)) for value in distance]


def _folded_p(ranks: np.ndarray, samples: int) -> list[float]:
    """p-value [D], two-sided, of the mean folded rank, taken as normal: a sum of uniforms has lighter tails than that,
    so that the p-value is on the safe side.
    """
    lattice = np.abs(np.arange(samples + 1) - samples / 2)
    shift = np.abs(ranks - samples / 2).mean(0) - lattice.mean()
    z = np.abs(shift) * math.sqrt(len(ranks)) / lattice.std()
    return [math.erfc(value / math.sqrt(2)) for value in z.tolist()]


def _coverage_p(nominal: np.ndarray, covered: np.ndarray, draws: int) -> list[float]:
    """p-value of the largest standardised deviation of each row of `covered` [D, K]."""
    nominal, first = np.unique(nominal, return_index=True)
    deviation = np.abs(covered[:, first] - nominal) / np.sqrt(nominal * (1 - nominal) / draws)
    return [_largest_deviation_p(nominal, draws, value) for value in deviation.max(1).tolist()]


def _largest_deviation_p(nominal: np.ndarray, draws: int, deviation: float) -> float:
    """P(max_k |X_k - N p_k| / sqrt(N p_k (1 - p_k)) >= `deviation`) for counts of nested events, p [K] rising.

    The chain is followed through the counts that stay inside; the probability of what is left is taken from 1, so that
    below 1e-12 the result is rounding.
    """
    if draws > 1000:
        deviation = min(deviation, 10.0)  # far below 1e-12 already, and the chain has few states enough to follow
    log_factorial = torch.lgamma(torch.arange(draws + 1, dtype=torch.float64) + 1).numpy()
    center, radius = draws * nominal, deviation * np.sqrt(draws * nominal * (1 - nominal))
    # strictly inside: what equals the observed deviation is as extreme; the margin is for the rounding of the two sides
    low = np.maximum(np.floor(center - radius * (1 - 1e-9)) + 1, 0).astype(int)
    high = np.minimum(np.ceil(center + radius * (1 - 1e-9)) - 1, draws).astype(int)
    inside, count, before = np.ones(1), np.zeros(1, dtype=int), 0.0
    for p, least, most in zip(nominal.tolist(), low.tolist(), high.tolist(), strict=True):
        then = np.arange(least, most + 1)
        step = (p - before) / (1 - before)
        more = then[None, :] - count[:, None]
        choose = (
            log_factorial[draws - count][:, None] - log_factorial[draws - then] - log_factorial[np.maximum(more, 0)]
        )
        log_binomial = choose + more * math.log(step) + (draws - then) * math.log1p(-step)
        inside = inside @ np.where(more >= 0, np.exp(np.where(more >= 0, log_binomial, 0.0)), 0.0)
        count, before = then, p
    return max(1 - float(inside.sum()), 0.0)


def _holm(raw: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The p-values of all tests together by Holm's step-down: the k-th smallest of m times m - k + 1, never falling."""
    order = sorted((p, test, name) for test, of_test in raw.items() for name, p in of_test.items())
    corrected: dict[str, dict[str, float]] = {test: {} for test in raw}
    largest = 0.0
    for k, (p, test, name) in enumerate(order):
        largest = max(largest, min(p * (len(order) - k), 1.0))
        corrected[test][name] = largest
    return {test: {name: corrected[test][name] for name in of_test} for test, of_test in raw.items()}


def _fault(scores: np.ndarray, cut_off: bool) -> str:
    """What is wrong with a parameter that failed, from the mean and the variance of its normal scores [N].

    The larger of the two deviations is the cause if it is above 2 standard errors, the other one as well above 4.
    cut_off: many truths lie outside all samples, and their scores' small variance says nothing.
    """
    draws, std = len(scores), float(scores.std())
    spread = (std**2 - 1) * math.sqrt(draws / 2)
    shift = float(scores.mean()) * math.sqrt(draws)
    if not cut_off:
        shift /= std
    if cut_off and spread < 0:
        spread = 0.0
    found = []
    if abs(shift) > (2 if abs(shift) > abs(spread) else 4):
        found.append("biased low" if shift > 0 else "biased high")
    if abs(spread) > (2 if abs(spread) >= abs(shift) else 4):
        found.append("too narrow" if spread > 0 else "too wide")
    return " and ".join(found) or "of the wrong shape"


def _normal_scores(samples: int) -> np.ndarray:
    """Phi^-1 [L + 1] at the middle of each rank's share."""
    middle = (torch.arange(samples + 1, dtype=torch.float64) + 0.5) / (samples + 1)
    quantiles: np.ndarray = torch.special.ndtri(middle).numpy()
    return quantiles


def _central_lattice(samples: int) -> np.ndarray:
    return np.abs(2 * np.arange(samples + 1) - samples) + 1


def _whole(argument: str, ranks: Data, samples: int) -> np.ndarray:
    """`ranks` as int64 [N, D]."""
    rows = flatten(argument, ranks, least=_LEAST).double().numpy()
    wrong = (rows != np.round(rows)) | (rows < 0) | (rows > samples)
    if wrong.any():
        raise InputError(
            f"{argument} has {wrong.sum()} values such as {rows[wrong][0]:g}; a rank among {samples} samples must be a "
            f"whole number from 0 to {samples}"
        )
    return rows.astype(np.int64)


def _density(argument: str, ranks: Data, samples: int) -> np.ndarray:
    """`ranks` [N] or [N, 1] as int64 [N, 1]."""
    if ranks.ndim == 1:
        ranks = ranks[:, None]
    if tuple(ranks.shape[1:]) != (1,):
        raise InputError(f"{argument} has shape {tuple(ranks.shape)}; it must be one number a draw, [N] or [N, 1]")
    return _whole(argument, ranks, samples)


def _curves(tarp: tuple[Data, Data]) -> tuple[np.ndarray, np.ndarray]:
    ecp, alpha = (np.asarray(curve, dtype=np.float64) for curve in tarp)
    # they are float32 sums and may end a little above 1
    inside = all(((curve > -1e-4) & (curve < 1 + 1e-4)).all() for curve in (ecp, alpha))
    if ecp.ndim != 1 or len(ecp) < 2 or ecp.shape != alpha.shape or not inside:
        raise InputError(
            f"tarp has curves of shapes {ecp.shape} and {alpha.shape}; they must be (ecp [K], alpha [K]) with K at "
            "least 2 and values from 0 to 1"
        )
    return ecp, alpha


def _names(names: Sequence[str] | None, dim: int) -> list[str]:
    if names is None:
        return [f"theta_{k + 1}" for k in range(dim)]
    if len(names) != dim or len(set(names)) != dim or JOINT in names:
        raise InputError(f"names is {list(names)!r}; it must be {dim} different names, one a column of ranks")
    return list(names)


def _p(value: float) -> str:
    return "< 1e-12" if value < 1e-12 else f"= {value:.1g}"
