"""Euler's method for the reverse SDEs: weak order 1, one call a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edmund.process import Process
from edmund.samplers._linear import LinearStep, Stage
from edmund.samplers._reverse_sde import ReverseSDESampler
from edmund.samplers.euler import Euler


@dataclass(frozen=True)
class EulerMaruyama(ReverseSDESampler):
    """x' = x + h a(x, t) + b(t) sqrt(|h|) n over the process's own t, with a and b the drift and the diffusion of the
    reverse SDE of the given beta.

    beta: its ratio to sigma'/sigma: 0 is `Euler`, 1 is Song's reverse SDE, more is beyond; a number or a function of
    sigma (tensor to tensor). S_noise: the factor of the noise. The step to sigma = 0 has no noise: it is Euler's step
    of the ODE. Weak order 1, and strong order 1 along one Brownian path. NFE of N steps: N.
    """

    name: ClassVar[str] = "euler_maruyama"
    source: ClassVar[str] = "Song et al. 2021; Karras et al. 2022, Equation 6"
    order = 1
    nfe_per_step = 1

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[LinearStep]:
        """With x = s z, c = (1 + ratio) sigma'/sigma, f the drift of the process and s_1 the scaling at the end: z' =
        (s/s_1) [(1 + h (f + c)) z - h c D] + (b/s_1) sqrt(|h|) n.
        """
        inner = sigma_to > 0
        sigma, end = sigma_from[inner], sigma_to[inner]
        t, t_to = process.t(sigma), process.t(end)
        h, s, s_to = t_to - t, process.s(t), process.s(t_to)
        c = (1 + self.ratio(sigma)) * process.sigma_dot(t) / sigma
        x = s / s_to * (1 + h * (process.f(t) + c))
        noise = self.diffusion(process, t, sigma) * torch.sqrt(h.abs()) / s_to
        columns = (value.tolist() for value in (sigma, end, x, -s / s_to * h * c, noise))
        steps = [
            LinearStep((Stage(start, weight, (image,), (amount,)),), ((start, to),))
            if amount > 0
            else LinearStep((Stage(start, weight, (image,)),))
            for start, to, weight, image, amount in zip(*columns, strict=True)
        ]
        return [*steps, *Euler().plan(process, sigma_from[~inner], sigma_to[~inner])]
