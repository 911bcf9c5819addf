r"""The reverse SDEs of a process: one for every beta, and all have the law p(x; sigma) at every level.

Backwards in the process's own t (Karras et al. 2022, Eq. 6, for any scaling s),

    dx = [(s'/s) x + (sigma'/sigma + beta) (x - s D(x / s; sigma))] dt + s sigma sqrt(2 beta) dw

Here beta is written beta = ratio sigma'/sigma, so that a number is the same in every process: ratio 0 is the
probability-flow ODE, 1 is Song's reverse SDE, and more is more Langevin mixing a unit of ln sigma. A ratio that varies
is a function of sigma.

The noise is additive, its size depends on t only; it is white in ln sigma but for the factor s sigma sqrt(2 ratio): the
Brownian motion that a path is driven by has the time -ln sigma, whatever the process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edmund.errors import InputError, check_not_negative, check_number
from edmund.process import Process
from edmund.samplers._linear import LinearSampler


@dataclass(frozen=True)
class ReverseSDESampler(LinearSampler):
    """A sampler of the family.

    beta: the ratio of the SDE's beta to sigma'/sigma, not negative: a number, or a function of a tensor of levels.
    S_noise: the factor of the noise.
    """

    brownian: ClassVar[bool] = True
    beta: float | Callable[[Tensor], Tensor] = 1.0
    S_noise: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative("S_noise", self.S_noise)
        if not callable(self.beta) and check_number("beta", self.beta) < 0:
            raise InputError(f"beta is {self.beta!r}; it must not be negative: 0 is the ODE, 1 is Song's reverse SDE")

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise: with any beta but 0."""
        return callable(self.beta) or self.beta > 0

    def ratio(self, sigma: Tensor) -> Tensor:
        """beta as a multiple of sigma'/sigma, at levels [N] above 0."""
        if not callable(self.beta):
            return torch.full_like(sigma, self.beta)
        values = self.beta(sigma)
        if not isinstance(values, Tensor) or values.shape != sigma.shape:
            found = tuple(values.shape) if isinstance(values, Tensor) else repr(values)
            raise InputError(
                f"beta returned {found} for levels of shape {tuple(sigma.shape)}; it must return like them"
            )
        if not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
            raise InputError(f"beta returned {values.tolist()}; its values must be finite and not negative")
        return values.to(sigma)

    def diffusion(self, process: Process, t: Tensor, sigma: Tensor) -> Tensor:
        """The factor of dw, with S_noise: s sigma sqrt(2 beta) = s sqrt(2 ratio sigma' sigma), at times t [N] > 0."""
        spread = torch.sqrt(2 * self.ratio(sigma) * process.sigma_dot(t) * sigma)
        return self.S_noise * process.s(t) * spread
