"""Predictor-corrector sampling: reverse diffusion, and Langevin steps at each level that it reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edmund.errors import InputError, check_count, check_number
from edmund.process import Process
from edmund.samplers._linear import LinearSampler, LinearStep, Stage, denoise
from edmund.samplers.euler_maruyama import EulerMaruyama


@dataclass(frozen=True)
class PredictorCorrector(LinearSampler):
    r"""A step of Song's reverse SDE (`EulerMaruyama`; for VE it is the paper's reverse diffusion), then Langevin steps

        z <- z + delta score + sqrt(2 delta) n = z - 2 snr^2 (z - D(z; sigma')) + 2 snr sigma' n

    at the level sigma' reached (Song et al. 2021, Algorithm 2 and Appendix G).

    The paper's step is delta = 2 (snr |n| / |score|)^2 with norms averaged over the batch, which would tie a sample to
    the others of its batch; here they have their expectation for data that is narrow against sigma', |n| / |score| =
    sigma', so delta = 2 (snr sigma')^2.

    Langevin's own bias does not fall with the number of steps: while sigma' is above the data's std d the corrector
    makes the std of the samples too large by snr^2 / 2 of it. Below d the bias is (snr sigma')^2 / (2 d^2), and the law
    of the final samples, at levels well below d, does converge, with weak order 1; down to a level near d it does not.

    snr: the signal-to-noise ratio, in (0, 1). corrector_steps: Langevin steps a level. The predictor is over the
    process's own t, the corrector independent of it. The step to sigma = 0 is the denoised image, without correction.
    NFE of N steps that end in 0: (N - 1)(1 + corrector_steps) + 1.
    """

    name: ClassVar[str] = "predictor_corrector"
    source: ClassVar[str] = "Song et al. 2021, Algorithm 2"
    order = 1
    stochastic = True
    snr: float = 0.16
    corrector_steps: int = 1

    def __post_init__(self) -> None:
        if not 0 < check_number("snr", self.snr) < 1:
            raise InputError(f"snr is {self.snr!r}; it must lie between 0 and 1, where Langevin steps are stable")
        check_count("corrector_steps", self.corrector_steps)

    @property
    def nfe_per_step(self) -> int:
        """The predictor's call and those of the corrector."""
        return 1 + self.corrector_steps

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[LinearStep]:
        """The predictor's step, and behind it stages that take the share 2 snr^2 of what came before."""
        k = 2 * self.snr**2
        steps: list[LinearStep] = []
        for predicted, start, end in zip(
            EulerMaruyama().plan(process, sigma_from, sigma_to), sigma_from.tolist(), sigma_to.tolist(), strict=True
        ):
            if end == 0:
                steps.append(denoise(start))
                continue
            stages, draws = list(predicted.stages), list(predicted.draws)
            for _ in range(self.corrector_steps):
                last = stages[-1]
                kept = (k, *((1 - k) * weight for weight in last.kept))
                noise = (*((1 - k) * weight for weight in last.noise), math.sqrt(2 * k) * end)
                stages.append(Stage(end, (1 - k) * last.x, kept, noise))
                draws.append((end, end))
            steps.append(LinearStep(tuple(stages), tuple(draws)))
        return steps
