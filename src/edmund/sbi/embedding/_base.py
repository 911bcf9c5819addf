"""What all embeddings have in common: the shape they take, the config that rebuilds them, the layers they end with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from edmund.errors import InputError, check_count

FEATURES = 32
"""Features of an observation where nobody asks for another number."""


def check_shape(shape: Sequence[int], ndims: Sequence[int], what: str) -> tuple[int, ...]:
    """`shape` as a tuple, if it is of positive integers and has one of `ndims` numbers; what: such shapes, in words."""
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) not in ndims:
        raise InputError(f"shape is {shape!r}; this embedding takes {what}")
    return tuple(check_count("shape", length) for length in shape)


class Embedding(nn.Module, ABC):
    """Standardised observations z [B, *shape] -> features [B, out_features].

    name: what a config calls it. config: {"type": name, the constructor's arguments}, from which
    `embedding.from_config` makes it again; None where the class is the user's.
    """

    name: str

    def __init__(self, shape: tuple[int, ...], out_features: int, options: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.shape = shape
        self.out_features = check_count("out_features", out_features)
        self.config: dict[str, Any] | None = None
        if options is not None:
            self.config = {"type": self.name, "shape": list(shape), "out_features": self.out_features, **options}

    def forward(self, z: Tensor) -> Tensor:
        """Raises InputError for z that is not [B, *shape]."""
        if z.shape[1:] != self.shape or not z.ndim:
            expected = ", ".join(["B", *map(str, self.shape)])
            raise InputError(f"z has shape {list(z.shape)}; this embedding was made for [{expected}]")
        return self.embed(z)

    @abstractmethod
    def embed(self, z: Tensor) -> Tensor:
        """The features of z [B, *shape], which has been checked."""


def check_mask(mask: bool, shape: tuple[int, ...], axis: int) -> None:
    """Refuses a mask where the features along `axis` are not as many values and as many masks."""
    if not isinstance(mask, bool):
        raise InputError(f"mask is {mask!r}; it must be True or False")
    if mask and shape[axis] % 2:
        raise InputError(
            f"mask is True, but shape {list(shape)} has {shape[axis]} features; half of them must be masks of the other"
        )


class ResidualBlock(nn.Module):
    """x + W_2 SiLU(norm(W_1 SiLU(norm(x)))) for x [..., channels]."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(channels)
        self.linear_in = nn.Linear(channels, channels)
        self.norm_out = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.linear_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm_out(self.linear_in(F.silu(self.norm_in(x))))
        return x + self.linear_out(self.dropout(F.silu(h)))  # type: ignore[no-any-return]


def head(in_features: int, channels: int, out_features: int) -> nn.Sequential:
    """[B, in_features] -> [B, out_features] by one hidden layer.

    Without a norm before it: the size of what was pooled is information.
    """
    return nn.Sequential(nn.Linear(in_features, channels), nn.SiLU(), nn.Linear(channels, out_features))
