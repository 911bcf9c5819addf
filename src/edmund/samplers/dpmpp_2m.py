"""DPM-Solver++ with two steps: the ODE's (2M) and the SDE's (2M SDE)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edmund.errors import check_not_negative, unknown
from edmund.process import Process
from edmund.samplers._exponential import adams_step, log_nodes, log_step, nodes_of, phi, two_point_weights
from edmund.samplers._linear import LinearSampler, LinearStep, denoise


@dataclass(frozen=True)
class DPMpp2M(LinearSampler):
    """A line through the last two images in lambda = -ln sigma, integrated against the exponential of the equation (Lu
    et al. 2022, Algorithm 2); the process does not matter.

    eta: the noise of the SDE; 0: the ODE, 1: the reverse SDE of Song et al. 2021. S_noise: multiplies the drawn noise.
    solver_type: how the line's slope is integrated: "midpoint", (1 - e^{-(1 + eta) h}) / 2, as in the paper; "heun",
    exactly.

    The first step is that of DDIM, or its SDE. The step to sigma = 0 takes the denoised image. Order 2, with this start
    too, and in law where eta > 0: the slope between the last two images holds the noise of the step before, which is a
    step late and has the same law. NFE of N steps: N.
    """

    name: ClassVar[str] = "dpmpp_2m"
    aliases: ClassVar[Mapping[str, Mapping[str, object]]] = {"dpmpp_2m_sde": {"eta": 1.0}}
    source: ClassVar[str] = "Lu et al. 2022 (2211.01095), Algorithm 2"
    brownian: ClassVar[bool] = True
    order = 2
    nfe_per_step = 1
    eta: float = 0.0
    S_noise: float = 1.0
    solver_type: str = "midpoint"

    def __post_init__(self) -> None:
        check_not_negative("eta", self.eta)
        check_not_negative("S_noise", self.S_noise)
        if self.solver_type not in ("midpoint", "heun"):
            raise unknown("solver_type", self.solver_type, ("midpoint", "heun"))

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise: with eta > 0."""
        return self.eta > 0

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[LinearStep]:
        """z' = e^{-(1 + eta) h} z + w_0 D + w_1 D_previous + sigma' sqrt(1 - e^{-2 eta h}) n."""
        nodes = nodes_of(sigma_from, sigma_to)
        return [self._step(nodes, i) for i in range(len(nodes) - 1)]

    def _step(self, nodes: Sequence[float], i: int) -> LinearStep:
        if nodes[i + 1] == 0:
            return denoise(nodes[i])
        z = (1 + self.eta) * log_step(nodes[i], nodes[i + 1])
        images: tuple[float, ...] = (-math.expm1(-z),)
        if i > 0:
            moment = -math.expm1(-z) / 2 if self.solver_type == "midpoint" else z * phi(2, -z)
            images = two_point_weights(z, log_nodes(nodes, i, 2)[1], moment)
        return adams_step(nodes[i], nodes[i + 1], self.eta, images, self.S_noise)
