"""Grids in closed form: the columns of Table 1 (Karras et al. 2022), others that people name, and levels given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edmund.errors import InputError, check_positive
from edmund.grid._base import Grid, check_falling, ramp
from edmund.process import VP as VPProcess
from edmund.process import DiscreteSteps, Process, check_steps, iddpm_levels


@dataclass(frozen=True)
class EDM(Grid):
    """Uniform in sigma^(1/rho) (Karras et al. 2022, Eq. 5); rho 7 puts steps at low noise, 1 is uniform in sigma."""

    name: ClassVar[str] = "edm"
    rho: float = 7.0

    def __post_init__(self) -> None:
        check_positive("rho", self.rho)

    def nodes(self, num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        start, end = sigma_max ** (1 / self.rho), sigma_min ** (1 / self.rho)
        nodes: Tensor = (start + ramp(num_steps) * (end - start)) ** self.rho
        return nodes


@dataclass(frozen=True)
class VP(Grid):
    """Uniform in the time of VP fitted to the range: t_i = 1 + i/(N-1) (epsilon_s - 1) (Song et al. 2021)."""

    name: ClassVar[str] = "vp"
    epsilon_s: float = 1e-3

    def nodes(self, num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        process = VPProcess.for_range(sigma_min, sigma_max, self.epsilon_s)
        return process.sigma(1 + ramp(num_steps) * (self.epsilon_s - 1))


@dataclass(frozen=True)
class VE(Grid):
    """Uniform in ln sigma: t_i = sigma_max^2 (sigma_min^2 / sigma_max^2)^(i/(N-1)), t = sigma^2 (Song et al. 2021)."""

    name: ClassVar[str] = "ve"

    def nodes(self, num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        return sigma_max * (sigma_min / sigma_max) ** ramp(num_steps)


@dataclass(frozen=True)
class IDDPM(Grid):
    """Levels of iDDPM's discrete steps (Nichol & Dhariwal 2021): those within the range, at indices
    round((len - 1)/(N - 1) i).
    """

    name: ClassVar[str] = "iddpm"
    M: int = 1000
    C_1: float = 0.001
    C_2: float = 0.008

    def nodes(self, num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        levels = iddpm_levels(self.M, self.C_1, self.C_2)
        inside = levels[(levels >= sigma_min) & (levels <= sigma_max)]
        return _evenly(inside, num_steps, f"between sigma_min = {sigma_min} and sigma_max = {sigma_max}, iDDPM")


@dataclass(frozen=True)
class Discrete(Grid):
    """Levels of discrete time steps, uniform in the step: those within the range, at indices round((len - 1)/(N - 1)
    i) (what diffusers calls "linspace").
    """

    steps: DiscreteSteps

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def nodes(self, num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        inside = self.steps.within(sigma_min, sigma_max)
        return _evenly(inside, num_steps, f"between sigma_min = {sigma_min} and sigma_max = {sigma_max}, the model")


def _evenly(levels: Tensor, num_steps: int, which: str) -> Tensor:
    """num_steps of the levels, evenly by their index."""
    if len(levels) < num_steps:
        raise InputError(f"num_steps is {num_steps}, but {which} has only {len(levels)} levels")
    return levels[(ramp(num_steps) * (len(levels) - 1)).round().long()]


@dataclass(frozen=True)
class PolyExponential(Grid):
    """ln sigma falls along (1 - i/(N-1))^rho; rho 1 is uniform in ln sigma, more has more steps at low noise."""

    name: ClassVar[str] = "poly_exponential"
    rho: float = 1.0

    def __post_init__(self) -> None:
        check_positive("rho", self.rho)

    def nodes(self, num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        return sigma_min * (sigma_max / sigma_min) ** ((1 - ramp(num_steps)) ** self.rho)


@dataclass(frozen=True)
class UniformTime(Grid):
    """Uniform in the time t of a process, between t(sigma_max) and t(sigma_min): for flows, uniform steps in t."""

    process: Process

    def nodes(self, num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        start, end = self.process.t(torch.tensor([sigma_max, sigma_min], dtype=torch.float64))
        nodes = self.process.sigma(start + ramp(num_steps) * (end - start))
        nodes[0], nodes[-1] = sigma_max, sigma_min
        return nodes


@dataclass(frozen=True)
class Fixed(Grid):
    """Given noise levels, falling; with or without the final 0. They say the steps and the range themselves."""

    sigmas: tuple[float, ...]

    def __init__(self, sigmas: Sequence[float] | Tensor) -> None:
        object.__setattr__(self, "sigmas", check_falling(sigmas))

    def nodes(self, num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        return torch.tensor(self.sigmas, dtype=torch.float64)

    def __call__(
        self, num_steps: int, sigma_min: float, sigma_max: float, round_sigma: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """As of any grid; InputError when an argument contradicts the given levels."""
        for argument, asked, own in (
            ("num_steps", num_steps, len(self.sigmas)),
            ("sigma_min", sigma_min, self.sigmas[-1]),
            ("sigma_max", sigma_max, self.sigmas[0]),
        ):
            if asked != own:
                raise InputError(f"{argument} is {asked!r}, but the fixed grid's own is {own!r}; leave it out")
        if len(self.sigmas) == 1:
            return torch.tensor([self.sigmas[0], 0.0], dtype=torch.float64)
        return super().__call__(num_steps, sigma_min, sigma_max, round_sigma)
