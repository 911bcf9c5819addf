"""What samplers share: the contract, the record of a step, churn, and the calls of the denoiser.

A sampler is handed a denoiser and the noise levels to visit, and calls the denoiser itself. Its state comes in and goes
out scaled, x = s(t) (y + sigma n); inside, it works on the unscaled z = x / s(t) = y + sigma n, which is what a
denoiser sees.
"""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edmund.arguments import check_denoised
from edmund.denoiser import Denoiser
from edmund.errors import InputError, check_not_negative
from edmund.noise import NoiseSource
from edmund.process import Process


@dataclass(frozen=True, slots=True)
class Step:
    """What a callback is told of a step, when the step is done.

    index: its number, from 0. t, sigma, s: the node it started from, and the scaling there. unscaled: y + sigma n
    [B, *] there, before any churn. denoised: D(unscaled; sigma) [B, *], the step's first denoised image or, where the
    step begins with none of its own, the last one before. nfe: denoiser calls so far, this step's included.
    """

    index: int
    t: float
    sigma: float
    s: float
    unscaled: Tensor
    denoised: Tensor
    nfe: int

    @property
    def x(self) -> Tensor:
        """The scaled state s(t) (y + sigma n), [B, *]."""
        return self.unscaled if self.s == 1.0 else self.unscaled * self.s


Callback = Callable[[Step], None]


class Sampler(ABC):
    """The contract: a frozen, stateless object that maps a start state and noise levels to an end state.

    A sampler of one's own is one class in a module of this package; its class attribute `name` is its name in configs,
    and `aliases` maps further names to arguments. source: the paper. brownian: whether its noise is the increment of
    one Brownian path, which fewer and more steps then share (`noise.Brownian`); else each draw is new.
    """

    name: ClassVar[str]
    aliases: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    source: ClassVar[str] = ""
    brownian: ClassVar[bool] = False

    @property
    @abstractmethod
    def order(self) -> int:
        """The order of convergence; of the law (weak order) where the sampler is stochastic."""

    @property
    @abstractmethod
    def nfe_per_step(self) -> int:
        """Denoiser calls of a step between positive levels."""

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise."""
        return False

    def visited(self, sigmas: Tensor) -> Tensor:
        """The levels that its steps start from, in turn: float64 [M], from the sigmas [N + 1] that it is handed."""
        return sigmas[:-1]

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


def check_interval(S_min: float, S_max: float) -> None:
    """Raises InputError unless 0 <= S_min <= S_max; S_max may be infinite."""
    check_not_negative("S_min", S_min)
    if isinstance(S_max, bool) or not isinstance(S_max, numbers.Real) or not S_max >= S_min:
        raise InputError(f"S_max is {S_max!r}, S_min is {S_min!r}; S_max must be a number that is not below S_min")


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
        check_not_negative("S_churn", self.S_churn)
        check_not_negative("S_noise", self.S_noise)
        check_interval(self.S_min, self.S_max)

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
    """Calls the denoiser, and counts the calls."""

    def __init__(self, denoiser: Denoiser, condition: Mapping[str, Tensor] | None, device: torch.device) -> None:
        self._denoiser = denoiser
        self._condition = dict(condition or {})
        self._device = device
        # Denoisers compute in the state's dtype; float64 levels lose nothing on the way (MPS has none).
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self.nfe = 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """D(x; sigma), like the unscaled x."""
        self.nfe += 1
        level = torch.full((), sigma, dtype=self._dtype, device=self._device)
        try:
            denoised = self._denoiser(x, level, **self._condition)
        except RuntimeError as error:
            if "dtype" not in str(error):
                raise
            raise InputError(
                f"the denoiser cannot take a state of {x.dtype}: {error}; give dtype=torch.float32, or make it a "
                f"denoiser of its own, which converts: denoiser.Preconditioned"
            ) from error
        return check_denoised(denoised, x)
