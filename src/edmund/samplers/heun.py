"""Heun's method and its family of second-order, two-stage schemes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edmund.errors import InputError, check_number
from edmund.process import Process
from edmund.samplers._base import Churn
from edmund.samplers._linear import LinearStep, OneStepSampler, Stage, slopes


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
    aliases: ClassVar[Mapping[str, Mapping[str, object]]] = {"midpoint": {"alpha": 1 / 2}, "ralston": {"alpha": 2 / 3}}
    source: ClassVar[str] = "Karras et al. 2022, Algorithm 1 and Appendix D.2"
    order = 2
    nfe_per_step = 2
    churn: Churn | None = None
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < check_number("alpha", self.alpha) <= 1:
            raise InputError(f"alpha is {self.alpha!r}; it must lie in (0, 1]: 1 is Heun, 1/2 midpoint, 2/3 Ralston")

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[LinearStep]:
        """With x = s z, and z_m = x_m z + image_m D the Euler step of alpha h."""
        t, t_to = process.t(sigma_from), process.t(sigma_to)
        h, (a, b, s), s_to = t_to - t, slopes(process, t, sigma_from), process.s(t_to)
        euler_x, euler_image = s / s_to * (1 + h * a), -h * b / s_to

        inner = sigma_to > 0
        # At alpha 1 the middle is the node itself, without the rounding of t.
        t_m = t_to if self.alpha == 1.0 else t + self.alpha * h
        sigma_m = sigma_to if self.alpha == 1.0 else process.sigma(t_m)
        h, t_m, sigma_m, s, s_to, a, b = (value[inner] for value in (h, t_m, sigma_m, s, s_to, a, b))
        a_m, b_m, s_m = slopes(process, t_m, sigma_m)
        x_m, image_m = s / s_m * (1 + self.alpha * h * a), -self.alpha * h * b / s_m
        w = 1 / (2 * self.alpha)
        x = (s * (1 + h * (1 - w) * a) + h * w * a_m * s_m * x_m) / s_to
        image = (h * w * a_m * s_m * image_m - h * (1 - w) * b) / s_to
        image_2 = -h * w * b_m / s_to

        columns = (value.tolist() for value in (sigma_from[inner], x_m, image_m, sigma_m, x, image_2, image))
        steps = [
            LinearStep((Stage(row[0], row[1], (row[2],)), Stage(row[3], row[4], (row[5], row[6]))))
            for row in zip(*columns, strict=True)
        ]
        last = ~inner
        ends = zip(sigma_from[last].tolist(), euler_x[last].tolist(), euler_image[last].tolist(), strict=True)
        return steps + [LinearStep((Stage(sigma, weight, (image,)),)) for sigma, weight, image in ends]
