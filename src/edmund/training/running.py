"""Sums of a training run between two readings, kept on the device: adding to them never waits for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """What was summed over `steps` steps since the last reset. loss and grad_norm: means over the steps where they were
    finite; None where there was none.
    """

    steps: int
    loss: float | None
    grad_norm: float | None
    nonfinite: int
    consecutive: int
    bad_data: bool


class Running:
    """Loss, its count, gradient norm, its count, steps with non-finite gradients; such steps in a row up to now; parts
    of data that were not finite.

    mean: the mean of a tensor over all processes.
    """

    _SIZE = 7
    _CONSECUTIVE = 5  # outlives a reset

    def __init__(self, device: torch.device, mean: Callable[[Tensor], Tensor]) -> None:
        self._mean = mean
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(self._SIZE, dtype=self._dtype, device=device)

    @torch.no_grad()
    def add_data(self, x: Tensor) -> None:
        """A part of a batch in the model's units."""
        # The largest absolute value is NaN if there is one; a sum of finite values might overflow.
        self._sums[6] += ~torch.isfinite(torch.linalg.vector_norm(x, torch.inf))

    @torch.no_grad()
    def add_step(self, loss: Tensor, grad_norm: Tensor, finite: Tensor) -> None:
        """A step: its loss, the norm of its gradients, whether that was finite; scalars on the device."""
        loss_finite = torch.isfinite(loss)
        zero = torch.zeros((), dtype=self._dtype, device=self._sums.device)
        bad = (~finite).to(self._dtype)
        steps = torch.stack(
            (
                torch.where(loss_finite, loss.to(self._dtype), zero),
                loss_finite.to(self._dtype),
                torch.where(finite, grad_norm.to(self._dtype), zero),
                finite.to(self._dtype),
                bad,
                bad - finite * self._sums[5],  # back to 0, or one more
                zero,
            )
        )
        self._sums += steps

    def read(self) -> Reading:
        """The sums so far, over all processes; waits for the device."""
        loss, loss_count, grad_norm, norm_count, nonfinite, consecutive, bad_data = self.state()
        return Reading(
            round(norm_count + nonfinite),
            loss / loss_count if loss_count else None,
            grad_norm / norm_count if norm_count else None,
            round(nonfinite),
            round(consecutive),
            bad_data > 0,
        )

    def reset(self) -> None:
        """Starts the next interval."""
        consecutive = self._sums[self._CONSECUTIVE].clone()
        self._sums.zero_()
        self._sums[self._CONSECUTIVE] = consecutive

    def state(self) -> list[float]:
        """The sums as numbers, exactly; the mean over the processes."""
        return [float(value) for value in self._mean(self._sums.clone()).tolist()]

    def load_state(self, state: Sequence[float]) -> None:
        """Goes on from `state`."""
        self._sums.copy_(torch.tensor(list(state), dtype=self._dtype))
