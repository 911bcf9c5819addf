"""DPM-Solver++ for the reverse SDE, single-step, of weak order 2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edmund.errors import InputError, check_not_negative, check_number
from edmund.process import Process
from edmund.samplers._ancestral import ancestral, check_eta
from edmund.samplers._linear import LinearSampler, LinearStep, Stage, denoise


@dataclass(frozen=True)
class DPMppSDE(LinearSampler):
    r"""An ancestral step to sigma_m = sigma^{1-r} sigma'^r, then one from the start again, with the image

        D_r = (1 - 1/(2r)) D + 1/(2r) D(z_m; sigma_m)

    (k-diffusion's DPM-Solver++ SDE, after Lu et al. 2022b). Both steps see one path of the noise: with n_1 and n_2 the
    unit increments of a Brownian motion over (sigma, sigma_m) and (sigma_m, sigma'), whose time is -ln sigma, the first
    step adds n_1 and the second sqrt(r) n_1 + sqrt(1 - r) n_2. Independent normals have the same joint law.

    eta: the share of new noise; 0: deterministic, 1: Song's SDE. S_noise: the factor of the noise. r: the place of the
    middle, in (0, 1); 1/2 is DPM-Solver++(2S). Independent of the process. The step to sigma = 0 is Euler's, without
    noise. NFE of N steps that end in 0: 2N - 1.
    """

    name: ClassVar[str] = "dpmpp_sde"
    source: ClassVar[str] = "Lu et al. 2022 (DPM-Solver++); Crowson's k-diffusion"
    brownian: ClassVar[bool] = True
    order = 2
    nfe_per_step = 2
    eta: float = 1.0
    S_noise: float = 1.0
    r: float = 0.5

    def __post_init__(self) -> None:
        check_eta(self.eta)
        check_not_negative("S_noise", self.S_noise)
        if not 0 < check_number("r", self.r) < 1:
            raise InputError(f"r is {self.r!r}; it must lie between 0 and 1: the place of the step's second call")

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise: with eta."""
        return self.eta > 0

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[LinearStep]:
        """z_m = q_m z + (1 - q_m) D + up_m n_1, then z' = q z + (1 - q) D_r + up (sqrt(r) n_1 + sqrt(1 - r) n_2)."""
        middle = sigma_from ** (1 - self.r) * sigma_to**self.r
        w = 1 / (2 * self.r)
        columns = [sigma_from, middle, sigma_to]
        for level in (middle, sigma_to):
            down, up = ancestral(sigma_from, level, self.eta)
            columns += [down / sigma_from, self.S_noise * up]
        steps: list[LinearStep] = []
        for start, mid, end, q_m, up_m, q, up in zip(*(column.tolist() for column in columns), strict=True):
            if end == 0:
                steps.append(denoise(start))
                continue
            images = ((1 - q) * w, (1 - q) * (1 - w))
            if self.eta == 0:
                steps.append(LinearStep((Stage(start, q_m, (1 - q_m,)), Stage(mid, q, images))))
                continue
            noise = (up * math.sqrt(self.r), up * math.sqrt(1 - self.r))
            stages = Stage(start, q_m, (1 - q_m,), (up_m,)), Stage(mid, q, images, noise)
            steps.append(LinearStep(stages, ((start, mid), (mid, end))))
        return steps
