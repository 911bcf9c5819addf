"""Random numbers of a tensor's type, on its device, from a generator or torch's global stream (None)."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)


def uniform(like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Uniform numbers in [0, 1)."""
    return torch.rand(shape, dtype=like.dtype, device=like.device, generator=generator)
