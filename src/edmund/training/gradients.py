"""Gradients between the backward pass and the optimiser: made finite, measured, clipped, never waiting for a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST = 1e5
"""What replaces an infinite gradient (Karras et al. 2022)."""


def norm(gradients: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all gradients together, a scalar; not finite if one of them is not."""
    found: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))))
    return found


@torch.no_grad()
def guard(gradients: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Replaces, in place, NaN by 0 and infinities by +-1e5; returns (the norm as it was, whether it was finite)."""
    before = norm(gradients)
    finite = torch.isfinite(before)
    # On the CPU the answer is there and the pass over the gradients can be spared.
    if before.device.type != "cpu" or not bool(finite):
        for gradient in gradients:
            torch.nan_to_num(gradient, nan=0.0, posinf=LARGEST, neginf=-LARGEST, out=gradient)
    return before, finite


@torch.no_grad()
def clip(gradients: Sequence[Tensor], before: Tensor, finite: Tensor, limit: float) -> None:
    """Scales the gradients, in place, to a norm of at most `limit`; `before` and `finite` are what `guard` returned."""
    if before.device.type != "cpu" or not bool(finite):
        before = norm(gradients)  # after the replacement
    torch._foreach_mul_(list(gradients), (limit / before).clamp_max(1.0))
