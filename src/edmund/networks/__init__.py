"""The raw networks F(c_in x; c_noise, conditions) that a preconditioning turns into a denoiser.

A network is one module of this package with one class: an `nn.Module` with a class attribute `name` (what a config
calls it), whose constructor keywords are the config's keys and are remembered in `self.config`, and whose forward takes
(x, c_noise, *, conditions) and returns a tensor of x's shape. `registry` finds it; it is listed nowhere else.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from torch import nn

from edmund.networks.mlp import MLP
from edmund.networks.uncertainty import Uncertainty
from edmund.networks.unet import UNet

__all__ = ["MLP", "UNet", "Uncertainty", "registry"]


@functools.cache
def registry() -> dict[str, type[nn.Module]]:
    """Every network class of this package by its `name`."""
    found: dict[str, type[nn.Module]] = {}
    for _, path, _ in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        for value in vars(importlib.import_module(path)).values():
            if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == path:
                name = getattr(value, "name", None)
                if isinstance(name, str):
                    found[name] = value
    return found
