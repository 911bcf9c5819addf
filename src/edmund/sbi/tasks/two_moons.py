r"""Two moons: a crescent of observations for each theta, two crescents of theta for each observation.

    a ~ U(-pi/2, pi/2),  r ~ N(0.1, 0.01^2)
    x = (r cos a + 0.25, r sin a) + (-|t1 + t2| / sqrt 2, (-t1 + t2) / sqrt 2)

(Lueckmann et al. 2021, T.8; Greenberg et al. 2019). In the rotated coordinates s = (t1 + t2) / sqrt 2 and
q = (-t1 + t2) / sqrt 2 the noise (u, v) = (r cos a, r sin a) is u = x1 - 0.25 + |s|, v = x2 - q: a shift on each of the
sheets s > 0 and s < 0. Its density in the plane is N(r; 0.1, 0.01^2) / (pi r) for u > 0; that of r < 0, a probability
of 8e-24, is left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Uniform

from edmund.errors import InputError
from edmund.sbi.tasks._base import Task
from edmund.sbi.tasks.draws import normal, uniform
from edmund.sbi.tasks.exact import Exact
from edmund.sbi.tasks.truncated import log_mass, moments, within

_RADIUS, _WIDTH, _SHIFT = 0.1, 0.01, 0.25
# Of the midpoint rule over the angle: the integrand is continuous, and smooth but for a few kinks.
_ANGLES = 20_000
_LEAST_MASS = 1e-5
_MOST_TRIES = 1_000_000


class TwoMoons(Task):
    """theta ~ U[-1, 1]^2; x on a half circle of radius 0.1, 0.01 thick, whose place depends on theta."""

    name = "two_moons"
    dim_theta = 2
    dim_x = 2

    @property
    def prior(self) -> Distribution:
        """U[-1, 1]^2."""
        return Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)

    def _simulate(self, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        angle = math.pi * (uniform(theta, (len(theta),), generator) - 0.5)
        radius = _RADIUS + _WIDTH * normal(theta, (len(theta),), generator)
        s, q = _rotate(theta)
        return torch.stack([radius * angle.cos() + _SHIFT - s.abs(), radius * angle.sin() + q], dim=1)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        s, q = _rotate(theta)
        return _log_noise(x[0] - _SHIFT + s.abs(), x[1] - q)

    def posterior(self, x: Tensor) -> Exact:
        """Both crescents, cut to the box."""
        return TwoMoonsPosterior(self._checked_x(x).cpu())


class TwoMoonsPosterior(Exact):
    """p(theta | x) of one x [2].

    A noise (a, r) and a sheet, s > 0 or s < 0, give one theta, linear in r: s = +-(r cos a + 0.25 - x1) and
    q = x2 - r sin a. The posterior is their law cut to what the sheet and the box allow, for each a an interval of r:
    the normaliser and the moments are integrals over a of moments of a truncated normal (a midpoint rule). A draw is a
    draw of the noise and the sheet, made again where it falls outside.
    """

    dim = 2

    def __init__(self, x: Tensor) -> None:
        self._x = x
        angle = math.pi * ((torch.arange(_ANGLES, dtype=torch.float64) + 0.5) / _ANGLES - 0.5)
        angle, sheet = angle.repeat(2), torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(_ANGLES)
        constant, slope = self._line(angle, sheet)
        low, high = self._radii(angle, constant, slope)
        mass = log_mass(low, high).exp()
        self._mass = float(mass.sum() / _ANGLES)
        """Of both sheets: 2 where nothing is cut."""
        if not self._mass > _LEAST_MASS:
            raise InputError(
                f"x is {x.tolist()}; two_moons makes such an x from its prior with a probability below {_LEAST_MASS:g}"
            )
        kept = mass > 0
        weight, constant, slope = mass[kept] / mass.sum(), constant[kept], slope[kept]
        first, second = moments(low[kept], high[kept])
        radius = (_RADIUS + _WIDTH * first)[:, None]
        radius_square = (_RADIUS**2 + 2 * _RADIUS * _WIDTH * first + _WIDTH**2 * second)[:, None, None]
        self.mean = weight @ (constant + slope * radius)
        crossed = constant[:, :, None] * slope[:, None]
        square = (
            constant[:, :, None] * constant[:, None]
            + (crossed + crossed.mT) * radius[:, :, None]
            + slope[:, :, None] * slope[:, None] * radius_square
        )
        self.covariance = (weight[:, None, None] * square).sum(0) - self.mean[:, None] * self.mean

    def _line(self, angle: Tensor, sheet: Tensor) -> tuple[Tensor, Tensor]:
        """theta = constant + slope r, each [M, 2]."""
        s, q = sheet * (_SHIFT - self._x[0]), self._x[1].expand(len(angle))
        s_slope, q_slope = sheet * angle.cos(), -angle.sin()
        return _rotate_back(s, q), _rotate_back(s_slope, q_slope)

    def _radii(self, angle: Tensor, constant: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """The interval of (r - 0.1) / 0.01 in which theta is in the box, |s| is positive and r too."""
        ends = torch.stack([(-1 - constant) / slope, (1 - constant) / slope])
        low = torch.maximum(ends.amin(0).amax(1), (self._x[0] - _SHIFT) / angle.cos()).clamp(min=0)
        high = ends.amax(0).amin(1)
        return (low - _RADIUS) / _WIDTH, (high - _RADIUS) / _WIDTH

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        found = torch.empty(0, 2, dtype=torch.float64)
        while len(found) < n:
            tries = min(math.ceil((n - len(found)) * 2 / self._mass) + 64, _MOST_TRIES)
            angle = math.pi * (uniform(self._x, (tries,), generator) - 0.5)
            radius = _RADIUS + _WIDTH * normal(self._x, (tries,), generator)
            sheet = 1 - 2 * (uniform(self._x, (tries,), generator) < 0.5).double()
            constant, slope = self._line(angle, sheet)
            theta = constant + slope * radius[:, None]
            # Elsewhere this sheet's |s| would be negative.
            allowed = (radius > 0) & (radius * angle.cos() + _SHIFT > self._x[0])
            found = torch.cat([found, theta[allowed & _inside(theta)]])
        return within(found[:n], -1.0, 1.0)

    def _log_prob(self, theta: Tensor) -> Tensor:
        s, q = _rotate(theta)
        log_density = _log_noise(self._x[0] - _SHIFT + s.abs(), self._x[1] - q) - math.log(self._mass)
        return torch.where(_inside(theta), log_density, -math.inf)


def _inside(theta: Tensor) -> Tensor:
    """Whether theta [B, 2] is in the prior's support, [-1, 1)^2."""
    return ((theta >= -1) & (theta < 1)).all(dim=1)


def _rotate_back(s: Tensor, q: Tensor) -> Tensor:
    """theta [B, 2] of s and q, each [B]."""
    return torch.stack([s - q, s + q], dim=1) / math.sqrt(2)


def _rotate(theta: Tensor) -> tuple[Tensor, Tensor]:
    """s = (t1 + t2) / sqrt 2 and q = (-t1 + t2) / sqrt 2, each [B], of theta [B, 2]."""
    first, second = theta.unbind(1)
    return (first + second) / math.sqrt(2), (second - first) / math.sqrt(2)


def _log_noise(u: Tensor, v: Tensor) -> Tensor:
    """The log-density of the crescent (u, v) = (r cos a, r sin a) in the plane; -inf for u <= 0."""
    radius = torch.hypot(u, v)
    log_radius = -((radius - _RADIUS) / _WIDTH).square() / 2 - math.log(_WIDTH * math.sqrt(2 * math.pi))
    return torch.where(u > 0, log_radius - radius.log() - math.log(math.pi), -math.inf)
