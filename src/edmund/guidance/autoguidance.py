r"""Autoguidance: away from a weaker version of the same model.

A smaller or less trained model makes the same errors as the main one, only larger. The difference of the two points out
of them, without the loss of variety that comes with guidance by a condition; it works for unconditional models too
(Karras et al. 2024, arXiv 2406.02507).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edmund.denoiser import Denoiser
from edmund.guidance._base import Guidance, check_denoiser


class Autoguidance(Guidance):
    """D_weak + w (D_main - D_weak), both told the same conditions (Karras et al. 2024).

    denoiser: the main one. weaker: a denoiser of the same data. w: 1 is off. interval: (sigma_low, sigma_high), None:
    all levels. The trained range is that in which every model that is asked was trained.
    """

    weaker: Denoiser

    def __init__(self, denoiser: Denoiser, weaker: Denoiser, w: float, interval: Sequence[float] | None = None) -> None:
        super().__init__(denoiser, w, interval)
        self.weaker = check_denoiser("weaker", weaker)

    def _guided(self, x: Tensor, sigma: Tensor, condition: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        main = self.denoiser(x, sigma, **condition)
        return torch.lerp(self.weaker(x, sigma, **condition), main, self.w), main

    @property
    def sigma_min(self) -> float | None:
        """The lowest level of the main model's range, and of the weaker one's if it is asked below that."""
        own: float | None = getattr(self.denoiser, "sigma_min", None)
        weak: float | None = getattr(self.weaker, "sigma_min", None)
        asked = self.w != 1 and weak is not None and (self.interval is None or self.interval[0] < weak)
        return max(own or 0.0, weak) if asked and weak is not None else own

    @property
    def sigma_max(self) -> float | None:
        """The highest level of the main model's range, and of the weaker one's if it is asked above that."""
        own: float | None = getattr(self.denoiser, "sigma_max", None)
        weak: float | None = getattr(self.weaker, "sigma_max", None)
        asked = self.w != 1 and weak is not None and (self.interval is None or self.interval[1] > weak)
        return min(own or weak, weak) if asked and weak is not None else own
