"""What grids share: the contract, the checks of its arguments, and the final 0."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edmund.errors import InputError, check_count
from edmund.process import check_range


class Grid(ABC):
    """The base: checks the arguments, rounds to a discrete model's levels, appends the final 0. A grid of one's own
    defines `nodes`.
    """

    @abstractmethod
    def nodes(self, num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        """The num_steps >= 2 positive nodes from sigma_max down to sigma_min, float64."""

    def __call__(
        self, num_steps: int, sigma_min: float, sigma_max: float, round_sigma: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """The noise levels of num_steps steps: float64 [num_steps + 1], strictly decreasing, the last 0. One step is
        [sigma_max, 0].

        round_sigma: snaps to the levels that a discrete model knows. Raises InputError for a bad range, for num_steps <
        1 and for more steps than distinct levels.
        """
        check_count("num_steps", num_steps)
        check_range(sigma_min, sigma_max)
        if num_steps == 1:
            nodes = torch.tensor([sigma_max], dtype=torch.float64)
        else:
            nodes = self.nodes(num_steps, sigma_min, sigma_max)
        if round_sigma is not None:
            nodes = round_sigma(nodes)
        sigmas = torch.cat([nodes, torch.zeros(1, dtype=torch.float64)])
        if not bool((sigmas.diff() < 0).all()):
            distinct = len(torch.unique(nodes[nodes > 0]))
            raise InputError(
                f"num_steps is {num_steps}, but only {distinct} distinct noise levels lie between sigma_min = "
                f"{sigma_min} and sigma_max = {sigma_max} "
                "on this grid; take fewer steps or a wider range"
            )
        return sigmas


def ramp(num_steps: int) -> Tensor:
    """i / (N - 1) for i = 0 .. N - 1."""
    return torch.arange(num_steps, dtype=torch.float64) / (num_steps - 1)


def check_falling(sigmas: Sequence[float] | Tensor) -> tuple[float, ...]:
    """The levels without a final 0; InputError unless they are finite, positive and fall strictly."""
    values = [float(value) for value in sigmas]
    positive = values[:-1] if values and values[-1] == 0 else values
    falling = all(later < earlier for earlier, later in itertools.pairwise(positive))
    if not positive or not falling or positive[-1] <= 0 or not math.isfinite(positive[0]):
        raise InputError(f"sigmas is {values}; levels are finite, positive and fall strictly (a final 0 may follow)")
    return tuple(positive)
