"""A transformer over the rows of a series, or over the patches of an image (Vaswani et al. 2017; Dosovitskiy et al.
2021).

Each row is a token, or where there are many each `patch` rows, each square of patch x patch pixels. A token is a linear
map of its patch and of those next to it, plus a learned vector for its position, which starts as sinusoids: single
numbers tell attention little about which of the others concern them, and without the neighbours it learns a frequency
only after many times as many steps. One token more carries nothing but a learned vector; what it has gathered after the
blocks, beside the mean of the others, is what the features are made of. Blocks normalise before their branches (Xiong
et al. 2020), which trains without a warm-up.

With a mask, a token whose own patch is missing altogether is attended to by no other and not in the mean; the one that
carries nothing is always there, so that an observation of which everything is missing has features too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edmund.errors import InputError, check_count
from edmund.networks.conditioning import check_dropout
from edmund.networks.embedding import PositionalFeatures
from edmund.sbi.embedding._base import FEATURES, Embedding, check_mask, check_shape, head

_TOKENS = 64
"""Tokens that are not exceeded where nobody asks for a patch: the cost of attention grows with their square."""


class Transformer(Embedding):
    """z [B, T, C] or [B, C, H, W] -> [B, out_features].

    shape: [T, C] for series, [C, H, W] for images; sides that are no multiple of the patch are continued by zeros.
    patch: rows, or side of the square of pixels, of a token; None: the least power of two that makes at most 64 tokens.
    channels: width of the tokens, a multiple of 8; blocks: transformer blocks; heads: of attention, which divide
    channels; dropout: probability at attention weights and branches; mask: the second half of the C features says which
    of the first are missing, as `Standardise` with a mask has it.
    """

    name = "transformer"

    def __init__(
        self,
        shape: Sequence[int],
        out_features: int = FEATURES,
        patch: int | None = None,
        channels: int = 64,
        blocks: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
        mask: bool = False,
    ) -> None:
        shape = check_shape(shape, (2, 3), "series [T, C] and images [C, H, W]")
        if check_count("channels", channels) % 8:
            raise InputError(f"channels is {channels}; it must be a multiple of 8, for sinusoids along two axes")
        check_count("blocks", blocks)
        if channels % check_count("heads", heads):
            raise InputError(f"heads is {heads}; it must divide channels, {channels}")
        check_dropout(dropout)
        grid = shape[1:] if len(shape) == 3 else shape[:1]
        features_axis = 0 if len(shape) == 3 else 1
        check_mask(mask, shape, features_axis)
        if patch is None:
            patch = 1
            while math.prod(math.ceil(side / patch) for side in grid) > _TOKENS:
                patch *= 2
        super().__init__(
            shape,
            out_features,
            {
                "patch": check_count("patch", patch),
                "channels": channels,
                "blocks": blocks,
                "heads": heads,
                "dropout": dropout,
                "mask": mask,
            },
        )
        self.mask = mask
        self.patch = patch
        self.padding = [length for side in reversed(grid) for length in (0, -side % patch)]
        convolution = nn.Conv1d if len(grid) == 1 else nn.Conv2d
        self.patch_in = convolution(shape[features_axis], channels, 3 * patch, stride=patch, padding=patch)
        self.positions = nn.Parameter(_sinusoids([math.ceil(side / patch) for side in grid], channels))
        self.summary = nn.Parameter(torch.randn(channels))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                channels, heads, 2 * channels, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(blocks)
        )
        self.norm_out = nn.LayerNorm(channels)
        self.out = head(2 * channels, channels, self.out_features)

    def embed(self, z: Tensor) -> Tensor:
        z = z if len(self.shape) == 3 else z.transpose(1, 2)
        tokens = self.patch_in(F.pad(z, self.padding)).flatten(2).transpose(1, 2)
        h = torch.cat(
            [self.summary.to(tokens.dtype).expand(len(z), 1, -1), tokens + self.positions.to(tokens.dtype)], 1
        )
        absent = self._absent(z) if self.mask else None
        ignored = None if absent is None else F.pad(absent, (1, 0))  # a False before them: the summary is there
        for block in self.blocks:
            h = block(h, src_key_padding_mask=ignored)
        h = self.norm_out(h)
        gathered, others = h[:, 0], h[:, 1:]
        if absent is None:
            mean = others.mean(1)
        else:
            present = (~absent).sum(1, keepdim=True).clamp(min=1)
            mean = others.masked_fill(absent[:, :, None], 0).sum(1) / present
        return self.out(torch.cat([gathered, mean], 1))  # type: ignore[no-any-return]

    def _absent(self, z: Tensor) -> Tensor:
        """[B, N] bool, True where z [B, C, *grid] is missing in a token's whole patch."""
        pool = F.max_pool1d if len(self.shape) == 2 else F.max_pool2d
        there = 1 - z[:, z.shape[1] // 2 :].amin(1, keepdim=True)
        return pool(F.pad(there, self.padding), self.patch).flatten(1) < 0.5


def _sinusoids(grid: Sequence[int], channels: int) -> Tensor:
    """[N, channels] for the N tokens of a grid, the last axis fastest, the channels shared out among its axes."""
    axes = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    features = PositionalFeatures(channels // len(grid), endpoint=False)
    return torch.cat([features(positions.flatten()) for positions in axes], 1)
