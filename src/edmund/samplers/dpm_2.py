"""DPM-Solver-2: the midpoint method with its midpoint in ln sigma."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edmund.samplers._ancestral import AncestralSampler
from edmund.samplers._linear import Stage, denoise


@dataclass(frozen=True)
class DPM2(AncestralSampler):
    """z' = z + (sigma' - sigma) (z_m - D(z_m; sigma_m)) / sigma_m, with z_m the Euler step to sigma_m = sqrt(sigma
    sigma').

    Single-step DPM-Solver of order 2 with r = 1/2 (Lu et al. 2022, Algorithm 4), which in unscaled coordinates is the
    midpoint method over sigma but for the place of the middle. Independent of the process. The step to sigma = 0 is
    Euler's. Second order, weakly so for eta > 0. NFE of N steps that end in 0: 2N - 1.
    """

    name: ClassVar[str] = "dpm_2"
    aliases: ClassVar[Mapping[str, Mapping[str, object]]] = {"dpm_2_ancestral": {"eta": 1.0}}
    source: ClassVar[str] = "Lu et al. 2022 (DPM-Solver); Karras et al. 2022"
    order = 2
    nfe_per_step = 2

    def stages(self, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[tuple[Stage, ...]]:
        """With z_m = r z + (1 - r) D and c = (sigma' - sigma) / sigma_m: z' = (1 + c r) z + c (1 - r) D - c D_m."""
        middle = torch.sqrt(sigma_from * sigma_to)
        steps: list[tuple[Stage, ...]] = []
        for start, mid, end in zip(sigma_from.tolist(), middle.tolist(), sigma_to.tolist(), strict=True):
            if end == 0:
                steps.append(denoise(start).stages)
                continue
            r, c = mid / start, (end - start) / mid
            # 1 + c r is sigma' / sigma, here without cancellation.
            steps.append((Stage(start, r, (1 - r,)), Stage(mid, end / start, (-c, c * (1 - r)))))
        return steps
