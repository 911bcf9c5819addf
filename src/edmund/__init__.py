"""Edmund: diffusion generative models on the design space of EDM (Karras et al. 2022), every part swappable.

x = edmund.sample(denoiser, (64, 3, 32, 32))        any denoiser, any sampler, grid and process
model = edmund.load("runs/digits")                   a trained model
x = model.sample(64, labels=torch.arange(64) % 10)   samples in the data's own units
"""

import importlib
from types import ModuleType

from edmund import (
    denoiser,
    errors,
    formulation,
    grid,
    loss,
    noise,
    noise_density,
    preconditioning,
    prediction,
    process,
    samplers,
)
from edmund.edit import edit
from edmund.encode import encode, interpolate
from edmund.errors import InputError
from edmund.likelihood import LogProb, bits_per_dim, log_prob
from edmund.model import Model, load
from edmund.sample import Trajectory, sample

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "LogProb",
    "Model",
    "Trajectory",
    "__version__",
    "bits_per_dim",
    "denoiser",
    "edit",
    "encode",
    "errors",
    "formulation",
    "grid",
    "interpolate",
    "load",
    "log_prob",
    "loss",
    "noise",
    "noise_density",
    "preconditioning",
    "prediction",
    "process",
    "sample",
    "samplers",
]


# Imported when they are asked for, so that `import edmund` stays quick and needs none of what they need.
_LATER = ("config", "data", "guidance", "metrics", "networks", "plots", "pretrained", "sbi", "training", "transform")


def __getattr__(name: str) -> ModuleType:
    if name in _LATER:
        return importlib.import_module(f"edmund.{name}")
    raise AttributeError(f"module 'edmund' has no attribute {name!r}")
