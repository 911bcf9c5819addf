"""Grids fitted to a denoiser, in the manner of Sabour et al. 2024 ("Align your steps", arXiv 2404.14507)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edmund import progress as progress_bars
from edmund.arguments import check_condition, check_shape, device_of, evaluation_mode, range_of
from edmund.errors import InputError, check_count
from edmund.grid._base import Grid, check_falling, ramp
from edmund.grid._fit import equidistributed, reference, searched
from edmund.grid.closed_form import EDM
from edmund.noise import Seeded
from edmund.process import EDM as EDMProcess
from edmund.process import Process, check_range

if TYPE_CHECKING:  # they stand above this module
    from edmund.denoiser import Denoiser
    from edmund.samplers import Sampler

FIRST_SEED = 2**32
"""The seeds that a grid is fitted on start here, where nobody's samples are."""
_KNOTS = 65


@dataclass(frozen=True)
class Optimised(Grid):
    """Levels that fall as fitted ones do: a monotone curve of ln sigma against the share of steps taken, from 0 to 1.

    sigmas: its values at even shares, falling; a final 0 is left out. With as many steps as there are sigmas, and from
    the first to the last, these are the nodes; else the curve is read off in between, by monotone cubics (Fritsch &
    Carlson 1980). A narrower range takes the part of the curve that lies in it; a wider one is an InputError.

    nfe: how often the fit called the denoiser on each of its samples (0: the sigmas were given).
    """

    sigmas: tuple[float, ...]
    nfe: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", check_falling(self.sigmas))
        if len(self.sigmas) < 2:
            raise InputError(f"sigmas is {list(self.sigmas)}; a curve has at least two levels")

    def nodes(self, num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        high, low = self.sigmas[0], self.sigmas[-1]
        # A rounding of the range's ends is no reason to refuse it.
        for argument, value, inside in (
            ("sigma_min", sigma_min, sigma_min >= low * (1 - 1e-9)),
            ("sigma_max", sigma_max, sigma_max <= high * (1 + 1e-9)),
        ):
            if not inside:
                raise InputError(f"{argument} is {value!r}; the grid was fitted from {low!r} to {high!r}")
        curve = _Curve(torch.tensor(self.sigmas, dtype=torch.float64).log())
        start = 0.0 if sigma_max >= high else curve.share(math.log(sigma_max))
        stop = 1.0 if sigma_min <= low else curve.share(math.log(sigma_min))
        nodes = curve(start + (stop - start) * ramp(num_steps)).exp()
        nodes[0], nodes[-1] = sigma_max, sigma_min
        return nodes

    @classmethod
    def fit(
        cls,
        denoiser: Denoiser,
        shape: Sequence[int],
        *,
        sampler: Sampler,
        num_steps: int | None = None,
        process: Process | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        seeds: Sequence[int] | range | Tensor | None = None,
        condition: Mapping[str, Tensor] | None = None,
        device: torch.device | str | None = None,
        iterations: int = 20,
        reference_steps: int = 128,
        progress: bool = True,
    ) -> Optimised:
        """The grid on which a deterministic sampler ends nearest to the converged solution of the probability-flow ODE.

        shape: (n, *), the batch of samples to fit on; with few, the grid suits these only (on mixtures in 2 and 64
        dimensions 500 were enough). They go through the denoiser 2 n at a time, and reference_steps + num_steps states
        of the batch are kept.

        num_steps: the steps, the last one to 0, that the levels are searched for: from `EDM()` and from the grid of
        num_steps = None, each in at most `iterations` of num_steps runs of the sampler, and the better end is taken.
        None: the levels at which each step of a method of the sampler's order adds the same error at the end, for any
        number of steps. That costs the converged solution only: reference_steps of the classical Runge-Kutta method,
        for n samples and a neighbour of each.

        process, sigma_min, sigma_max: as sampling will have them; None: those of the denoiser's formulation, or EDM's
        (0.002 to 80, within the denoiser's own range). seeds: one a sample; None: from 2^32 on, so that the grid is not
        fitted to the samples that are drawn later. condition: keyword tensors with a batch axis of n or 1. device:
        where the states live; None: where the denoiser's parameters are. The states are float64 (float32 where the
        device has none). Bit for bit the same for the same arguments.

        Raises InputError for arguments that cannot be used, and for a sampler that draws noise: it has no one end.
        """
        n, item = check_shape(shape)
        if not callable(denoiser):
            raise InputError(f"denoiser is {denoiser!r}; it must be a callable (x, sigma, **condition) -> E[y | x]")
        if isinstance(sampler, type) or not hasattr(sampler, "plan"):
            raise InputError(
                f"sampler is {sampler!r}; it must be an object whose steps are the grid's, such as samplers.Heun()"
            )
        if sampler.stochastic:
            raise InputError(f"sampler is {sampler!r}, which draws noise; a grid is fitted to a deterministic one")
        defaults = getattr(denoiser, "formulation", None)
        path = getattr(defaults, "process", EDMProcess()) if process is None else process
        if not isinstance(path, Process):
            raise InputError(f"process is {process!r}; it must be a Process, such as process.VP()")
        usual = getattr(defaults, "sigma_min", 0.002), getattr(defaults, "sigma_max", 80.0)
        low, high = range_of(denoiser, sigma_min, sigma_max, usual, clip=defaults is None)
        check_range(low, high)
        if num_steps is not None:
            check_count("num_steps", num_steps, least=2)
        check_count("iterations", iterations)
        check_count("reference_steps", reference_steps, least=16)
        given = range(FIRST_SEED, FIRST_SEED + n) if seeds is None else seeds
        if not hasattr(given, "__len__"):
            raise InputError(f"seeds is {given!r}; it must be a sequence of {n} integers, one seed a sample")
        if len(given) != n:
            raise InputError(f"seeds has {len(given)} entries, but shape asks for {n} samples; one seed a sample")
        where = device_of(device, denoiser, None, {})
        dtype = torch.float32 if where.type == "mps" else torch.float64
        conditions = {
            key: value.to(where).expand(n, *value.shape[1:])
            for key, value in check_condition(condition, n, denoiser).items()
        }
        unit = Seeded(given).latents(item, dtype=dtype, device=where)

        bar = progress_bars.track(None, "fitting the grid", enabled=progress)
        counted = _Counted(denoiser, bar)
        with torch.no_grad(), evaluation_mode(denoiser), bar:
            twice = {name: torch.cat([value, value]) for name, value in conditions.items()}
            solution = reference(
                lambda z, sigma: counted(z, torch.full((), sigma, dtype=dtype, device=where), **twice),
                unit * high,
                low,
                high,
                reference_steps,
            )
            counted.calls *= 2  # a sample and its neighbour
            curve: Tensor = equidistributed(solution, sampler.order, num_steps or _KNOTS)
            if num_steps is not None:

                def run(log_sigma: Tensor) -> Tensor:
                    sigmas = log_sigma.exp()
                    sigmas[0], sigmas[-1] = high, low
                    sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
                    scalings = path.s(path.t(sigmas[[0, -1]])).tolist()
                    start = unit * (scalings[0] * high)
                    ends: Tensor = sampler(counted, start, sigmas, process=path, condition=conditions) / scalings[1]
                    return ends

                # The error has many minima: one search from each of two unlike grids.
                starts = (curve, EDM().nodes(num_steps, low, high).log())
                found = [
                    searched(run, solution.end, start, iterations, lambda error: bar.advance(0, error=error))
                    for start in starts
                ]
                curve = min(found, key=lambda each: each[1])[0]
        sigmas = curve.exp()
        sigmas[0], sigmas[-1] = high, low
        return cls(tuple(sigmas.tolist()), counted.calls)


class _Curve:
    """The monotone cubic through y [K], strictly falling, at even places from 0 to 1 (Fritsch & Carlson 1980)."""

    def __init__(self, y: Tensor) -> None:
        self.y = y
        rise = y.diff()
        inner = 2 * rise[:-1] * rise[1:] / (rise[:-1] + rise[1:])  # harmonic means: never too steep to be monotone
        near = 1 if len(rise) > 1 else 0
        first, last = _end_slope(rise[0], rise[near]), _end_slope(rise[-1], rise[-1 - near])
        self.slope = torch.cat([first[None], inner, last[None]])

    def __call__(self, share: Tensor) -> Tensor:
        place = share * (len(self.y) - 1)
        left = place.floor().long().clamp(0, len(self.y) - 2)
        u = place - left
        rise = self.y[left + 1] - self.y[left]
        bend = (1 - u) * (self.slope[left] - rise) - u * (self.slope[left + 1] - rise)
        return self.y[left] + u * (rise + (1 - u) * bend)

    def share(self, value: float) -> float:
        """Where the curve has a value that lies between its ends, by bisection."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            if self(torch.tensor([middle], dtype=torch.float64)).item() > value:
                low = middle
            else:
                high = middle
        return (low + high) / 2


def _end_slope(near: Tensor, far: Tensor) -> Tensor:
    """The slope at an end, of the parabola through its last three points where that is falling."""
    return torch.clamp((3 * near - far) / 2, max=0.0)


class _Counted:
    """A denoiser whose calls are counted."""

    def __init__(self, denoiser: Denoiser, bar: progress_bars.Bar) -> None:
        self._denoiser, self._bar, self.calls = denoiser, bar, 0

    def __call__(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        self.calls += 1
        self._bar.advance()
        return self._denoiser(x, sigma, **condition)
