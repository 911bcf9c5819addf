r"""Grids: which noise levels a sampler visits.

A grid maps (num_steps, sigma_min, sigma_max) to sigma_0 = sigma_max > sigma_1 > ... > sigma_{N-1} = sigma_min > sigma_N
= 0: N steps, the last one to 0 (Karras et al. 2022, Table 1, "Time steps"). Values are float64. sigma runs from noise
to data.
"""

from __future__ import annotations

import sys

from edmund import registry
from edmund.grid._base import Grid
from edmund.grid.closed_form import EDM, IDDPM, VE, VP, Discrete, Fixed, PolyExponential, UniformTime
from edmund.grid.optimised import Optimised


def named() -> dict[str, type[Grid]]:
    """The grids that need no argument, by name."""
    return registry.in_package(sys.modules[__name__], Grid)


__all__ = [
    "EDM",
    "IDDPM",
    "VE",
    "VP",
    "Discrete",
    "Fixed",
    "Grid",
    "Optimised",
    "PolyExponential",
    "UniformTime",
    "named",
]
