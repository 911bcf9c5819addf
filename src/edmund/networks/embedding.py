"""How a network is told the noise level: Fourier features of c_noise.

The preconditionings hand over very different numbers: ln(sigma)/4 in -1.6 .. 1.1 (EDM), ln(sigma/2) in -4.6 .. 3.9
(VE), t in 0 .. 1 (Flow), (M-1) t or a step index in 0 .. 999 (VP, iDDPM). The original networks answered with one
embedding each: sinusoids of 1 to 1e-4 radians for the indices (Vaswani et al. 2017; Ho et al. 2020), random Fourier
features for the logarithms (Tancik et al. 2020; Song et al. 2021). Here one geometric ladder of frequencies is long
enough for all of them: its slow end makes half a turn over 0 .. 999, its fast end some turns over an interval of length
one. Frequencies that are too slow for a formulation are constants to it, and those that are too fast look random and
the first layer learns to leave them out.

The original two are here as well, for the networks that were published with them: `PositionalFeatures` and
`FourierFeatures`, of mean square 1/2, cosines before sines.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from edmund.errors import InputError, check_count

SLOWEST = 2.0**-11
"""Lowest frequency, in turns per unit of c_noise."""
FASTEST = 2.0
"""Highest frequency, in turns per unit of c_noise."""


def distinct(c_noise: Tensor) -> Tensor:
    """c_noise [B], or [1] where it is one number expanded, as in sampling: what is made of it is made once."""
    return c_noise[:1] if c_noise.stride(0) == 0 else c_noise


class NoiseFeatures(nn.Module):
    """c_noise [B] -> [B, channels]: sqrt(2) cos and sqrt(2) sin of 2 pi f c_noise, f geometric from `SLOWEST` to
    `FASTEST`.

    The features have mean square one. They are computed in float32 whatever the dtype of the network and of `c_noise`,
    and the frequencies are made on the way (a buffer would be rounded by `network.to(torch.bfloat16)`, and bf16 cannot
    tell 997 from 999).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if check_count("channels", channels, least=4) % 2:
            raise InputError(f"channels is {channels}; noise features come in pairs, so it must be even")
        self.channels = channels

    def forward(self, c_noise: Tensor) -> Tensor:
        octaves = torch.linspace(
            math.log2(SLOWEST), math.log2(FASTEST), self.channels // 2, dtype=torch.float32, device=c_noise.device
        )
        angles = 2 * math.pi * c_noise.to(torch.float32)[:, None] * torch.exp2(octaves)
        return math.sqrt(2) * torch.cat([angles.cos(), angles.sin()], dim=1)


class PositionalFeatures(nn.Module):
    """c_noise [B] -> [B, channels]: cos and then sin of c_noise w, w geometric from 1 down to 1e-4 (Vaswani et al.
    2017; Ho et al. 2020), in float32.

    endpoint: the last frequency is 1e-4 itself (DDPM++), else the next one would be (ADM).
    """

    def __init__(self, channels: int, endpoint: bool) -> None:
        super().__init__()
        if check_count("channels", channels, least=4) % 2:
            raise InputError(f"channels is {channels}; noise features come in pairs, so it must be even")
        self.channels = channels
        self.endpoint = endpoint

    def forward(self, c_noise: Tensor) -> Tensor:
        pairs = self.channels // 2
        step = torch.arange(pairs, dtype=torch.float32, device=c_noise.device) / (pairs - int(self.endpoint))
        angles = c_noise.to(torch.float32)[:, None] * 1e-4**step
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierFeatures(nn.Module):
    """c_noise [B] -> [B, channels]: cos and then sin of 2 pi f c_noise, f drawn from a normal of deviation 16 when the
    network is made and kept with the weights (Tancik et al. 2020; Song et al. 2021), in float32.
    """

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        if check_count("channels", channels, least=2) % 2:
            raise InputError(f"channels is {channels}; noise features come in pairs, so it must be even")
        self.register_buffer("freqs", 16 * torch.randn(channels // 2, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FourierFeatures:
        # `network.to(torch.bfloat16)` would round a frequency of 16 by up to 1/16, a sixteenth of a turn.
        exact = self.freqs
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.freqs.dtype != exact.dtype:
            self.freqs = exact.to(self.freqs.device)
        return self

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = 2 * math.pi * c_noise.to(torch.float32)[:, None] * self.freqs
        return torch.cat([angles.cos(), angles.sin()], dim=1)
