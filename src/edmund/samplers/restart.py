r"""Restart: noise is added back, and the way down taken again, to forget the errors made so far.

A sampler of the ODE carries all its errors to the end. Adding noise to a state at sigma_low takes it up to sigma_high,

    z' = z + sqrt(sigma_high^2 - sigma_low^2) n,    n ~ N(0, I)

and if z had the law p(z; sigma_low), z' has exactly p(z'; sigma_high): the way down from there lands on p(z; sigma_low)
again, up to the error of that way alone. An error of z, though, shrinks. Noise leaves the distance of two laws as it is
or makes it smaller, and the flow back down draws states together: of Gaussian data of variance v, an offset of the mean
by the factor sqrt((v + sigma_low^2) / (v + sigma_high^2)) in each repeat, one of the variance by that squared. So few
repeats over a wide interval do what a stochastic sampler's many small steps do, and between them the steps are those of
a good ODE solver (Xu et al. 2023, "Restart Sampling for Improving Generative Processes", arXiv 2306.14878).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from edmund.denoiser import Denoiser
from edmund.errors import InputError, check_count, check_positive
from edmund.noise import NoiseSource
from edmund.process import Process
from edmund.samplers._base import Callback, Sampler, Step, check_sigmas
from edmund.samplers.heun import Heun

Interval = tuple[float, float, int, int]
"""(sigma_low, sigma_high, num_steps, repeats)."""

_DEFAULT: Interval = (0.06, 0.3, 2, 2)
_INNER = Heun()
_RHO = 7


class _Part(NamedTuple):
    """Levels [M + 1] that the inner sampler runs down at once; reached from the level `added_from` by adding noise, or
    (None) where the part before ends.
    """

    sigmas: Tensor
    added_from: float | None


@dataclass(frozen=True)
class Restart(Sampler):
    """Any sampler, interrupted by restarts (Xu et al. 2023).

    sampler: takes the steps; it may itself draw noise. intervals: each (sigma_low, sigma_high, num_steps, repeats): on
    arrival at the node nearest to sigma_low (in ln sigma), noise is added up to sigma_high, and num_steps steps lead
    back down, over levels uniform in sigma^(1/7) (rounded to those of a discrete model), `repeats` times. None: (0.06,
    0.3, 2, 2), of images with std 0.5 (the example that comes with the paper's experiments on CIFAR-10), and no restart
    where the grid ends above 0.06, starts below 0.3 or has no node near enough to 0.06 to be below 0.3. Other data
    want intervals of their own: at high noise they mend the composition, at low noise the details.

    The sampler starts afresh after each restart, a multistep one with its first-order start; its churn counts the steps
    from one restart to the next. Every repeat draws new noise. Raises InputError for intervals that the grid does not
    span, and for levels that rise.
    """

    name: ClassVar[str] = "restart"
    source: ClassVar[str] = "Xu et al. 2023"
    intervals: Sequence[Interval] | None = None
    sampler: Sampler = _INNER

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, Sampler):
            raise InputError(f"sampler is {self.sampler!r}; it must be a sampler, such as samplers.Heun()")
        if self.intervals is None:
            return
        if isinstance(self.intervals, str) or not isinstance(self.intervals, Sequence):
            raise InputError(
                f"intervals is {self.intervals!r}; it must be a list of (sigma_low, sigma_high, num_steps, repeats)"
            )
        object.__setattr__(self, "intervals", tuple(_check_interval(interval) for interval in self.intervals))

    @property
    def order(self) -> int:
        """That of the inner sampler."""
        return self.sampler.order

    @property
    def nfe_per_step(self) -> int:
        """That of the inner sampler; restarts are steps beyond those of the grid."""
        return self.sampler.nfe_per_step

    @property
    def stochastic(self) -> bool:
        """Yes."""
        return True

    def visited(self, sigmas: Tensor) -> Tensor:
        """The levels that its steps start from, restarts included; before a discrete model rounds those of restarts."""
        return torch.cat([self.sampler.visited(part.sigmas) for part in self._parts(check_sigmas(sigmas), None)])

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        *,
        process: Process,
        noise: NoiseSource | None = None,
        condition: Mapping[str, Tensor] | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """As of any sampler; the levels must fall. noise: each draw must be new (`noise.Seeded`)."""
        levels = check_sigmas(sigmas)
        first, done = 0, _Counter()
        for part in self._parts(levels, denoiser):
            if part.added_from is not None:
                if noise is None:
                    raise InputError(
                        "noise is None, but restarts add noise: give a noise source such as noise.Seeded(seeds)"
                    )
                low, high = part.added_from, part.sigmas[0].item()
                s_low, s_high = process.s(process.t(torch.tensor([low, high], dtype=torch.float64))).tolist()
                # The noise counts as the first draw of the step that follows it.
                z = torch.add(x / s_low, noise(x, first, low, high, 0), alpha=math.sqrt(high**2 - low**2))
                x = z * s_high
            x = self.sampler(
                denoiser,
                x,
                part.sigmas,
                process=process,
                noise=None if noise is None else _Later(noise, first, part.added_from is not None),
                condition=condition,
                callback=None if callback is None else done.renumbered(callback, first),
            )
            first += len(self.sampler.visited(part.sigmas))
            done.calls_before = done.calls
        return x

    def _parts(self, levels: Tensor, denoiser: Denoiser | None) -> Iterator[_Part]:
        """What the inner sampler runs, in turn, from the checked levels [N + 1]."""
        if levels[-1] > levels[0]:
            raise InputError("sigmas rises, and restarts add noise: encode with the inner sampler alone")
        round_sigma = getattr(denoiser, "round_sigma", None)
        start = 0
        for node, (_, high, num_steps, repeats) in self._placed(levels):
            if node > start:
                yield _Part(levels[start : node + 1], None)
            start = node
            low = levels[node].item()
            again = _down(high, low, num_steps)
            if round_sigma is not None:
                again = torch.cat([round_sigma(again[:-1]).to(again), again[-1:]])
            if not bool((again.diff() < 0).all()):
                raise InputError(
                    f"intervals has {num_steps} steps from {high!r} down to the node {low:.6g}, where the model has "
                    f"fewer levels: {again.tolist()}; take fewer steps or a wider interval"
                )
            for _ in range(repeats):
                yield _Part(again, low)
        if start < len(levels) - 1:
            yield _Part(levels[start:], None)

    def _placed(self, levels: Tensor) -> list[tuple[int, Interval]]:
        """The intervals in the order of their nodes, each with the index of its node among the levels."""
        positive = levels[levels > 0]
        top, bottom = positive[0].item() * (1 + 1e-9), positive[-1].item() * (1 - 1e-9)
        placed: list[tuple[int, Interval]] = []
        for interval in (_DEFAULT,) if self.intervals is None else self.intervals:
            low, high = interval[:2]
            node = int((positive.log() - math.log(low)).abs().argmin())
            if low >= bottom and high <= top and levels[node] < high:
                placed.append((node, interval))
            elif self.intervals is not None:
                raise InputError(
                    f"intervals holds {interval!r}, but the grid goes from {positive[0].item():.6g} down to "
                    f"{positive[-1].item():.6g}, its node nearest to sigma_low = {low!r} being "
                    f"{levels[node].item():.6g}; an interval lies within the grid, its sigma_high above that node"
                )
        return sorted(placed, key=lambda pair: pair[0])


def _check_interval(interval: Interval) -> Interval:
    if isinstance(interval, str) or not isinstance(interval, Sequence) or len(interval) != 4:
        raise InputError(
            f"intervals holds {interval!r}; each is four numbers (sigma_low, sigma_high, num_steps, repeats)"
        )
    low = check_positive("sigma_low of intervals", interval[0])
    high = check_positive("sigma_high of intervals", interval[1])
    if low >= high:
        raise InputError(f"intervals holds {tuple(interval)!r}; its sigma_low must be below its sigma_high")
    return low, high, check_count("num_steps of intervals", interval[2]), check_count("repeats", interval[3])


def _down(high: float, low: float, num_steps: int) -> Tensor:
    """num_steps + 1 levels from high to low, uniform in sigma^(1/rho)."""
    ramp = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    levels: Tensor = (high ** (1 / _RHO) + ramp * (low ** (1 / _RHO) - high ** (1 / _RHO))) ** _RHO
    levels[0], levels[-1] = high, low
    return levels


class _Later:
    """A noise source whose steps are `first` further on, and whose first step's draw 0 is taken where `taken`."""

    def __init__(self, noise: NoiseSource, first: int, taken: bool) -> None:
        self._noise, self._first, self._taken = noise, first, taken

    def __call__(self, x: Tensor, step: int, sigma_from: float, sigma_to: float, draw: int = 0) -> Tensor:
        return self._noise(x, self._first + step, sigma_from, sigma_to, draw + int(self._taken and step == 0))

    def rows(self, start: int, stop: int) -> NoiseSource:
        return _Later(self._noise.rows(start, stop), self._first, self._taken)


class _Counter:
    """Numbers the steps of the parts through, and adds up their calls."""

    def __init__(self) -> None:
        self.calls = self.calls_before = 0

    def renumbered(self, callback: Callback, first: int) -> Callback:
        before = self.calls_before

        def tell(step: Step) -> None:
            self.calls = before + step.nfe
            # In place: nobody else has the step, and a copy would compute an image that is left until it is read.
            object.__setattr__(step, "index", first + step.index)
            object.__setattr__(step, "nfe", self.calls)
            callback(step)

        return tell
