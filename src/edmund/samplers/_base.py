r"""What samplers share: the contract, the record of a step, churn, and the loop of the one-step solvers.

A sampler is handed a denoiser and the noise levels to visit, and calls the denoiser itself. Samplers over t integrate
the process's own probability-flow ODE (Karras et al. 2022, Eq. 81; t runs down from noise to data)

    dx/dt = a x - b D(x / s; sigma),    a = sigma'/sigma + s'/s,    b = sigma' s / sigma

of the scaled state x = s(t) (y + sigma n). The coefficients of all steps are computed once, in float64, before the
first network call; the state keeps its own dtype.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from edmund.denoiser import Denoiser
from edmund.errors import InputError, check_number
from edmund.noise import NoiseSource
from edmund.process import Process


@dataclass(frozen=True, slots=True)
class Step:
    """What a callback is told of a step, when the step is done.

    index: its number, from 0. t, sigma: the node it started from. x: the scaled state [B, *] there, s(t) (y + sigma n),
    before any churn. denoised: the first denoised image [B, *] of the step. nfe: denoiser calls so far, this step's
    included.
    """

    index: int
    t: float
    sigma: float
    x: Tensor
    denoised: Tensor
    nfe: int


Callback = Callable[[Step], None]


class Sampler(ABC):
    """The contract: a frozen, stateless object that maps a start state and noise levels to an end state.

    A sampler of one's own is one class in a module of this package; its class attribute `name` is its name in configs,
    and `aliases` maps further names
    to arguments.
    """

    name: ClassVar[str]
    aliases: ClassVar[Mapping[str, Mapping[str, float]]] = {}

    @abstractmethod
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
        """The scaled state [B, *] at the last of the sigmas, from the scaled state x [B, *] = s(t_0) (y + sigma_0 n) at
        the first.

        sigmas: [N + 1], strictly monotone: falling to sample, with or without a final 0; rising to encode. noise: the
        source of unit normals, needed by stochastic samplers. condition: keyword tensors with a batch axis, handed to
        the denoiser. Raises InputError for levels that are not monotone.
        """


@dataclass(frozen=True)
class Churn:
    """Algorithm 2's noise injection (Karras et al. 2022): each step from sigma in [S_min, S_max] first raises the noise
    to sigma (1 + gamma).

    gamma = min(S_churn / N, sqrt(2) - 1) over N steps; the added noise is S_noise times unit normal.
    """

    S_churn: float
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0

    def __post_init__(self) -> None:
        for argument in ("S_churn", "S_min", "S_noise"):
            value = check_number(argument, getattr(self, argument))
            if value < 0:
                raise InputError(f"{argument} is {value!r}; it must be a finite number, not negative")
        if isinstance(self.S_max, str) or not self.S_max >= self.S_min:
            raise InputError(f"S_max is {self.S_max!r}, S_min is {self.S_min!r}; S_max must not be below S_min")

    def raised(self, sigmas: Tensor, round_sigma: Callable[[Tensor], Tensor] | None) -> Tensor:
        """The level each step starts from after churn: float64 [N], from the nodes [N + 1]."""
        starts = sigmas[:-1]
        gamma = min(self.S_churn / len(starts), math.sqrt(2) - 1)
        inside = (starts >= self.S_min) & (starts <= self.S_max)
        raised = torch.where(inside, starts * (1 + gamma), starts)
        if round_sigma is None:
            return raised
        # A rounded level below its node would remove noise, which churn cannot: it then stays at the node.
        return torch.maximum(round_sigma(raised), starts)


def check_sigmas(sigmas: Tensor | Sequence[float]) -> Tensor:
    """The levels as float64 [N + 1] on the CPU; InputError unless they are finite, not negative and strictly monotone,
    and not rising from 0.
    """
    levels = torch.as_tensor(sigmas, dtype=torch.float64).detach().cpu()
    if levels.ndim != 1 or len(levels) < 2:
        raise InputError(f"sigmas has shape {tuple(levels.shape)}; a sampler needs at least two noise levels, [N + 1]")
    steps = levels.diff()
    monotone = bool((steps < 0).all()) or bool((steps > 0).all())
    if not bool(torch.isfinite(levels).all()) or bool((levels < 0).any()) or not monotone:
        raise InputError(f"sigmas is {levels.tolist()}; noise levels are finite, not negative, and strictly monotone")
    if levels[0] == 0:
        raise InputError("sigmas rises from 0, where the ODE is singular; start to encode from a small positive level")
    return levels


class Evaluator:
    """Calls the denoiser on the scaled state, and counts the calls."""

    def __init__(self, denoiser: Denoiser, condition: Mapping[str, Tensor] | None, device: torch.device) -> None:
        self._denoiser = denoiser
        self._condition = dict(condition or {})
        self._device = device
        # Denoisers compute in the state's dtype; float64 levels lose nothing on the way (MPS has none).
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self.nfe = 0

    def __call__(self, x: Tensor, s: float, sigma: float) -> Tensor:
        """D(x / s; sigma), like x."""
        self.nfe += 1
        level = torch.full((), sigma, dtype=self._dtype, device=self._device)
        denoised = self._denoiser(x if s == 1.0 else x / s, level, **self._condition)
        if not isinstance(denoised, Tensor) or denoised.shape != x.shape:
            found = tuple(denoised.shape) if isinstance(denoised, Tensor) else type(denoised).__name__
            raise InputError(
                f"the denoiser returned {found} for x of shape {tuple(x.shape)}; it must return E[y | x], like x"
            )
        return denoised


class Slope(NamedTuple):
    """The coefficients of the ODE at one node: dx/dt = a x - b D(x / s; sigma)."""

    a: float
    b: float
    s: float
    sigma: float


def slopes(process: Process, t: Tensor, sigma: Tensor) -> list[Slope]:
    """The ODE's coefficients at times t > 0 with noise levels sigma, float64 [N] each."""
    s, relative = process.s(t), process.sigma_dot(t) / sigma
    a, b = relative + process.s_dot(t) / s, relative * s
    return [Slope(*values) for values in zip(a.tolist(), b.tolist(), s.tolist(), sigma.tolist(), strict=True)]


def combined(x: Tensor, x_weight: float, d: Tensor, d_weight: float) -> Tensor:
    """x_weight x + d_weight d, like x, as a new tensor.

    Where the weights sum to 1, which they do in every step of a process with s = 1, in one pass over the memory.
    """
    affine = abs(x_weight + d_weight - 1) <= 4 * sys.float_info.epsilon * (abs(x_weight) + abs(d_weight))
    if affine and d.dtype == x.dtype and d.shape == x.shape:
        return torch.lerp(x, d, d_weight)
    return torch.mul(x, x_weight).add_(d, alpha=d_weight)


class OneStepSampler(Sampler):
    """The loop of every solver that needs nothing but the present state: churn if asked, one step of the solver, the
    callback.

    A one-step solver defines `plan` (the coefficients of all its steps) and `advance` (one step).
    """

    churn: Churn | None

    @abstractmethod
    def plan(self, process: Process, sigma_from: Tensor, sigma_to: Tensor) -> Sequence[object]:
        """What `advance` needs to know of each step, from sigma_from [N] (after churn) to sigma_to [N], float64."""

    @abstractmethod
    def advance(self, step: object, x: Tensor, evaluate: Evaluator) -> tuple[Tensor, Tensor]:
        """One step from x [B, *]: the new state and the first denoised image. x is left as it is."""

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
        """As of any sampler. With churn the levels must fall."""
        levels = check_sigmas(sigmas)
        if self.churn is not None and not isinstance(self.churn, Churn):
            raise InputError(f"churn is {self.churn!r}; it must be a Churn or None")
        starts = levels[:-1]
        raised = starts
        if self.churn is not None and self.churn.S_churn > 0:
            if levels[-1] > levels[0]:
                raise InputError("sigmas rises, and churn adds noise: encode with churn=None")
            raised = self.churn.raised(levels, getattr(denoiser, "round_sigma", None))
        times = process.t(starts).tolist()
        plan = self.plan(process, raised, levels[1:])
        rescale, added = self._churn_coefficients(process, starts, raised)
        evaluate = Evaluator(denoiser, condition, x.device)
        for index, step in enumerate(plan):
            state = x
            if rescale[index] != 1.0:
                state = x * rescale[index]
            if added[index] > 0:
                if noise is None:
                    raise InputError(
                        "noise is None, but churn draws noise: give a noise source such as noise.Seeded(seeds)"
                    )
                draw = noise(x, index, starts[index].item(), raised[index].item())
                state = torch.add(state, draw, alpha=added[index])
            following, denoised = self.advance(step, state, evaluate)
            if callback is not None:
                callback(Step(index, times[index], starts[index].item(), x, denoised, evaluate.nfe))
            x = following
        return x

    def _churn_coefficients(self, process: Process, starts: Tensor, raised: Tensor) -> tuple[list[float], list[float]]:
        """s(t_hat)/s(t), and the std s(t_hat) S_noise sqrt(sigma_hat^2 - sigma^2) of the added noise, of each step."""
        if self.churn is None or raised is starts:
            return [1.0] * len(starts), [0.0] * len(starts)
        s_hat = process.s(process.t(raised))
        added = torch.sqrt(raised**2 - starts**2) * s_hat * self.churn.S_noise
        rescale = torch.where(raised > starts, s_hat / process.s(process.t(starts)), 1.0)
        return rescale.tolist(), added.tolist()
