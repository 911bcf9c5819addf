r"""The three Gaussian tasks: one mean to infer, under a Gaussian prior, in a box, and from a mixture.

With x | theta ~ N(theta, s^2 I) and theta ~ N(0, s^2 I) the posterior is N(x / 2, s^2 / 2 I).
With a uniform prior on a box it is the likelihood read as a function of theta, cut to the box: in independent
dimensions a truncated normal for each, and for a mixture sum_k w_k N(theta, s_k^2 I) a mixture of such products whose
weights are w_k times the mass of component k in the box (Lueckmann et al. 2021, "Benchmarking simulation-based
inference", T.1, T.2, T.8).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, Uniform

from edmund.sbi.tasks._base import Task
from edmund.sbi.tasks.draws import normal, uniform
from edmund.sbi.tasks.exact import Exact, Gaussian
from edmund.sbi.tasks.truncated import TruncatedMixture


class GaussianLinear(Task):
    """theta ~ N(0, 0.1 I), x ~ N(theta, 0.1 I) in 10 dimensions; 0.1 is the variance."""

    name = "gaussian_linear"
    dim_theta = 10
    dim_x = 10
    _variance = 0.1

    @property
    def prior(self) -> Distribution:
        """N(0, 0.1 I)."""
        return Independent(Normal(torch.zeros(10), torch.full((10,), math.sqrt(self._variance))), 1)

    def _simulate(self, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        return theta + math.sqrt(self._variance) * normal(theta, tuple(theta.shape), generator)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        return _log_normal(x - theta, self._variance)

    def posterior(self, x: Tensor) -> Exact:
        """N(x / 2, 0.05 I)."""
        return Gaussian(self._checked_x(x).cpu() / 2, self._variance / 2 * torch.eye(10, dtype=torch.float64))


class GaussianLinearUniform(Task):
    """theta ~ U[-1, 1]^10, x ~ N(theta, 0.1 I); 0.1 is the variance."""

    name = "gaussian_linear_uniform"
    dim_theta = 10
    dim_x = 10
    _variance = 0.1

    @property
    def prior(self) -> Distribution:
        """U[-1, 1]^10."""
        return Independent(Uniform(-torch.ones(10), torch.ones(10)), 1)

    def _simulate(self, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        return theta + math.sqrt(self._variance) * normal(theta, tuple(theta.shape), generator)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        return _log_normal(x - theta, self._variance)

    def posterior(self, x: Tensor) -> Exact:
        """N(x, 0.1 I) cut to the box: a truncated normal in each dimension."""
        return TruncatedMixture(self._checked_x(x).cpu(), (math.sqrt(self._variance),), -1.0, 1.0)


class GaussianMixture(Task):
    """theta ~ U[-10, 10]^2, x ~ N(theta, I) or N(theta, 0.01 I) at even odds, one component for both dimensions."""

    name = "gaussian_mixture"
    dim_theta = 2
    dim_x = 2
    _variances = (1.0, 0.01)

    @property
    def prior(self) -> Distribution:
        """U[-10, 10]^2."""
        return Independent(Uniform(torch.full((2,), -10.0), torch.full((2,), 10.0)), 1)

    def _simulate(self, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        wide = uniform(theta, (len(theta), 1), generator) < 0.5
        first, second = self._variances
        scale = torch.where(wide, math.sqrt(first), math.sqrt(second))
        return theta + scale * normal(theta, tuple(theta.shape), generator)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        components = torch.stack([_log_normal(x - theta, variance) for variance in self._variances])
        return components.logsumexp(0) - math.log(2)

    def posterior(self, x: Tensor) -> Exact:
        """The two Gaussians about x, cut to the box."""
        return TruncatedMixture(self._checked_x(x).cpu(), tuple(map(math.sqrt, self._variances)), -10.0, 10.0)


def _log_normal(difference: Tensor, variance: float) -> Tensor:
    """log N(difference; 0, variance I), [B, D] -> [B]."""
    dim = difference.shape[1]
    return -difference.square().sum(1) / (2 * variance) - dim / 2 * math.log(2 * math.pi * variance)
