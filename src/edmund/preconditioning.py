r"""Preconditioning: how a raw network F becomes a denoiser.

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma))

(Karras et al. 2022, Eq. 7 and Table 1). A preconditioning is four functions of sigma, elementwise: sigma of any shape
that broadcasts against x goes in ([B], or [B, 1, 1, 1] beside images), the same shape comes out. Conditioning inputs
are never multiplied by c_in.
"""

from __future__ import annotations

import numbers
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from edmund import registry
from edmund.errors import InputError, check_positive, unknown
from edmund.process import VP as VPProcess
from edmund.process import DiscreteSteps, check_steps, iddpm_levels, nearest_level

SigmaData = float | tuple[float, ...]


class Preconditioning(ABC):
    """The four functions.

    One of one's own defines c_skip, c_out, c_in; c_noise is ln(sigma)/4 unless it says otherwise.
    """

    @abstractmethod
    def c_skip(self, sigma: Tensor) -> Tensor:
        """The weight of the noisy input in D."""

    @abstractmethod
    def c_out(self, sigma: Tensor) -> Tensor:
        """The scale of the network's output in D."""

    @abstractmethod
    def c_in(self, sigma: Tensor) -> Tensor:
        """The scale of the network's input."""

    def c_noise(self, sigma: Tensor) -> Tensor:
        """The noise level as the network sees it; never per channel."""
        return torch.log(sigma) / 4


def check_sigma_data(sigma_data: float | Sequence[float]) -> SigmaData:
    """A positive number, or a tuple of them (one a channel); else InputError."""
    if isinstance(sigma_data, numbers.Real):
        return check_positive("sigma_data", float(sigma_data))
    values: Any = sigma_data.tolist() if hasattr(sigma_data, "tolist") else sigma_data
    if isinstance(values, numbers.Real):  # a tensor or an array without axes
        return check_positive("sigma_data", float(values))
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) == 0:
        raise InputError(f"sigma_data is {values!r}; it must be a positive number, or one a channel")
    return tuple(check_positive("sigma_data", value) for value in values)


def sigma_data_beside(sigma_data: SigmaData | None, sigma: Tensor) -> Tensor | float:
    """sigma_data as it broadcasts against sigma: the number, or [C, 1, ...] beside a sigma of [B, 1, 1, ...].

    Raises InputError where sigma_data is still unknown, or is one number a channel and sigma has no channel axis.
    """
    if sigma_data is None:
        raise InputError(
            "sigma_data is None: it is estimated from the data when a model is trained; give a number to use "
            "the preconditioning before that"
        )
    if isinstance(sigma_data, float):
        return sigma_data
    if sigma.ndim < 2:
        raise InputError(
            f"sigma has shape {tuple(sigma.shape)}; with one sigma_data a channel give it x's number of axes, "
            f"[B, 1, ...]"
        )
    return torch.tensor(sigma_data, dtype=sigma.dtype, device=sigma.device).reshape(-1, *(1,) * (sigma.ndim - 2))


class _WithSigmaData(Preconditioning):
    sigma_data: SigmaData | None

    def __post_init__(self) -> None:
        if self.sigma_data is not None:
            object.__setattr__(self, "sigma_data", check_sigma_data(self.sigma_data))


@dataclass(frozen=True)
class EDM(_WithSigmaData):
    """Network input and training target of unit variance at every sigma (Karras et al. 2022, Appendix B.6).

    sigma_data: the standard deviation of the data, a number or one a channel (axis 1); None: not known yet.
    """

    name: ClassVar[str] = "edm"
    sigma_data: SigmaData | None = None

    def c_skip(self, sigma: Tensor) -> Tensor:
        sigma_data = sigma_data_beside(self.sigma_data, sigma)
        return sigma_data**2 / (sigma**2 + sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        sigma_data = sigma_data_beside(self.sigma_data, sigma)
        return sigma * sigma_data / torch.sqrt(sigma**2 + sigma_data**2)

    def c_in(self, sigma: Tensor) -> Tensor:
        return 1 / torch.sqrt(sigma**2 + sigma_data_beside(self.sigma_data, sigma) ** 2)


@dataclass(frozen=True)
class Data(_WithSigmaData):
    """The network predicts the data y itself (x0-prediction)."""

    name: ClassVar[str] = "data"
    sigma_data: SigmaData | None = None

    def c_skip(self, sigma: Tensor) -> Tensor:
        return torch.zeros_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        return 1 / torch.sqrt(sigma**2 + sigma_data_beside(self.sigma_data, sigma) ** 2)


@dataclass(frozen=True)
class Epsilon(Preconditioning):
    """The network predicts the noise n (Ho et al. 2020), for data of unit scale, with a continuous c_noise."""

    name: ClassVar[str] = "epsilon"

    def c_skip(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return -sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        return 1 / torch.sqrt(1 + sigma**2)


@dataclass(frozen=True)
class VP(Epsilon):
    """Noise prediction as in the score SDEs' VP (Song et al. 2021): c_noise = (M - 1) t(sigma) with the VP process's
    own time.
    """

    name: ClassVar[str] = "vp"
    beta_d: float = 19.9
    beta_min: float = 0.1
    M: int = 1000

    def c_noise(self, sigma: Tensor) -> Tensor:
        return (self.M - 1) * VPProcess(self.beta_d, self.beta_min).t(sigma)


@dataclass(frozen=True)
class IDDPM(Epsilon):
    """Noise prediction on iDDPM's discrete levels u_j (Nichol & Dhariwal 2021): c_noise = M - 1 - argmin_j |u_j -
    sigma|.
    """

    name: ClassVar[str] = "iddpm"
    M: int = 1000
    C_1: float = 0.001
    C_2: float = 0.008

    def c_noise(self, sigma: Tensor) -> Tensor:
        return (self.M - 1 - nearest_level(sigma, self._levels(sigma))).to(sigma.dtype)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest level that the network knows, u_M = 0 included."""
        levels = self._levels(sigma)
        return levels[nearest_level(sigma, levels)].to(sigma.dtype)

    def _levels(self, sigma: Tensor) -> Tensor:
        return iddpm_levels(self.M, self.C_1, self.C_2).to(sigma.device)


@dataclass(frozen=True)
class VE(Preconditioning):
    """Score prediction as in the score SDEs' VE (Song et al. 2021): x is not scaled, c_noise = ln(sigma / 2)."""

    name: ClassVar[str] = "ve"

    def c_skip(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return torch.log(sigma / 2)


@dataclass(frozen=True)
class Velocity(Preconditioning):
    """The network predicts v = alpha n - std y of a variance-preserving process (Salimans & Ho 2022), for data of unit
    scale.
    """

    name: ClassVar[str] = "velocity"

    def c_skip(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        return -sigma / torch.sqrt(1 + sigma**2)

    def c_in(self, sigma: Tensor) -> Tensor:
        return 1 / torch.sqrt(1 + sigma**2)


@dataclass(frozen=True)
class Flow(Preconditioning):
    """The network predicts the flow velocity u = n - y from x_t = (1 - t) y + t n, told t = sigma / (1 + sigma)."""

    name: ClassVar[str] = "flow"

    def c_skip(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return -sigma / (1 + sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return sigma / (1 + sigma)


_PREDICTIONS: dict[str, Preconditioning] = {"noise": Epsilon(), "v": Velocity(), "data": Data(1.0)}
_DIFFUSERS = {"epsilon": "noise", "v_prediction": "v", "sample": "data"}


@dataclass(frozen=True)
class Discrete(Preconditioning):
    """A prediction of noise, v or data from discrete time steps: c_noise is the index of the nearest of their levels
    (0: the least noisy), and the true sigma enters everywhere else.

    steps: the levels. prediction: "noise", "v" (Salimans & Ho 2022) or "data" (x0); diffusers' names "epsilon",
    "v_prediction" and "sample" say the same.

    c_noise of a level outside their range (0 excepted, which is the least noisy step) raises InputError where sigma is
    on the CPU; elsewhere looking would wait for the device, and `edmund.sample` and its kin check their levels.
    """

    steps: DiscreteSteps
    prediction: str = "noise"

    def __post_init__(self) -> None:
        if not isinstance(self.prediction, str):
            raise InputError(
                f"prediction is a {type(self.prediction).__name__}; it must be one of {', '.join(_PREDICTIONS)}"
            )
        prediction = _DIFFUSERS.get(self.prediction, self.prediction)
        if prediction not in _PREDICTIONS:
            raise unknown("prediction", prediction, _PREDICTIONS)
        object.__setattr__(self, "prediction", prediction)
        levels = check_steps(self.steps).levels
        object.__setattr__(self, "_falling", torch.cat([levels.flip(0), levels.new_zeros(1)]))
        object.__setattr__(self, "_ends", (levels[0].item(), levels[-1].item()))
        object.__setattr__(self, "_placed", {})

    def c_skip(self, sigma: Tensor) -> Tensor:
        return _PREDICTIONS[self.prediction].c_skip(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return _PREDICTIONS[self.prediction].c_out(sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        return _PREDICTIONS[self.prediction].c_in(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        self._check_range(sigma)
        falling = self._like(sigma)[:-1]  # 0 is a level to end at, none that the network was trained at
        return (len(falling) - 1 - nearest_level(sigma, falling)).to(torch.float32)

    def _check_range(self, sigma: Tensor) -> None:
        if sigma.device.type != "cpu" or torch.compiler.is_compiling():
            return
        slack = 1 + 2.0**-7  # the ends may come rounded, at most to bf16
        low, high = vars(self)["_ends"]
        wrong = ~((sigma == 0) | ((sigma >= low / slack) & (sigma <= high * slack)))
        if bool(wrong.any()):
            raise InputError(
                f"sigma holds {sigma[wrong].flatten()[0].item():.6g}; the network knows the levels {low:.6g} to "
                f"{high:.6g}, and 0"
            )

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest level that the network knows, or 0."""
        falling = self._like(sigma)
        return falling[nearest_level(sigma, falling)]

    def _like(self, sigma: Tensor) -> Tensor:
        """The levels and 0 beside sigma; sent to a device once, not at every call."""
        own = vars(self)
        placed: dict[tuple[torch.device, torch.dtype], Tensor] = own["_placed"]
        place = (sigma.device, sigma.dtype)
        if place not in placed:
            placed[place] = own["_falling"].to(sigma)
        return placed[place]


def named() -> dict[str, type[Preconditioning]]:
    """The preconditionings by name."""
    return registry.in_module(sys.modules[__name__], Preconditioning)
