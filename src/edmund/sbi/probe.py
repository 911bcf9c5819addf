"""Modules of the user's own, called once at the door: what does not fit is told there and not in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edmund.arguments import evaluation_mode
from edmund.errors import InputError


def zeros(module: nn.Module, *shape: int) -> Tensor:
    """Of the dtype and on the device of a module's parameters."""
    # Parameters that are made on the first call (nn.LazyLinear) have no dtype that counts, nor values.
    made = (p for p in module.parameters() if p.is_floating_point() and not isinstance(p, nn.UninitializedParameter))
    like = next(made, torch.zeros(()))
    return torch.zeros(shape, device=like.device, dtype=like.dtype)


def probe(told: str, wanted: str, module: nn.Module, *arguments: Tensor, **keywords: Tensor) -> Tensor:
    """What the module makes of these, without gradients and as in evaluation.

    Raises InputError, beginning with `told` and ending with `wanted`, where it raises, and where it does not make a
    tensor.
    """
    try:
        with torch.no_grad(), evaluation_mode(module):
            made: Any = module(*arguments, **keywords)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{told} raised {type(error).__name__}: {reason}; {wanted}") from error
    if not isinstance(made, Tensor):
        raise InputError(f"{told} made {type(made).__name__}; {wanted}")
    return made


def check_shape(told: str, wanted: str, made: Tensor, shape: Sequence[int | None]) -> None:
    """Refuses what has another shape; None: any length but 0."""
    fits = made.ndim == len(shape) and all(
        bool(length) if want is None else length == want for length, want in zip(made.shape, shape, strict=True)
    )
    if not fits:
        raise InputError(f"{told} made {list(made.shape)}; {wanted}")
