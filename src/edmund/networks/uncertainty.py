"""The learned uncertainty u(sigma) of EDM2 (Karras et al. 2024, section 2.2 and equation 14).

Training minimises lambda(sigma) / exp(u) * |D - y|^2 + u, whose minimum over u is the logarithm of the weighted loss at
that noise level: every level then contributes equally. u is one linear layer on Fourier features of ln(sigma)/4,
trained beside the network and thrown away, or read as a table of the loss against sigma.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edmund.networks.embedding import NoiseFeatures
from edmund.networks.magnitude_preserving import MPConv, MPFourier


class Uncertainty(nn.Module):
    """ln(sigma)/4 [B] -> u [B]; channels: number of Fourier features.

    A ladder of frequencies, in float32, and a linear layer that starts at zero. magnitude_preserving: that of the
    published networks, random frequencies and a weight of unit norm, so that u starts at random and stays within
    sqrt(2 channels); their `logvar_fourier` is `features` here and their `logvar_linear` is `linear`.
    """

    def __init__(self, channels: int = 128, magnitude_preserving: bool = False) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"channels": channels}
        self.features: NoiseFeatures | MPFourier
        self.linear: nn.Linear | MPConv
        if magnitude_preserving:
            self.config["magnitude_preserving"] = True
            self.features = MPFourier(channels)
            self.linear = MPConv(channels, 1)
        else:
            self.features = NoiseFeatures(channels)
            self.linear = nn.Linear(channels, 1)
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, c_noise: Tensor) -> Tensor:
        u: Tensor = self.linear(self.features(c_noise).to(self.linear.weight.dtype))
        return u.squeeze(1).to(torch.float32)
