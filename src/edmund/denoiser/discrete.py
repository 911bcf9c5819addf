r"""Networks of discrete time steps (DDPM and its descendants) as denoisers.

Such a network was trained on x_i = sqrt(abar_i) y + sqrt(1 - abar_i) n for integer steps i = 0 .. M - 1, with abar_i =
prod_{j <= i} (1 - beta_j) (Ho et al. 2020). Divided by sqrt(abar_i) that is y + sigma_i n with

    sigma_i = sqrt((1 - abar_i) / abar_i),    and the network's input is x / sqrt(1 + sigma_i^2):

a preconditioned network (Karras et al. 2022, Table 1, "iDDPM") that knows only the levels sigma_i. The time step runs
with the noise: i = 0 is the least noisy. Between levels it is told the nearest one's step, and the true sigma enters
everywhere else; samplers have `round_sigma`, by which their nodes and churned levels are levels of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from edmund.denoiser.preconditioned import Preconditioned
from edmund.errors import InputError, check_count, check_number, unknown
from edmund.preconditioning import Data, Epsilon, Preconditioning, Velocity
from edmund.process import nearest_level

_PREDICTIONS: dict[str, Preconditioning] = {"noise": Epsilon(), "v": Velocity(), "data": Data(1.0)}
_DIFFUSERS = {"epsilon": "noise", "v_prediction": "v", "sample": "data"}


def _linear(start: float, end: float, count: int) -> Tensor:
    """Ho et al. 2020."""
    return torch.linspace(start, end, count, dtype=torch.float64)


def _scaled_linear(start: float, end: float, count: int) -> Tensor:
    """sqrt(beta) is linear (Rombach et al. 2022, latent diffusion)."""
    return torch.linspace(math.sqrt(start), math.sqrt(end), count, dtype=torch.float64) ** 2


def _sigmoid(start: float, end: float, count: int) -> Tensor:
    """A logistic curve over [-6, 6] (Xu et al. 2022, GeoDiff)."""
    return start + (end - start) * torch.sigmoid(torch.linspace(-6, 6, count, dtype=torch.float64))


def _squared_cosine(count: int) -> Tensor:
    """abar(t) = cos^2(pi/2 (t + 0.008) / 1.008), beta at most 0.999 (Nichol & Dhariwal 2021, Eq. 17)."""
    times = torch.arange(count + 1, dtype=torch.float64) / count
    curve = torch.cos(math.pi / 2 * (times + 0.008) / 1.008) ** 2
    return (1 - curve[1:] / curve[:-1]).clamp_max(0.999)


_BETWEEN_BETAS: dict[str, Callable[[float, float, int], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "sigmoid": _sigmoid,
}
_SQUARED_COSINE = ("cosine", "squared_cosine", "squaredcos_cap_v2")  # one schedule under three usual names


class _OnLevels(Preconditioning):
    """The coefficients of a prediction, with the index of the nearest of the known levels as c_noise."""

    def __init__(self, prediction: Preconditioning, levels: Tensor) -> None:
        self._prediction = prediction
        self._falling = torch.cat([levels.flip(0), levels.new_zeros(1)])
        self._placed: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self._prediction.c_skip(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return self._prediction.c_out(sigma)

    def c_in(self, sigma: Tensor) -> Tensor:
        return self._prediction.c_in(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        falling = self._like(sigma)[:-1]  # 0 is a level to end at, none that the network was trained at
        return (len(falling) - 1 - nearest_level(sigma, falling)).to(torch.float32)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest level that the network knows, or 0."""
        falling = self._like(sigma)
        return falling[nearest_level(sigma, falling)]

    def _like(self, sigma: Tensor) -> Tensor:
        """The levels beside sigma; sent to a device once, not at every call."""
        place = (sigma.device, sigma.dtype)
        if place not in self._placed:
            self._placed[place] = self._falling.to(sigma)
        return self._placed[place]


class Discrete(Preconditioned):
    """A network trained on discrete time steps as a denoiser, with the range and the levels that it knows.

    network: a module (x / sqrt(1 + sigma^2) [B, *], step [B] int64, **condition) -> [B, *], or an object that has it
    as `.sample`. prediction: what it predicts, "noise", "v" (Salimans & Ho 2022) or "data" (x0); diffusers'
    names "epsilon", "v_prediction" and "sample" say the same.

    schedule: "linear", "scaled_linear" or "sigmoid", betas between beta_start (None: 1e-4) and beta_end (None: 0.02),
    or "squared_cosine" (also "cosine", "squaredcos_cap_v2"), of num_steps steps (None: 1000); the names and values are
    those of diffusers' DDPMScheduler. Or abar_0 > abar_1 > ... themselves, such as a scheduler's `alphas_cumprod`.

    extra_channels: channels beyond x's that the network emits, a learned variance (see `with_extra`).

    `edmund.sample` starts at sigma 80, or at the highest level if that is lower, unless it is told a sigma_max: the
    highest levels of some schedules (157 of "linear", 20 000 of "squared_cosine") are all noise.

    Called with a level outside its range (0 excepted, which is the least noisy step), it raises InputError where sigma
    is on the CPU; elsewhere looking would wait for the device, and `edmund.sample` and its kin check their levels.
    """

    def __init__(
        self,
        network: nn.Module,
        prediction: str = "noise",
        schedule: str | Tensor | Sequence[float] = "linear",
        *,
        beta_start: float | None = None,
        beta_end: float | None = None,
        num_steps: int | None = None,
        extra_channels: int = 0,
    ) -> None:
        if not isinstance(network, nn.Module):
            raise InputError(f"network is {network!r}; it must be a module (x, step, **condition)")
        prediction = _DIFFUSERS.get(prediction, prediction) if isinstance(prediction, str) else prediction
        if not isinstance(prediction, str):
            raise InputError(
                f"prediction is a {type(prediction).__name__}; it must be one of {', '.join(_PREDICTIONS)}"
            )
        if prediction not in _PREDICTIONS:
            raise unknown("prediction", prediction, _PREDICTIONS)
        given = {"beta_start": beta_start, "beta_end": beta_end, "num_steps": num_steps}
        if isinstance(schedule, str):
            alphas_cumprod = _from_name(schedule, beta_start, beta_end, num_steps)
        else:
            _refuse(given, "the schedule is given as alphas_cumprod")
            alphas_cumprod = _check_alphas(schedule)
        levels = torch.sqrt((1 - alphas_cumprod) / alphas_cumprod)
        super().__init__(
            network,
            _OnLevels(_PREDICTIONS[prediction], levels),
            check_count("extra_channels", extra_channels, least=0),
            sigma_min=levels[0].item(),
            sigma_max=levels[-1].item(),
        )
        self._alphas_cumprod = alphas_cumprod
        self._levels = levels

    @property
    def alphas_cumprod(self) -> Tensor:
        """abar_i of each step, float64 [M], falling."""
        return self._alphas_cumprod.clone()

    @property
    def levels(self) -> Tensor:
        """The noise level sigma_i of each step, float64 [M], rising; `grid.Fixed(levels.flip(0))` visits them all."""
        return self._levels.clone()

    def _evaluate(self, x: Tensor, sigma: Tensor, condition: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        self._check_range(torch.as_tensor(sigma))
        return super()._evaluate(x, sigma, condition)

    def _check_range(self, sigma: Tensor) -> None:
        if sigma.device.type != "cpu":
            return
        # The ends come rounded to sigma's dtype, and with the rounding of logarithms in the last digits.
        slack = 1 + max(1e-9, torch.finfo(sigma.dtype).eps if sigma.is_floating_point() else 0.0)
        low, high = self._levels[0].item(), self._levels[-1].item()
        wrong = ~((sigma == 0) | ((sigma >= low / slack) & (sigma <= high * slack)))
        if bool(wrong.any()):
            raise InputError(
                f"sigma holds {sigma[wrong].flatten()[0].item():.6g}; the network knows the levels {low:.6g} to "
                f"{high:.6g}, and 0"
            )

    def _raw(self, x: Tensor, c_noise: Tensor, condition: dict[str, Tensor]) -> Tensor:
        out = self.network(x, c_noise.to(torch.int64), **condition)
        raw = out if isinstance(out, Tensor) else getattr(out, "sample", None)
        if not isinstance(raw, Tensor):
            raise InputError(f"the network returned a {type(out).__name__}; it must be a tensor or have one as .sample")
        return raw


def _refuse(given: dict[str, float | None], why: str) -> None:
    for argument, value in given.items():
        if value is not None:
            raise InputError(f"{argument} is {value!r}, but {why}; leave it out")


def _from_name(schedule: str, beta_start: float | None, beta_end: float | None, num_steps: int | None) -> Tensor:
    """alphas_cumprod [num_steps] of a named schedule."""
    count = 1000 if num_steps is None else check_count("num_steps", num_steps, least=2)
    if schedule in _SQUARED_COSINE:
        _refuse({"beta_start": beta_start, "beta_end": beta_end}, f"the {schedule!r} schedule has none")
        betas = _squared_cosine(count)
    elif schedule in _BETWEEN_BETAS:
        start = 1e-4 if beta_start is None else check_number("beta_start", beta_start)
        end = 0.02 if beta_end is None else check_number("beta_end", beta_end)
        if not 0 < start <= end < 1:
            raise InputError(
                f"beta_start is {start!r}, beta_end is {end!r}; they must be 0 < beta_start <= beta_end < 1"
            )
        betas = _BETWEEN_BETAS[schedule](start, end, count)
    else:
        raise unknown("schedule", schedule, (*_BETWEEN_BETAS, *_SQUARED_COSINE))
    return _check_alphas(torch.cumprod(1 - betas, 0))


def _check_alphas(alphas_cumprod: Tensor | Sequence[float]) -> Tensor:
    """alphas_cumprod as float64 [M] on the CPU; InputError unless 1 > abar_0 > abar_1 > ... > 0 and M >= 2."""
    try:
        values = torch.as_tensor(alphas_cumprod, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"schedule is {alphas_cumprod!r}; it must be the name of a schedule or alphas_cumprod [M]"
        ) from None
    if values.ndim != 1 or len(values) < 2:
        raise InputError(f"alphas_cumprod has shape {tuple(values.shape)}; it must be [M], one a time step, M >= 2")
    outside = values[~((values > 0) & (values < 1))]
    if len(outside) > 0:
        raise InputError(
            f"alphas_cumprod holds {outside[0].item()!r}; every one must lie between 0 and 1 (at 0 the noise level is "
            f"infinite: leave the last step of a zero-SNR schedule out)"
        )
    rising = torch.nonzero(values.diff() >= 0)
    if len(rising) > 0:
        step = int(rising[0]) + 1
        raise InputError(
            f"alphas_cumprod at step {step} is {values[step].item()!r}, not below {values[step - 1].item()!r} before "
            f"it; it must fall with every time step"
        )
    return values
