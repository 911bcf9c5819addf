"""Mean, spread and range of data that do not fit in memory, in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from edmund.errors import InputError

_CHUNK = 1 << 20
"""Elements that are turned to float64 at a time."""


@dataclass(frozen=True)
class Moments:
    """Count, mean, population std and range of each feature or channel, over samples [B, D] or [B, C, *].

    `mean`, `std`, `low` and `high` are float64 with the sample's own number of axes: [D] or [C, 1, ...].
    """

    count: int
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    @property
    def total_mean(self) -> float:
        """The mean of all elements."""
        return float(self.mean.mean())

    @property
    def total_std(self) -> float:
        """The std of all elements about their one mean: for data in the model's units, sigma_data."""
        # The law of total variance: the mean of the variances and the variance of the means.
        return float((self.std.square() + (self.mean - self.mean.mean()).square()).mean().sqrt())

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> Moments:
        """One pass over `batches` of samples [B, D] or [B, C, *], in float64.

        Parts are merged by the pairwise update of Chan, Golub and LeVeque, "Updating Formulae and a Pairwise
        Algorithm for Computing Sample Variances" (1979), which stays exact when the mean is large against the std.
        Raises InputError for no data, samples of different shapes, and NaN or infinite values (with their number).
        """
        found: _Sums | None = None
        bad, seen = 0, 0
        for batch in [batches] if isinstance(batches, Tensor) else batches:
            if not isinstance(batch, Tensor) or batch.ndim < 2:
                what = f"shape {list(batch.shape)}" if isinstance(batch, Tensor) else f"type {type(batch).__name__}"
                raise InputError(f"batches holds a {what}; each must be a tensor of samples, [B, D] or [B, C, *]")
            if found is not None and batch.shape[1:] != found.shape:
                shapes = f"{list(found.shape)} and {list(batch.shape[1:])}"
                raise InputError(f"batches holds samples of shapes {shapes}; all must have one shape")
            if batch.numel() == 0:
                continue
            # Some rows at a time: the float64 copy stays small even when all the data come as one tensor.
            rows = max(1, _CHUNK // batch[0].numel())
            for chunk in torch.split(batch.detach(), rows):
                seen += chunk.numel()
                values = chunk.to("cpu", torch.float64)
                bad += int((~values.isfinite()).sum())
                if not bad:
                    sums = _Sums.of(values)
                    found = sums if found is None else found.merged(sums)
        if bad:
            raise InputError(f"batches holds {bad} NaN or infinite values among {seen}; every value must be finite")
        if found is None:
            raise InputError("batches is empty; statistics need at least one sample")
        std = (found.squares / found.count).sqrt()
        return cls(found.count, found.mean, std, found.low, found.high)


@dataclass(frozen=True)
class _Sums:
    """What is merged between chunks: `count` values a feature, their mean, and the sum of squares about it."""

    shape: torch.Size
    count: int
    mean: Tensor
    squares: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, values: Tensor) -> _Sums:
        axes = (0, *range(2, values.ndim))
        mean = values.mean(axes, keepdim=True)
        squares = (values - mean).square().sum(axes, keepdim=True)
        low, high = values.amin(axes, keepdim=True), values.amax(axes, keepdim=True)
        count = values.numel() // values.shape[1]
        return cls(values.shape[1:], count, mean[0], squares[0], low[0], high[0])

    def merged(self, other: _Sums) -> _Sums:
        count = self.count + other.count
        difference = other.mean - self.mean
        return _Sums(
            self.shape,
            count,
            self.mean + difference * (other.count / count),
            self.squares + other.squares + difference.square() * (self.count * other.count / count),
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
        )
