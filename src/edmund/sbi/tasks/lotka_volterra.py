r"""Prey u and predators v: the Lotka-Volterra equations.

    du/dt = alpha u - beta u v,   dv/dt = -gamma v + delta u v,   u(0) = 30,  v(0) = 1,

over 20 days saved every 0.1 day, of which every 21st is kept: ten points each, x ~ LogNormal(log u, 0.1), prey first
(Lueckmann et al. 2021, T.10). The populations fall to 1e-10 and below between outbreaks, so that the equations are
solved for their logarithms,

    d(log u)/dt = alpha - beta v,   d(log v)/dt = -gamma + delta u,

with four steps of Runge-Kutta 4 per 0.1 day: within 2e-4 of the exact logarithms for 99.3 % of the prior, within 0.01
(a tenth of the noise) for all but 2 in 10 000.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LogNormal

from edmund.sbi.tasks._base import Task
from edmund.sbi.tasks.draws import normal
from edmund.sbi.tasks.runge_kutta import CHUNK, rk4

_START = (30.0, 1.0)
_SAVED_EVERY = 0.1
_STEPS_PER_SAVED = 4
_KEPT_EVERY = 21
_POINTS = 10
_NOISE = 0.1
# The benchmark clamps the populations to this range before it adds noise.
_LEAST, _MOST = 1e-10, 1e4


class LotkaVolterra(Task):
    """alpha, gamma ~ LogNormal(-0.125, 0.5), beta, delta ~ LogNormal(-3, 0.5); x is 10 counts of prey, 10 of predators.

    theta is (alpha, beta, gamma, delta), per day.
    """

    name = "lotka_volterra"
    dim_theta = 4
    dim_x = 2 * _POINTS
    _theta_domain = "finite and positive"
    _x_domain = "finite and positive"

    @property
    def prior(self) -> Distribution:
        """Independent log-normals."""
        return Independent(LogNormal(torch.tensor([-0.125, -3.0, -0.125, -3.0]), torch.full((4,), 0.5)), 1)

    def _defined(self, theta: Tensor) -> Tensor:
        return (theta.isfinite() & (theta > 0)).all(dim=1)

    def _possible(self, x: Tensor) -> Tensor:
        return x.isfinite() & (x > 0)

    def _simulate(self, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        log = self.log_populations(theta)
        return torch.exp(log + _NOISE * normal(log, tuple(log.shape), generator))

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        residual = (x.log() - self.log_populations(theta)) / _NOISE
        constant = x.log().sum() + self.dim_x * math.log(_NOISE * math.sqrt(2 * math.pi))
        return -residual.square().sum(1) / 2 - constant

    @staticmethod
    def log_populations(theta: Tensor) -> Tensor:
        """The logarithms of the populations at the ten times kept, clamped: theta [B, 4] -> [B, 20] float64."""
        found = [_log_populations(part) for part in torch.split(theta.double(), CHUNK)]
        return torch.cat(found).clamp(math.log(_LEAST), math.log(_MOST))


def _log_populations(theta: Tensor) -> Tensor:
    alpha, beta, gamma, delta = theta.unbind(1)
    growth = torch.stack([alpha, -gamma])
    encounters = torch.stack([-beta, delta])

    def slope(log: Tensor) -> Tensor:
        return torch.addcmul(growth, encounters, log.exp().flip(0))

    start = torch.tensor(_START, dtype=theta.dtype, device=theta.device).log()
    path = rk4(
        slope,
        start[:, None].expand(2, len(theta)),
        step=_SAVED_EVERY / _STEPS_PER_SAVED,
        substeps=_STEPS_PER_SAVED * _KEPT_EVERY,
        saves=_POINTS - 1,
    )
    return path.permute(2, 1, 0).flatten(1)
