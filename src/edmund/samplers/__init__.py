"""The samplers: one class in one module each; a new one is found by being here.

Each is handed the denoiser and the noise levels (see `Sampler`), and goes by its class's `name`, or by one of its
`aliases`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from edmund import registry
from edmund.samplers._base import Callback, Churn, Sampler, Step
from edmund.samplers._linear import LinearSampler, LinearStep, OneStepSampler, Stage
from edmund.samplers.adaptive import Adaptive
from edmund.samplers.ddim import DDIM
from edmund.samplers.deis import DEIS
from edmund.samplers.dpm_2 import DPM2
from edmund.samplers.dpm_fast import DPMFast
from edmund.samplers.dpmpp_2m import DPMpp2M
from edmund.samplers.dpmpp_2s import DPMpp2S
from edmund.samplers.dpmpp_3m import DPMpp3M
from edmund.samplers.dpmpp_sde import DPMppSDE
from edmund.samplers.euler import Euler
from edmund.samplers.euler_maruyama import EulerMaruyama
from edmund.samplers.heun import Heun
from edmund.samplers.ipndm import IPNDM, PNDM
from edmund.samplers.lms import LMS
from edmund.samplers.predictor_corrector import PredictorCorrector
from edmund.samplers.restart import Restart
from edmund.samplers.sa_solver import SASolver
from edmund.samplers.sde_heun import SDEHeun
from edmund.samplers.unipc import UniPC


def named() -> dict[str, Callable[..., Sampler]]:
    """Name -> what makes the sampler of that name, aliases included; it takes the sampler's arguments by keyword."""
    makers: dict[str, Callable[..., Sampler]] = {}
    for name, kind in registry.in_package(sys.modules[__name__], Sampler).items():
        makers[name] = kind
        makers |= {alias: functools.partial(kind, **arguments) for alias, arguments in kind.aliases.items()}
    return makers


__all__ = [
    "DDIM",
    "DEIS",
    "DPM2",
    "IPNDM",
    "LMS",
    "PNDM",
    "Adaptive",
    "Callback",
    "Churn",
    "DPMFast",
    "DPMpp2M",
    "DPMpp2S",
    "DPMpp3M",
    "DPMppSDE",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "LinearSampler",
    "LinearStep",
    "OneStepSampler",
    "PredictorCorrector",
    "Restart",
    "SASolver",
    "SDEHeun",
    "Sampler",
    "Stage",
    "Step",
    "UniPC",
    "named",
]
