"""A residual multilayer perceptron for vectors, conditioned at every block.

Each block is x + W_2 SiLU((1 + scale) * norm(W_1 SiLU(norm(x))) + shift), with scale and shift linear in the embedding
of noise level and conditions (FiLM, Perez et al. 2018; as the UNet has it). An image condition is flattened and enters
beside x, unscaled. The output layer starts at zero, so F = 0 and D = c_skip x before training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edmund.errors import InputError, check_count
from edmund.networks.conditioning import (
    Conditioning,
    Modulation,
    check_dropout,
    check_dropped,
    check_image,
    check_input,
)


class _Block(nn.Module):
    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(channels)
        self.linear_in = nn.Linear(channels, channels)
        self.modulation = Modulation(channels, 2 * channels)
        self.norm_out = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.linear_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.linear_out.weight)
        nn.init.zeros_(self.linear_out.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.norm_out(self.linear_in(F.silu(self.norm_in(x))))
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        h = F.silu(h * (1 + scale) + shift)
        return x + self.linear_out(self.dropout(h))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Conditional residual MLP: x [B, features] -> [B, out_features].

    features: width of x; channels: width of the hidden layers and of the embedding; blocks: number of residual blocks
    (two layers each); label_dim: number of classes or width of label vectors; context_dim: width of the context;
    image_shape: [C, H, W] of the image condition, None without; augment_dim: width of the augment labels; dropout:
    probability inside the blocks; out_features: width of F, `features` when None (more: extra outputs such as a learned
    variance).
    """

    name: ClassVar[str] = "mlp"

    def __init__(
        self,
        features: int,
        channels: int = 256,
        blocks: int = 4,
        label_dim: int = 0,
        context_dim: int = 0,
        image_shape: Sequence[int] | None = None,
        augment_dim: int = 0,
        dropout: float = 0.0,
        out_features: int | None = None,
    ) -> None:
        super().__init__()
        check_count("features", features)
        check_count("channels", channels)
        check_count("blocks", blocks)
        check_dropout(dropout)
        if image_shape is not None and (len(image_shape) != 3 or min(image_shape) < 1):
            raise InputError(f"image_shape is {image_shape!r}; it must be three positive integers [C, H, W], or None")
        self.config: dict[str, Any] = {
            "features": features,
            "channels": channels,
            "blocks": blocks,
            "label_dim": label_dim,
            "context_dim": context_dim,
            "image_shape": None if image_shape is None else list(image_shape),
            "augment_dim": augment_dim,
            "dropout": dropout,
            "out_features": out_features,
        }
        self.features = features
        self.image_shape = None if image_shape is None else list(image_shape)
        self.conditional = bool(label_dim or context_dim or image_shape)
        self.conditioning = Conditioning(channels, label_dim, context_dim, augment_dim)
        self.linear_in = nn.Linear(features + (math.prod(image_shape) if image_shape else 0), channels)
        self.blocks = nn.ModuleList(_Block(channels, dropout) for _ in range(blocks))
        self.norm_out = nn.LayerNorm(channels)
        self.linear_out = nn.Linear(
            channels, features if out_features is None else check_count("out_features", out_features)
        )
        nn.init.zeros_(self.linear_out.weight)
        nn.init.zeros_(self.linear_out.bias)

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
        """F [B, out_features] of x [B, features], already times c_in, and c_noise [B] in float32.

        labels [B] int (-1: none) or [B, label_dim]; context [B, context_dim] or [B, T, context_dim]; image [B,
        *image_shape], used as it is; augment_labels [B, augment_dim] (zero: none); condition_dropped [B] bool: these
        samples see no labels, the learned null context, a zero image. A condition of batch 1 is expanded. Whatever does
        not fit is an `InputError`.
        """
        check_input(x, c_noise, f"[B, {self.features}]", self.features, 2)
        condition_dropped = check_dropped(condition_dropped, x.shape[0], self.conditional)
        image = check_image(image, x, self.image_shape, condition_dropped)
        embedding = self.conditioning(c_noise, labels, context, augment_labels, condition_dropped, x.dtype)
        x = x if image is None else torch.cat([x, image.flatten(1)], dim=1)
        # Unlike pixels, the numbers of a vector may differ in digits that half precision has not got.
        with torch.autocast(x.device.type, enabled=False):
            h = self.linear_in(x)
        for block in self.blocks:
            h = block(h, embedding)
        h = F.silu(self.norm_out(h))
        with torch.autocast(x.device.type, enabled=False):
            return self.linear_out(h.to(x.dtype))  # type: ignore[no-any-return]
