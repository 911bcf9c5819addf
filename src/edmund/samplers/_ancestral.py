r"""Ancestral steps: a solver of the probability-flow ODE goes below the next level, and new noise comes up to it.

A step from sigma to sigma' with eta in [0, 1] solves the ODE down to sigma_down and adds sigma_up of noise,

    sigma_up^2 = eta^2 sigma'^2 (1 - sigma'^2 / sigma^2),    sigma_down^2 = sigma'^2 - sigma_up^2

(Song et al. 2020, "Denoising diffusion implicit models", Eq. 16, in unscaled coordinates). Both halves map the law at
one level to that at another: an ancestral step with the exact solution of the ODE has the exact law for every eta, and
one with a solver of order p has weak order p. In the limit of small steps it is the reverse SDE with beta = eta^2
sigma'/sigma: the ODE for eta 0, Song's SDE for eta 1. An eta above 1 would need more noise than a long step has room
for; `EulerMaruyama` goes beyond.

Everything acts on the unscaled z = y + sigma n over sigma, where the process does not matter.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edmund.errors import InputError, check_not_negative, check_number
from edmund.process import Process
from edmund.samplers._base import Churn
from edmund.samplers._linear import LinearStep, OneStepSampler, Stage


def ancestral(sigma_from: Tensor, sigma_to: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """(sigma_down, sigma_up) of steps between levels, [N] each."""
    share = eta**2 * (1 - (sigma_to / sigma_from) ** 2)
    return sigma_to * torch.sqrt(1 - share), sigma_to * torch.sqrt(share)


def check_eta(eta: float) -> None:
    """InputError unless eta lies in [0, 1]."""
    if not 0 <= check_number("eta", eta) <= 1:
        raise InputError(
            f"eta is {eta!r}; it must lie in [0, 1]: 0 is deterministic, 1 is Song's reverse SDE; "
            "EulerMaruyama(beta) goes beyond"
        )


@dataclass(frozen=True)
class AncestralSampler(OneStepSampler):
    """A one-step solver of the ODE in sigma, made ancestral by eta. One defines `stages`.

    churn: Algorithm 2's noise injection before each step. eta: the share of new noise. S_noise: the factor of the
    ancestral noise (churn has its own).
    """

    churn: Churn | None = None
    eta: float = 0.0
    S_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)
        check_not_negative("S_noise", self.S_noise)

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise: with eta or churn."""
        return self.eta > 0 or super().stochastic

    @abstractmethod
    def stages(self, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[tuple[Stage, ...]]:
        """The deterministic steps from sigma_from [N] to sigma_to [N]; sigma_to may end in 0."""

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[LinearStep]:
        """The solver's stages to sigma_down, and sigma_up of noise; a step to 0 has none."""
        down, up = ancestral(sigma_from, sigma_to, self.eta)
        columns = ((self.S_noise * up).tolist(), sigma_from.tolist(), sigma_to.tolist())
        return [
            LinearStep((*stages[:-1], stages[-1]._replace(noise=(amount,))), ((start, end),))
            if self.eta > 0 and end > 0
            else LinearStep(stages)
            for stages, amount, start, end in zip(self.stages(sigma_from, down), *columns, strict=True)
        ]
