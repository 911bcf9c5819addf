"""From the user's units to the model's, and back.

A network learns best from numbers of order one, and a diffusion needs an unbounded space: its Gaussian noise knows
nothing of limits. A transform is a bijection between the data y as the user has it (kelvin, 0 to 255, a rate between 0
and 1) and the x that the model sees. It is fitted once, saved with the model, inverted on the way out, and accounted
for wherever a density or a measurement is in the user's units:

    ln p(y) = ln p(x) + ln |det dx/dy|,    x = forward(y)

and an affine one, x = scale * y + shift, turns a linear measurement of y into a linear measurement of x.

Every transform acts on each element by itself, but for `Whiten` and `Blocks`, which are for vectors. Its statistics
are numbers, or arrays that broadcast against one sample and have as many axes as it: [D] for vectors [B, D], [C, 1, 1]
per channel or [C, H, W] per element for fields [B, C, H, W]. Integers of at most 16 bits are computed in float32, wider
ones in float64; floating-point data keep their dtype.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

import torch
from torch import Tensor

from edmund import registry
from edmund.errors import InputError, unknown
from edmund.moments import Moments

Statistic: TypeAlias = "float | tuple[Statistic, ...]"
"""A number or nested tuples of numbers: so stored, transforms compare equal and go to JSON exactly."""

StatisticLike: TypeAlias = float | Tensor | Sequence[Any]
"""What a person may give for a statistic: a number, a tensor, an array or nested sequences."""

_NEWTON = 8
"""Newton's steps to the inverse of `Probit`: after as many, rounding is all that is left for widths from 0.001 on."""


class Transform(ABC):
    """A bijection of a batch y [B, *], in the user's units, to x of the same shape, in the model's."""

    name: ClassVar[str]

    @abstractmethod
    def forward(self, y: Tensor) -> Tensor:
        """x [B, *] in the model's units."""

    @abstractmethod
    def inverse(self, x: Tensor) -> Tensor:
        """y [B, *] in the user's units; differentiable, and defined for every x."""

    @abstractmethod
    def log_abs_det(self, y: Tensor) -> Tensor:
        """ln |det d forward(y) / dy| of each sample, [B], in nats."""

    @property
    def affine(self) -> tuple[Tensor, Tensor] | None:
        """(scale, shift) with forward(y) = scale * y + shift, or None where the transform is not affine.

        Both are float64 and broadcast against a batch.
        """
        return None

    def config(self) -> dict[str, Any]:
        """{"type": name, statistic: number or nested lists, ...}, JSON-able; `from_config` rebuilds it exactly."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # every transform is a dataclass
        return {"type": self.name} | {field.name: _plain(getattr(self, field.name)) for field in fields}


@dataclass(frozen=True)
class Identity(Transform):
    """x = y."""

    name: ClassVar[str] = "identity"

    def forward(self, y: Tensor) -> Tensor:
        return _floating(y)

    def inverse(self, x: Tensor) -> Tensor:
        return x

    def log_abs_det(self, y: Tensor) -> Tensor:
        return _floating(y).new_zeros(len(y))

    @property
    def affine(self) -> tuple[Tensor, Tensor]:
        return _tensor(1.0), _tensor(0.0)


@dataclass(frozen=True)
class Scale(Transform):
    """x = factor * y; `factor` is finite and not 0."""

    factor: Statistic
    name: ClassVar[str] = "scale"

    def __init__(self, factor: StatisticLike) -> None:
        _store(self, factor=factor)
        if (_tensor(self.factor) == 0).any():
            raise InputError(f"factor is {_shown(self.factor)}; a scale of 0 cannot be inverted")

    def forward(self, y: Tensor) -> Tensor:
        y = _floating(y)
        return y * _aligned(self, "factor", y)

    def inverse(self, x: Tensor) -> Tensor:
        return x / _aligned(self, "factor", x)

    def log_abs_det(self, y: Tensor) -> Tensor:
        y = _floating(y)
        return _sum(_aligned(self, "factor", y).abs().log().expand_as(y))

    @property
    def affine(self) -> tuple[Tensor, Tensor]:
        return _tensor(self.factor), _tensor(0.0)


@dataclass(frozen=True)
class Standardise(Transform):
    """x = (y - mean) / std, with `std` finite and above 0."""

    mean: Statistic
    std: Statistic
    name: ClassVar[str] = "standardise"

    def __init__(self, mean: StatisticLike, std: StatisticLike) -> None:
        _store(self, mean=mean, std=std)
        if not (_tensor(self.std) > 0).all():
            raise InputError(f"std is {_shown(self.std)}; it must be above 0 everywhere")

    @classmethod
    def fit(cls, batches: Iterable[Tensor]) -> Self:
        """Mean and population std in one pass over `batches`: per feature of [B, D], per channel of [B, C, *].

        A feature that is the same everywhere has no scale, and is an InputError: leave it out, or construct the
        transform with a std of your choice.
        """
        moments = Moments.of(batches)
        _refuse_constant(moments)
        return cls(moments.mean, moments.std)

    def forward(self, y: Tensor) -> Tensor:
        y = _floating(y)
        return (y - _aligned(self, "mean", y)) / _aligned(self, "std", y)

    def inverse(self, x: Tensor) -> Tensor:
        return x * _aligned(self, "std", x) + _aligned(self, "mean", x)

    def log_abs_det(self, y: Tensor) -> Tensor:
        y = _floating(y)
        return -_sum(_aligned(self, "std", y).log().expand_as(y))

    @property
    def affine(self) -> tuple[Tensor, Tensor]:
        mean, std = _tensor(self.mean), _tensor(self.std)
        return 1 / std, -mean / std


@dataclass(frozen=True)
class MinMax(Transform):
    """x = 2 (y - low) / (high - low) - 1: [low, high] to [-1, 1]; values outside stay outside, nothing is clipped."""

    low: Statistic
    high: Statistic
    name: ClassVar[str] = "min_max"

    def __init__(self, low: StatisticLike, high: StatisticLike) -> None:
        _store(self, low=low, high=high)
        if not (_tensor(self.low) < _tensor(self.high)).all():
            raise InputError(
                f"low is {_shown(self.low)}, high is {_shown(self.high)}; low must be below high everywhere"
            )

    @classmethod
    def fit(cls, batches: Iterable[Tensor]) -> Self:
        """Least and greatest value in one pass over `batches`: per feature of [B, D], per channel of [B, C, *].

        A feature that is the same everywhere has no range, and is an InputError: leave it out, or construct the
        transform with limits of your choice.
        """
        moments = Moments.of(batches)
        _refuse_constant(moments)
        return cls(moments.low, moments.high)

    def forward(self, y: Tensor) -> Tensor:
        y = _floating(y)
        low, high = _aligned(self, "low", y), _aligned(self, "high", y)
        return 2 * (y - low) / (high - low) - 1

    def inverse(self, x: Tensor) -> Tensor:
        low, high = _aligned(self, "low", x), _aligned(self, "high", x)
        return low + (high - low) * ((x + 1) / 2)

    def log_abs_det(self, y: Tensor) -> Tensor:
        y = _floating(y)
        return _sum((2 / (_aligned(self, "high", y) - _aligned(self, "low", y))).log().expand_as(y))

    @property
    def affine(self) -> tuple[Tensor, Tensor]:
        low, high = _tensor(self.low), _tensor(self.high)
        return 2 / (high - low), -(high + low) / (high - low)


@dataclass(frozen=True)
class Log1p(Transform):
    """x = ln(1 + y), for y > -1: amounts that are often near 0 and sometimes large, such as rain or counts."""

    name: ClassVar[str] = "log1p"

    def forward(self, y: Tensor) -> Tensor:
        return self._checked(y).log1p()

    def inverse(self, x: Tensor) -> Tensor:
        return torch.expm1(x)

    def log_abs_det(self, y: Tensor) -> Tensor:
        return -_sum(self._checked(y).log1p())

    def _checked(self, y: Tensor) -> Tensor:
        y = _floating(y)
        _refuse(~(y > -1), y, "are not above -1, where ln(1 + y) ends")
        return y


@dataclass(frozen=True)
class TangentLog(Transform):
    """x = ln y for y >= low, and below it the tangent there, x = ln(low) + y / low - 1: a logarithm of amounts that are
    positive by rule, and that an amount of 0 does not break. `low` is positive, such as the least amount seen.
    """

    low: Statistic
    name: ClassVar[str] = "tangent_log"

    def __init__(self, low: StatisticLike) -> None:
        _store(self, low=low)
        if not (_tensor(self.low) > 0).all():
            raise InputError(f"low is {_shown(self.low)}; it must be positive")

    def forward(self, y: Tensor) -> Tensor:
        y = _floating(y)
        low = _aligned(self, "low", y)
        return torch.maximum(y, low).log() + (torch.minimum(y, low) - low) / low

    def inverse(self, x: Tensor) -> Tensor:
        low = _aligned(self, "low", x)
        start = low.log()
        # Each form is fed `start` where it does not apply, so that neither it nor its gradient overflows there.
        return torch.where(x < start, low * (1 + torch.minimum(x, start) - start), torch.maximum(x, start).exp())

    def log_abs_det(self, y: Tensor) -> Tensor:
        y = _floating(y)
        return -_sum(torch.maximum(y, _aligned(self, "low", y)).log())


@dataclass(frozen=True)
class Bounded(Transform):
    """Bounded parameters to the real line, each by its own limits; None (or an infinity) stands for no limit.

        low < y < high      x = ln((y - low) / (high - y))
        low < y             x = ln(y - low)
              y < high      x = -ln(high - y)
              y             x = y

    All increase with y. The bounds lie infinitely far away, so a y on or outside them is an InputError; a y nearer to
    a bound than its dtype can tell (for (0, 1) an x above 37 in float64, 17 in float32) comes back as the bound.
    """

    low: Statistic = -math.inf
    high: Statistic = math.inf
    name: ClassVar[str] = "bounded"

    def __init__(self, low: StatisticLike | None = None, high: StatisticLike | None = None) -> None:
        _store(self, finite=False, low=_limits(low, -math.inf), high=_limits(high, math.inf))
        if not (_tensor(self.low) < _tensor(self.high)).all():
            raise InputError(
                f"low is {_shown(self.low)}, high is {_shown(self.high)}; low must be below high everywhere"
            )

    def forward(self, y: Tensor) -> Tensor:
        y, has_low, has_high, log_above, log_below = self._logs(y)
        return log_above - log_below + torch.where(has_low | has_high, 0, y)

    def inverse(self, x: Tensor) -> Tensor:
        low, high, has_low, has_high = self._limits(x)
        both, only_low, only_high = has_low & has_high, has_low & ~has_high, has_high & ~has_low
        # Each form is fed 0 where it does not apply, so that neither it nor its gradient overflows there.
        width = torch.where(both, high - low, 0)
        inside, above, below = (torch.where(mask, x, 0) for mask in (both, only_low, only_high))
        # Counted from the nearer bound, so that a value close to either keeps its digits.
        logistic = torch.where(inside < 0, low + width * torch.sigmoid(inside), high - width * torch.sigmoid(-inside))
        y = torch.where(both, logistic, x)
        y = torch.where(only_low, low + above.exp(), y)
        return torch.where(only_high, high - (-below).exp(), y)

    def log_abs_det(self, y: Tensor) -> Tensor:
        y, has_low, has_high, log_above, log_below = self._logs(y)
        low, high, _, _ = self._limits(y)
        log_width = torch.where(has_low & has_high, high - low, 1).log()
        return _sum(log_width - log_above - log_below)

    def _limits(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """low and high with 0 for those that are absent, and where each is present."""
        low, high = _aligned(self, "low", y), _aligned(self, "high", y)
        has_low, has_high = low.isfinite(), high.isfinite()
        return torch.where(has_low, low, 0), torch.where(has_high, high, 0), has_low, has_high

    def _logs(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """y, where it has limits, ln(y - low) and ln(high - y); the logarithms are 0 where there is no limit."""
        y = _floating(y)
        low, high, has_low, has_high = self._limits(y)
        above, below = torch.where(has_low, y - low, 1), torch.where(has_high, high - y, 1)
        limits = f"({_shown(self.low)}, {_shown(self.high)})"
        _refuse(~((above > 0) & (below > 0)) | y.isnan(), y, f"are on or outside the bounds {limits}")
        return y, has_low, has_high, above.log(), below.log()


@dataclass(frozen=True)
class Probit(Transform):
    """Numbers between `low` and `high` to all real ones, which with u = (y - low) / (high - low) are

        x = a (2 u - 1) + width Phi^-1(u)

    Phi is the standard normal distribution function, 0 < width <= 1, and a >= 0 is such that the x of a uniform u has
    variance 1. With width 1, a is 0: a uniform law in y is exactly N(0, 1) in x. The smaller the width, the more is x
    the standardised y between its bounds, and the shorter are the tails beyond, those of a normal law that wide.

    The bounds lie infinitely far away: a y on or outside them is an InputError, and an x whose y is nearer to a bound
    than its dtype can tell (for (0, 1) and width 1 above 8.3 in float64, 5.4 in float32) comes back as the bound.
    """

    low: Statistic
    high: Statistic
    width: Statistic
    name: ClassVar[str] = "probit"

    def __init__(self, low: StatisticLike, high: StatisticLike, width: StatisticLike = 1.0) -> None:
        _store(self, low=low, high=high, width=width)
        if not (_tensor(self.low) < _tensor(self.high)).all():
            raise InputError(
                f"low is {_shown(self.low)}, high is {_shown(self.high)}; low must be below high everywhere"
            )
        if not ((_tensor(self.width) > 0) & (_tensor(self.width) <= 1)).all():
            raise InputError(f"width is {_shown(self.width)}; it must be above 0 and at most 1 everywhere")

    def forward(self, y: Tensor) -> Tensor:
        y = _floating(y)
        above, below = self._shares(y)
        slope, width = self._factors(y)
        return slope * (above - below) + width * self._quantile(above, below)

    def inverse(self, x: Tensor) -> Tensor:
        low, high = _aligned(self, "low", x), _aligned(self, "high", x)
        q = self._solved(x)
        lower = q < 0
        # Phi(-|q|); erfc keeps its digits in the tail, where torch.special.ndtr, which is 1 + erf, has none.
        tail = torch.special.erfc(torch.where(lower, -q, q) / math.sqrt(2)) / 2
        return torch.where(lower, low + (high - low) * tail, high - (high - low) * tail)

    def log_abs_det(self, y: Tensor) -> Tensor:
        y = _floating(y)
        slope, width = self._factors(y)
        range_ = _aligned(self, "high", y) - _aligned(self, "low", y)
        # dx/du = 2 a + width / phi(q); the second may be beyond what a float can hold.
        steep = self._quantile(*self._shares(y)).square() / 2 + math.log(2 * math.pi) / 2 + width.log()
        return _sum(torch.logaddexp((2 * slope).log(), steep) - range_.log())

    def _shares(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """(u, 1 - u), each counted from its own bound, so that a value close to either keeps its digits."""
        low, high = _aligned(self, "low", y), _aligned(self, "high", y)
        above, below = (y - low) / (high - low), (high - y) / (high - low)
        limits = f"({_shown(self.low)}, {_shown(self.high)})"
        _refuse(~((above > 0) & (below > 0)), y, f"are on or outside the bounds {limits}")
        return above, below

    @staticmethod
    def _quantile(above: Tensor, below: Tensor) -> Tensor:
        """q = Phi^-1(u) of (u, 1 - u)."""
        lower = above < below
        q = torch.special.ndtri(torch.where(lower, above, below))
        return torch.where(lower, q, -q)

    def _factors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(a, width): Var x = a^2 / 3 + 2 a width / sqrt(pi) + width^2 = 1, for E (2 u - 1) q = 1 / sqrt(pi)."""
        width = _aligned(self, "width", like)
        half = width / math.sqrt(math.pi)
        # The root of a quadratic equation, without the difference of two near numbers as width goes to 1.
        slope = (1 - width.square()) / (half + (half.square() + (1 - width.square()) / 3).sqrt())
        return slope, width

    def _solved(self, x: Tensor) -> Tensor:
        """q with a erf(q / sqrt(2)) + width q = x.

        Newton's method, for |x|: the function is concave there, and so every tangent from below the root ends below it;
        the first guess is the greater of two such ends, the tangent at 0 and the asymptote. The last two steps are
        taken with derivatives, which makes those of q right up to the second.
        """
        slope, width = self._factors(x)
        if not (slope > 0).any():
            return x / width

        def step(q: Tensor, target: Tensor) -> Tensor:
            rise = width + slope * math.sqrt(2 / math.pi) * torch.exp(-q.square() / 2)
            moved: Tensor = q + (target - slope * torch.special.erf(q / math.sqrt(2)) - width * q) / rise
            return moved

        # Beyond, y is a bound in any dtype, and an infinite x would be no number.
        reach = slope + 40 * width
        x = x.clamp(-reach, reach)
        with torch.no_grad():
            size = x.abs()
            q = torch.maximum(size / (width + slope * math.sqrt(2 / math.pi)), (size - slope) / width)
            for _ in range(_NEWTON):
                q = step(q, size)
            q = torch.where(x < 0, -q, q)
        return step(step(q, x), x)


@dataclass(frozen=True)
class Whiten(Transform):
    """Correlated vectors [B, D] to uncorrelated ones: x = L^-1 (y - mean), L the Cholesky factor of the covariance.

    mean: [D]. cholesky: [D, D], lower triangular with a diagonal above 0. N(mean, L L^T) in y is N(0, I) in x.
    """

    mean: Statistic
    cholesky: Statistic
    name: ClassVar[str] = "whiten"

    def __init__(self, mean: StatisticLike, cholesky: StatisticLike) -> None:
        _store(self, mean=mean)
        _store(self, cholesky=cholesky)
        center, factor = _tensor(self.mean), _tensor(self.cholesky)
        if center.ndim != 1 or factor.shape != 2 * center.shape:
            raise InputError(
                f"mean has shape {list(center.shape)} and cholesky {list(factor.shape)}; they must be [D] and [D, D]"
            )
        if not (factor.diagonal() > 0).all() or factor.triu(1).any():
            raise InputError(
                f"cholesky is {_shown(self.cholesky)}; it must be lower triangular with a diagonal above 0"
            )

    def forward(self, y: Tensor) -> Tensor:
        y = self._vectors(_floating(y))
        centered = y - _aligned(self, "mean", y)
        x: Tensor = torch.linalg.solve_triangular(self._factor(y), centered.mT, upper=False).mT
        return x

    def inverse(self, x: Tensor) -> Tensor:
        x = self._vectors(x)
        return x @ self._factor(x).mT + _aligned(self, "mean", x)

    def log_abs_det(self, y: Tensor) -> Tensor:
        y = self._vectors(_floating(y))
        return -self._factor(y).diagonal().log().sum().expand(len(y))

    def _factor(self, y: Tensor) -> Tensor:
        return torch.tensor(self.cholesky, dtype=y.dtype).to(y.device, non_blocking=True)

    def _vectors(self, y: Tensor) -> Tensor:
        return _checked_vectors(self, y, _tensor(self.mean).numel())


@dataclass(frozen=True)
class Blocks(Transform):
    """Each group of the columns of vectors [B, D] by a transform of its own, and left where it was.

    blocks: (columns, transform) pairs; columns are numbers from 0 to D - 1, and each stands in exactly one block. A
    transform sees its columns in the order given.
    """

    blocks: tuple[tuple[tuple[int, ...], Transform], ...]
    name: ClassVar[str] = "blocks"

    def __init__(self, blocks: Sequence[tuple[Sequence[int], Transform]]) -> None:
        for block in blocks:
            if not isinstance(block, list | tuple) or len(block) != 2 or not isinstance(block[1], Transform):
                raise InputError(f"blocks holds {_shown(block)}; each must be (columns, transform)")
        pairs = tuple((tuple(columns), transform) for columns, transform in blocks)
        order = [column for columns, _ in pairs for column in columns]
        if not order or not all(columns for columns, _ in pairs) or set(order) != set(range(len(order))):
            found = _shown([list(columns) for columns, _ in pairs])
            raise InputError(f"blocks have the columns {found}; every column from 0 on must stand in exactly one block")
        object.__setattr__(self, "blocks", pairs)

    def forward(self, y: Tensor) -> Tensor:
        y = self._vectors(_floating(y))
        return self._joined([transform.forward(self._of(y, columns)) for columns, transform in self.blocks])

    def inverse(self, x: Tensor) -> Tensor:
        x = self._vectors(x)
        return self._joined([transform.inverse(self._of(x, columns)) for columns, transform in self.blocks])

    def log_abs_det(self, y: Tensor) -> Tensor:
        y = self._vectors(_floating(y))
        total = y.new_zeros(len(y))
        for columns, transform in self.blocks:
            total = total + transform.log_abs_det(self._of(y, columns))
        return total

    @property
    def affine(self) -> tuple[Tensor, Tensor] | None:
        scales, shifts = [], []
        for columns, transform in self.blocks:
            step = transform.affine
            if step is None:
                return None
            scales.append(step[0].expand(1, len(columns)))
            shifts.append(step[1].expand(1, len(columns)))
        return self._joined(scales)[0], self._joined(shifts)[0]

    def config(self) -> dict[str, Any]:
        blocks = [{"columns": list(columns), "transform": transform.config()} for columns, transform in self.blocks]
        return {"type": self.name, "blocks": blocks}

    @staticmethod
    def _of(y: Tensor, columns: tuple[int, ...]) -> Tensor:
        first, last = columns[0], columns[-1]
        if columns == tuple(range(first, last + 1)):
            return y[:, first : last + 1]
        return y[:, torch.tensor(columns).to(y.device, non_blocking=True)]

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """The blocks' columns [B, d] each, put back in their places."""
        whole = torch.cat(parts, 1)
        order = torch.tensor([column for columns, _ in self.blocks for column in columns])
        if torch.equal(order, torch.arange(len(order))):
            return whole
        return whole[:, order.argsort().to(whole.device, non_blocking=True)]

    def _vectors(self, y: Tensor) -> Tensor:
        return _checked_vectors(self, y, sum(len(columns) for columns, _ in self.blocks))


@dataclass(frozen=True)
class Chain(Transform):
    """One transform after another: forward goes through `transforms` from the first to the last."""

    transforms: tuple[Transform, ...]
    name: ClassVar[str] = "chain"

    def __init__(self, transforms: Sequence[Transform]) -> None:
        for transform in transforms:
            if not isinstance(transform, Transform):
                raise InputError(f"transforms holds {transform!r}; each must be a transform")
        object.__setattr__(self, "transforms", tuple(transforms))

    def forward(self, y: Tensor) -> Tensor:
        y = _floating(y)
        for transform in self.transforms:
            y = transform.forward(y)
        return y

    def inverse(self, x: Tensor) -> Tensor:
        for transform in reversed(self.transforms):
            x = transform.inverse(x)
        return x

    def log_abs_det(self, y: Tensor) -> Tensor:
        y = _floating(y)
        total = y.new_zeros(len(y))
        for transform in self.transforms:
            total = total + transform.log_abs_det(y)
            y = transform.forward(y)
        return total

    @property
    def affine(self) -> tuple[Tensor, Tensor] | None:
        scale, shift = _tensor(1.0), _tensor(0.0)
        for transform in self.transforms:
            step = transform.affine
            if step is None:
                return None
            scale, shift = step[0] * scale, step[0] * shift + step[1]
        return scale, shift

    def config(self) -> dict[str, Any]:
        return {"type": self.name, "transforms": [transform.config() for transform in self.transforms]}


def from_config(config: Mapping[str, Any]) -> Transform:
    """The transform that `config()` described.

    Raises InputError for an unknown type or key (with the nearest known one), a missing key, and impossible statistics.
    """
    if not isinstance(config, Mapping) or "type" not in config:
        raise InputError(f"transform is {config!r}; it must be a mapping with a type")
    known = registry.in_module(sys.modules[__name__], Transform)
    kind = config["type"]
    if not isinstance(kind, str) or kind not in known:
        raise unknown("transform type", kind, known)
    part = known[kind]
    given = {key: value for key, value in config.items() if key != "type"}
    keys = [field.name for field in dataclasses.fields(part)]  # type: ignore[arg-type]
    for key in given:
        if key not in keys:
            raise unknown(f"key of transform {kind!r}", key, keys)
    missing = [key for key in keys if key not in given]
    if missing:
        raise InputError(f"transform {kind!r} lacks {', '.join(missing)}")
    if part is Chain:
        parts = given["transforms"]
        if not isinstance(parts, list | tuple):
            raise InputError(f"transforms is {parts!r}; it must be a list of transforms")
        return Chain([from_config(each) for each in parts])
    if part is Blocks:
        blocks = given["blocks"]
        if not isinstance(blocks, list | tuple) or not all(
            isinstance(block, Mapping)
            and set(block) == {"columns", "transform"}
            and isinstance(block["columns"], list | tuple)
            for block in blocks
        ):
            raise InputError(f"blocks is {_shown(blocks)}; it must be a list of mappings of columns and transform")
        return Blocks([(block["columns"], from_config(block["transform"])) for block in blocks])
    return part(**given)


def _refuse_constant(moments: Moments) -> None:
    constant = (moments.low == moments.high).flatten().nonzero().flatten().tolist()
    if constant:
        value = float(moments.low.flatten()[constant[0]])
        raise InputError(
            f"batches: {len(constant)} of {moments.mean.numel()} features are constant and have no scale "
            f"(the first: feature {constant[0]} is {value:g} everywhere); leave them out or give statistics yourself"
        )


def _checked_vectors(transform: Transform, y: Tensor, length: int) -> Tensor:
    if y.ndim != 2 or y.shape[1] != length:
        raise InputError(f"{transform.name} is for vectors [B, {length}], and y has shape {list(y.shape)}")
    return y


def _refuse(wrong: Tensor, y: Tensor, why: str) -> None:
    count = int(wrong.sum())
    if count:
        raise InputError(f"y: {count} of {y.numel()} values {why} (the first: {float(y[wrong][0]):g})")


def _floating(y: Tensor) -> Tensor:
    """y itself, or its integers as the narrowest floating-point type that holds them all."""
    if y.is_floating_point():
        return y
    return y.to(torch.float64 if y.dtype in (torch.int32, torch.int64) else torch.float32)


def _sum(values: Tensor) -> Tensor:
    """The sum over each sample: [B, *] to [B]."""
    return values.flatten(1).sum(1) if values.ndim > 1 else values


def _tensor(value: Statistic) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _aligned(transform: Transform, argument: str, y: Tensor) -> Tensor:
    """The statistic in y's dtype and on its device, once it is sure to broadcast as it was meant."""
    # A number stays on the CPU: it combines with a tensor on any device, and moving it there would wait for the device.
    value = torch.tensor(getattr(transform, argument), dtype=y.dtype)
    sample = y.shape[1:]
    if value.ndim and (
        value.ndim != len(sample) or any(a not in (1, b) for a, b in zip(value.shape, sample, strict=True))
    ):
        per_channel = [*sample[:1], *[1] * (len(sample) - 1)]
        raise InputError(
            f"{argument} of {transform.name} has shape {list(value.shape)}, and samples have {list(sample)}; "
            f"it must be a number or have shape {per_channel}"
        )
    return value.to(y.device, non_blocking=True) if value.ndim else value


def _store(transform: Transform, finite: bool = True, **statistics: StatisticLike) -> None:
    """Sets the fields of a frozen transform to plain numbers, checked."""
    shapes = {}
    for argument, given in statistics.items():
        try:
            value = torch.as_tensor(given, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"{argument} is {_shown(given)}; it must be a number or an array of numbers") from None
        if value.isnan().any() or (finite and value.isinf().any()):
            raise InputError(f"{argument} is {_shown(given)}; it must be finite everywhere")
        shapes[argument] = value.shape
        object.__setattr__(transform, argument, _nested(value.tolist()))
    if len({shape for shape in shapes.values() if len(shape)}) > 1:
        each = " and ".join(f"{argument} has shape {list(shape)}" for argument, shape in shapes.items())
        raise InputError(f"{each}; they must have the same shape, or one must be a number")


def _limits(value: Any, absent: float) -> Any:
    """`value` with `absent` for every None, at whatever depth."""
    if value is None:
        return absent
    if isinstance(value, list | tuple):
        return [_limits(each, absent) for each in value]
    return value


def _nested(value: Any) -> Statistic:
    return tuple(_nested(each) for each in value) if isinstance(value, list) else float(value)


def _plain(value: Statistic) -> Any:
    """Nested lists, and None for an absent limit: JSON has neither tuples nor infinities."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value if math.isfinite(value) else None


def _shown(value: object) -> str:
    """`value` for an error message: one short line, however long the array."""
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
