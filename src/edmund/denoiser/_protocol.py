"""The contract of every denoiser, and of the conditions that it is told."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

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


def condition_names(network: Callable[..., object]) -> tuple[str, ...] | None:
    """The keywords that a network or a denoiser takes after its first two arguments; None when it takes any.

    One that has `known_conditions` is believed; of others the signature is read.
    """
    if hasattr(network, "known_conditions"):
        said: tuple[str, ...] | None = network.known_conditions
        return said
    parameters = list(inspect.signature(getattr(network, "forward", network)).parameters.values())
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters[2:])


DROPPABLE = ("labels", "context", "image")
"""The conditions that have a "none": classifier-free training takes them away, and its guidance samples without."""


def drop_condition(condition: Mapping[str, Tensor], dropped: Tensor) -> dict[str, Tensor]:
    """The condition with the samples that `dropped` [B] bool marks told nothing of labels, context and image.

    Labels become -1 (classes) or a zero row (vectors); where there is a context or an image, `condition_dropped` says
    it to the network, beside what it said before. Other conditions stay: nobody knows their "none".
    """
    out = dict(condition)
    if "context" in condition or "image" in condition:
        before = condition.get("condition_dropped")
        marks = dropped.to(condition["context" if "context" in condition else "image"].device)
        out["condition_dropped"] = marks if before is None else marks | before
    labels = condition.get("labels")
    if labels is not None:
        where = dropped.to(labels.device).reshape(-1, *(1,) * (labels.ndim - 1))
        out["labels"] = torch.where(where, labels.new_full((), -1 if labels.ndim == 1 else 0), labels)
    return out
