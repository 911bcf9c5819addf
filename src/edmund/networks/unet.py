"""A compact residual UNet for images and fields of any height and width.

The encoder halves the grid from level to level (rounding up, so 9 -> 5 -> 3), the coarsest level works in place, and
the decoder comes back to each level's exact size and reads what the encoder left there (Ronneberger et al. 2015).
Blocks are those of DDPM++ and ADM in short: GroupNorm, SiLU, 3 x 3 convolution, twice; the second norm is scaled and
shifted by the embedding of noise level and conditions (Dhariwal & Nichol 2021); self-attention follows the block at
chosen levels. Every residual branch and the output start at zero, so F = 0 and D = c_skip x before training. An image
condition is concatenated to x, unscaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edmund.errors import InputError, check_count
from edmund.networks._blocks import check_attention, check_channel_mult, group_norm, zero
from edmund.networks.conditioning import (
    Conditioning,
    Modulation,
    check_dropout,
    check_dropped,
    check_image,
    check_input,
)


class _Attention(nn.Module):
    """Self-attention over all pixels, with heads of 32 channels where they fit."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // 32 if channels % 32 == 0 else 1
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        query, key, value = qkv.transpose(3, 4).unbind(1)
        h = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(h.transpose(2, 3).reshape(x.shape))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(
        self, in_channels: int, channels: int, embedding_channels: int, dropout: float, attention: bool
    ) -> None:
        super().__init__()
        self.norm_in = group_norm(in_channels)
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.modulation = Modulation(embedding_channels, 2 * channels)
        self.norm_out = group_norm(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zero(nn.Conv2d(channels, channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == channels else nn.Conv2d(in_channels, channels, 1)
        self.attention = _Attention(channels) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.norm_out(self.conv_in(F.silu(self.norm_in(x))))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(h * (1 + scale) + shift)
        return self.attention(self.skip(x) + self.conv_out(self.dropout(h)))  # type: ignore[no-any-return]


class _Stage(nn.Module):
    """The blocks of one level on the way down, or up."""

    def __init__(
        self, in_channels: int, channels: int, blocks: int, embedding_channels: int, dropout: float, attention: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _Block(channels if i else in_channels, channels, embedding_channels, dropout, attention)
            for i in range(blocks)
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, embedding)
        return x


class UNet(nn.Module):
    """Conditional UNet: x [B, in_channels, H, W] -> [B, out_channels, H, W], any H and W that `patch` divides.

    in_channels: channels of x; channels: width of the first level (the embedding has four times as many); channel_mult:
    width of each level, as multiples of it; blocks: residual blocks a level and direction (the coarsest has twice as
    many); attention_levels: levels with self-attention, 0 the finest, None: only the coarsest (its cost grows with the
    square of the level's pixels: give larger images more levels); label_dim: number of classes or width of label
    vectors; context_dim: width of the context; image_channels: channels of the image condition; augment_dim: width of
    the augment labels; dropout: probability inside the blocks; patch: side of the squares of pixels that are taken as
    the channels of one, so that the finest level is a grid of H/patch x W/patch, at a fraction of the cost (Luhman &
    Luhman 2022); out_channels: channels of F, `in_channels` when None (more: extra outputs such as a learned variance).
    """

    name: ClassVar[str] = "unet"

    def __init__(
        self,
        in_channels: int,
        channels: int = 32,
        channel_mult: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention_levels: Sequence[int] | None = None,
        label_dim: int = 0,
        context_dim: int = 0,
        image_channels: int = 0,
        augment_dim: int = 0,
        dropout: float = 0.0,
        patch: int = 1,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("channels", channels)
        check_count("blocks", blocks)
        check_count("image_channels", image_channels, least=0)
        check_dropout(dropout)
        check_channel_mult(channel_mult)
        if attention_levels is None:
            attention_levels = [len(channel_mult) - 1]
        check_attention("attention_levels", attention_levels, range(len(channel_mult)))
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "channels": channels,
            "channel_mult": list(channel_mult),
            "blocks": blocks,
            "attention_levels": list(attention_levels),
            "label_dim": label_dim,
            "context_dim": context_dim,
            "image_channels": image_channels,
            "augment_dim": augment_dim,
            "dropout": dropout,
            "patch": patch,
            "out_channels": out_channels,
        }
        self.in_channels = in_channels
        self.image_channels = image_channels
        self.conditional = bool(label_dim or context_dim or image_channels)
        widths = [channels * mult for mult in channel_mult]
        embedding_channels = 4 * channels

        def stage(level: int, in_width: int, blocks: int) -> _Stage:
            return _Stage(in_width, widths[level], blocks, embedding_channels, dropout, level in attention_levels)

        finer = range(len(widths) - 1)
        self.conditioning = Conditioning(embedding_channels, label_dim, context_dim, augment_dim)
        self.patch = check_count("patch", patch)
        self.conv_in = nn.Conv2d((in_channels + image_channels) * patch**2, channels, 3, padding=1)
        self.encoder = nn.ModuleList(stage(level, widths[level] if level else channels, blocks) for level in finer)
        self.down = nn.ModuleList(
            nn.Conv2d(widths[level], widths[level + 1], 3, stride=2, padding=1) for level in finer
        )
        self.coarsest = stage(len(widths) - 1, widths[-1] if len(widths) > 1 else channels, 2 * blocks)
        self.up = nn.ModuleList(nn.Conv2d(widths[level + 1], widths[level], 1) for level in finer)
        self.decoder = nn.ModuleList(stage(level, 2 * widths[level], blocks) for level in finer)
        self.norm_out = group_norm(widths[0])
        emitted = in_channels if out_channels is None else check_count("out_channels", out_channels)
        self.conv_out = zero(nn.Conv2d(widths[0], emitted * patch**2, 3, padding=1))

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        *,
        labels: Tensor | None = None,
        context: Tensor | None = None,
        image: Tensor | None = None,
        augment_labels: Tensor | None = None,
        condition_dropped: Tensor | None = None,
    ) -> Tensor:
        """F [B, out_channels, H, W] of x [B, in_channels, H, W], already times c_in, and c_noise [B] in float32.

        labels [B] int (-1: none) or [B, label_dim]; context [B, context_dim] or [B, T, context_dim]; image [B,
        image_channels, H, W], used as it is; augment_labels [B, augment_dim] (zero: none); condition_dropped [B] bool:
        these samples see no labels, the learned null context, a zero image. A condition of batch 1 is expanded.
        Whatever does not fit is an `InputError`.
        """
        check_input(x, c_noise, f"[B, {self.in_channels}, H, W]", self.in_channels, 4)
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise InputError(
                f"x has shape {list(x.shape)}; this network takes patches of {self.patch} x {self.patch} pixels, so "
                f"height and width must be multiples of {self.patch}"
            )
        condition_dropped = check_dropped(condition_dropped, x.shape[0], self.conditional)
        image = check_image(
            image, x, [self.image_channels, *x.shape[2:]] if self.image_channels else None, condition_dropped
        )
        embedding = self.conditioning(c_noise, labels, context, augment_labels, condition_dropped, x.dtype)
        h = x if image is None else torch.cat([x, image], dim=1)
        h = self.conv_in(F.pixel_unshuffle(h, self.patch))
        left = []
        for encoder, down in zip(self.encoder, self.down, strict=True):
            h = encoder(h, embedding)
            left.append(h)
            h = down(h)
        h = self.coarsest(h, embedding)
        for up, decoder, skip in zip(reversed(self.up), reversed(self.decoder), reversed(left), strict=True):
            # A 1 x 1 convolution and nearest-neighbour interpolation commute: on the small grid it costs a quarter.
            h = F.interpolate(up(h), size=skip.shape[2:], mode="nearest")
            h = decoder(torch.cat([h, skip], dim=1), embedding)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch)
