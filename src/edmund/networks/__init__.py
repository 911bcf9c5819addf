"""The raw networks F(c_in x; c_noise, conditions) that a preconditioning turns into a denoiser.

A network is one module of this package with one class: an `nn.Module` with a class attribute `name` (what a config
calls it), whose constructor keywords are the config's keys and are remembered in `self.config`, and whose forward takes
(x, c_noise, *, conditions) and returns a tensor of x's shape. `registry` finds it; it is listed nowhere else. One whose
labels know no "none" (-1) says so by a class attribute `null_class = False`: training then refuses to drop labels.
"""

from __future__ import annotations

import functools
import sys

from torch import nn

from edmund.networks.adm import ADM
from edmund.networks.diffusers_unet import DiffusersUNet2D, diffusers_library
from edmund.networks.dit import DiT
from edmund.networks.edm2_unet import EDM2UNet
from edmund.networks.mlp import MLP
from edmund.networks.song_unet import SongUNet
from edmund.networks.token_transformer import TokenTransformer
from edmund.networks.uncertainty import Uncertainty
from edmund.networks.unet import UNet
from edmund.registry import in_package

__all__ = [
    "ADM",
    "MLP",
    "DiT",
    "DiffusersUNet2D",
    "EDM2UNet",
    "SongUNet",
    "TokenTransformer",
    "UNet",
    "Uncertainty",
    "diffusers_library",
    "registry",
]


@functools.cache
def registry() -> dict[str, type[nn.Module]]:
    """Every network class of this package by its `name`."""
    return in_package(sys.modules[__name__], nn.Module)
