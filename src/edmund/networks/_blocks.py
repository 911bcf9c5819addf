"""What the UNets of Song et al. (2021) and of Dhariwal & Nichol (2021) share, as the EDM paper runs both.

The encoder keeps what leaves its first convolution and each of its blocks, also of those that halve the grid; the
decoder has one block more a level and reads one of the kept tensors in each (Karras et al. 2022, Appendix F.1). A block
is GroupNorm, SiLU, 3 x 3 convolution, twice, told the noise level and the conditions before its second convolution,
beside a skip connection, then self-attention where its level has it. A block that changes the resolution does so inside
its first convolution and its skip connection. The modules are named after the levels of the square images that the
network was made for ("32x32_block0"), which is how the published weights name them; the network itself is convolutional
and takes other sizes.
"""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edmund.errors import InputError, check_count
from edmund.networks.conditioning import (
    Modulation,
    augment_rows,
    check_dropped,
    check_image,
    check_input,
    context_rows,
    label_rows,
)

Direction = Literal["down", "up"]


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """At most 32 groups, of at least 4 channels each where there are so many."""
    groups = max(g for g in range(1, min(32, max(1, channels // 4)) + 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=eps)


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else reads: in its own memory where no gradient will ask for it again.

    Fresh memory for each activation costs a CPU as much time as the arithmetic does.
    """
    return F.silu(x, inplace=not torch.is_grad_enabled())


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer, with weight and bias zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def check_filter(taps: Sequence[int]) -> list[int]:
    """The taps of a resampling filter: symmetric, of even length, with a positive sum; else InputError."""
    if (
        not isinstance(taps, Sequence)
        or isinstance(taps, str)
        or len(taps) < 2
        or len(taps) % 2
        or any(isinstance(tap, bool) or not isinstance(tap, numbers.Real) for tap in taps)
        or list(taps) != list(reversed(taps))
        or sum(taps) <= 0
    ):
        raise InputError(
            f"resample_filter is {taps!r}; it must be an even number of symmetric taps, such as [1, 1] or [1, 3, 3, 1]"
        )
    return list(taps)


def check_channel_mult(channel_mult: Sequence[int]) -> None:
    """Refuses what is not one positive integer for each level."""
    if not isinstance(channel_mult, Sequence) or not channel_mult:
        raise InputError(f"channel_mult is {channel_mult!r}; it must have one integer for each level, such as [1, 2]")
    for mult in channel_mult:
        check_count("channel_mult", mult)


def check_attention(argument: str, chosen: Sequence[int], levels: Sequence[int]) -> None:
    """Refuses `chosen`, the levels with self-attention, if it is no list of some of `levels`."""
    if not isinstance(chosen, Sequence):
        raise InputError(f"{argument} is {chosen!r}; it must be a list of levels, of {list(levels)}")
    for level in chosen:
        if level not in levels:
            raise InputError(f"{argument} contains {level!r}; the network's levels are {list(levels)}")


def level_sides(resolution: int, channel_mult: Sequence[int], attention_resolutions: Sequence[int]) -> list[int]:
    """The side of each level, the finest first; InputError where the arguments do not make such levels."""
    check_channel_mult(channel_mult)
    multiple = 2 ** (len(channel_mult) - 1)
    if check_count("resolution", resolution) % multiple:
        raise InputError(
            f"resolution is {resolution}; with {len(channel_mult)} levels it must be a multiple of {multiple}"
        )
    sides = [resolution >> level for level in range(len(channel_mult))]
    check_attention("attention_resolutions", attention_resolutions, sides)
    return sides


def _filter(taps: Sequence[int]) -> Tensor:
    """The separable filter [1, 1, n, n] of sum one."""
    row = torch.tensor([tap / sum(taps) for tap in taps], dtype=torch.float32)
    return torch.outer(row, row)[None, None]


def _resample(x: Tensor, kernel: Tensor, direction: Direction) -> Tensor:
    """x [B, C, H, W] at half or twice the resolution, low-passed by `kernel` [1, 1, n, n] with zeros around x."""
    taps = kernel.shape[-1]
    if taps == 2:  # the box: pooling and repetition are the same numbers in a fraction of the time
        return F.avg_pool2d(x, 2) if direction == "down" else F.interpolate(x, scale_factor=2.0, mode="nearest")
    channels = x.shape[1]
    each = kernel.to(x.dtype).expand(channels, -1, -1, -1)
    if direction == "down":
        return F.conv2d(x, each, stride=2, padding=taps // 2 - 1, groups=channels)
    return F.conv_transpose2d(x, 4 * each, stride=2, padding=taps // 2 - 1, groups=channels)


class Resample(nn.Module):
    """Half or twice the resolution."""

    resample_filter: Tensor

    def __init__(self, direction: Direction, taps: Sequence[int]) -> None:
        super().__init__()
        self.direction = direction
        self.register_buffer("resample_filter", _filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        return _resample(x, self.resample_filter, self.direction)


class ResampledConv2d(nn.Conv2d):
    """A convolution at half or twice the resolution of its input; padded to keep the size, kernel odd."""

    resample_filter: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, direction: Direction, taps: Sequence[int]
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        self.direction = direction
        self.register_buffer("resample_filter", _filter(taps))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(_resample(input, self.resample_filter, self.direction))


@dataclass(frozen=True)
class Style:
    """What all blocks of one network have in common.

    embedding_channels: width of the embedding; dropout: probability before the second convolution; taps: resampling
    filter; scale: the embedding scales and shifts the second norm's output (else it is added to its input); gain:
    factor after each addition; eps: of the norms; project: the skip connection of a block that resamples has a 1 x 1
    convolution; head_channels: width of an attention head, None: one head.
    """

    embedding_channels: int
    dropout: float
    taps: Sequence[int]
    scale: bool
    gain: float
    eps: float
    project: bool
    head_channels: int | None


class Block(nn.Module):
    """One residual block, x [B, in_channels, H, W] -> [B, channels, H, W] (or at half, twice the resolution)."""

    def __init__(
        self, style: Style, in_channels: int, channels: int, attention: bool = False, resample: Direction | None = None
    ) -> None:
        super().__init__()
        self.scale = style.scale
        self.gain = style.gain
        self.norm0 = group_norm(in_channels, style.eps)
        self.conv0 = (
            nn.Conv2d(in_channels, channels, 3, padding=1)
            if resample is None
            else ResampledConv2d(in_channels, channels, 3, resample, style.taps)
        )
        self.affine = Modulation(style.embedding_channels, 2 * channels if style.scale else channels)
        self.norm1 = group_norm(channels, style.eps)
        self.dropout = nn.Dropout(style.dropout)
        self.conv1 = zero(nn.Conv2d(channels, channels, 3, padding=1))
        self.skip: nn.Module = nn.Identity()
        if resample is not None and (style.project or in_channels != channels):
            self.skip = ResampledConv2d(in_channels, channels, 1, resample, style.taps)
        elif resample is not None:
            self.skip = Resample(resample, style.taps)
        elif in_channels != channels:
            self.skip = nn.Conv2d(in_channels, channels, 1)
        self.heads = 0
        if attention:
            most = 1 if style.head_channels is None else max(1, channels // style.head_channels)
            self.heads = max(heads for heads in range(1, most + 1) if channels % heads == 0)
            self.norm2 = group_norm(channels, style.eps)
            self.qkv = nn.Conv2d(channels, 3 * channels, 1)
            self.proj = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(silu(self.norm0(x)))
        told = self.affine(embedding)[:, :, None, None]
        if self.scale:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), 1 + scale)
        else:
            h = self.norm1(h + told if torch.is_grad_enabled() else h.add_(told))
        h = self._add(self.skip(x), self.conv1(self.dropout(silu(h))))
        return self._add(h, self.proj(self._attended(self.norm2(h)))) if self.heads else h

    def _add(self, x: Tensor, branch: Tensor) -> Tensor:
        total = x + branch
        return total if self.gain == 1 else total.mul_(self.gain)

    def _attended(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # The published weights order the channels of qkv by head, then channel, then query, key, value.
        qkv = self.qkv(x).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        query, key, value = qkv.permute(3, 0, 1, 4, 2).contiguous().unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        return attended.transpose(2, 3).reshape(x.shape)


class LevelledUNet(nn.Module, ABC):
    """Encoder and decoder of `Block`s over halving levels; what leaves them besides is the subclass's.

    style: of all blocks; in_channels: channels of the input, image condition included; resolution: side of the square
    images that name the levels; channels: width of the first convolution; channel_mult: width of each level as
    multiples of it; blocks: a level in the encoder, one more in the decoder; attention_resolutions: levels with
    attention; attend_once: in the decoder only in a level's last block.
    """

    in_channels: int
    image_channels: int
    label_dim: int
    context_dim: int
    augment_dim: int
    conditional: bool

    def __init__(
        self,
        style: Style,
        in_channels: int,
        resolution: int,
        channels: int,
        channel_mult: Sequence[int],
        blocks: int,
        attention_resolutions: Sequence[int],
        attend_once: bool,
    ) -> None:
        super().__init__()
        check_count("blocks", blocks)
        sides = level_sides(resolution, channel_mult, attention_resolutions)
        self.blocks = blocks
        self.levels = [f"{side}x{side}" for side in sides]
        self.widths = [channels * mult for mult in channel_mult]
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()

        width = channels
        left = [width]
        for level, (side, name) in enumerate(zip(sides, self.levels, strict=True)):
            if level == 0:
                self.enc[f"{name}_conv"] = nn.Conv2d(in_channels, width, 3, padding=1)
            else:
                self.enc[f"{name}_down"] = Block(style, width, width, resample="down")
                left.append(width)
            for i in range(blocks):
                self.enc[f"{name}_block{i}"] = Block(style, width, self.widths[level], side in attention_resolutions)
                width = self.widths[level]
                left.append(width)
        for level, (side, name) in reversed(list(enumerate(zip(sides, self.levels, strict=True)))):
            if level == len(sides) - 1:
                self.dec[f"{name}_in0"] = Block(style, width, width, attention=True)
                self.dec[f"{name}_in1"] = Block(style, width, width)
            else:
                self.dec[f"{name}_up"] = Block(style, width, width, resample="up")
            for i in range(blocks + 1):
                attention = side in attention_resolutions and (i == blocks or not attend_once)
                self.dec[f"{name}_block{i}"] = Block(style, width + left.pop(), self.widths[level], attention)
                width = self.widths[level]

    def check_size(self, x: Tensor) -> None:
        """Refuses x [B, C, H, W] of a height or width that the levels cannot halve."""
        multiple = 2 ** (len(self.levels) - 1)
        for name, size in zip(("height", "width"), x.shape[2:], strict=True):
            if size == 0 or size % multiple:
                raise InputError(
                    f"x has shape {list(x.shape)}; the network's {len(self.levels)} levels halve it "
                    f"{len(self.levels) - 1} times, so its {name} must be a multiple of {multiple}"
                )

    def check_inputs(
        self,
        x: Tensor,
        c_noise: Tensor,
        labels: Tensor | None,
        context: Tensor | None,
        image: Tensor | None,
        augment_labels: Tensor | None,
        condition_dropped: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """(x with the image condition behind it, rows of labels, context, augment labels, condition_dropped) of a
        forward's arguments, checked, in x's dtype.
        """
        check_input(x, c_noise, f"[B, {self.in_channels}, H, W]", self.in_channels, 4)
        self.check_size(x)
        batch, dtype, device = x.shape[0], x.dtype, x.device
        condition_dropped = check_dropped(condition_dropped, batch, self.conditional)
        image = check_image(
            image, x, [self.image_channels, *x.shape[2:]] if self.image_channels else None, condition_dropped
        )
        rows = label_rows(labels, self.label_dim, condition_dropped, batch, dtype, device)
        context = context_rows(context, self.context_dim, batch, dtype)
        augment_labels = augment_rows(augment_labels, self.augment_dim, batch, dtype, device)
        seen = x if image is None else torch.cat([x, image], dim=1)
        return seen, rows, context, augment_labels, condition_dropped

    def run_levels(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The output F of x, image condition included, and the embedding."""
        h = aux = x
        left: list[Tensor] = []
        for level, name in enumerate(self.levels):
            if level == 0:
                h = self.enc[f"{name}_conv"](h)
            else:
                h, aux = self.join(name, self.enc[f"{name}_down"](h, embedding), aux)
            left.append(h)
            for i in range(self.blocks):
                h = self.enc[f"{name}_block{i}"](h, embedding)
                left.append(h)
        out: Tensor | None = None
        for level, name in reversed(list(enumerate(self.levels))):
            if level == len(self.levels) - 1:
                h = self.dec[f"{name}_in1"](self.dec[f"{name}_in0"](h, embedding), embedding)
            else:
                h = self.dec[f"{name}_up"](h, embedding)
            for i in range(self.blocks + 1):
                h = self.dec[f"{name}_block{i}"](torch.cat([h, left.pop()], dim=1), embedding)
            out = self.emit(level, h, out)
        assert out is not None  # `emit` has spoken at the finest level
        return out

    def join(self, name: str, h: Tensor, aux: Tensor) -> tuple[Tensor, Tensor]:
        """(h, aux) of the level `name` as it is entered; aux: the network's input, as far as it has been carried."""
        return h, aux

    @abstractmethod
    def emit(self, level: int, h: Tensor, out: Tensor | None) -> Tensor | None:
        """The output after `level` (0 the finest), from what leaves the level and the output of the coarser ones."""
