"""The contract of every denoiser, and of the conditions that it is told."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from edmund.errors import InputError


@runtime_checkable
class Denoiser(Protocol):
    """Any callable that maps (x [B, *], sigma [] or [B], **condition) to E[y | x] [B, *].

    It may carry `sigma_min` and `sigma_max` (its trained range), `round_sigma(sigma)` (a model that knows only certain
    levels) and `formulation`.
    """

    def __call__(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor: ...


def expand_condition(condition: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
    """The conditions with a batch axis of `batch`: one of batch 1 is expanded, another length is an InputError."""
    expanded = {}
    for key, value in condition.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            raise InputError(f"condition {key!r} is {value!r}; it must be a tensor with a batch axis of 1 or {batch}")
        if len(value) not in (1, batch):
            raise InputError(
                f"condition {key!r} has shape {tuple(value.shape)}; its batch axis must be 1 or {batch}, the "
                f"number of samples"
            )
        expanded[key] = value.expand(batch, *value.shape[1:])
    return expanded


def condition_names(network: nn.Module) -> tuple[str, ...] | None:
    """The keywords that the network's forward takes after (x, c_noise); None when it takes any."""
    parameters = list(inspect.signature(network.forward).parameters.values())
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters[2:])
