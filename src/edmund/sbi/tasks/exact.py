"""Posteriors that are known exactly, against which an estimated one can be measured."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from edmund.errors import InputError, check_count


class Exact(ABC):
    """An exact posterior p(theta | x) over theta [dim]: draws, log-density and moments, all computed on the CPU."""

    dim: int
    mean: Tensor
    """[dim] float64."""
    covariance: Tensor
    """[dim, dim] float64."""

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n independent draws [n, dim] float32, the same for the same seed."""
        generator = torch.Generator().manual_seed(check_count("seed", seed, least=0))
        return self._sample(check_count("n", n), generator)

    def log_prob(self, theta: Tensor) -> Tensor:
        """log p(theta | x), [B, dim] -> [B] float64, -inf outside the prior's support."""
        if not isinstance(theta, Tensor) or theta.ndim != 2 or theta.shape[1] != self.dim:
            shape = list(theta.shape) if isinstance(theta, Tensor) else type(theta).__name__
            raise InputError(f"theta is {shape}; log_prob takes a tensor [B, {self.dim}]")
        return self._log_prob(theta.double().cpu()).to(theta.device)

    @abstractmethod
    def _sample(self, n: int, generator: torch.Generator) -> Tensor: ...

    @abstractmethod
    def _log_prob(self, theta: Tensor) -> Tensor: ...


class Gaussian(Exact):
    """N(mean, covariance): mean [D], covariance [D, D]."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean = mean.double()
        self.covariance = covariance.double()
        self.dim = len(mean)
        self._scale: Tensor = torch.linalg.cholesky(self.covariance)

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(n, self.dim, dtype=torch.float64, generator=generator)
        return (self.mean + z @ self._scale.mT).float()

    def _log_prob(self, theta: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(self._scale, (theta - self.mean).mT, upper=False)
        constant = self.dim / 2 * math.log(2 * math.pi) + self._scale.diagonal().log().sum()
        return torch.sum(-white.square() / 2, dim=0) - constant
