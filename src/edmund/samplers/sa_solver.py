"""SA-Solver: stochastic Adams, predictor and corrector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edmund.errors import check_not_negative
from edmund.process import Process
from edmund.samplers._base import check_interval
from edmund.samplers._exponential import (
    check_order,
    exponential_weights,
    log_nodes,
    log_step,
    nodes_of,
    predict_and_correct,
    two_point_weights,
)
from edmund.samplers._linear import LinearSampler, LinearStep


@dataclass(frozen=True)
class SASolver(LinearSampler):
    """SA-Predictor and SA-Corrector with data prediction (Xue et al. 2023, arXiv 2309.05019); the process does not
    matter.

    As UniPC with noise: a polynomial in lambda = -ln sigma through the last images is integrated exactly against the
    exponential of the SDE with c = 1 + tau^2, and again with the image at the prediction; both share their noise.
    predictor_order, corrector_order: how many images each takes, 1 to 4, the corrector's new one included.

    tau: the noise, 0: the ODE, 1: the reverse SDE of Song et al. 2021; it acts in steps that start from sigma in
    [S_min, S_max], others are the ODE's.

    Where two images are taken, the weight of their slope is (c h) / 2 in place of its exact integral, as in the
    authors' program for few steps.

    The orders rise from 1 (2 of the corrector) over the first steps, and where the levels end in 0 fall again over the
    last ones, to the denoised image in the step to 0. The last step predicts only. NFE of N steps: N. The order is that
    of the corrector or one above the predictor's, the lesser (with this start 3 at last, where one step of a low order
    shows), and at most 2 in law with tau > 0.
    """

    name: ClassVar[str] = "sa_solver"
    source: ClassVar[str] = "Xue et al. 2023 (2309.05019)"
    brownian: ClassVar[bool] = True
    nfe_per_step = 1
    predictor_order: int = 3
    corrector_order: int = 4
    tau: float = 1.0
    S_min: float = 0.0
    S_max: float = math.inf

    def __post_init__(self) -> None:
        check_order("predictor_order", self.predictor_order, 4)
        check_order("corrector_order", self.corrector_order, 4)
        check_not_negative("tau", self.tau)
        check_interval(self.S_min, self.S_max)

    @property
    def order(self) -> int:
        """min(corrector_order, predictor_order + 1); at most 2, in law, with tau > 0."""
        return min(self.corrector_order, self.predictor_order + 1, 2 if self.tau > 0 else 4)

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise: with tau > 0."""
        return self.tau > 0

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[LinearStep]:
        """z' = e^{-c h} z + sum_j w_j D_j + sigma' sqrt(1 - e^{-2 tau^2 h}) n, without the image at z' and with it."""
        nodes = nodes_of(sigma_from, sigma_to)
        excess = [self.tau**2 if self.S_min <= sigma <= self.S_max else 0.0 for sigma in nodes]

        def weights(i: int, room: int) -> tuple[Sequence[float], Sequence[float]]:
            z = (1 + excess[i]) * log_step(nodes[i], nodes[i + 1])
            past = log_nodes(nodes, i, room)
            predict, correct = past[: self.predictor_order], (1.0, *past)[: self.corrector_order]
            return _weights(z, predict), _weights(z, correct)

        most = max(self.predictor_order, self.corrector_order - 1)
        return predict_and_correct(nodes, most, weights, excess)


def _weights(z: float, nodes: Sequence[float]) -> Sequence[float]:
    """The images' weights; two of them with the slope's simpler one."""
    if len(nodes) != 2:
        return exponential_weights(z, nodes)
    at_zero, other = two_point_weights(z, nodes[1] or nodes[0], z / 2)
    return (at_zero, other) if nodes[0] == 0 else (other, at_zero)
