r"""A simple likelihood and a complex posterior, plain and among distractors.

Four independent draws of a Gaussian in the plane with mean (t1, t2), standard deviations s1 = t3^2 and s2 = t4^2 and
correlation rho = tanh t5; its covariance is [[s1^2, rho s1 s2], [rho s1 s2, s2^2]] + 1e-6 I. The signs of t3 and t4 do
not matter, which gives the posterior four modes (Papamakarios et al. 2019; Lueckmann et al. 2021, T.3, T.4).

The distractors are the 92 numbers of one draw of a mixture of 20 multivariate Student-t with 2 degrees of freedom. They
do not depend on theta, so that p(theta | x) is slcp's posterior given the eight numbers that do: slcp's reference is
that of slcp_distractors.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Uniform

from edmund.sbi.tasks._base import Task
from edmund.sbi.tasks.draws import normal, uniform
from edmund.sbi.tasks.reference import Reference, observation_folder, read_reference

_JITTER = 1e-6
_DRAWS = 4
_INFORMATIVE = 2 * _DRAWS
_DISTRACTORS = 92
_COMPONENTS = 20
# Of the fixed mixture and permutation (NumPy), and of the distractors of an observation that has none (torch).
_SEED = 42


class SLCP(Task):
    """theta ~ U[-3, 3]^5; x is four draws of a Gaussian in the plane, [4, 2] flattened."""

    name = "slcp"
    dim_theta = 5
    dim_x = _INFORMATIVE

    @property
    def prior(self) -> Distribution:
        """U[-3, 3]^5."""
        return Independent(Uniform(torch.full((5,), -3.0), torch.full((5,), 3.0)), 1)

    def _simulate(self, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        mean, (l11, l21, l22) = theta[:, :2], _cholesky(theta)
        z = normal(theta, (len(theta), _DRAWS, 2), generator)
        first, second = z.unbind(2)
        draws = torch.stack([l11[:, None] * first, l21[:, None] * first + l22[:, None] * second], dim=2)
        return (mean[:, None] + draws).flatten(1)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        difference = x.reshape(_DRAWS, 2) - theta[:, None, :2]
        l11, l21, l22 = _cholesky(theta)
        first = difference[..., 0] / l11[:, None]
        second = (difference[..., 1] - l21[:, None] * first) / l22[:, None]
        log_normal = -(first.square() + second.square()).sum(1) / 2
        return log_normal - _DRAWS * (math.log(2 * math.pi) + l11.log() + l22.log())


class SLCPDistractors(SLCP):
    """slcp's eight numbers among 92 that say nothing; all 100 in a fixed order.

    The likelihood leaves out the distractors' density, which does not depend on theta.
    """

    name = "slcp_distractors"
    dim_x = _INFORMATIVE + _DISTRACTORS

    def _simulate(self, theta: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.embed(super()._simulate(theta, generator), generator)

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        return super()._log_likelihood(theta, self.informative(x))

    def embed(self, informative: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """slcp's x [B, 8] among fresh distractors: [B, 100] float64, on its device."""
        informative = informative.double()
        count, device = len(informative), informative.device
        location, scale, order = (array.to(device) for array in _noise())
        component = torch.randint(_COMPONENTS, (count,), device=device, generator=generator)
        # A chi-square of 2 degrees of freedom, over 2, is an exponential.
        exponential = -torch.log1p(-uniform(informative, (count, 1), generator))
        student = normal(informative, (count, _DISTRACTORS), generator) / exponential.sqrt()
        distractors = torch.empty_like(student)
        for k in range(_COMPONENTS):
            rows = component == k
            distractors[rows] = location[k] + student[rows] @ scale[k].mT
        return torch.cat([informative, distractors], dim=1)[:, order]

    @staticmethod
    def informative(x: Tensor) -> Tensor:
        """slcp's eight numbers of x: [..., 100] -> [..., 8]."""
        order = _noise()[2].to(x.device)
        return x[..., order.argsort()[:_INFORMATIVE]]

    def reference(self, directory: str | Path, observation: int) -> Reference:
        """slcp's reference; its x is `observation_distractors.csv` where slcp's folder has one (sbibm's own does).

        Elsewhere x is slcp's observation among distractors drawn with the seed 42 + `observation`: the posterior is
        the same.
        """
        folder = observation_folder(directory, SLCP.name, observation)
        file = "observation_distractors.csv"
        if (folder / file).is_file():
            return read_reference(
                directory,
                SLCP.name,
                observation,
                dim_theta=self.dim_theta,
                dim_x=self.dim_x,
                observation_file=file,
            )
        plain = SLCP().reference(directory, observation)
        x = self.embed(plain.x[None], torch.Generator().manual_seed(_SEED + observation))
        return Reference(x[0].float(), plain.samples, plain.true_parameters)


def _cholesky(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """l11, l21, l22, each [B], of the covariance's Cholesky factor."""
    s1, s2, rho = theta[:, 2].square(), theta[:, 3].square(), theta[:, 4].tanh()
    l11 = (s1.square() + _JITTER).sqrt()
    l21 = rho * s1 * s2 / l11
    # s2^2 + jitter - l21^2, written as a sum of what is not negative, so that nothing cancels.
    l22 = (s2.square() * (1 - rho.square() * s1.square() / l11.square()) + _JITTER).sqrt()
    return l11, l21, l22


@lru_cache(maxsize=1)
def _noise() -> tuple[Tensor, Tensor, Tensor]:
    """The mixture's locations [20, 92] and lower-triangular scales [20, 92, 92], and the order of the 100 numbers.

    All of one NumPy stream of seed 42, in this order; x[:, i] is number order[i] of (slcp's 8, the 92 distractors).
    """
    rng = np.random.RandomState(_SEED)
    location = np.stack([15 * rng.normal(size=_DISTRACTORS) for _ in range(_COMPONENTS)])
    scale = np.empty((_COMPONENTS, _DISTRACTORS, _DISTRACTORS))
    for k in range(_COMPONENTS):
        lower = np.tril(rng.normal(size=(_DISTRACTORS, _DISTRACTORS)))
        scale[k] = 3 * (lower + np.diag(np.exp(rng.normal(size=_DISTRACTORS))))
    order = rng.permutation(_INFORMATIVE + _DISTRACTORS)
    return torch.from_numpy(location), torch.from_numpy(scale), torch.from_numpy(order)
