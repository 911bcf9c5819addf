r"""Layers that keep the magnitude of what passes through them (Karras et al. 2024, Sections 2.3, 2.4 and Appendix B.4).

The magnitude of a tensor is its root mean square. For uncorrelated inputs of unit magnitude every layer here returns
unit magnitude, without measuring the activations:

- A linear map or convolution whose output channels each have a weight of unit norm (`MPConv`).
- `mp_silu`: SiLU of a unit normal has mean square 0.355, so it is divided by 0.596.
- `mp_sum`: ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2).
- `mp_cat`: concatenation with each part scaled so that it contributes (1 - t)^2 : t^2 to the sum of squares that a
  convolution over all channels sees, however many channels it has.
- `MPFourier`: sqrt(2) cos(f c + phase).

The weights are parametrised by unnormalised tensors v, w = v / |v| per output channel. Scaling v leaves w alone, but an
optimiser makes |v| grow and so slows down w; in training every forward pass therefore first sets v itself back to the
norm of its initialisation (forced weight normalisation: |v|^2 = the number of elements of a channel), so that the
learning rate alone decides how fast a direction turns. In evaluation v stays as it is, and w is still normalised: the
average of directions that EMA holds is shorter than they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPSILON = 1e-4
"""What Karras et al. add to a magnitude before they divide by it; published weights are made for it."""
_SILU_MAGNITUDE = 0.596


def normalise(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """x divided by its magnitude over `dim` (plus 1e-4), which is computed in float32 at least."""
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    magnitude = norm * math.sqrt(norm.numel() / x.numel()) if x.numel() else norm
    normalised: Tensor = x / (_EPSILON + magnitude).to(x.dtype)
    return normalised


def mp_silu(x: Tensor) -> Tensor:
    """SiLU that maps a unit normal to unit magnitude."""
    return F.silu(x).div_(_SILU_MAGNITUDE)


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """(1 - t) a + t b, over the magnitude that it has for uncorrelated a and b."""
    return torch.lerp(a, b, t).div_(math.hypot(1 - t, t))


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """a [B, M, *] and b [B, N, *] as [B, M + N, *], b with t^2 / ((1 - t)^2 + t^2) of the squares."""
    m, n = a.shape[1], b.shape[1]
    scale = math.sqrt(m + n) / math.hypot(1 - t, t)
    return torch.cat([a * (scale * (1 - t) / math.sqrt(m)), b * (scale * t / math.sqrt(n))], dim=1)


class MPConv(nn.Module):
    """Linear map (kernel None) or `kernel` x `kernel` convolution without bias, its output channels of unit norm.

    `weight` is v, in standard deviations: unit normal at first, [out_channels, in_channels] or with the kernel's axes.
    The normalisation is in float32 whatever the dtype of the weight; the product is in x's.
    """

    frozen: Tensor | None

    def __init__(self, in_channels: int, out_channels: int, kernel: int | None = None) -> None:
        super().__init__()
        window = () if kernel is None else (kernel, kernel)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *window))
        self.register_buffer("frozen", None, persistent=False)
        self._frozen_at: int | None = None

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """gain (None: 1) times the map of x [..., in_channels] or [B, in_channels, H, W], padded to keep the size."""
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalise(self.weight, tuple(range(1, self.weight.ndim))))
        weight = self._unit_norms() if self.frozen is None or self._changed() else self.frozen
        weight = (weight if gain is None else weight * gain).to(x.dtype)
        if weight.ndim == 2:
            return F.linear(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    @torch.no_grad()
    def freeze(self) -> None:
        """Normalises the weight once, for evaluation, until it is changed."""
        self.frozen = self._unit_norms()
        self._frozen_at = self.weight._version

    def _changed(self) -> bool:
        """Whether the weight was written to since it was frozen (a compiled network cannot ask)."""
        return self.training or not (torch.compiler.is_compiling() or self._frozen_at == self.weight._version)

    def _unit_norms(self) -> Tensor:
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        return normalise(weight, tuple(range(1, weight.ndim))) / math.sqrt(weight[0].numel())


class MPFourier(nn.Module):
    """c [B] -> sqrt(2) cos(f c + phase) [B, channels], f random normal with standard deviation 2 pi, phases uniform.

    `freqs` and `phases` are drawn once and kept as buffers, in float32 whatever the network is cast to: in bf16 a
    rounded frequency would be another function.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            moved: Any = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self

    def forward(self, c: Tensor) -> Tensor:
        angles = c.to(torch.float32)[:, None] * self.freqs.to(torch.float32) + self.phases.to(torch.float32)
        return math.sqrt(2) * angles.cos()
