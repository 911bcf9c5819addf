"""What the wrappers share: they carry what they wrap, are off at w = 1, and may be limited to an interval of sigma."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edmund.denoiser import Denoiser, condition_names
from edmund.errors import InputError, check_number

# What a denoiser may say of itself that stays true of one made of it.
_CARRIED = frozenset({"formulation", "sigma_min", "sigma_max", "round_sigma", "check_labels", "num_classes"})


def check_denoiser(argument: str, denoiser: Denoiser) -> Denoiser:
    """`denoiser`, if it can be called; else an InputError that names the argument."""
    if isinstance(denoiser, type) or not callable(denoiser):
        raise InputError(f"{argument} is {denoiser!r}; it must be a denoiser, a callable (x, sigma, **condition) -> D")
    return denoiser


class Wrapper(nn.Module):
    """A denoiser made of another, `denoiser`: its trained range, known levels, formulation and conditions are that
    one's, as far as that one says them.
    """

    denoiser: Denoiser

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = check_denoiser("denoiser", denoiser)

    def __getattr__(self, name: str) -> Any:
        # Asked only for what is not found on the wrapper itself.
        if name in _CARRIED:
            return getattr(self.denoiser, name)
        return super().__getattr__(name)

    @property
    def known_conditions(self) -> tuple[str, ...] | None:
        """The conditions that may be given; None when any."""
        return condition_names(self.denoiser)

    @property
    def guides(self) -> bool:
        """Whether there is a guidance in it, so that `with_main` can tell D without."""
        return False

    def with_main(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor]:
        """(D, D_main), like x [B, *] each, at the cost of the first: D_main is what D were with the outermost guidance
        in it off; the same tensor where it is. InputError where there is none.
        """
        raise InputError(f"{type(self).__name__} has no guidance in it, so there is no unguided D to tell")


class Guidance(Wrapper):
    """A guidance: D_guided = D_ref + w (D_main - D_ref) where sigma is in the interval, D_main elsewhere and at w = 1.

    denoiser: the main one. w: a finite number; 1 is off. interval: (sigma_low, sigma_high), guided where sigma_low <
    sigma <= sigma_high; None: everywhere. Where nothing in a batch is to be guided, one evaluation of the main
    denoiser is all there is.
    """

    def __init__(self, denoiser: Denoiser, w: float, interval: Sequence[float] | None) -> None:
        super().__init__(denoiser)
        self.w = check_number("w", w)
        self.interval = None if interval is None else _check_interval(interval)

    @abstractmethod
    def _guided(self, x: Tensor, sigma: Tensor, condition: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(D_guided, D_main) of every sample of the batch."""

    @property
    def guides(self) -> bool:
        """True."""
        return True

    def _main(self, x: Tensor, sigma: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        return self.denoiser(x, sigma, **condition)

    def forward(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        """D_guided(x; sigma), like x [B, *]; sigma [] or [B]."""
        return self.with_main(x, sigma, **condition)[0]

    def with_main(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor]:
        """(D_guided, D_main), like x [B, *] each, at the cost of the first; the same tensor where guidance is off."""
        inside = self._inside(sigma)
        # Reading it waits for the device; an evaluation saved is worth more.
        if self.w == 1 or (inside is not None and not bool(inside.any())):
            main = self._main(x, sigma, condition)
            return main, main
        guided, main = self._guided(x, sigma, condition)
        if inside is not None and inside.ndim > 0:
            guided = torch.where(inside.reshape(-1, *(1,) * (x.ndim - 1)), guided, main)
        return guided, main

    def _inside(self, sigma: Tensor) -> Tensor | None:
        if self.interval is None:
            return None
        low, high = self.interval
        return (sigma > low) & (sigma <= high)


def _check_interval(interval: Sequence[float]) -> tuple[float, float]:
    """(sigma_low, sigma_high) with 0 <= sigma_low < sigma_high, which may be infinite; else an InputError."""
    if isinstance(interval, str) or not isinstance(interval, Sequence) or len(interval) != 2:
        raise InputError(f"interval is {interval!r}; it must be two noise levels (sigma_low, sigma_high), or None")
    low = check_number("interval's sigma_low", interval[0])
    high = interval[1] if interval[1] == math.inf else check_number("interval's sigma_high", interval[1])
    if not 0 <= low < high:
        raise InputError(
            f"interval is {interval!r}; it must be (sigma_low, sigma_high) with 0 <= sigma_low < sigma_high"
        )
    return low, float(high)
