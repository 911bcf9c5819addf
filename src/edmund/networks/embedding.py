"""How a network is told the noise level: Fourier features of c_noise.

The preconditionings hand over very different numbers: ln(sigma)/4 in -1.6 .. 1.1 (EDM), ln(sigma/2) in -4.6 .. 3.9
(VE), t in 0 .. 1 (Flow), (M-1) t or a step index in 0 .. 999 (VP, iDDPM). The original networks answered with one
embedding each: sinusoids of 1 to 1e-4 radians for the indices (Vaswani et al. 2017; Ho et al. 2020), random Fourier
features for the logarithms (Tancik et al. 2020; Song et al. 2021). Here one geometric ladder of frequencies is long
enough for all of them: its slow end makes half a turn over 0 .. 999, its fast end some turns over an interval of length
one. Frequencies that are too slow for a formulation are constants to it, and those that are too fast look random and
the first layer learns to leave them out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edmund.errors import InputError, check_count

SLOWEST = 2.0**-11
"""Lowest frequency, in turns per unit of c_noise."""
FASTEST = 2.0
"""Highest frequency, in turns per unit of c_noise."""


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
