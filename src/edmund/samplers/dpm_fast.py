"""DPM-Solver-fast: third-order single steps, with cheaper ones at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edmund.errors import InputError
from edmund.process import Process
from edmund.samplers._base import Churn
from edmund.samplers._linear import LinearStep, OneStepSampler, Stage, denoise

_TAILS = {0: (2, 1), 1: (1,), 2: (2,)}


@dataclass(frozen=True)
class DPMFast(OneStepSampler):
    r"""Single-step DPM-Solver of orders 3, 3, ..., 3 and a tail (Lu et al. 2022, Algorithms 4 and 5, Appendix D.1).

    With lambda = -ln sigma and eps = (z - D) / sigma the ODE of the unscaled z is dz = -e^{-lambda} eps dlambda. A step
    of length h replaces eps by the constant, or the line in lambda, through its stages:

        order 1: z' = z - (sigma - sigma') eps,    order 2: z' = z - (sigma - sigma') eps_{1/2}
        order 3: z' = z - (sigma - sigma') eps - 3/2 ((sigma - sigma') / h - sigma') (eps_{2/3} - eps)

    where the stage at lambda + h/2 comes from order 1, and that at 2/3 h from the line through 0 and h/3. Independent
    of the process.

    remainder: which tail, k-diffusion's number of calls modulo 3. 2: the last step between positive levels is of order
    2, and the whole of order 3; 1: it is of order 1; 0: the last two are of orders 2 and 1 (the whole of order 2 for
    both). The levels are the caller's; k-diffusion's are equidistant in ln sigma, and stop above 0. The step to 0 is
    Euler's. NFE of N steps that end in 0, N >= 3: 3N - 5 + remainder, one more than k-diffusion's n.

    churn: Algorithm 2's noise injection before each step; None: deterministic.
    """

    name: ClassVar[str] = "dpm_fast"
    source: ClassVar[str] = "Lu et al. 2022 (DPM-Solver), DPM-Solver-fast"
    nfe_per_step = 3
    churn: Churn | None = None
    remainder: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.remainder, bool) or not isinstance(self.remainder, int) or self.remainder not in _TAILS:
            raise InputError(f"remainder is {self.remainder!r}; it must be 0, 1 or 2, which say the orders of the tail")

    @property
    def order(self) -> int:
        """3, or 2 with a step of order 1 in the tail."""
        return 3 if self.remainder == 2 else 2

    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[LinearStep]:
        """Each state is a row of its weights of (z, D, D_1, D_2), so that the equations above stand as they are."""
        tail = _TAILS[self.remainder]
        inner = int((sigma_to > 0).sum())
        orders = ((3,) * (inner - len(tail)) + tail)[-inner:] if inner else ()
        pairs = list(zip(sigma_from.tolist(), sigma_to.tolist(), strict=True))
        steps = [LinearStep(_step(order, *pair)) for order, pair in zip(orders, pairs[:inner], strict=True)]
        return steps + [denoise(start) for start, _ in pairs[inner:]]


def _step(order: int, sigma: float, end: float) -> tuple[Stage, ...]:
    z, *images = torch.eye(4, dtype=torch.float64)

    def at(share: float) -> float:
        return end if share == 1 else sigma ** (1 - share) * end**share

    def line(share: float, node: float, later: Tensor) -> Tensor:
        """The state at `share` of the step, with eps on the line through its values at 0 and at `node`."""
        length, level = share * math.log(sigma / end), at(share)
        state: Tensor = z - (sigma - level) * eps - ((sigma - level) / length - level) * share / node * (later - eps)
        return state

    eps = (z - images[0]) / sigma
    if order == 1:
        return (_stage(sigma, z - (sigma - end) * eps, 1),)
    if order == 2:
        middle = z - (sigma - at(1 / 2)) * eps
        eps_middle = (middle - images[1]) / at(1 / 2)
        return _stage(sigma, middle, 1), _stage(at(1 / 2), z - (sigma - end) * eps_middle, 2)
    first = z - (sigma - at(1 / 3)) * eps
    second = line(2 / 3, 1 / 3, (first - images[1]) / at(1 / 3))
    last = line(1.0, 2 / 3, (second - images[2]) / at(2 / 3))
    return _stage(sigma, first, 1), _stage(at(1 / 3), second, 2), _stage(at(2 / 3), last, 3)


def _stage(sigma: float, state: Tensor, calls: int) -> Stage:
    """The stage that calls at sigma and ends in `state`, after so many calls."""
    x, *weights = state.tolist()
    return Stage(sigma, x, tuple(reversed(weights[:calls])))
