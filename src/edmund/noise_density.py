r"""Noise densities: which noise levels a network is trained on, and how often.

A density is its quantile function sigma = Q(u), u in (0, 1), increasing (Karras et al. 2022, Table 1, "Noise
distribution"). Stratified training levels follow from it: u_i = (i + v_i) / n with v_i uniform puts one level in each
n-th part of the density, so a batch always covers it.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edmund import registry
from edmund.errors import InputError, check_count, check_number, check_positive
from edmund.process import VP as VPProcess
from edmund.process import DiscreteSteps, check_range, check_steps, iddpm_levels


class NoiseDensity(ABC):
    """The base: a density of one's own defines `quantile`, and `support` where it is bounded."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """sigma at the quantiles u in (0, 1): float64 of u's shape, increasing in u."""

    @property
    def support(self) -> tuple[float, float]:
        """The lowest and the highest sigma that can be drawn."""
        return 0.0, float("inf")

    def sample(self, n: int, generator: torch.Generator | None = None, stratified: bool = True) -> Tensor:
        """n training levels, float64 [n].

        stratified: one in each n-th part of the density, in rising order; else independent.
        """
        check_count("n", n)
        device = generator.device if generator is not None else torch.device("cpu")
        # (0, 1): 0 itself would be a quantile at the end of the support.
        u = torch.rand(n, generator=generator, dtype=torch.float64, device=device).clamp_min(2.0**-54)
        if stratified:
            # (i + u) / n next to 1 may round up to it.
            u = ((torch.arange(n, dtype=torch.float64, device=device) + u) / n).clamp_max(1 - 2.0**-53)
        return self.quantile(u)


def _log_normal_quantile(u: Tensor, mean: float, std: float) -> Tensor:
    """sigma with ln sigma ~ N(mean, std^2)."""
    return torch.exp(mean + std * torch.special.ndtri(u.to(torch.float64)))


@dataclass(frozen=True)
class LogNormal(NoiseDensity):
    """ln sigma ~ N(P_mean, P_std^2) (EDM)."""

    name: ClassVar[str] = "log_normal"
    P_mean: float = -1.2
    P_std: float = 1.2

    def __post_init__(self) -> None:
        check_number("P_mean", self.P_mean)
        check_positive("P_std", self.P_std)

    def quantile(self, u: Tensor) -> Tensor:
        return _log_normal_quantile(u, self.P_mean, self.P_std)


@dataclass(frozen=True)
class LogUniform(NoiseDensity):
    """ln sigma ~ U(ln sigma_min, ln sigma_max) (VE)."""

    name: ClassVar[str] = "log_uniform"
    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        check_range(self.sigma_min, self.sigma_max)

    def quantile(self, u: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** u.to(torch.float64)

    @property
    def support(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max


@dataclass(frozen=True)
class VPUniform(NoiseDensity):
    """The VP process's time is uniform on [epsilon_t, 1]."""

    name: ClassVar[str] = "vp_uniform"
    epsilon_t: float = 1e-5
    beta_d: float = 19.9
    beta_min: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.epsilon_t < 1:
            raise InputError(f"epsilon_t is {self.epsilon_t!r}; it must lie between 0 and 1")
        if not self.support[0] > 0:
            raise InputError(
                f"epsilon_t is {self.epsilon_t!r}; beta_min = {self.beta_min} has no positive noise level "
                f"there, take a larger epsilon_t"
            )

    def quantile(self, u: Tensor) -> Tensor:
        return VPProcess(self.beta_d, self.beta_min).sigma(self.epsilon_t + u.to(torch.float64) * (1 - self.epsilon_t))

    @property
    def support(self) -> tuple[float, float]:
        low, high = self.quantile(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        return low, high


@dataclass(frozen=True)
class IDDPM(NoiseDensity):
    """One of iDDPM's M levels u_0 .. u_{M-1}, each as often."""

    name: ClassVar[str] = "iddpm"
    M: int = 1000
    C_1: float = 0.001
    C_2: float = 0.008

    def quantile(self, u: Tensor) -> Tensor:
        return _each_as_often(u, self._rising())

    @property
    def support(self) -> tuple[float, float]:
        rising = self._rising()
        return rising[0].item(), rising[-1].item()

    def _rising(self) -> Tensor:
        return iddpm_levels(self.M, self.C_1, self.C_2)[:-1].flip(0)


@dataclass(frozen=True)
class Discrete(NoiseDensity):
    """One of the levels of discrete time steps, each as often (Ho et al. 2020)."""

    steps: DiscreteSteps

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def quantile(self, u: Tensor) -> Tensor:
        return _each_as_often(u, self.steps.levels)

    @property
    def support(self) -> tuple[float, float]:
        levels = self.steps.levels
        return levels[0].item(), levels[-1].item()


def _each_as_often(u: Tensor, rising: Tensor) -> Tensor:
    """The quantiles u of levels [M] of which each has the same share."""
    count = len(rising)
    return rising.to(u.device)[(u.to(torch.float64) * count).long().clamp(0, count - 1)]


@dataclass(frozen=True)
class LogitNormal(NoiseDensity):
    """logit(t) ~ N(mean, std^2) for the flow's t (Esser et al. 2024); as sigma = t / (1 - t), that is ln sigma ~
    N(mean, std^2).
    """

    name: ClassVar[str] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_number("mean", self.mean)
        check_positive("std", self.std)

    def quantile(self, u: Tensor) -> Tensor:
        return _log_normal_quantile(u, self.mean, self.std)


@dataclass(frozen=True)
class CosineUniform(NoiseDensity):
    """The cosine process's time is uniform on (0, 1): sigma = tan(pi u / 2)."""

    name: ClassVar[str] = "cosine_uniform"

    def quantile(self, u: Tensor) -> Tensor:
        return torch.tan(torch.pi / 2 * u.to(torch.float64))


def named() -> dict[str, type[NoiseDensity]]:
    """The densities by name."""
    return registry.in_module(sys.modules[__name__], NoiseDensity)
