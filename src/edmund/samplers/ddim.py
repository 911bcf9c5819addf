"""DDIM: Euler's method in sigma, with as much new noise as one likes; DDPM and the ancestral Euler method are of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edmund.samplers._ancestral import AncestralSampler
from edmund.samplers._linear import Stage


@dataclass(frozen=True)
class DDIM(AncestralSampler):
    """z' = D + (sigma_down / sigma) (z - D) + sigma_up n, in unscaled coordinates, so for every process alike.

    eta 0 is DDIM, the exponential form of Euler's method. eta 1 is DDPM's posterior step, q(x' | x, y = D) (Ho et al.
    2020, Eq. 7), which is also k-diffusion's ancestral Euler. First order, weakly so for eta > 0. NFE of N steps: N.
    """

    name: ClassVar[str] = "ddim"
    aliases: ClassVar[Mapping[str, Mapping[str, object]]] = {"ddpm": {"eta": 1.0}, "euler_ancestral": {"eta": 1.0}}
    source: ClassVar[str] = "Song et al. 2020 (DDIM); Ho et al. 2020 (DDPM)"
    order = 1
    nfe_per_step = 1

    def stages(self, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[tuple[Stage, ...]]:
        """z' = r z + (1 - r) D with r = sigma' / sigma."""
        ratios = (sigma_to / sigma_from).tolist()
        return [(Stage(sigma, r, (1 - r,)),) for sigma, r in zip(sigma_from.tolist(), ratios, strict=True)]
