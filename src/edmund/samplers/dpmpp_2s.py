"""DPM-Solver++(2S): second order in one step, on the denoised image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edmund.samplers._ancestral import AncestralSampler
from edmund.samplers._linear import Stage, denoise


@dataclass(frozen=True)
class DPMpp2S(AncestralSampler):
    """z' = (sigma'/sigma) z + (1 - sigma'/sigma) D(z_m; sigma_m), with z_m the DDIM step to sigma_m = sqrt(sigma
    sigma').

    The ODE is dz/dlambda = D - z with lambda = -ln sigma; it is solved exactly for the image at the middle in lambda
    (Lu et al. 2022b, Algorithm 1, r = 1/2). Independent of the process. The step to sigma = 0 is Euler's. Second order,
    weakly so for eta > 0. NFE of N steps that end in 0: 2N - 1.
    """

    name: ClassVar[str] = "dpmpp_2s"
    aliases: ClassVar[Mapping[str, Mapping[str, object]]] = {"dpmpp_2s_ancestral": {"eta": 1.0}}
    source: ClassVar[str] = "Lu et al. 2022 (DPM-Solver++), Algorithm 1"
    order = 2
    nfe_per_step = 2

    def stages(self, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[tuple[Stage, ...]]:
        """z_m = r z + (1 - r) D with r = sigma_m / sigma, then z' = r^2 z + (1 - r^2) D_m."""
        middle = torch.sqrt(sigma_from * sigma_to)
        steps: list[tuple[Stage, ...]] = []
        for start, mid, end in zip(sigma_from.tolist(), middle.tolist(), sigma_to.tolist(), strict=True):
            if end == 0:
                steps.append(denoise(start).stages)
                continue
            r, whole = mid / start, end / start
            steps.append((Stage(start, r, (1 - r,)), Stage(mid, whole, (1 - whole,))))
        return steps
