"""The diffusion transformer (Peebles & Xie 2023, arXiv 2212.09748), for images and fields and for sequences.

x is cut into patches of side p, each a token; blocks of self-attention and a two-layer perceptron work on the tokens,
and a linear layer turns each back into its patch. The embedding e of noise level and conditions enters every block by
adaLN-zero: a linear map of e gives a shift, a scale and a gate for each of its two branches,

    x <- x + gate * branch((1 + scale) * norm(x) + shift).

The map starts at zero, so each block starts as the identity, and the last layer too, so F = 0 and D = c_skip x before
training.

Where tokens lie to each other is told by rotation (RoPE; Su et al. 2021, arXiv 2104.09864): pairs of the channels of
each query and key are turned by angles p w in proportion to the token's position p. The score of a query at p and a key
at q then depends on their contents and on q - p alone, since R(p)^T R(q) = R(q - p), so that grids of other sizes than
in training show it nothing but longer distances. On images half of the pairs turn with the row and half with the column
(axial; Heo et al. 2024, arXiv 2403.13298). Queries and keys are normalised before that, which bounds the scores:
without it they can grow until attention collapses (Dehghani et al. 2023, arXiv 2302.05442).

Relative positions alone cannot tell the middle of a picture from its border (tokens of equal content stay equal, for
attention averages their equal values), so each token is also told roughly where in the whole it lies: a linear map,
zero at the start, of the lowest cosines of coordinates that run from 0 to 1 over the grid, whatever its size.

A context is pooled into e as in the other networks, and each block besides attends to its tokens, between its two
branches, by a cross-attention that starts at zero (as Chen et al. 2023, arXiv 2310.00426). A vector is one token. In
the samples where the context is dropped all tokens are one learned null.
"""

from __future__ import annotations

import math
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
    context_rows,
)

_EPS = 1e-6
_LONGEST = {1: 10_000.0, 2: 100.0}
"""By dimensions: the slowest rotation makes about one radian over so many tokens along an axis."""
_COSINES = 8
"""Along each axis, of the coordinate within the whole."""
_AXES = {1: ("length",), 2: ("height", "width")}

Rotation = tuple[Tensor, Tensor]


def _rotation(positions: Tensor, head_channels: int) -> Rotation:
    """(cos, sin), each [N, head_channels / 2], of the angles for tokens at `positions` [N, axes]."""
    axes = positions.shape[1]
    pairs = head_channels // (2 * axes)
    step = torch.arange(pairs, dtype=positions.dtype, device=positions.device) / pairs
    angles = (positions[:, :, None] * _LONGEST[axes] ** -step).flatten(1)
    return angles.cos(), angles.sin()


def _rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """x [..., N, C] with each pair of channels (i, i + C/2) turned by its token's angle."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def _grid(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The positions [N, axes] of the tokens of a grid, the last axis fastest."""
    axes = [torch.arange(size, dtype=dtype, device=device) for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def _coordinates(positions: Tensor, shape: torch.Size) -> Tensor:
    """sqrt(2) cos(pi k u), k = 1 .. `_COSINES`, for u in (0, 1) along each axis of the grid: [N, axes * _COSINES]."""
    k = torch.arange(1, _COSINES + 1, dtype=positions.dtype, device=positions.device)
    along = [(positions[:, axis, None] + 0.5) / size for axis, size in enumerate(shape)]
    return math.sqrt(2) * torch.cat([torch.cos(math.pi * k * u) for u in along], dim=1)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=_EPS)


def _zero(layer: nn.Linear) -> nn.Linear:
    """The layer, with weight and bias zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _linear(in_channels: int, channels: int) -> nn.Linear:
    """A layer of the transformer as the paper starts it: Glorot's uniform weights, bias zero."""
    layer = nn.Linear(in_channels, channels)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, _norm(x), 1 + scale)


class _RMSNorm(nn.RMSNorm):
    """Computes in its input's dtype; under autocast the gain has another, for which there is no fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class _SelfAttention(nn.Module):
    """Tokens [B, N, channels] -> the same, every token attending to all."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = _linear(channels, 3 * channels)
        self.norm_query = _RMSNorm(channels // heads, eps=_EPS)
        self.norm_key = _RMSNorm(channels // heads, eps=_EPS)
        self.out = _linear(channels, channels)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        query = _rotated(self.norm_query(query), rotation)
        key = _rotated(self.norm_key(key), rotation)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _CrossAttention(nn.Module):
    """Tokens [B, N, channels] and context [B, T, channels] -> [B, N, channels]; zero at the start."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = _linear(channels, channels)
        # with their usual biases, so that the keys of a null context that is zero are not zero: they are normalised
        self.key_value = nn.Linear(channels, 2 * channels)
        self.norm_query = _RMSNorm(channels // heads, eps=_EPS)
        self.norm_key = _RMSNorm(channels // heads, eps=_EPS)
        self.out = _zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        query = self.query(_norm(x)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(self.norm_query(query), self.norm_key(key), value)
        return self.out(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, channels: int, heads: int, dropout: float, context: bool) -> None:
        super().__init__()
        self.modulation = _zero(Modulation(channels, 6 * channels))
        self.attention = _SelfAttention(channels, heads)
        self.cross = _CrossAttention(channels, heads) if context else None
        self.linear_in = _linear(channels, 4 * channels)
        self.linear_out = _linear(4 * channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None, rotation: Rotation) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(embedding)[:, None].chunk(6, dim=2)
        x = x + gate * self.dropout(self.attention(_modulated(x, shift, scale), rotation))
        if self.cross is not None:
            x = x + self.dropout(self.cross(x, context))
        h = F.gelu(self.linear_in(_modulated(x, shift_mlp, scale_mlp)), approximate="tanh")
        return x + gate_mlp * self.dropout(self.linear_out(h))  # type: ignore[no-any-return]


class DiT(nn.Module):
    """Conditional transformer over patches: x [B, in_channels, H, W] -> [B, out_channels, H, W], or x [B, in_channels,
    L] -> [B, out_channels, L]; H, W and L any multiples of the patch.

    in_channels: channels of x; patch: side of a patch, in pixels or samples (the cost of attention grows with the
    square of the number of patches); channels: width of the tokens and of the embedding; blocks: number of transformer
    blocks; heads: of attention, each of channels / heads channels, a multiple of 2 x dimensions; label_dim: number of
    classes or width of label vectors; context_dim: width of the context; image_channels: channels of the image
    condition; augment_dim: width of the augment labels; dropout: probability at the end of each branch; out_channels:
    channels of F, `in_channels` when None (more: extra outputs such as a learned variance); dimensions: 2 for images
    and fields, 1 for sequences and signals.

    The paper's DiT-XL/2 is patch=2, channels=1152, blocks=28, heads=16; S, B and L have 384, 768 and 1024 channels, 12,
    12 and 24 blocks, 6, 12 and 16 heads. Those had fixed sinusoids added for the positions, and queries and keys
    as they are; their weights do not load here.
    """

    name: ClassVar[str] = "dit"

    def __init__(
        self,
        in_channels: int,
        patch: int = 2,
        channels: int = 128,
        blocks: int = 6,
        heads: int = 4,
        label_dim: int = 0,
        context_dim: int = 0,
        image_channels: int = 0,
        augment_dim: int = 0,
        dropout: float = 0.0,
        out_channels: int | None = None,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("patch", patch)
        check_count("channels", channels)
        check_count("blocks", blocks)
        check_count("heads", heads)
        check_count("image_channels", image_channels, least=0)
        check_dropout(dropout)
        if check_count("dimensions", dimensions) not in _AXES:
            raise InputError(f"dimensions is {dimensions!r}; it must be 1 (sequences) or 2 (images and fields)")
        if channels % (2 * dimensions * heads):
            raise InputError(
                f"heads is {heads}; channels / heads = {channels} / {heads} must be a multiple of {2 * dimensions}: "
                f"positions turn pairs of channels along {' and '.join(_AXES[dimensions])}"
            )
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "patch": patch,
            "channels": channels,
            "blocks": blocks,
            "heads": heads,
            "label_dim": label_dim,
            "context_dim": context_dim,
            "image_channels": image_channels,
            "augment_dim": augment_dim,
            "dropout": dropout,
            "out_channels": out_channels,
            "dimensions": dimensions,
        }
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else check_count("out_channels", out_channels)
        self.image_channels = image_channels
        self.context_dim = context_dim
        self.patch = patch
        self.dimensions = dimensions
        self.head_channels = channels // heads
        self.conditional = bool(label_dim or context_dim or image_channels)

        self.conditioning = Conditioning(channels, label_dim, context_dim, augment_dim)
        if context_dim:
            self.context_in = nn.Linear(context_dim, channels)
            self.null_token = nn.Parameter(torch.zeros(channels))
        convolution = nn.Conv1d if dimensions == 1 else nn.Conv2d
        self.patch_in = convolution(in_channels + image_channels, channels, patch, stride=patch)
        self.position_in = nn.Linear(dimensions * _COSINES, channels, bias=False)
        nn.init.zeros_(self.position_in.weight)
        self.blocks = nn.ModuleList(_Block(channels, heads, dropout, bool(context_dim)) for _ in range(blocks))
        self.modulation = _zero(Modulation(channels, 2 * channels))
        self.patch_out = _zero(nn.Linear(channels, patch**dimensions * self.out_channels))

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
        """F [B, out_channels, H, W] of x [B, in_channels, H, W], already times c_in, and c_noise [B] in float32; with
        L in the place of H, W in one dimension.

        labels [B] int (-1: none) or [B, label_dim]; context [B, context_dim] or [B, T, context_dim], a set; image [B,
        image_channels, H, W], used as it is; augment_labels [B, augment_dim] (zero: none); condition_dropped [B] bool:
        these samples see no labels, the learned null context, a zero image. A condition of batch 1 is expanded.
        Whatever does not fit is an `InputError`.
        """
        shape = ", ".join(["B", str(self.in_channels), *(axis[0].upper() for axis in _AXES[self.dimensions])])
        check_input(x, c_noise, f"[{shape}]", self.in_channels, 2 + self.dimensions)
        self._check_size(x)
        batch = x.shape[0]
        condition_dropped = check_dropped(condition_dropped, batch, self.conditional)
        image = check_image(
            image, x, [self.image_channels, *x.shape[2:]] if self.image_channels else None, condition_dropped
        )
        embedding = self.conditioning(c_noise, labels, context, augment_labels, condition_dropped, x.dtype)
        tokens = self._context_tokens(context, batch, x.dtype, condition_dropped)

        h = self.patch_in(x if image is None else torch.cat([x, image], dim=1))
        grid = h.shape[2:]
        positions = _grid(grid, torch.promote_types(x.dtype, torch.float32), x.device)
        cos, sin = _rotation(positions, self.head_channels)
        rotation = cos.to(x.dtype), sin.to(x.dtype)
        h = h.flatten(2).transpose(1, 2) + self.position_in(_coordinates(positions, grid).to(x.dtype))
        for block in self.blocks:
            h = block(h, embedding, tokens, rotation)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=2)
        return self._assembled(self.patch_out(_modulated(h, shift, scale)), grid)

    def _check_size(self, x: Tensor) -> None:
        for axis, size in zip(_AXES[self.dimensions], x.shape[2:], strict=True):
            if size == 0 or size % self.patch:
                raise InputError(
                    f"x has shape {list(x.shape)}; with patch = {self.patch} its {axis} must be a multiple of "
                    f"{self.patch}"
                )

    def _context_tokens(
        self, context: Tensor | None, batch: int, dtype: torch.dtype, condition_dropped: Tensor | None
    ) -> Tensor | None:
        """What the blocks attend to, [B, T, channels]: the context's tokens, or the learned null where dropped."""
        context = context_rows(context, self.context_dim, batch, dtype)
        if context is None:
            return None
        tokens = self.context_in(context[:, None] if context.ndim == 2 else context)
        if condition_dropped is None:
            condition_dropped = torch.zeros(batch, dtype=torch.bool, device=tokens.device)
        return torch.where(condition_dropped[:, None, None], self.null_token.to(tokens.dtype), tokens)

    def _assembled(self, h: Tensor, grid: torch.Size) -> Tensor:
        """Patches [B, N, p ... p out_channels] put back where they belong, [B, out_channels, H, W] or [B, .., L]."""
        h = h.reshape(h.shape[0], *grid, *(self.patch,) * self.dimensions, self.out_channels)
        inside = [axis for i in range(self.dimensions) for axis in (1 + i, 1 + self.dimensions + i)]
        h = h.permute(0, h.ndim - 1, *inside)
        return h.reshape(h.shape[0], self.out_channels, *(size * self.patch for size in grid))
