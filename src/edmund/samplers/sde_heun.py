"""Heun's method for the reverse SDEs: weak order 2, two calls a step."""

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
class SDEHeun(ReverseSDESampler):
    r"""The trapezoidal rule with one draw a step, over the process's own t,

        p = x + h a(x, t) + w,    x' = x + h/2 (a(x, t) + a(p, t')) + w,    w = (b(t) + b(t'))/2 sqrt(|h|) n

    with a and b the drift and the diffusion of the reverse SDE of the given beta.

    It has weak order 2 because the noise is additive. Write W(u) for the noise of the exact solution up to u in [0, h].
    Then, with a' and a'' the derivatives in x, what the drift gains from the noise is the integral of a' W(u) + a''
    W(u)^2 / 2 over u. Its mean is a'' b^2 h^2 / 4 and its covariance with W(h) is a' b^2 h^2 / 2, both up to O(h^3);
    its variance is O(h^3). The rule's h/2 (a' w + a'' w^2 / 2) has the same mean and covariance, and the variance of w
    is that of W(h) up to O(h^3).

    beta: its ratio to sigma'/sigma: 0 is `Heun`, 1 is Song's reverse SDE, more is beyond; a number or a function of
    sigma (tensor to tensor). S_noise: the factor of the noise. The step to sigma = 0 has no noise: it is Euler's step
    of the ODE. Strong order 1 along one Brownian path. NFE of N steps that end in 0: 2N - 1.
    """

    name: ClassVar[str] = "sde_heun"
    source: ClassVar[str] = "Kloeden & Platen 1992, 15.1; Karras et al. 2022, Equation 6"
    order = 2
    nfe_per_step = 2

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[LinearStep]:
        """Each state is its weights of (z, D, D_p, n), so that the equations above stand as they are."""
        inner = sigma_to > 0
        sigma, end = sigma_from[inner], sigma_to[inner]
        t, t_to = process.t(sigma), process.t(end)
        h, s, s_to = (value[:, None] for value in (t_to - t, process.s(t), process.s(t_to)))
        z, image, image_p, normal = torch.eye(4, dtype=torch.float64)

        def drift(x: Tensor, s: Tensor, image: Tensor, t: Tensor, sigma: Tensor) -> Tensor:
            c = (1 + self.ratio(sigma)) * process.sigma_dot(t) / sigma
            return process.f(t)[:, None] * x + c[:, None] * (x - s * image)

        spread = (self.diffusion(process, t, sigma) + self.diffusion(process, t_to, end)) / 2
        noise = spread[:, None] * torch.sqrt(h.abs()) * normal
        x = s * z
        a = drift(x, s, image, t, sigma)
        p = x + h * a + noise
        x = x + h / 2 * (a + drift(p, s_to, image_p, t_to, end)) + noise
        rows = zip(sigma.tolist(), end.tolist(), (p / s_to).tolist(), (x / s_to).tolist(), strict=True)
        steps = [_step(*row) for row in rows]
        return [*steps, *Euler().plan(process, sigma_from[~inner], sigma_to[~inner])]


def _step(start: float, end: float, p: list[float], x: list[float]) -> LinearStep:
    """The step with the weights of p and x' as rows of (z, D, D_p, n)."""
    noisy = x[3] != 0
    first = Stage(start, p[0], (p[1],), (p[3],) if noisy else ())
    second = Stage(end, x[0], (x[2], x[1]), (x[3],) if noisy else ())
    return LinearStep((first, second), ((start, end),) if noisy else ())
