r"""Annealed Langevin sampling: the law of each level in turn, whatever it has to do with the one before.

Samplers of the ODE and of the reverse SDEs need the densities p(z; sigma) to come of one another by diffusion. Where
they do not (products of diffused posteriors, say), Langevin steps at each level still lead to its own density, from
where the level before ended (Song & Ermon 2019; Geffner et al. 2023, Algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edmund.errors import InputError, check_count, check_positive
from edmund.process import Process
from edmund.samplers import LinearSampler, LinearStep, Stage


@dataclass(frozen=True)
class AnnealedLangevin(LinearSampler):
    r"""`langevin_steps` steps at every positive level,

        z <- z + delta score + sqrt(2 delta) n = z - h (z - D(z; sigma)) + sqrt(2 h) sigma n,    h = delta / sigma^2,

    with h = step_size / precision.

    precision: the largest precision of the density at a level, in units of 1 / sigma^2: 1 for diffused data, k for a
    product of k of them. step_size: in (0, 1). While a level's precision is that much, the steps make variances too
    large by step_size / 2 of themselves, and forget a share step_size of where they came from. Further down the
    density is the data's, of variance v, and steps get shorter with sigma^2: bias ends, and so does mixing, about
    where the steps of an e-fold of sigma have h sigma^2 / v in sum 1. What the density lacks there remains: the
    relative error of the variances falls inversely with the number of steps.

    The step to sigma = 0 is none: the end has the law of the last positive level. NFE: langevin_steps for each level.
    """

    name: ClassVar[str] = "annealed_langevin"
    source: ClassVar[str] = "Geffner et al. 2023, Algorithm 1"
    order = 1
    stochastic = True
    precision: float = 1.0
    step_size: float = 0.5
    langevin_steps: int = 5

    def __post_init__(self) -> None:
        check_positive("precision", self.precision)
        if not 0 < check_positive("step_size", self.step_size) < 1:
            raise InputError(
                f"step_size is {self.step_size!r}; it must lie between 0 and 1, where the steps are stable"
            )
        check_count("langevin_steps", self.langevin_steps)

    @property
    def nfe_per_step(self) -> int:
        """The Langevin steps of a level."""
        return self.langevin_steps

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[LinearStep]:
        """For each level the same stages; stage i keeps (1 - h) of what came before it."""
        h = self.step_size / self.precision
        steps = []
        for sigma in sigma_from.tolist():
            stages: list[Stage] = []
            for i in range(1, self.langevin_steps + 1):
                shares = [(1 - h) ** j for j in range(i)]  # of the latest image and draw, of those before, ...
                noise = tuple(math.sqrt(2 * h) * sigma * share for share in reversed(shares))
                stages.append(Stage(sigma, (1 - h) ** i, tuple(h * share for share in shares), noise))
            steps.append(LinearStep(tuple(stages), ((sigma, sigma),) * self.langevin_steps))
        return steps
