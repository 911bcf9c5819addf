r"""Exponential moving averages of the parameters, whose widths are counted in samples seen.

After a step of B samples, t samples having been seen in all, the average moves to `beta * average + (1 - beta) *
parameters`. Two profiles:

- Half-life: `beta = 2^(-B / half_life)`; early in a run the half-life is at most `ramp * (t - B)`, so the random start
is forgotten
  (Karras et al. 2022).
- Power function: `beta = (1 - B/t)^(gamma + 1)`, which weighs the parameters at time tau by tau^gamma (Karras et al.
2024, Section 3.1):
  the profile keeps its shape as the run grows. Its relative width, the standard deviation of the profile over t, is
  `sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3)))`, and gamma is the largest root of
  `gamma^3 + 7 gamma^2 + (16 - sigma_rel^-2) gamma + (12 - sigma_rel^-2)`.

Both give beta = 0 at the first step: the average starts as the first parameters that training produced.

Post-hoc reconstruction (Karras et al. 2024, Section 3.2 and Appendix C): an average is linear in the parameters' past,
so a sum of stored averages is an average too, with the sum of their profiles. The profile that is wanted,
`p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)` on (0, t), is approximated by the stored ones in least squares over
tau, whose normal equations need only the inner products of power functions, and the weights are then scaled to sum 1.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edmund.errors import InputError, check_positive

WIDEST = math.sqrt(1 / 12)
"""sigma_rel of gamma = 0, which weighs the whole past equally."""


def sigma_rel(gamma: float) -> float:
    """The relative width of the power-function profile of exponent gamma >= 0."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def gamma(sigma_rel: float) -> float:
    """The exponent of the profile of relative width sigma_rel, 0 < sigma_rel <= 0.2886 (that of gamma = 0); else
    InputError.
    """
    if isinstance(sigma_rel, bool) or not isinstance(sigma_rel, numbers.Real) or not 0 < sigma_rel <= WIDEST:
        raise InputError(
            f"sigma_rel is {sigma_rel!r}; it must be above 0 and at most 0.2886, the width of a plain mean"
        )
    return _gamma(float(sigma_rel))


@functools.cache
def _gamma(sigma_rel: float) -> float:
    inverse_square = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse_square, 12.0 - inverse_square])
    return float(roots.real[np.abs(roots.imag) < 1e-9 * np.abs(roots)].max())


class Profile(Protocol):
    """How fast an average follows."""

    def beta(self, samples_seen: float, batch_size: float) -> float:
        """What is kept of the average in the step of `batch_size` samples that ends at `samples_seen`; in [0, 1]."""


@dataclass(frozen=True)
class HalfLife:
    """beta = 2^(-batch_size / half_life), half_life in samples, at most `ramp` times the samples seen before the step
    (None: no ramp).
    """

    half_life: float
    ramp: float | None = 0.05

    def __post_init__(self) -> None:
        check_positive("half_life", self.half_life)
        if self.ramp is not None:
            check_positive("ramp", self.ramp)

    def beta(self, samples_seen: float, batch_size: float) -> float:
        half_life = self.half_life
        if self.ramp is not None:
            half_life = min(half_life, self.ramp * (samples_seen - batch_size))
        return 0.5 ** (batch_size / half_life) if half_life > 0 else 0.0


@dataclass(frozen=True)
class PowerFunction:
    """beta = (1 - batch_size / samples_seen)^(gamma + 1), of relative width sigma_rel (0.05 and 0.10 in EDM2)."""

    sigma_rel: float

    def __post_init__(self) -> None:
        gamma(self.sigma_rel)

    def beta(self, samples_seen: float, batch_size: float) -> float:
        return float((1 - batch_size / samples_seen) ** (gamma(self.sigma_rel) + 1))


def update(average: Sequence[Tensor], parameters: Sequence[Tensor], beta: float) -> None:
    """average <- beta * average + (1 - beta) * parameters, in place, in the average's dtype (float32 for parameters in
    half precision).
    """
    update_all([average], parameters, [beta])


@torch.no_grad()
def update_all(averages: Sequence[Sequence[Tensor]], parameters: Sequence[Tensor], betas: Sequence[float]) -> None:
    """`update` of several averages of the same parameters, all in one dtype, each by its own beta."""
    target = [p if p.dtype == a.dtype else p.to(a.dtype) for a, p in zip(averages[0], parameters, strict=True)]
    for average, beta in zip(averages, betas, strict=True):
        torch._foreach_lerp_(list(average), target, 1 - beta)


def posthoc_weights(
    snapshots: Sequence[tuple[float, float]], samples_seen: float, sigma_rel: float
) -> npt.NDArray[np.float64]:
    """The weights [len(snapshots)], of sum 1, by which stored averages make one of width sigma_rel at `samples_seen`.

    snapshots: (samples seen, sigma_rel) of each stored power-function average, no two alike. With the widths 0.05 and
    0.10 stored at 16 even times, the profile of any width from 0.04 to 0.16 at the last of them is met within 1.2 % of
    its norm; at 64 times, from 0.03 to 0.25 within 1.5 %. InputError for no snapshots, for two alike, and for a
    `samples_seen` before the first or after the last of them.
    """
    stored = _stored(snapshots)
    if not stored:
        raise InputError("snapshots is empty; at least one stored average is needed")
    if len(set(stored)) < len(stored):
        twice = next(snapshot for snapshot in snapshots if list(snapshots).count(snapshot) > 1)
        raise InputError(f"snapshots contains {twice!r} more than once; no two may be alike")
    first, last = min(seen for seen, _ in stored), max(seen for seen, _ in stored)
    if not first <= samples_seen <= last:
        raise InputError(f"samples_seen is {samples_seen!r}; the snapshots allow {first:g} to {last:g}")
    gram, wanted, _ = _inner_products(stored, samples_seen, sigma_rel)
    weights = np.linalg.solve(gram, wanted)
    return np.asarray(weights / weights.sum())


def posthoc_error(
    snapshots: Sequence[tuple[float, float]], weights: npt.ArrayLike, samples_seen: float, sigma_rel: float
) -> float:
    """The distance of the profile that stored averages have in a sum with these weights from that of width sigma_rel
    at `samples_seen`, over the norm of the latter; norms are L2 over tau.

    Weights of sum 1 make an average that is off by at most this times the norm of that profile times the root of the
    integral over tau of |theta(tau) - theta_0|^2, theta being the parameters and theta_0 any fixed ones.
    """
    gram, wanted, square = _inner_products(_stored(snapshots), samples_seen, sigma_rel)
    w = np.asarray(weights, dtype=np.float64)
    # Below 0 where the profile is met exactly, by rounding.
    return math.sqrt(max(float(w @ gram @ w - 2 * w @ wanted + square), 0.0) / square)


def _stored(snapshots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(check_positive("snapshots", seen), gamma(width)) for seen, width in snapshots]


def _inner_products(
    stored: Sequence[tuple[float, float]], samples_seen: float, sigma_rel: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Of the stored profiles with each other, with the one that is wanted, and of that with itself."""
    t, exponent = np.array(stored).T
    time, power = np.array(samples_seen), np.array(gamma(sigma_rel))
    gram = _inner_product(t[:, None], exponent[:, None], t[None], exponent[None])
    return gram, _inner_product(t, exponent, time, power), float(_inner_product(time, power, time, power))


def _inner_product(t_a: np.ndarray, a: np.ndarray, t_b: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The integral over tau of two profiles, of exponents a and b at t_a and t_b; elementwise."""
    overlap = np.minimum(t_a, t_b)
    fading = (overlap / t_a) ** a * (overlap / t_b) ** b
    return np.asarray((a + 1) * (b + 1) / (a + b + 1) * fading / np.maximum(t_a, t_b))


@torch.no_grad()
def weighted_sum(averages: Iterable[Sequence[Tensor]], weights: Iterable[float]) -> list[Tensor]:
    """The sum of stored averages, each a list of the parameters, by `posthoc_weights`; in float32 at least.

    The averages are read one after the other, so that they can come from files; there must be as many as weights.
    """
    total: list[Tensor] = []
    for average, weight in zip(averages, weights, strict=True):
        if not total:
            total = [torch.zeros_like(a, dtype=torch.promote_types(a.dtype, torch.float32)) for a in average]
        torch._foreach_add_(
            total, [a.to(sum_.dtype) for a, sum_ in zip(average, total, strict=True)], alpha=float(weight)
        )
    return total
