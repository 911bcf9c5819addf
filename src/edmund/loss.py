r"""Losses: the denoising loss under a weight, and the names it has in other parametrisations.

    E  lambda(sigma) || D(y + sigma n; sigma) - y ||^2        (Karras et al. 2022, Eq. 2 and 8)

Losses on the noise, the score or a velocity are this same loss under another weight, because each is an affine function
of D at fixed x: the error of the noise is (D - y)/sigma, of the score (D - y)/sigma^2, of v (D - y) sqrt(1 +
sigma^2)/sigma, of the flow velocity (D - y)(1 + sigma)/sigma. So a weight is all that a loss is here: `Noise`, `Score`,
`Velocity`, `Flow` and so on are functions of sigma.

With a learned uncertainty u(sigma) (Karras et al. 2024, Appendix B.2) the loss is lambda/exp(u) ||D - y||^2 + u,
averaged over elements: at its minimum exp(u) is the weighted error at that sigma, so all noise levels come to weigh the
same.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edmund import registry
from edmund.errors import check_positive
from edmund.preconditioning import SigmaData, check_sigma_data, sigma_data_beside


class Weight(ABC):
    """A loss weight lambda(sigma), elementwise on a sigma that broadcasts against x."""

    @abstractmethod
    def __call__(self, sigma: Tensor) -> Tensor:
        """lambda at sigma, of sigma's shape (with a channel axis where sigma_data is one number a channel)."""


@dataclass(frozen=True)
class EDM(Weight):
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2: cancels c_out^2 of the EDM preconditioning."""

    name: ClassVar[str] = "edm"
    sigma_data: SigmaData | None = None

    def __post_init__(self) -> None:
        if self.sigma_data is not None:
            object.__setattr__(self, "sigma_data", check_sigma_data(self.sigma_data))

    def __call__(self, sigma: Tensor) -> Tensor:
        sigma_data = sigma_data_beside(self.sigma_data, sigma)
        return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


@dataclass(frozen=True)
class Data(Weight):
    """1: the squared error of the data."""

    name: ClassVar[str] = "data"

    def __call__(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)


@dataclass(frozen=True)
class Noise(Weight):
    """1 / sigma^2: the squared error of the noise (the weight of VP, VE and iDDPM in Table 1)."""

    name: ClassVar[str] = "noise"

    def __call__(self, sigma: Tensor) -> Tensor:
        return sigma**-2


@dataclass(frozen=True)
class Score(Weight):
    """1 / sigma^4: the squared error of the score of the unscaled x."""

    name: ClassVar[str] = "score"

    def __call__(self, sigma: Tensor) -> Tensor:
        return sigma**-4


@dataclass(frozen=True)
class Velocity(Weight):
    """(1 + sigma^2) / sigma^2: the squared error of v in a variance-preserving process."""

    name: ClassVar[str] = "velocity"

    def __call__(self, sigma: Tensor) -> Tensor:
        return 1 + sigma**-2


@dataclass(frozen=True)
class Flow(Weight):
    """((1 + sigma) / sigma)^2: the squared error of the rectified flow's velocity."""

    name: ClassVar[str] = "flow"

    def __call__(self, sigma: Tensor) -> Tensor:
        return (1 + 1 / sigma) ** 2


@dataclass(frozen=True)
class MinSNR(Weight):
    """min(1 / sigma^2, gamma) (Hang et al. 2023): stops low noise from dominating a loss on the data."""

    name: ClassVar[str] = "min_snr"
    gamma: float = 5.0

    def __post_init__(self) -> None:
        check_positive("gamma", self.gamma)

    def __call__(self, sigma: Tensor) -> Tensor:
        return (sigma**-2).clamp_max(self.gamma)


def named() -> dict[str, type[Weight]]:
    """The weights by name."""
    return registry.in_module(sys.modules[__name__], Weight)


class DenoisingLoss(nn.Module):
    """The loss of a denoiser, one number a sample, as a module (what a distributed wrapper holds).

    denoiser: a Preconditioned. weight: lambda(sigma). Where the denoiser has an uncertainty, the loss is EDM2's. One
    that weighs its errors itself has a method `training_loss(y, sigma, noise, condition) -> [B]`, which is then the
    loss.
    """

    def __init__(self, denoiser: nn.Module, weight: Weight) -> None:
        super().__init__()
        self.denoiser: Any = denoiser
        self.weight = weight

    def forward(self, y: Tensor, sigma: Tensor, noise: Tensor, condition: Mapping[str, Tensor] | None = None) -> Tensor:
        """The loss [B] of data y [B, *] at noise levels sigma [B] under unit normals noise [B, *], averaged over
        elements.
        """
        own: Callable[..., Tensor] | None = getattr(self.denoiser, "training_loss", None)
        if own is not None:
            return own(y, sigma, noise, dict(condition or {}))
        level = sigma.reshape(-1, *(1,) * (y.ndim - 1))
        denoised: Tensor = self.denoiser(y + level.to(y.dtype) * noise, sigma, **(condition or {}))
        loss: Tensor = (self.weight(level).to(y.dtype) * (denoised - y) ** 2).flatten(1).mean(1)
        if getattr(self.denoiser, "has_uncertainty", False):
            u = self.denoiser.uncertainty(sigma).to(loss.dtype)
            loss = loss / torch.exp(u) + u
        return loss
