r"""Normal laws cut to an interval or a box.

For Z ~ N(0, 1) cut to [a, b] with mass m = Phi(b) - Phi(a),

    E[Z] = (phi(a) - phi(b)) / m,   E[Z^2] = 1 + (a phi(a) - b phi(b)) / m,   Z = Phi^-1(Phi(a) + u m)  for u ~ U(0, 1)

(Johnson, Kotz & Balakrishnan, "Continuous univariate distributions", 13.10). An interval of the upper tail is mirrored
first, where Phi keeps its digits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edmund.errors import InputError
from edmund.sbi.tasks.draws import uniform
from edmund.sbi.tasks.exact import Exact

# Of one dimension: below, about 37 standard deviations away, Phi is nil in float64 and cannot be inverted.
_LEAST_LOG_MASS = -700.0


def log_mass(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)), elementwise; -inf where high <= low."""
    low, high, _ = _lower_tail(low, high)
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return torch.where(high > low, log_high + torch.log1p(-torch.exp(log_low - log_high)), -math.inf)


def moments(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """E[Z] and E[Z^2] of the standard normal cut to [low, high], elementwise; low < high, both finite."""
    mass = log_mass(low, high)
    at_low, at_high = (torch.exp(-z.square() / 2 - math.log(2 * math.pi) / 2 - mass) for z in (low, high))
    return at_low - at_high, 1 + low * at_low - high * at_high


def draw(low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """One draw of the standard normal cut to [low, high] for each element."""
    low, high, mirrored = _lower_tail(low, high)
    # torch's ndtr is 1 + erf and has no digits below -8; erfc has them all.
    below, above = (torch.erfc(-z / math.sqrt(2)) / 2 for z in (low, high))
    z = torch.special.ndtri(below + uniform(low, tuple(low.shape), generator) * (above - below))
    return torch.where(mirrored, -z, z)


def _lower_tail(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The interval, mirrored where all of it is above 0, and where that is."""
    mirrored = low > 0
    return torch.where(mirrored, -high, low), torch.where(mirrored, -low, high), mirrored


def within(theta: Tensor, low: float, high: float) -> Tensor:
    """theta as float32 in [low, high): a draw that float32 rounds onto the open end or past the other is moved in.

    torch's Uniform counts its upper bound as outside.
    """
    last = torch.nextafter(torch.tensor(high), torch.tensor(low))
    return theta.float().clamp(low, float(last))


class TruncatedMixture(Exact):
    """sum_k w_k N(centre, scale_k^2 I), even w_k, cut to the box [low, high)^D.

    centre [D]. Cut to the box, component k has the share w_k prod_d (its mass in dimension d), and its dimensions stay
    independent.
    """

    def __init__(self, centre: Tensor, scales: tuple[float, ...], low: float, high: float) -> None:
        self.dim = len(centre)
        self._centre, self._low, self._high = centre, low, high
        self._scales = torch.tensor(scales, dtype=torch.float64)[:, None]
        self._from, self._to = (low - centre) / self._scales, (high - centre) / self._scales  # [K, D]
        log_masses = log_mass(self._from, self._to)
        if not log_masses.amax(0).min() > _LEAST_LOG_MASS:
            raise InputError(
                f"x is {[round(value, 6) for value in centre.tolist()]}, so far outside [{low:g}, {high:g}] that its "
                "likelihood there is nil in float64"
            )
        log_shares = log_masses.sum(1) - math.log(len(scales))
        self._log_mass = log_shares.logsumexp(0)
        self._shares = (log_shares - self._log_mass).exp()
        first, second = moments(self._from, self._to)
        means = centre + self._scales * first
        variances = self._scales.square() * (second - first.square())
        mean = self._shares @ means
        between = means - mean
        self.mean = mean
        self.covariance = torch.diag(self._shares @ variances) + (self._shares * between.mT) @ between

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        component = torch.multinomial(self._shares, n, replacement=True, generator=generator)
        z = draw(self._from[component], self._to[component], generator)
        return within(self._centre + self._scales[component] * z, self._low, self._high)

    def _log_prob(self, theta: Tensor) -> Tensor:
        inside = ((theta >= self._low) & (theta < self._high)).all(dim=1)
        z = (theta - self._centre) / self._scales[:, None]
        log_components = -z.square().sum(2) / 2 - self.dim * (self._scales.log() + math.log(2 * math.pi) / 2)
        log_density = log_components.logsumexp(0) - math.log(len(self._scales)) - self._log_mass
        return torch.where(inside, log_density, -math.inf)
