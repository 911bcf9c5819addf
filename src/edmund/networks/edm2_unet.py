"""The magnitude-preserving UNet of EDM2 (Karras et al. 2024, config G: Figure 21 and Appendix B).

ADM's UNet without group normalisation, biases and learned shifts: `magnitude_preserving` holds its layers, whose
activations keep unit magnitude by construction from the input, which the preconditioning hands over with unit variance.
What would drift is held explicitly: the encoder's main path is normalised over channels at each pixel (pixel norm), so
are queries, keys and values (cosine attention, with temperature sqrt(channels per head)), and a block's residual branch
has weight 0.3 in a magnitude-preserving sum. The embedding scales the middle of each residual branch by 1 + gain * (its
linear map), the gain a learned number that starts at zero, as the gain of the output does: F = 0 before training. A
channel of ones joins the input, in the place of biases. Activations are cut to +-256 after each block, as the published
networks are, for the sake of half precision.

The parameters have the names and shapes of the published networks, where a level is called by the side that images have
there; hence the argument `resolution`. Other sizes, square or not, are taken too if the levels can halve them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edmund.errors import InputError, check_count
from edmund.networks._blocks import level_sides
from edmund.networks.conditioning import (
    ContextPooling,
    augment_rows,
    check_dropout,
    check_dropped,
    check_image,
    check_input,
    context_rows,
    label_rows,
    pooled_or_null,
)
from edmund.networks.magnitude_preserving import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalise

_RESIDUAL = 0.3
"""The share t of a residual branch in its sum."""
_LARGEST = 256.0
"""Where activations are cut."""


def _resampled(x: Tensor, resample: str | None) -> Tensor:
    if resample == "down":
        return F.avg_pool2d(x, 2)
    if resample == "up":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return x


class _Block(nn.Module):
    """A residual block, with cosine self-attention behind it where asked for.

    decoder: the 1 x 1 convolution that fits the channels is on the skip of the sum; in the encoder it is before both
    branches, and the pixel norm follows it.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        embedding_channels: int,
        dropout: float,
        attention: bool = False,
        *,
        decoder: bool,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.resample = resample
        self.dropout = dropout
        self.heads = channels // 64 if channels % 64 == 0 else 1
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(in_channels if decoder else channels, channels, 3)
        self.emb_linear = MPConv(embedding_channels, channels)
        self.conv_res1 = MPConv(channels, channels, 3)
        self.conv_skip = None if in_channels == channels else MPConv(in_channels, channels, 1)
        self.attn_qkv = MPConv(channels, 3 * channels, 1) if attention else None
        self.attn_proj = MPConv(channels, channels, 1) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = _resampled(x, self.resample)
        if not self.decoder:
            x = normalise(x if self.conv_skip is None else self.conv_skip(x), dim=1)
        scale = 1 + self.emb_linear(embedding, gain=self.emb_gain)
        h = mp_silu(self.conv_res0(mp_silu(x)) * scale[:, :, None, None].to(x.dtype))
        h = self.conv_res1(F.dropout(h, self.dropout, self.training))
        if self.decoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, h, _RESIDUAL)
        if self.attn_qkv is not None and self.attn_proj is not None:
            x = mp_sum(x, self.attn_proj(self._attended(self.attn_qkv(x))), _RESIDUAL)
        return x.clamp(-_LARGEST, _LARGEST)

    def _attended(self, qkv: Tensor) -> Tensor:
        batch, channels, height, width = qkv.shape
        # The published weights interleave query, key and value: [heads, channels per head, 3].
        qkv = normalise(qkv.reshape(batch, self.heads, -1, 3, height * width), dim=2)
        query, key, value = qkv.permute(3, 0, 1, 4, 2).unbind(0)
        h = F.scaled_dot_product_attention(query, key, value)
        return h.transpose(2, 3).reshape(batch, channels // 3, height, width)


class EDM2UNet(nn.Module):
    """EDM2's UNet: x [B, in_channels, H, W] -> [B, out_channels, H, W], H and W multiples of 2^(levels - 1).

    in_channels: channels of x; resolution: side of the square images that name the levels, a multiple of 2^(levels -
    1); channels: width that the multiples refer to; channel_mult: width of each level; blocks: residual blocks a level
    in the encoder (the decoder has one more); attention_resolutions: levels with self-attention, by their side at
    `resolution` (the coarsest's first decoder block has it in any case), with heads of 64 channels where they fit;
    label_dim: number of classes or width of label vectors; context_dim: width of the context; image_channels: channels
    of the image condition; augment_dim: width of the augment labels; dropout: probability inside the blocks;
    out_channels: channels of F, `in_channels` when None. Context, image and augment labels are no part of the published
    networks.

    In training mode a forward pass rescales the weights in place (forced weight normalisation): let the backward pass
    of one come before the next forward pass.
    """

    name: ClassVar[str] = "edm2_unet"

    def __init__(
        self,
        in_channels: int,
        resolution: int = 64,
        channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        blocks: int = 3,
        attention_resolutions: Sequence[int] = (16, 8),
        label_dim: int = 0,
        context_dim: int = 0,
        image_channels: int = 0,
        augment_dim: int = 0,
        dropout: float = 0.0,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("channels", channels)
        check_count("blocks", blocks)
        for argument, count in (
            ("label_dim", label_dim),
            ("context_dim", context_dim),
            ("image_channels", image_channels),
            ("augment_dim", augment_dim),
        ):
            check_count(argument, count, least=0)
        check_dropout(dropout)
        sizes = level_sides(resolution, channel_mult, attention_resolutions)
        self.multiple = 2 ** (len(sizes) - 1)
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "resolution": resolution,
            "channels": channels,
            "channel_mult": list(channel_mult),
            "blocks": blocks,
            "attention_resolutions": list(attention_resolutions),
            "label_dim": label_dim,
            "context_dim": context_dim,
            "image_channels": image_channels,
            "augment_dim": augment_dim,
            "dropout": dropout,
            "out_channels": out_channels,
        }
        self.in_channels = in_channels
        self.label_dim = label_dim
        self.context_dim = context_dim
        self.image_channels = image_channels
        self.augment_dim = augment_dim
        self.conditional = bool(label_dim or context_dim or image_channels)
        widths = [channels * mult for mult in channel_mult]
        embedding_channels = max(widths)

        self.emb_fourier = MPFourier(widths[0])
        self.emb_noise = MPConv(widths[0], embedding_channels)
        if label_dim:
            self.emb_label = MPConv(label_dim, embedding_channels)
        if context_dim:
            self.emb_context = ContextPooling(context_dim, embedding_channels)
            self.null_context = nn.Parameter(torch.zeros(embedding_channels))
        if augment_dim:
            self.emb_augment = MPConv(augment_dim, embedding_channels)

        def block(in_width: int, level: int, *, attention: bool, decoder: bool, resample: str | None = None) -> _Block:
            return _Block(
                in_width, widths[level], embedding_channels, dropout, attention, decoder=decoder, resample=resample
            )

        self.enc = nn.ModuleDict()
        width = widths[0]
        left = [width]
        for level, size in enumerate(sizes):
            at = f"{size}x{size}"
            if level == 0:
                self.enc[f"{at}_conv"] = MPConv(in_channels + image_channels + 1, width, 3)
            else:
                # The level's own width comes with its first block.
                self.enc[f"{at}_down"] = _Block(
                    width, width, embedding_channels, dropout, decoder=False, resample="down"
                )
                left.append(width)
            for i in range(blocks):
                self.enc[f"{at}_block{i}"] = block(width, level, attention=size in attention_resolutions, decoder=False)
                width = widths[level]
                left.append(width)
        self.dec = nn.ModuleDict()
        for level, size in reversed(list(enumerate(sizes))):
            at = f"{size}x{size}"
            if level == len(sizes) - 1:
                self.dec[f"{at}_in0"] = block(width, level, attention=True, decoder=True)
                self.dec[f"{at}_in1"] = block(width, level, attention=False, decoder=True)
            else:
                self.dec[f"{at}_up"] = _Block(width, width, embedding_channels, dropout, decoder=True, resample="up")
            for i in range(blocks + 1):
                self.dec[f"{at}_block{i}"] = block(
                    width + left.pop(), level, attention=size in attention_resolutions, decoder=True
                )
                width = widths[level]
        self.out_conv = MPConv(
            width, in_channels if out_channels is None else check_count("out_channels", out_channels), 3
        )
        self.out_gain = nn.Parameter(torch.zeros([]))

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
        if x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise InputError(
                f"x has shape {list(x.shape)}; this network halves height and width {self.multiple.bit_length() - 1} "
                f"times, so both must be multiples of {self.multiple}"
            )
        condition_dropped = check_dropped(condition_dropped, x.shape[0], self.conditional)
        image = check_image(
            image, x, [self.image_channels, *x.shape[2:]] if self.image_channels else None, condition_dropped
        )
        embedding = self._embedding(c_noise, labels, context, augment_labels, condition_dropped, x.dtype)
        h = torch.cat([x, torch.ones_like(x[:, :1])] if image is None else [x, image, torch.ones_like(x[:, :1])], dim=1)
        left = []
        for layer in self.enc.values():
            h = layer(h, embedding) if isinstance(layer, _Block) else layer(h)
            left.append(h)
        for name, layer in self.dec.items():
            h = layer(mp_cat(h, left.pop()) if "block" in name else h, embedding)
        return self.out_conv(h, gain=self.out_gain)  # type: ignore[no-any-return]

    def _embedding(
        self,
        c_noise: Tensor,
        labels: Tensor | None,
        context: Tensor | None,
        augment_labels: Tensor | None,
        condition_dropped: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """mp_silu of the magnitude-preserving sum of what there is to tell, [B, channels], in float32 at least.

        Of k terms each has weight 1 / sqrt(k). A one-hot label row times sqrt(label_dim) has unit magnitude, and so
        have its embedding and that of any label or augment vector whose squares sum to one.
        """
        batch, device = c_noise.shape[0], c_noise.device
        precise = torch.promote_types(dtype, torch.float32)
        rows = label_rows(labels, self.label_dim, condition_dropped, batch, precise, device)
        context = context_rows(context, self.context_dim, batch, dtype)
        augment_labels = augment_rows(augment_labels, self.augment_dim, batch, precise, device)
        terms = [self.emb_noise(self.emb_fourier(c_noise).to(precise))]
        if rows is not None:
            terms.append(self.emb_label(rows * math.sqrt(self.label_dim)))
        if context is not None:
            pooled = normalise(self.emb_context(context).to(precise), dim=1)
            terms.append(pooled_or_null(pooled, self.null_context, condition_dropped))
        if augment_labels is not None:
            terms.append(self.emb_augment(augment_labels * math.sqrt(self.augment_dim)))
        return mp_silu(torch.stack(terms).sum(dim=0) / math.sqrt(len(terms)))
