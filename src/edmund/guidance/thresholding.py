r"""Thresholding: D kept within the data's range.

E[y | x] of bounded data is bounded; a guided D is not, and each step feeds what lies outside back to a network that
never saw it. Static thresholding clamps D. Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, Section 2.3)
takes the p-quantile s of |D| in each sample and, where that lies beyond the bound, clamps to [-s, s] and divides by s:
saturated numbers are pushed inwards instead of piling up at the bound.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from edmund.denoiser import Denoiser
from edmund.errors import InputError, check_number, check_positive
from edmund.guidance._base import Wrapper


class _Thresholding(Wrapper):
    """A function of D alone."""

    @abstractmethod
    def _within(self, denoised: Tensor) -> Tensor:
        """D [B, *] within the bounds."""

    def forward(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        """The thresholded D(x; sigma), like x [B, *]; sigma [] or [B]."""
        return self._within(self.denoiser(x, sigma, **condition))

    @property
    def guides(self) -> bool:
        """Whether there is a guidance in it."""
        return isinstance(self.denoiser, Wrapper) and self.denoiser.guides

    def with_main(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor]:
        """(D, D_main), both thresholded; the same tensor where guidance is off. InputError where there is none."""
        if not isinstance(self.denoiser, Wrapper):
            return super().with_main(x, sigma, **condition)
        guided, main = self.denoiser.with_main(x, sigma, **condition)
        within = self._within(guided)
        return within, within if guided is main else self._within(main)


class StaticThresholding(_Thresholding):
    """D clamped to [-bound, bound], or to (low, high).

    bound: one positive number or two, in the units that the denoiser works in (a `Model`'s own, after its transform);
    an end may be infinite.
    """

    def __init__(self, denoiser: Denoiser, bound: float | Sequence[float] = 1.0) -> None:
        super().__init__(denoiser)
        if not isinstance(bound, Sequence):
            ends: Sequence[float] = (-check_positive("bound", bound), check_positive("bound", bound))
        elif len(bound) == 2 and all(isinstance(end, Real) for end in bound):
            ends = bound
        else:
            raise InputError(f"bound is {bound!r}; it must be a positive number, or two (low, high)")
        if not ends[0] < ends[1] or all(math.isinf(end) for end in ends):
            raise InputError(f"bound is {bound!r}; it must be (low, high) with low < high, and not both infinite")
        self.low, self.high = float(ends[0]), float(ends[1])

    def _within(self, denoised: Tensor) -> Tensor:
        return denoised.clamp(self.low, self.high)


class DynamicThresholding(_Thresholding):
    """D clamped to [-s, s] and divided by s / bound, with s the quantile of |D| in the sample, at least bound (Saharia
    et al. 2022).

    quantile: p in (0, 1]; the paper's is 0.995. bound: of the data, a positive number in the denoiser's units.
    """

    def __init__(self, denoiser: Denoiser, quantile: float = 0.995, bound: float = 1.0) -> None:
        super().__init__(denoiser)
        if not 0 < check_number("quantile", quantile) <= 1:
            raise InputError(f"quantile is {quantile!r}; it must lie in (0, 1]")
        self.quantile = float(quantile)
        self.bound = check_positive("bound", bound)

    def _within(self, denoised: Tensor) -> Tensor:
        sizes = denoised.abs().flatten(1)
        sizes = sizes.to(torch.promote_types(sizes.dtype, torch.float32))  # quantiles of half precision do not exist
        scale = torch.quantile(sizes, self.quantile, dim=1) / self.bound
        scale = scale.clamp_min(1).to(denoised.dtype).reshape(-1, *(1,) * (denoised.ndim - 1))
        return (denoised / scale).clamp(-self.bound, self.bound)
