r"""A generalised linear model of a neuron's spikes, by sufficient statistics and raw.

White noise I of 100 steps drives y_t ~ Bernoulli(sigmoid(X_t . theta)), where X [100, 10] has a column of ones and the
stimulus I delayed by 0 to 8 steps. The prior N(0, P^-1) keeps the filter smooth: P = blockdiag(0.5, F^T F) with
F = D D + diag(sqrt(i / 9)), D the first differences (Goncalves et al. 2020; Lueckmann et al. 2021, T.5, T.6). The
likelihood is

    log p(y | theta) = theta . X^T y - sum_t log(1 + exp(X_t . theta)),

so that x = X^T y is sufficient: the number of spikes and the nine spike-triggered sums of the stimulus. Both tasks
have one posterior.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from edmund.sbi.tasks._base import Task
from edmund.sbi.tasks.draws import uniform
from edmund.sbi.tasks.exact import Exact
from edmund.sbi.tasks.logistic import LogisticPosterior
from edmund.sbi.tasks.reference import Reference, read_reference

_STEPS = 100
_LAGS = 9
_STIMULUS_SEED = 42


class BernoulliGLM(Task):
    """x = X^T y [10], the sufficient statistics. The likelihood leaves out the number of y that share them."""

    name = "bernoulli_glm"
    dim_theta = 1 + _LAGS
    dim_x = 1 + _LAGS

    @property
    def prior(self) -> Distribution:
        """N(0, P^-1)."""
        return MultivariateNormal(torch.zeros(self.dim_theta), precision_matrix=prior_precision().float())

    def _simulate(self, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        return self._spikes(theta, generator) @ design().to(theta.device)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        logits = theta @ design().mT.to(theta.device)
        return theta @ x - torch.nn.functional.softplus(logits).sum(1)

    def posterior(self, x: Tensor) -> Exact:
        """Exact draws by rejection; see `LogisticPosterior` for the accuracy of its constant and moments."""
        return LogisticPosterior(design(), self._checked_x(x).cpu(), prior_precision())

    @staticmethod
    def _spikes(theta: Tensor, generator: torch.Generator | None) -> Tensor:
        """y [B, 100], zeros and ones."""
        rate = (theta @ design().mT.to(theta.device)).sigmoid()
        return (uniform(rate, tuple(rate.shape), generator) < rate).to(theta.dtype)


class BernoulliGLMRaw(BernoulliGLM):
    """x = y [100], the spikes themselves, zeros and ones."""

    name = "bernoulli_glm_raw"
    dim_x = _STEPS
    _x_domain = "0 or 1"

    def _possible(self, x: Tensor) -> Tensor:
        return (x == 0) | (x == 1)

    def _simulate(self, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        return self._spikes(theta, generator)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        return super()._log_likelihood(theta, x @ design().to(x.device))

    def posterior(self, x: Tensor) -> Exact:
        """bernoulli_glm's, of the sufficient statistics."""
        return LogisticPosterior(design(), self._checked_x(x).cpu() @ design(), prior_precision())

    def reference(self, directory: str | Path, observation: int) -> Reference:
        """bernoulli_glm's reference; x is its `observation_raw.csv`, the spikes whose statistics are its observation.

        The statistics are sufficient, so the posterior is the same.
        """
        return read_reference(
            directory,
            BernoulliGLM.name,
            observation,
            dim_theta=self.dim_theta,
            dim_x=self.dim_x,
            observation_file="observation_raw.csv",
        )


@lru_cache(maxsize=1)
def design() -> Tensor:
    """X [100, 10] float64: ones, and the stimulus delayed by 0 to 8 steps. The stimulus is float32, seed 42."""
    rng = np.random.RandomState(_STIMULUS_SEED)
    stimulus = torch.from_numpy(rng.randn(_STEPS).astype(np.float32)).double()
    columns = torch.zeros(_STEPS, 1 + _LAGS, dtype=torch.float64)
    columns[:, 0] = 1
    for lag in range(_LAGS):
        columns[lag:, 1 + lag] = stimulus[: _STEPS - lag]
    return columns


@lru_cache(maxsize=1)
def prior_precision() -> Tensor:
    """P [10, 10] float64."""
    eye = torch.eye(_LAGS, dtype=torch.float64)
    difference = eye - eye.roll(1, 0).tril(-1)
    smooth = difference @ difference + torch.diag((torch.arange(_LAGS, dtype=torch.float64) / _LAGS).sqrt())
    precision = torch.zeros(1 + _LAGS, 1 + _LAGS, dtype=torch.float64)
    precision[0, 0] = 0.5
    precision[1:, 1:] = smooth.mT @ smooth
    return precision
