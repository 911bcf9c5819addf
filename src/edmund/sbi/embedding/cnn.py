"""A convolutional network for images and fields, and in one dimension for series.

Residual blocks halve the grid until no side is longer than four, each the double of the channels before it, and what
the last one gives is pooled over the grid: means, for properties of the whole (amplitudes, spectra), and maxima, for
what is somewhere in it. Where that was is not lost: convolutions tell from the zeros around the grid how far its border
is, and on the last grids no point is farther than two from it. (Coordinates as channels beside z, Liu et al. 2018,
added nothing to that.) Norms stand only in the branches, before their convolutions: what is pooled keeps the size of z.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edmund.errors import InputError, check_count
from edmund.networks.conditioning import check_dropout
from edmund.sbi.embedding._base import FEATURES, Embedding, check_shape, head

_COARSEST = 4
"""Longest side of the grid that is pooled."""
_WIDEST = 8
"""Greatest width of a level, in multiples of the first."""
_GROUP = 8
"""Channels that are normalised together."""


class _Block(nn.Module):
    """[B, in_channels, *grid] -> [B, channels, *grid], each side divided by `stride` and rounded up."""

    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float, dimensions: int) -> None:
        super().__init__()
        convolution = nn.Conv1d if dimensions == 1 else nn.Conv2d
        pool = nn.AvgPool1d if dimensions == 1 else nn.AvgPool2d
        self.norm_in = nn.GroupNorm(in_channels // _GROUP, in_channels)
        self.conv_in = convolution(in_channels, channels, 3, stride=stride, padding=1)
        self.norm_out = nn.GroupNorm(channels // _GROUP, channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = convolution(channels, channels, 3, padding=1)
        self.pool = nn.Identity() if stride == 1 else pool(stride, ceil_mode=True)
        self.skip = nn.Identity() if in_channels == channels else convolution(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = self.conv_out(self.dropout(F.silu(self.norm_out(h))))
        return self.skip(self.pool(x)) + h  # type: ignore[no-any-return]


class CNN(Embedding):
    """z [B, C, H, W] or [B, T, C] -> [B, out_features].

    shape: [C, H, W] for images, of any H and W; [T, C] for series, of any length T. channels: width of the finest
    level, a multiple of 8; dropout: probability inside the blocks.
    """

    name = "cnn"

    def __init__(
        self, shape: Sequence[int], out_features: int = FEATURES, channels: int = 16, dropout: float = 0.0
    ) -> None:
        shape = check_shape(shape, (2, 3), "images [C, H, W] and series [T, C]")
        if check_count("channels", channels) % _GROUP:
            raise InputError(
                f"channels is {channels}; it must be a multiple of {_GROUP}, which are normalised together"
            )
        check_dropout(dropout)
        super().__init__(shape, out_features, {"channels": channels, "dropout": dropout})
        grid = shape[1:] if len(shape) == 3 else shape[:1]
        in_channels = shape[0] if len(shape) == 3 else shape[1]
        halvings = max(0, math.ceil(math.log2(max(grid) / _COARSEST)))
        widths = [channels * min(2**level, _WIDEST) for level in range(halvings + 1)]
        convolution = nn.Conv1d if len(grid) == 1 else nn.Conv2d
        self.conv_in = convolution(in_channels, channels, 3, padding=1)
        self.blocks = nn.Sequential(
            *(_Block(before, after, 2, dropout, len(grid)) for before, after in itertools.pairwise(widths)),
            *([_Block(channels, channels, 1, dropout, len(grid))] if not halvings else []),
        )
        self.out = head(2 * widths[-1], widths[-1], self.out_features)

    def embed(self, z: Tensor) -> Tensor:
        z = z if len(self.shape) == 3 else z.transpose(1, 2)
        h = self.blocks(self.conv_in(z)).flatten(2)
        return self.out(torch.cat([h.mean(2), h.amax(2)], 1))  # type: ignore[no-any-return]
