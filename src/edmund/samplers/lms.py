"""Linear multistep: Adams-Bashforth's methods with the coefficients of the steps as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edmund.errors import unknown
from edmund.process import Process
from edmund.samplers._exponential import adams_weights, check_order, log_nodes, log_step, nodes_of
from edmund.samplers._linear import LinearSampler, LinearStep, Stage, denoise, slopes


@dataclass(frozen=True)
class LMS(LinearSampler):
    """Adams-Bashforth's method: the slopes of the last `order` nodes, joined by a polynomial, are integrated exactly
    over the step, whatever the lengths of the steps.

    over: the variable. "t": the process's own t and equation, dx/dt = a x - b D; with sigma = t and s = 1 it is
    k-diffusion's `lms`; with `process.Cosine`, whose t is the angle arctan(sigma), it holds for longer steps on data of
    unit scale. The step to sigma = 0 is one like the others. "log_sigma": dz/d ln sigma = z - D for the
    unscaled z, the same for every process; the step to sigma = 0 takes the denoised image, as Euler's in sigma would.
    Where D stands still that equation asks for short steps: in ln sigma they must stay below 2, 1, 6/11 and 3/10 for
    orders 1 to 4, or errors grow (80 to 0.002 takes more than 35 even steps of order 4).

    The first step is Euler's, the next of second order, and so on; the one Euler step leaves an error of second order,
    so that orders 3 and 4 show order 2 at last, with a small constant. NFE of N steps: N.
    """

    name: ClassVar[str] = "lms"
    source: ClassVar[str] = "Adams-Bashforth; k-diffusion"
    nfe_per_step = 1
    order: int = 4
    over: str = "t"

    def __post_init__(self) -> None:
        check_order("order", self.order, 4)
        if self.over not in ("t", "log_sigma"):
            raise unknown("over", self.over, ("t", "log_sigma"))

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[LinearStep]:
        """History of slopes; z' = (s/s') z + (h/s') sum_j w_j slope_j."""
        nodes = nodes_of(sigma_from, sigma_to)
        if self.over == "t":
            return self._time_steps(process, nodes)
        return [self._log_step(nodes, i) for i in range(len(nodes) - 1)]

    def _log_step(self, nodes: Sequence[float], i: int) -> LinearStep:
        if nodes[i + 1] == 0:
            return denoise(nodes[i])
        h = log_step(nodes[i], nodes[i + 1])
        weights = adams_weights(log_nodes(nodes, i, min(self.order, i + 1)))
        return LinearStep((Stage(nodes[i], 1.0, tuple(-h * weight for weight in weights), keep=(1.0, -1.0)),))

    def _time_steps(self, process: Process, nodes: Sequence[float]) -> list[LinearStep]:
        sigma = torch.tensor(nodes, dtype=torch.float64)
        times = process.t(sigma)
        a, b, s = (value.tolist() for value in slopes(process, times[:-1], sigma[:-1]))
        t, scalings = times.tolist(), process.s(times).tolist()
        steps = []
        for i in range(len(nodes) - 1):
            h = t[i + 1] - t[i]
            weights = adams_weights([(t[i - back] - t[i]) / h for back in range(min(self.order, i + 1))])
            kept = tuple(h * weight / scalings[i + 1] for weight in weights)
            # The slope a x - b D of the scaled x = s z.
            steps.append(LinearStep((Stage(nodes[i], s[i] / scalings[i + 1], kept, keep=(a[i] * s[i], -b[i])),)))
        return steps
