"""The box that a prior lives in: limits of each parameter, from the support that a distribution declares.

A bijection to unbounded space, one parameter at a time, exists where the support is a product of intervals. Other
supports (a simplex, whole numbers) are refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, TransformedDistribution, constraints, transforms
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint

from edmund.errors import InputError

Limits = tuple[Tensor, Tensor, Tensor, Tensor]
"""low, high, whether low itself belongs to the support, whether high does; they broadcast against one event."""


@dataclass(frozen=True, eq=False)
class Box:
    """low < theta < high of D parameters: float64 [D], infinite where there is no limit.

    low_closed, high_closed: bool [D], whether the limit itself belongs to the support.
    """

    low: Tensor
    high: Tensor
    low_closed: Tensor
    high_closed: Tensor

    @classmethod
    def of(cls, limits: Limits, dim: int) -> Box:
        """The limits, on the CPU, expanded to `dim` parameters."""
        low, high, low_closed, high_closed = (limit.detach().cpu() for limit in limits)
        return cls(low.double().expand(dim), high.double().expand(dim), low_closed.expand(dim), high_closed.expand(dim))

    @classmethod
    def joined(cls, boxes: list[Box]) -> Box:
        """The box of several groups of parameters, one after another."""
        parts = [(box.low, box.high, box.low_closed, box.high_closed) for box in boxes]
        return cls(*(torch.cat(limits) for limits in zip(*parts, strict=True)))

    @property
    def dim(self) -> int:
        """D."""
        return len(self.low)

    def contains(self, theta: Tensor) -> Tensor:
        """Whether each number of theta [B, D] is within its limits: bool [B, D]; NaN is not."""
        low, high, low_closed, high_closed = self._on(theta.device)
        values = theta.double()
        above = (values > low) | ((values == low) & low_closed & low.isfinite())
        below = (values < high) | ((values == high) & high_closed & high.isfinite())
        return above & below

    def inward(self, theta: Tensor) -> Tensor:
        """theta [B, D] with every number on or beyond a limit moved to the nearest of its dtype inside.

        Subnormal numbers count as 0, since devices may flush them. NaN stays NaN.
        """
        least, greatest = self._inside(theta.dtype, theta.device)
        return theta.clamp(least, greatest)

    def rounds_onto(self, theta: Tensor) -> Tensor:
        """Whether each number of theta [B, D] is a limit that a number inside may have been rounded to: bool [B, D].

        An open limit 0 of a half-line is none: the nearest numbers inside are as small as one likes.
        """
        low, high, low_closed, high_closed = self._on(theta.device)
        interval = low.isfinite() & high.isfinite()
        on_low = (theta == low.to(theta.dtype)) & low.isfinite() & (low_closed | interval | (low != 0))
        on_high = (theta == high.to(theta.dtype)) & high.isfinite() & (high_closed | interval | (high != 0))
        return on_low | on_high

    @functools.cached_property
    def _limits(self) -> dict[torch.device, Limits]:
        return {torch.device("cpu"): (self.low, self.high, self.low_closed, self.high_closed)}

    def _on(self, device: torch.device) -> Limits:
        if device not in self._limits:
            low, high, low_closed, high_closed = (limit.to(device) for limit in self._limits[torch.device("cpu")])
            self._limits[device] = low, high, low_closed, high_closed
        return self._limits[device]

    @functools.cached_property
    def _extremes(self) -> dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]]:
        return {}

    def _inside(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """The least and the greatest finite number of `dtype` strictly inside, [D] each."""
        if (dtype, device) not in self._extremes:
            least, greatest = self._found_inside(dtype)
            self._extremes[dtype, device] = least.to(device), greatest.to(device)
        return self._extremes[dtype, device]

    def _found_inside(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if (self.low >= self.high).any():
            where = int((self.low >= self.high).nonzero()[0])
            raise InputError(
                f"prior: low is {float(self.low[where])!r} and high is {float(self.high[where])!r} of parameter "
                f"{where}; low must be below high"
            )
        least = _first_above(self.low, dtype)
        greatest = -_first_above(-self.high, dtype)
        if (least > greatest).any():
            where = int((least > greatest).nonzero()[0])
            raise InputError(
                f"prior: no number of {str(dtype).removeprefix('torch.')} lies between the limits "
                f"{float(self.low[where])!r} and {float(self.high[where])!r} of parameter {where}"
            )
        return least, greatest

    def shown(self, parameter: int) -> str:
        """One parameter's interval in the usual notation, such as [0, 1)."""
        low, high = float(self.low[parameter]), float(self.high[parameter])
        left = "[" if self.low_closed[parameter] and math.isfinite(low) else "("
        right = "]" if self.high_closed[parameter] and math.isfinite(high) else ")"
        return f"{left}{low:.6g}, {high:.6g}{right}"


def _first_above(limit: Tensor, dtype: torch.dtype) -> Tensor:
    """The least normal number (or 0) of `dtype` above `limit` float64 [D]; for -inf the least finite one."""
    info = torch.finfo(dtype)
    found = limit.to(dtype).clamp(min=info.min)
    above = torch.nextafter(found, torch.full_like(found, math.inf))
    found = torch.where(found.double() > limit, found, above)
    # Between -tiny and 0 the next number is 0; between 0 and tiny it is tiny.
    subnormal = (found.abs() < info.tiny) & (found != 0)
    return torch.where(subnormal, torch.where(found > 0, torch.full_like(found, info.tiny), 0.0), found)


def of_distribution(distribution: Distribution) -> Limits:
    """The limits of a distribution's support.

    Those of a transformed one are its base's, pushed through: the codomain that torch takes for its support is that of
    the last transform alone, which for 5 + 2 U(0, 1) is the real line.
    """
    if isinstance(distribution, Independent):
        return of_distribution(distribution.base_dist)
    if type(distribution) is TransformedDistribution:
        limits = of_distribution(distribution.base_dist)
        steps = [step for whole in distribution.transforms for step in _steps(whole)]
        if all(step.bijective and step.domain.event_dim == 0 == step.codomain.event_dim for step in steps):
            return functools.reduce(lambda found, step: _pushed(step, found), steps, limits)
    return of_constraint(distribution.support)


def _steps(transform: transforms.Transform) -> list[transforms.Transform]:
    if isinstance(transform, transforms.ComposeTransform):
        return [step for part in transform.parts for step in _steps(part)]
    if isinstance(transform, transforms.IndependentTransform):
        return _steps(transform.base_transform)
    return [transform]


def _pushed(transform: transforms.Transform, limits: Limits) -> Limits:
    """The limits of transform(theta) for a monotonic transform of each element."""
    low, high, low_closed, high_closed = (limit.detach().cpu() for limit in limits)
    end_low, end_high, _, _ = of_constraint(transform.codomain)
    rising = torch.as_tensor(transform.sign).cpu() > 0
    # An end that lies infinitely far away goes to that of the codomain.
    at_low = torch.where(low.isfinite(), transform(low).double(), torch.where(rising, end_low, end_high))
    at_high = torch.where(high.isfinite(), transform(high).double(), torch.where(rising, end_high, end_low))
    return (
        torch.where(rising, at_low, at_high),
        torch.where(rising, at_high, at_low),
        torch.where(rising, low_closed, high_closed),
        torch.where(rising, high_closed, low_closed),
    )


def of_constraint(constraint: Constraint | None) -> Limits:
    """The limits that a constraint of torch stands for; InputError where its set is not a product of intervals."""
    if isinstance(constraint, constraints.independent):
        return of_constraint(constraint.base_constraint)
    if isinstance(constraint, MixtureSameFamilyConstraint):
        # The components stand on the axis before the event: all together they span from the least to the greatest.
        axis = -1 - constraint.event_dim
        low, high, low_closed, high_closed = of_constraint(constraint.base_constraint)
        return (
            _over(torch.amin, low, axis),
            _over(torch.amax, high, axis),
            _over(torch.any, low_closed, axis),
            _over(torch.any, high_closed, axis),
        )
    if isinstance(constraint, constraints.cat):
        pieces = [
            [limit.expand(length) for limit in of_constraint(each)]
            for each, length in zip(constraint.cseq, constraint.lengths, strict=True)
        ]
        return tuple(torch.cat(limits) for limits in zip(*pieces, strict=True))  # type: ignore[return-value]
    if isinstance(constraint, constraints.stack):
        pieces = [list(of_constraint(each)) for each in constraint.cseq]
        return tuple(torch.stack(limits) for limits in zip(*pieces, strict=True))  # type: ignore[return-value]
    if isinstance(constraint, type(constraints.real)):
        return interval(-math.inf, math.inf)
    if isinstance(constraint, constraints.interval):
        return interval(constraint.lower_bound, constraint.upper_bound, low_closed=True, high_closed=True)
    if isinstance(constraint, constraints.half_open_interval):
        return interval(constraint.lower_bound, constraint.upper_bound, low_closed=True)
    if isinstance(constraint, constraints.greater_than):
        return interval(constraint.lower_bound, math.inf)
    if isinstance(constraint, constraints.greater_than_eq):
        return interval(constraint.lower_bound, math.inf, low_closed=True)
    if isinstance(constraint, constraints.less_than):
        return interval(-math.inf, constraint.upper_bound)
    raise InputError(
        f"prior: its support is {constraint!r}; each parameter must be continuous and have limits of its own"
    )


def interval(
    low: float | Tensor, high: float | Tensor, *, low_closed: bool = False, high_closed: bool = False
) -> Limits:
    """Numbers between `low` and `high`, with the limits themselves or without."""
    return (
        torch.as_tensor(low, dtype=torch.float64, device="cpu"),
        torch.as_tensor(high, dtype=torch.float64, device="cpu"),
        torch.tensor(low_closed),
        torch.tensor(high_closed),
    )


def _over(reduce: Callable[[Tensor, int], Tensor], limit: Tensor, axis: int) -> Tensor:
    """Reduced over an axis that counts from the end, where the limit has it."""
    return reduce(limit, axis) if limit.ndim >= -axis else limit
