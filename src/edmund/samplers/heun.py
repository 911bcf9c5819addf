"""Heun's method and its family of second-order, two-stage schemes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from edmund.errors import InputError, check_number
from edmund.process import Process
from edmund.samplers._base import Churn, Evaluator, OneStepSampler, Slope, combined, slopes


class _Step(NamedTuple):
    slope: Slope
    h: float
    middle: Slope | None  # None on the step to sigma = 0, which is Euler's


@dataclass(frozen=True)
class Heun(OneStepSampler):
    """Algorithm 1 of Karras et al. 2022, with the family of its Appendix D.2: an Euler step of alpha h, then both
    slopes weighted.

    With d the slope at t and d' that at t + alpha h: x_{i+1} = x_i + h ((1 - 1/(2 alpha)) d + 1/(2 alpha) d'). alpha 1
    is Heun's method, 1/2 the midpoint method, 2/3 Ralston's. Over the process's own t. The step to sigma = 0 is
    Euler's. NFE of N steps that end in 0: 2N - 1.

    churn: Algorithm 2's noise injection before each step; None: deterministic.
    """

    name: ClassVar[str] = "heun"
    aliases: ClassVar[Mapping[str, Mapping[str, float]]] = {"midpoint": {"alpha": 1 / 2}, "ralston": {"alpha": 2 / 3}}
    churn: Churn | None = None
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < check_number("alpha", self.alpha) <= 1:
            raise InputError(f"alpha is {self.alpha!r}; it must lie in (0, 1]: 1 is Heun, 1/2 midpoint, 2/3 Ralston")

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[_Step]:
        """Slopes at the start and in the middle of each step, and its length in t."""
        t, t_to = process.t(sigma_from), process.t(sigma_to)
        h = t_to - t
        inner = sigma_to > 0
        if self.alpha == 1.0:
            middle = slopes(process, t_to[inner], sigma_to[inner])
        else:
            t_middle = (t + self.alpha * h)[inner]
            middle = slopes(process, t_middle, process.sigma(t_middle))
        middles: list[Slope | None] = [*middle, *[None] * (len(h) - len(middle))]
        return [_Step(*step) for step in zip(slopes(process, t, sigma_from), h.tolist(), middles, strict=True)]

    def advance(self, step: object, x: Tensor, evaluate: Evaluator) -> tuple[Tensor, Tensor]:
        """One step of the family; of Euler where the step ends in sigma = 0."""
        assert isinstance(step, _Step)
        slope, h, middle = step
        denoised = evaluate(x, slope.s, slope.sigma)
        if middle is None:
            return combined(x, 1 + h * slope.a, denoised, -h * slope.b), denoised
        x_middle = combined(x, 1 + self.alpha * h * slope.a, denoised, -self.alpha * h * slope.b)
        second = evaluate(x_middle, middle.s, middle.sigma)
        if self.alpha == 1.0:
            # The mean of x and of an Euler step from x_middle: x + h (d + d')/2 with x_middle = x + h d.
            ahead = combined(x_middle, 1 + h * middle.a, second, -h * middle.b)
            return ahead.lerp_(x, 0.5), denoised
        # With alpha h d = x_middle - x, the first slope needs no further look at D.
        w = 1 / (2 * self.alpha)
        share = (1 - w) / self.alpha
        following = torch.mul(x, 1 - share).add_(x_middle, alpha=share + h * w * middle.a)
        return following.add_(second, alpha=-h * w * middle.b), denoised
