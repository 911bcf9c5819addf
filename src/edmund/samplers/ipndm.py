r"""PNDM and iPNDM: Adams-Bashforth's coefficients of equal steps, with DDIM as the step.

On the unscaled z, DDIM's step with the noise prediction eps = (z - D) / sigma is z + (sigma' - sigma) eps. These
methods put a combination of the last noise predictions in the place of eps, with the weights that Adams-Bashforth has
when all steps are equal: order 4 on levels uniform in sigma; on others the weights are off by a term of the second
order, and so is the method. `lms` and `deis` know the steps' lengths.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edmund.process import Process
from edmund.samplers._exponential import adams_weights, check_order, nodes_of
from edmund.samplers._linear import LinearSampler, LinearStep, Stage, denoise

# Weights of the last k noise predictions, newest first: (1), (3, -1) / 2, (23, -16, 5) / 12, (55, -59, 37, -9) / 24.
_EQUAL = [adams_weights([-float(back) for back in range(count)]) for count in (1, 2, 3, 4)]


def _eps(sigma: float) -> tuple[float, float]:
    """eps = z / sigma - D / sigma."""
    return 1 / sigma, -1 / sigma


@dataclass(frozen=True)
class IPNDM(LinearSampler):
    """z' = z + (sigma' - sigma) sum_j w_j eps_j, with the weights of equal steps (Zhang & Chen 2023, arXiv 2204.13902,
    after Liu et al. 2022); the process does not matter.

    max_order: how many noise predictions a step combines, 1 to 4; the order on levels uniform in sigma after a start of
    that order. The first step is DDIM's, the next of two noise predictions, and so on: with this start, and on levels
    not uniform in sigma, the order is 2 for all from 2 to 4. The step to sigma = 0 is one like the others. NFE of N
    steps: N.
    """

    name: ClassVar[str] = "ipndm"
    source: ClassVar[str] = "Zhang & Chen 2023 (2204.13902), after Liu et al. 2022"
    nfe_per_step = 1
    max_order: int = 4

    def __post_init__(self) -> None:
        check_order("max_order", self.max_order, 4)

    @property
    def order(self) -> int:
        """2 from max_order 2 on."""
        return min(self.max_order, 2)

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[LinearStep]:
        """History of noise predictions."""
        nodes = nodes_of(sigma_from, sigma_to)
        steps = []
        for i, sigma in enumerate(nodes[:-1]):
            kept = tuple((nodes[i + 1] - sigma) * weight for weight in _EQUAL[min(self.max_order, i + 1) - 1])
            steps.append(LinearStep((Stage(sigma, 1.0, kept, keep=_eps(sigma)),)))
        return steps


@dataclass(frozen=True)
class PNDM(LinearSampler):
    """PNDM (Liu et al. 2022, arXiv 2202.09778, Algorithm 2): three pseudo Runge-Kutta steps, then four noise
    predictions with the weights of equal steps.

    A pseudo Runge-Kutta step is the classical one of order 4 with DDIM's step for each of its four stages; its middle
    is that of the process's t, and so the process matters. A step to sigma = 0 among the first three is DDIM's; a later
    one is like the others. Order 4 on levels uniform in sigma = t; 2 on others. NFE of N steps: N + 9.
    """

    name: ClassVar[str] = "pndm"
    source: ClassVar[str] = "Liu et al. 2022 (2202.09778), Algorithm 2"
    order = 2
    nfe_per_step = 1

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[LinearStep]:
        """History of noise predictions, four a step of the first three."""
        nodes = nodes_of(sigma_from, sigma_to)
        times = process.t(torch.tensor(nodes[:4], dtype=torch.float64))
        middles = process.sigma((times[:-1] + times[1:]) / 2).tolist()
        steps = []
        for i, (sigma, end) in enumerate(itertools.pairwise(nodes)):
            if i >= 3:
                kept = [0.0] * 13
                # Of a Runge-Kutta step only the first noise prediction counts, which is the last of its four kept.
                for back, weight in enumerate(_EQUAL[3]):
                    kept[back + 3 * max(0, back + 3 - i)] = (end - sigma) * weight
                steps.append(LinearStep((Stage(sigma, 1.0, _trimmed(kept), keep=_eps(sigma)),)))
            elif end == 0:
                steps.append(denoise(sigma))
            else:
                steps.append(_runge_kutta(sigma, middles[i], end))
        return steps


def _runge_kutta(sigma: float, middle: float, sigma_to: float) -> LinearStep:
    half, whole = middle - sigma, sigma_to - sigma
    return LinearStep(
        (
            Stage(sigma, 1.0, (half,), keep=_eps(sigma)),
            Stage(middle, 1.0, (half,), keep=_eps(middle)),
            Stage(middle, 1.0, (whole,), keep=_eps(middle)),
            Stage(sigma_to, 1.0, (whole / 6, whole / 3, whole / 3, whole / 6), keep=_eps(sigma_to)),
        )
    )


def _trimmed(weights: Sequence[float]) -> tuple[float, ...]:
    """Without the zeros at the end."""
    last = max(index for index, weight in enumerate(weights) if weight != 0)
    return tuple(weights[: last + 1])
