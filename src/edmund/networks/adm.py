"""ADM, the UNet of Dhariwal & Nichol (2021), as the EDM paper runs it (Karras et al. 2022, Appendix F.1 and Table 8).

Against DDPM++: the embedding scales and shifts the second norm's output, h (1 + scale) + shift; additions are not
rescaled; a block that resamples keeps its skip connection free of weights; attention has heads of 64 channels and
follows every block of its levels, in the decoder too; class labels join the embedding after its second layer. Each
residual branch and the output start at zero, so F = 0 and D = c_skip x before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edmund.errors import check_count
from edmund.networks._blocks import LevelledUNet, Style, group_norm, zero
from edmund.networks.conditioning import (
    ContextPooling,
    check_dropout,
    pooled_or_null,
)
from edmund.networks.embedding import PositionalFeatures

HEAD_CHANNELS = 64


class ADM(LevelledUNet):
    """Dhariwal & Nichol's UNet: x [B, in_channels, H, W] -> [B, out_channels, H, W].

    in_channels: channels of x; resolution: side of the square images that name the levels, a multiple of 2^(levels - 1)
    (other sizes are taken too, each side such a multiple); channels: width that the multiples refer to; channel_mult:
    width of each level; embedding_mult: width of the embedding; blocks: residual blocks a level in the encoder (one
    more in the decoder); attention_resolutions: levels with attention, by their side at `resolution`; label_dim: number
    of classes or width of label vectors; context_dim: width of the context; image_channels: channels of the image
    condition; augment_dim: width of the augment labels; dropout: probability inside the blocks; out_channels: channels
    of F, `in_channels` when None (iDDPM's learned variance: twice as many).

    The defaults are those of ImageNet-64.
    """

    name: ClassVar[str] = "adm"

    def __init__(
        self,
        in_channels: int,
        resolution: int = 64,
        channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        embedding_mult: int = 4,
        blocks: int = 3,
        attention_resolutions: Sequence[int] = (32, 16, 8),
        label_dim: int = 0,
        context_dim: int = 0,
        image_channels: int = 0,
        augment_dim: int = 0,
        dropout: float = 0.0,
        out_channels: int | None = None,
    ) -> None:
        check_count("in_channels", in_channels)
        check_count("channels", channels)
        check_count("image_channels", image_channels, least=0)
        embedding_channels = channels * check_count("embedding_mult", embedding_mult)
        style = Style(
            embedding_channels=embedding_channels,
            dropout=check_dropout(dropout),
            taps=[1, 1],
            scale=True,
            gain=1.0,
            eps=1e-5,
            project=False,
            head_channels=HEAD_CHANNELS,
        )
        super().__init__(
            style,
            in_channels + image_channels,
            resolution,
            channels,
            channel_mult,
            blocks,
            attention_resolutions,
            attend_once=False,
        )
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "resolution": resolution,
            "channels": channels,
            "channel_mult": list(channel_mult),
            "embedding_mult": embedding_mult,
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
        self.image_channels = image_channels
        self.label_dim = check_count("label_dim", label_dim, least=0)
        self.context_dim = check_count("context_dim", context_dim, least=0)
        self.augment_dim = check_count("augment_dim", augment_dim, least=0)
        self.conditional = bool(label_dim or context_dim or image_channels)

        self.map_noise = PositionalFeatures(channels, endpoint=False)
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, channels, bias=False)
        self.map_layer0 = nn.Linear(channels, embedding_channels)
        self.map_layer1 = nn.Linear(embedding_channels, embedding_channels)
        if label_dim:
            self.map_label = nn.Linear(label_dim, embedding_channels, bias=False)
            nn.init.normal_(self.map_label.weight)  # a one-hot row then has the unit variance of an embedded class
        if context_dim:
            self.context = ContextPooling(context_dim, embedding_channels)
            self.null_context = nn.Parameter(torch.zeros(embedding_channels))
        self.out_norm = group_norm(self.widths[0])
        self.out_conv = zero(
            nn.Conv2d(
                self.widths[0],
                in_channels if out_channels is None else check_count("out_channels", out_channels),
                3,
                padding=1,
            )
        )

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
        Whatever does not fit, H and W that the levels cannot halve among it, is an `InputError`.
        """
        x, rows, context, augment_labels, condition_dropped = self.check_inputs(
            x, c_noise, labels, context, image, augment_labels, condition_dropped
        )

        e = self.map_noise(c_noise).to(x.dtype)
        if augment_labels is not None:
            e = e + self.map_augment(augment_labels)
        e = self.map_layer1(F.silu(self.map_layer0(e)))
        if rows is not None:
            e = e + self.map_label(rows)
        if context is not None:
            e = e + pooled_or_null(self.context(context), self.null_context, condition_dropped)
        return self.run_levels(x, F.silu(e))

    def emit(self, level: int, h: Tensor, out: Tensor | None) -> Tensor | None:
        """The output, at the finest level."""
        return None if level else self.out_conv(F.silu(self.out_norm(h)))
