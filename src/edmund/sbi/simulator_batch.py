"""One batch of simulations: what a worker is sent, what it does, and what it sends back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edmund.errors import InputError
from edmund.sbi.seeding import seeded
from edmund.training.order import seed_for

Simulator = Callable[[Tensor], Any]
"""theta [B, D] float32 to x [B, *], a tensor or an array; draws from the global random streams as it likes."""

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """A finished batch. rows: [k], of those that succeeded. x: [k, *], None where k is 0. failures: (row, message, x).
    shape: of one row of x, where any came.
    """

    number: int
    rows: Rows
    x: Floats | None
    failures: list[tuple[int, str, Floats | None]]
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Job:
    """One batch on its way to a worker. start: the row of its first theta. missing: NaN in x is missing."""

    simulator: Simulator
    theta: Tensor
    start: int
    seed: int
    number: int
    missing: bool = False

    def run(self) -> Batch | InputError:
        """An InputError travels as a value: raised in a worker it would come out as the text of a traceback."""
        try:
            return self._run()
        except InputError as error:
            return error

    def _run(self) -> Batch:
        x, message = self._call(self.theta, self.seed)
        if x is not None and self.number == 0 and len(x) > 1 and x.shape[1:] == (1,):
            # As many numbers as there are rows may be one simulation, of a simulator that takes a single theta.
            self._call(self.theta[:1], self.seed)
        if x is not None and not self._bad(x).any():
            return Batch(self.number, np.arange(self.start, self.start + len(x)), x, [], x.shape[1:])
        if x is not None:
            return self._sorted(list(x), [""] * len(x))
        if len(self.theta) == 1:
            return self._sorted([None], [message])
        rows: list[Floats | None] = []
        messages = []
        for row, theta in enumerate(self.theta):
            x, message = self._call(theta[None], seed_for(self.seed, row))
            rows.append(None if x is None else x[0])
            messages.append(message)
        return self._sorted(rows, messages)

    def _call(self, theta: Tensor, seed: int) -> tuple[Floats | None, str]:
        """x [B, *] float32, or None and what was raised."""
        with seeded(seed):
            try:
                x = self.simulator(theta.clone())
            except Exception as error:
                return None, one_line(f"{type(error).__name__}: {error}")
        return _checked(x, theta), ""

    def _bad(self, x: Floats) -> NDArray[np.bool_]:
        """The values of rows [B, *] that make a failure of theirs; where NaN is missing, a row of nothing else."""
        if not self.missing:
            return ~np.isfinite(x)
        nothing = np.isnan(x.reshape(len(x), -1)).all(1).reshape(-1, *[1] * (x.ndim - 1))
        bad: NDArray[np.bool_] = np.isinf(x) | (np.isnan(x) & nothing)
        return bad

    def _kind(self, x: Floats) -> str:
        return "infinite" if self.missing and np.isinf(x).any() else "NaN" if self.missing else "NaN or infinite"

    def _sorted(self, rows: list[Floats | None], messages: list[str]) -> Batch:
        """The rows that can be used, and the failures."""
        kept: list[int] = []
        failures = []
        for offset, (x, message) in enumerate(zip(rows, messages, strict=True)):
            bad = 0 if x is None else int(self._bad(x[None]).sum())
            if x is None or bad:
                told = message if x is None else f"not finite: {bad} of {x.size} values are {self._kind(x)}"
                failures.append((self.start + offset, told, x))
            else:
                kept.append(offset)
        shapes = list(dict.fromkeys(x.shape for x in rows if x is not None))
        if len(shapes) > 1:
            raise other_shapes(shapes[0], shapes[1])
        shape = shapes[0] if shapes else None
        x = np.stack([x for offset in kept if (x := rows[offset]) is not None]) if kept else None
        return Batch(self.number, np.array(kept, dtype=np.int64) + self.start, x, failures, shape)


def _checked(x: Any, theta: Tensor) -> Floats:
    """What a simulator returned for theta [B, D], as float32 [B, *]; InputError if it cannot be that."""
    told = f"simulator returned {type(x).__name__}"
    if not isinstance(x, Tensor) and not hasattr(x, "__array__"):
        raise InputError(f"{told}; it must return a tensor or an array [B, ...], a row for each row of theta [B, D]")
    values = x.detach().cpu() if isinstance(x, Tensor) else np.asarray(x)
    if isinstance(values, np.ndarray) and values.dtype.kind not in "biuf":
        raise InputError(f"{told} of dtype {values.dtype}; it must be of real numbers")
    if isinstance(values, Tensor) and values.is_complex():
        raise InputError(f"{told} of dtype {values.dtype}; it must be of real numbers")
    shape = tuple(values.shape)
    if not shape or shape[0] != len(theta) or 0 in shape:
        raise InputError(
            f"{told} of shape {shape} for theta of shape {tuple(theta.shape)}; it takes many theta, a row each, "
            f"and must return {len(theta)} rows of at least one number"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and so a failure
        # A copy: a simulator may fill the same array again at the next call, or not let us write on it.
        rows: Floats = np.array(values.float().numpy() if isinstance(values, Tensor) else values, dtype=np.float32)
    return rows.reshape(-1, 1) if rows.ndim == 1 else rows


def other_shapes(first: Sequence[int], second: Sequence[int]) -> InputError:
    """The error for rows of x that have different shapes."""
    return InputError(
        f"simulator returned rows of shape {tuple(first)} and of shape {tuple(second)}; all must have one shape"
    )


def one_line(text: str) -> str:
    """A message of any length as one short line."""
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:197] + "..."
