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

from edmund.sbi.tasks._base import Task
from edmund.sbi.tasks.draws import normal, uniform

RADIUS, WIDTH, SHIFT = 0.1, 0.01, 0.25


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
        radius = RADIUS + WIDTH * normal(theta, (len(theta),), generator)
        s, q = rotate(theta)
        return torch.stack([radius * angle.cos() + SHIFT - s.abs(), radius * angle.sin() + q], dim=1)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        s, q = rotate(theta)
        return log_noise(x[0] - SHIFT + s.abs(), x[1] - q)


def rotate(theta: Tensor) -> tuple[Tensor, Tensor]:
    """s = (t1 + t2) / sqrt 2 and q = (-t1 + t2) / sqrt 2, each [B], of theta [B, 2]."""
    first, second = theta.unbind(1)
    return (first + second) / math.sqrt(2), (second - first) / math.sqrt(2)


def log_noise(u: Tensor, v: Tensor) -> Tensor:
    """The log-density of the crescent (u, v) = (r cos a, r sin a) in the plane; -inf for u <= 0."""
    radius = torch.hypot(u, v)
    log_radius = -((radius - RADIUS) / WIDTH).square() / 2 - math.log(WIDTH * math.sqrt(2 * math.pi))
    return torch.where(u > 0, log_radius - radius.log() - math.log(math.pi), -math.inf)
