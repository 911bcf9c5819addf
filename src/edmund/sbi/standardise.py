r"""Observations as a network likes them: every feature around 0, of unit size, and without outliers to drown the
rest.

Simulators have no common units, and their outputs may be heavy-tailed (a ratio of two draws), spread over orders of
magnitude (populations, concentrations), constant, or missing. Each feature x becomes

    z = t((u - mean) / std),    u = x or ln x,    t(r) = r for |r| <= 3, sign(r) (3 + asinh(|r| - 3)) beyond.

t is increasing, twice continuously differentiable and has an inverse, so that nothing is lost, and it is the identity
for all but the 0.3 % of a Gaussian that lie farthest out.

ln x is taken where all training values are positive and the logarithm is what makes them symmetric: with q the 5th,
50th and 95th percentile and skew = (q95 + q5 - 2 q50) / (q95 - q5), of values above 1/2, and greater than |skew| of
their logarithms. Below the least training value the logarithm is continued by its tangent, as an observation need not
be positive.

mean and std are those of the training data. For logarithms, which have a long tail of what is next to nothing, and
where the std is more than ten times what the middle 90 % of the values have (a Cauchy distribution has none at all),
the median and (q95 - q5) / 3.29, a Gaussian's std, stand for them. Otherwise moments are the better choice: percentiles
would enlarge the bulk of a heavy-tailed feature, which often is noise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edmund.errors import InputError, check_count

_LINEAR_TO = 3.0
"""Standard deviations up to which t is the identity."""
_SKEWED = 0.5
"""Skew above which positive values may be taken as logarithms: an exponential law has 0.56."""
_HEAVY = 10.0
"""Ratio of the std and that of the middle 90 % above which moments say nothing about most of the values."""
_NORMAL_RANGE = 2 * 1.6448536269514722
"""q95 - q5 of a unit Gaussian."""
_ROUNDING = 16 * 2.0**-23
"""Relative range up to which a feature is constant: what is left are a few of float32's steps."""
_TINY = 2.0**-126
"""The least normal number of float32."""
_CHUNK = 1 << 20
"""Numbers that are turned to float64 at a time."""
_QUANTILES = 1 << 20
"""Numbers that percentiles are taken of."""
FAR = 1.0
"""Standard deviations beyond the training range at which `check` warns."""


class Distance(NamedTuple):
    """How far outside the training range the farthest value of the observations lies.

    value: in the `std` of the feature (of u), 0 inside the range; inf for a value other than that of a
    constant feature, and for one that was missing in all training data. feature: the value's; x: the value itself.
    """

    value: float
    feature: int
    x: float


class Standardise(nn.Module):
    """x [B, *shape] in the simulator's units -> [B, *out_shape]; `fit` sets its buffers, which are saved with it.

    shape: of one x. channel_axis: the axis of x's shape along which the features lie that have statistics of their own;
    None: 0 for vectors [D] and images [C, H, W], 1 for series and sets [T, C]. mask: NaN is taken as missing; it
    becomes 0, and there are as many features more, which are 1 where a value is missing and 0 elsewhere.

    Before `fit` it is the identity but for t.
    """

    mean: Tensor
    std: Tensor
    logarithmic: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, shape: Sequence[int], *, channel_axis: int | None = None, mask: bool = False) -> None:
        super().__init__()
        self.shape = tuple(check_count("shape", length) for length in shape)
        if not self.shape:
            raise InputError("shape is (); an x has at least one axis")
        if channel_axis is None:
            channel_axis = 1 if len(self.shape) == 2 else 0
        if not -len(self.shape) <= channel_axis < len(self.shape):
            raise InputError(f"channel_axis is {channel_axis}; x has the shape {list(self.shape)}")
        self.channel_axis = channel_axis % len(self.shape)
        self.mask = mask
        features = self.shape[self.channel_axis]
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.register_buffer("logarithmic", torch.zeros(features, dtype=torch.bool))
        self.register_buffer("low", torch.full((features,), -math.inf))
        self.register_buffer("high", torch.full((features,), math.inf))

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Of one standardised x: with the mask twice as long along the features' axis."""
        shape = list(self.shape)
        shape[self.channel_axis] *= 2 if self.mask else 1
        return tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Raises InputError for rows of another shape than trained on; for NaN, infinities and distance see `check`."""
        self.check_shape(x)
        x = x.to(self.mean.dtype)
        if not self.mask:
            return self._z(x)
        missing = x.isnan()
        z = torch.where(missing, 0, self._z(torch.where(missing, 1, x)))
        return torch.cat([z, missing.to(z.dtype)], 1 + self.channel_axis)

    def inverse(self, z: Tensor) -> Tensor:
        """x [B, *shape] of z [B, *shape], in z's dtype; for a module without a mask."""
        if self.mask:
            raise InputError("mask is True: what is missing has no inverse")
        beyond = (z.abs() - _LINEAR_TO).clamp(min=0)
        r = z.clamp(-_LINEAR_TO, _LINEAR_TO) + z.sign() * beyond.sinh()
        u = r * self._along("std") + self._along("mean")
        logarithmic = self._along("logarithmic")
        least = torch.where(logarithmic, self._along("low"), 1)
        log = torch.where(u < least.log(), least * (1 + u - least.log()), u.exp())
        return torch.where(logarithmic, log, u)

    def _z(self, x: Tensor) -> Tensor:
        r = (self._u(x) - self._along("mean")) / self._along("std")
        beyond = (r.abs() - _LINEAR_TO).clamp(min=0)
        return r.clamp(-_LINEAR_TO, _LINEAR_TO) + r.sign() * beyond.asinh()

    def fit(self, batches: Iterable[Tensor]) -> Standardise:
        """Sets the statistics from batches of x [B, *shape], NaN left out where there is a mask; returns itself.

        One pass in float64, a part at a time. Percentiles are those of a random subset (by a fixed seed) of up to a
        million numbers. Warns of constant features (up to float32's rounding), with their value c: they enter as
        (x - c) / |c| (x for c = 0), which is 0 in all training data; and of features that are missing everywhere.
        Raises InputError for other shapes, infinite values, NaN without a mask, and no data.
        """
        sums = _Statistics(self.shape[self.channel_axis])
        bad = count = 0
        for batch in batches:
            self.check_shape(batch)
            rows = max(1, _CHUNK // math.prod(self.shape))
            for part in torch.split(batch.detach(), rows):
                values = part.to("cpu", torch.float64).movedim(1 + self.channel_axis, -1).flatten(0, -2)
                bad += int((values.isinf() if self.mask else ~values.isfinite()).sum())
                count += len(part)
                sums.add(values)
        if bad:
            kinds = "infinite" if self.mask else "NaN or infinite"
            raise InputError(f"x: {bad} of {count * math.prod(self.shape)} values are {kinds}; they cannot be scaled")
        if not count:
            raise InputError("batches is empty; statistics need at least one x")
        self._set(sums)
        return self

    def distance(self, x: Tensor) -> Distance:
        """Of observations [B, *shape] from the range of the training data, the greatest; missing values have none."""
        self.check_shape(x)
        low, high = self._along("low"), self._along("high")
        u = self._u(x.to(low.dtype))
        outside = torch.maximum(u - self._u(high), self._u(low) - u).clamp(min=0).nan_to_num(nan=0.0, posinf=math.inf)
        tolerance = (_ROUNDING * high.abs()).clamp(min=_TINY)
        exact = (low <= high) & (high - low <= tolerance)
        each = torch.where(exact & (outside > tolerance), math.inf, torch.where(exact, 0, outside / self._along("std")))
        farthest = int(each.argmax())
        feature = int(torch.unravel_index(torch.tensor(farthest), x.shape)[1 + self.channel_axis])
        return Distance(float(each.flatten()[farthest]), feature, float(x.flatten()[farthest]))

    def check(self, x: Tensor, argument: str = "x") -> None:
        """The check of observations [B, *shape] at the door.

        Raises InputError for rows of another shape than trained on, infinite values, NaN without a mask, and values so
        far out that float32 cannot hold them in standard deviations. Warns where an observation is farther than one
        std outside the range of the training data.
        """
        self.check_shape(x, argument)
        nan, infinite = int(x.isnan().sum()), int(x.isinf().sum())
        if infinite:
            raise InputError(f"{argument}: {infinite} of {x.numel()} values are infinite; all must be finite")
        if nan and not self.mask:
            raise InputError(
                f"{argument}: {nan} of {x.numel()} values are NaN; values may be missing where training masked them"
            )
        far = self.distance(x)
        where = f"{argument}: {self._what} {far.feature} of an observation is {far.x:g}"
        if not bool(self(x).isfinite().all()):
            raise InputError(f"{where}, too far outside the training data to be scaled")
        if far.value > FAR:
            low, high = float(self.low[far.feature]), float(self.high[far.feature])
            outside = f"{far.value:.3g} standard deviations outside the training range [{low:g}, {high:g}]"
            if low > high:
                outside = "and was missing in all training data"
            elif math.isinf(far.value):
                outside = f"and was {low:g} in all training data"
            warnings.warn(f"{where}, {outside}; the posterior is an extrapolation there", stacklevel=3)

    @property
    def _what(self) -> str:
        return "column" if len(self.shape) == 1 else "channel"

    def check_shape(self, x: Tensor, argument: str = "x") -> None:
        """Raises InputError for observations x [B, *] whose rows have another shape than trained on."""
        if x.shape[1:] == self.shape and x.ndim:
            return
        if len(self.shape) == 1 and x.ndim == 2:
            raise InputError(f"{argument} has {x.shape[1]} values a row; training had {self.shape[0]}")
        expected = ", ".join(["B", *map(str, self.shape)])
        raise InputError(f"{argument} has shape {list(x.shape)}; it must be [{expected}], as in training")

    def _along(self, name: str) -> Tensor:
        """A statistic as it stands beside x."""
        value: Tensor = getattr(self, name)
        return value.view(-1, *[1] * (len(self.shape) - 1 - self.channel_axis))

    def _u(self, x: Tensor) -> Tensor:
        """x, or where the feature is logarithmic its logarithm, continued by the tangent below the least one seen."""
        logarithmic = self._along("logarithmic")
        least = torch.where(logarithmic, self._along("low"), 1)
        log = torch.clamp(x, min=least).log() + (torch.minimum(x, least) - least) / least
        return torch.where(logarithmic, log, x)

    def _set(self, found: _Statistics) -> None:
        seen, low, high = found.count > 0, found.low, found.high
        constant = (high - low <= (_ROUNDING * high.abs()).clamp(min=_TINY)) & seen
        q = found.percentiles()
        log_q = q.log()
        skew, log_skew = _skew(q), _skew(log_q)
        logarithmic = (low > 0) & seen & ~constant & (skew > _SKEWED) & (log_skew.abs() < skew)
        q = torch.where(logarithmic, log_q, q)
        middle = (q[2] - q[0]) / _NORMAL_RANGE
        robust = logarithmic | ((middle > 0) & (found.std > _HEAVY * middle))
        mean, std = torch.where(robust, q[1], found.mean), torch.where(robust, middle, found.std)
        mean = torch.where(constant, low, mean)
        std = torch.where(constant, torch.where(low.abs() < _TINY, 1, low.abs()), std)
        self.mean.copy_(torch.where(seen, mean, 0))
        self.std.copy_(torch.where(seen, std, 1))
        self.logarithmic.copy_(logarithmic)
        self.low.copy_(low)
        self.high.copy_(high)
        self._warn(constant, seen)

    def _warn(self, constant: Tensor, seen: Tensor) -> None:
        for which, says in (
            (constant, "are constant in the simulations: they say nothing about theta, and enter as (x - c) / |c|"),
            (~seen, "are missing in all simulations: they say nothing about theta"),
        ):
            indices = which.nonzero().flatten().tolist()
            if indices:
                shown = [f"{k} (c = {self.low[k]:g})" if seen[k] else f"{k}" for k in indices[:5]]
                more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
                warnings.warn(f"x: {self._what}s {', '.join(shown)}{more} {says}", stacklevel=4)


class _Statistics:
    """What one pass over values [n, F], float64, finds of each feature, NaN left out."""

    def __init__(self, features: int) -> None:
        self.count, self.mean, self._squares = (torch.zeros(features, dtype=torch.float64) for _ in range(3))
        self.low = torch.full((features,), math.inf, dtype=torch.float64)
        self.high = -self.low
        # The rows whose random keys are below a limit are a random subset; the limit falls as they become too many.
        self._generator = torch.Generator().manual_seed(0)
        self._most = max(200, _QUANTILES // features)
        self._limit = 1.0
        self._keys = torch.empty(0)
        self._subset = torch.empty(0, features)

    def add(self, values: Tensor) -> None:
        self._add_moments(values)
        self.low = torch.minimum(self.low, values.nan_to_num(nan=math.inf, posinf=math.inf).amin(0))
        self.high = torch.maximum(self.high, values.nan_to_num(nan=-math.inf, neginf=-math.inf).amax(0))
        keys = torch.rand(len(values), generator=self._generator)
        low = keys < self._limit
        self._keys, self._subset = torch.cat([self._keys, keys[low]]), torch.cat([self._subset, values[low].float()])
        if len(self._keys) > self._most:
            self._limit = float(self._keys.kthvalue(self._most // 2).values)
            low = self._keys < self._limit
            self._keys, self._subset = self._keys[low], self._subset[low]

    def _add_moments(self, values: Tensor) -> None:
        """The update of Chan, Golub and LeVeque (1979), which stays exact when a mean is large against its std."""
        seen = ~values.isnan()
        count = seen.sum(0)
        total = self.count + count
        share = count / total.clamp(min=1)
        mean = torch.where(seen, values, 0).sum(0) / count.clamp(min=1)
        squares = torch.where(seen, values - mean, 0).square().sum(0)
        difference = mean - self.mean
        self.mean = self.mean + difference * share
        self._squares = self._squares + squares + difference.square() * self.count * share
        self.count = total

    @property
    def std(self) -> Tensor:
        """The population's."""
        return (self._squares / self.count.clamp(min=1)).sqrt()

    def percentiles(self) -> Tensor:
        """The 5th, 50th and 95th [3, F], of the subset."""
        at = torch.tensor([0.05, 0.5, 0.95])
        # torch takes quantiles of at most 16 million numbers.
        columns = max(1, _QUANTILES // len(self._subset))
        parts = torch.split(self._subset, columns, dim=1)
        return torch.cat([part.nanquantile(at, dim=0) for part in parts], dim=1).double()


def _skew(q: Tensor) -> Tensor:
    return (q[2] + q[0] - 2 * q[1]) / (q[2] - q[0])
