"""Euler's method: first order, one denoiser call a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edmund.process import Process
from edmund.samplers._base import Churn
from edmund.samplers._linear import LinearStep, OneStepSampler, Stage, slopes


@dataclass(frozen=True)
class Euler(OneStepSampler):
    """x_{i+1} = x_i + (t_{i+1} - t_i) dx/dt, over the process's own t (Algorithm 1 of Karras et al. 2022 without its
    correction).

    churn: Algorithm 2's noise injection before each step; None: deterministic. NFE of N steps: N.
    """

    name: ClassVar[str] = "euler"
    source: ClassVar[str] = "Euler 1768; Karras et al. 2022, Algorithm 1"
    order = 1
    nfe_per_step = 1
    churn: Churn | None = None

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[LinearStep]:
        """With x = s z: z' = (s/s') (1 + h a) z - (h b / s') D."""
        t, t_to = process.t(sigma_from), process.t(sigma_to)
        h, (a, b, s), s_to = t_to - t, slopes(process, t, sigma_from), process.s(t_to)
        weights = zip(sigma_from.tolist(), (s / s_to * (1 + h * a)).tolist(), (-h * b / s_to).tolist(), strict=True)
        return [LinearStep((Stage(sigma, x, (image,)),)) for sigma, x, image in weights]
