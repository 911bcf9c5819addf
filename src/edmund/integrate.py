r"""Ordinary differential equations by an embedded Runge-Kutta pair that chooses its own steps, sample by sample.

The pair is Dormand and Prince's 5(4) ("A family of embedded Runge-Kutta formulae", 1980). Its seven stages

    k_j = f(t + c_j h, y + h sum_l a_jl k_l)

give a solution of order 5 and, with other weights, one of order 4; their difference estimates the error of the step.
The last stage is the next step's first, so a step costs six calls. With the error scaled to

    e = norm((y_5 - y_4) / (atol + rtol max(|y_old|, |y_new|)))

a step is taken where e <= 1, and the next one is 0.9 e^(-1/5) times as long (between 1/5 and 10 times; Hairer, Norsett
& Wanner, "Solving Ordinary Differential Equations I", II.4). Between the ends of a step the solution is the pair's
continuous extension of order 4 (the same book, II.6).

Every sample has its own time and its own steps, so what becomes of it does not depend on the batch it is in; those that
arrive leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from edmund.errors import InputError, check_count, check_number, check_positive

_C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A: tuple[tuple[float, ...], ...] = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
# The weights of order 5 less those of order 4.
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
# The part of the continuous extension that does not follow from the step's ends and their slopes.
_INNER = (
    -12715105075 / 11282082432,
    0.0,
    87487479700 / 32700410799,
    -10690763975 / 1880347072,
    701980252875 / 199316789632,
    -1453857185 / 822651844,
    69997945 / 29380423,
)
_ORDER = 5
_SAFETY, _LEAST, _MOST = 0.9, 0.2, 10.0

Slope = Callable[[Tensor, Tensor, Tensor], Tensor]
"""f(t [A], y [A, *], rows [A]) -> dy/dt [A, *], for the samples `rows` (int64) of the batch that are on their way."""


class Solution(NamedTuple):
    """y: [B, *] at t1. at: [M, B, *] at the times asked for (M = 0: none). calls: of f for each sample, int64 [B]."""

    y: Tensor
    at: Tensor
    calls: Tensor


def rms(scaled: Tensor) -> Tensor:
    """The root mean square of each sample: [B, *] to [B]."""
    return scaled.flatten(1).square().mean(1).sqrt()


def integrate(
    f: Slope,
    y0: Tensor,
    t0: float,
    t1: float,
    *,
    rtol: float,
    atol: float,
    norm: Callable[[Tensor], Tensor] = rms,
    times: Tensor | None = None,
    max_steps: int = 10_000,
    arrived: Callable[[int], None] | None = None,
) -> Solution:
    """The solution of dy/dt = f(t, y) at t1 from y0 [B, *] at t0; t1 may lie on either side of t0.

    rtol, atol: the error allowed in each step, relative to |y| and absolute. norm: makes one number a sample [B] of the
    scaled errors [B, *]. times: where the solution is wanted besides, float64 [M], between t0 and t1, in any order.
    max_steps: the most steps tried for a sample. arrived: told how many samples have just reached t1. Times and steps
    are float64 [B] (float32 where the device has none); y keeps its dtype.

    Raises InputError for tolerances and times that cannot be used, where the step falls below the rounding of t (f is
    not finite or not smooth, or the tolerances are below f's own rounding), and where max_steps is not enough.
    """
    check_positive("rtol", rtol)
    check_positive("atol", atol)
    check_count("max_steps", max_steps)
    if check_number("t1", t1) == check_number("t0", t0):
        raise InputError(f"t0 and t1 are both {t0!r}; there must be a way to go")
    clock = torch.float32 if y0.device.type == "mps" else torch.float64
    wanted = _check_times(times, t0, t1).to(y0.device, clock)
    forward = 1.0 if t1 > t0 else -1.0
    shortest = 16 * torch.finfo(clock).eps * max(abs(t0), abs(t1))

    out = torch.empty_like(y0)
    at = y0.new_empty(len(wanted), *y0.shape)
    at[wanted == t0] = y0
    calls = torch.zeros(len(y0), dtype=torch.int64, device=y0.device)
    rows = torch.arange(len(y0), device=y0.device)
    t = torch.full((len(y0),), t0, dtype=clock, device=y0.device)
    y = y0
    k_first = f(t, y, rows)
    h = _first_step(f, t, y, k_first, rows, abs(t1 - t0), forward, rtol, atol, norm)
    calls += 2
    for _ in range(max_steps):
        last = h >= (t1 - t).abs()
        h = torch.where(last, (t1 - t).abs(), h)
        y_new, k, error = _step(f, t, forward * h, y, k_first, rows, rtol, atol)
        e = norm(error)
        calls[rows] += 6
        accepted = e <= 1  # not where e is NaN
        t_new = torch.where(last, t1, t + forward * h)
        if len(wanted):
            _fill(at, wanted, rows, accepted, t, t_new, forward, y, y_new, k)
        t = torch.where(accepted, t_new, t)
        taken = _beside(accepted, y)
        y = torch.where(taken, y_new, y)
        k_first = torch.where(taken, k[-1], k_first)
        # By exp and log: the power of a vectorised loop and that of its remainder differ in the last bit, and a sample
        # must not depend on its place in the batch.
        growth = (_SAFETY * torch.exp(torch.log(e) * (-1 / _ORDER))).clamp(_LEAST, _MOST)
        growth = torch.where(accepted, growth, torch.where(e.isfinite(), growth.clamp(max=1.0), _LEAST))
        h = h * growth.to(clock)
        finished = accepted & last
        stuck = ~finished & (h < shortest)
        any_finished, any_stuck = torch.stack([finished.any(), stuck.any()]).tolist()
        if any_stuck:
            raise InputError(
                f"rtol is {rtol!r}, atol is {atol!r}: the step fell below rounding at t = {t[stuck][0].item():.6g}, "
                f"where the equation is not finite, not smooth, or less precise than that; take larger tolerances"
            )
        if any_finished:
            out[rows[finished]] = y[finished]
            if arrived is not None:
                arrived(int(finished.sum()))
            under_way = ~finished
            rows, t, h, y, k_first = (each[under_way] for each in (rows, t, h, y, k_first))
            if len(rows) == 0:
                return Solution(out, at, calls)
    raise InputError(
        f"max_steps is {max_steps}, and {len(rows)} of {len(y0)} samples have not arrived after that many (one is at "
        f"t = {t[0].item():.6g}); take more steps or larger tolerances than rtol = {rtol!r}, atol = {atol!r}"
    )


def _check_times(times: Tensor | None, t0: float, t1: float) -> Tensor:
    asked = torch.empty(0) if times is None else torch.as_tensor(times)
    low, high = min(t0, t1), max(t0, t1)
    if asked.ndim != 1 or not bool(((asked >= low) & (asked <= high)).all()):
        raise InputError(f"times is {asked.tolist()}; it must be [M] numbers between t0 = {t0!r} and t1 = {t1!r}")
    return asked


def _beside(value: Tensor, y: Tensor) -> Tensor:
    """value [B] as it broadcasts against y [B, *]."""
    return value.reshape(-1, *(1,) * (y.ndim - 1))


def _first_step(
    f: Slope,
    t: Tensor,
    y: Tensor,
    slope: Tensor,
    rows: Tensor,
    span: float,
    forward: float,
    rtol: float,
    atol: float,
    norm: Callable[[Tensor], Tensor],
) -> Tensor:
    """A step length [B] > 0 that suits the size of y, its slope and its curvature (Hairer, Norsett & Wanner, II.4)."""
    scale = atol + rtol * y.abs()
    size, speed = norm(y / scale), norm(slope / scale)
    # Where y or its slope is (almost) 0 they say nothing about the scale of t.
    probe = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6 * span, 0.01 * size / speed).to(t.dtype).clamp(max=span)
    moved = y + _beside(forward * probe, y).to(y.dtype) * slope
    curvature = norm((f(t + forward * probe, moved, rows) - slope) / scale) / probe
    steepest = torch.maximum(speed, curvature)
    h = torch.where(steepest <= 1e-15, 1e-3 * span, torch.exp(torch.log(0.01 / steepest) / _ORDER))
    h = torch.minimum(100 * probe, h.to(t.dtype))
    return torch.where(h.isfinite(), h, 1e-6 * span).clamp(max=span)


def _combined(k: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    total = k[0] * weights[0]
    for slope, weight in zip(k[1:], weights[1:], strict=True):
        if weight != 0.0:
            total = total.add(slope, alpha=weight)
    return total


def _step(
    f: Slope, t: Tensor, h: Tensor, y: Tensor, k_first: Tensor, rows: Tensor, rtol: float, atol: float
) -> tuple[Tensor, list[Tensor], Tensor]:
    """One step of signed length h [B]: the new state; h k_j of the seven stages, and after them k_7, the next step's
    first slope; the scaled error.
    """
    length = _beside(h, y).to(y.dtype)
    k = [length * k_first]
    slope = k_first
    y_new = y
    for c, weights in zip(_C[1:], _A[1:], strict=True):
        y_new = y + _combined(k, weights)
        slope = f(t + c * h, y_new, rows)
        k.append(length * slope)
    error = _combined(k, _ERROR) / (atol + rtol * torch.maximum(y.abs(), y_new.abs()))
    return y_new, [*k, slope], error


def _fill(
    at: Tensor,
    wanted: Tensor,
    rows: Tensor,
    accepted: Tensor,
    t: Tensor,
    t_new: Tensor,
    forward: float,
    y: Tensor,
    y_new: Tensor,
    k: list[Tensor],
) -> None:
    """Writes the solution at the wanted times that lie in the steps just taken."""
    behind = forward * (wanted - t[:, None]) > 0
    ahead = forward * (wanted - t_new[:, None]) <= 0
    sample, time = torch.nonzero(behind & ahead & accepted[:, None], as_tuple=True)
    if len(sample) == 0:
        return
    theta = _beside(((wanted[time] - t[sample]) / (t_new - t)[sample]).to(y.dtype), y)
    scaled = [slope[sample] for slope in k[:-1]]
    start = y[sample]
    change = y_new[sample] - start
    bend = scaled[0] - change
    twist = change - scaled[-1] - bend
    inner = _combined(scaled, _INNER)
    rest = bend + theta * (twist + (1 - theta) * inner)
    at[time, rows[sample]] = start + theta * (change + (1 - theta) * rest)
