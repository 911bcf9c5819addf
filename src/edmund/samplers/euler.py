"""Euler's method: first order, one denoiser call a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from edmund.process import Process
from edmund.samplers._base import Churn, Evaluator, OneStepSampler, Slope, combined, slopes


class _Step(NamedTuple):
    slope: Slope
    h: float


@dataclass(frozen=True)
class Euler(OneStepSampler):
    """x_{i+1} = x_i + (t_{i+1} - t_i) dx/dt, over the process's own t (Algorithm 1 of Karras et al. 2022 without its
    correction).

    churn: Algorithm 2's noise injection before each step; None: deterministic. NFE of N steps: N.
    """

    name: ClassVar[str] = "euler"
    churn: Churn | None = None

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[_Step]:
        """Slopes and step lengths in t."""
        t = process.t(sigma_from)
        return [
            _Step(*step)
            for step in zip(slopes(process, t, sigma_from), (process.t(sigma_to) - t).tolist(), strict=True)
        ]

    def advance(self, step: object, x: Tensor, evaluate: Evaluator) -> tuple[Tensor, Tensor]:
        """One Euler step."""
        assert isinstance(step, _Step)
        slope, h = step
        denoised = evaluate(x, slope.s, slope.sigma)
        return combined(x, 1 + h * slope.a, denoised, -h * slope.b), denoised
