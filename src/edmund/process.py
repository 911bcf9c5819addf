r"""Processes: how noise is added, as a schedule sigma(t) and a scaling s(t).

The noisy state is x_t = s(t) (y + sigma(t) n) with n ~ N(0, I) (Karras et al. 2022, Eq. 8 and Appendix B). t runs up
from 0 (data) to t_max (noise); sampling runs it down. Everything else follows: the forward SDE dx = f x dt + g dw has f
= s'/s and g = s sqrt(2 sigma' sigma), and in the notation of flows and score SDEs x_t = alpha_t y + std_t n with
alpha_t = s, std_t = s sigma.

The scalings that people use are functions of sigma (none, vp, flow, subvp), and any of them goes with any schedule:
`VP(scaling="none")`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edmund import registry
from edmund.errors import InputError, check_count, check_number, check_positive, unknown


@dataclass(frozen=True)
class Scaling:
    """A scaling s as a function of sigma, with its slope ds/dsigma; both elementwise on tensors."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


def _subvp(sigma: Tensor) -> Tensor:
    """exp(-asinh(sigma / 2)), without the cancellation of sqrt(1 + sigma^2/4) - sigma/2."""
    return 1 / (torch.sqrt(1 + sigma**2 / 4) + sigma / 2)


SCALINGS: dict[str, Scaling] = {
    "none": Scaling(torch.ones_like, torch.zeros_like),
    "vp": Scaling(lambda sigma: (1 + sigma**2) ** -0.5, lambda sigma: -sigma * (1 + sigma**2) ** -1.5),
    "flow": Scaling(lambda sigma: 1 / (1 + sigma), lambda sigma: -((1 + sigma) ** -2)),
    "subvp": Scaling(_subvp, lambda sigma: -_subvp(sigma) / torch.sqrt(4 + sigma**2)),
}


class Process:
    """A process from one's own two functions of a tensor t, elementwise: s(t) > 0 and sigma(t) increasing from sigma(0)
    = 0.

    Derivatives come by automatic differentiation and t(sigma) by bisection, to 1e-14 relative in float64, over [0,
    t_max] or over a bracket doubled
    from 1 where t_max is None. Example: `Process(s=lambda t: 1 + 0.5 * torch.sin(4 * torch.pi * t), sigma=lambda t: 80
    * t**3)`.
    """

    t_max: float | None = None

    def __init__(
        self, s: Callable[[Tensor], Tensor], sigma: Callable[[Tensor], Tensor], t_max: float | None = None
    ) -> None:
        for argument, function in (("s", s), ("sigma", sigma)):
            if not callable(function):
                raise InputError(f"{argument} is {function!r}; it must be a function of a tensor t")
        if t_max is not None:
            check_positive("t_max", t_max)
        self._s, self._sigma, self.t_max = s, sigma, t_max

    def s(self, t: Tensor) -> Tensor:
        """The scaling s(t)."""
        return torch.as_tensor(self._s(t), dtype=t.dtype, device=t.device).expand_as(t)

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level sigma(t), relative to data scaled by s."""
        return torch.as_tensor(self._sigma(t), dtype=t.dtype, device=t.device).expand_as(t)

    def s_dot(self, t: Tensor) -> Tensor:
        """ds/dt."""
        return _derivative(self.s, t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        """d sigma/dt; t > 0."""
        return _derivative(self.sigma, t)

    def t(self, sigma: Tensor) -> Tensor:
        """The time at which the noise level is sigma, of sigma's shape.

        Raises InputError where the process never reaches it.
        """
        return _bisect(self.sigma, sigma, self.t_max)

    def f(self, t: Tensor) -> Tensor:
        """The drift of the forward SDE, f = s'/s."""
        return self.s_dot(t) / self.s(t)

    def g(self, t: Tensor) -> Tensor:
        """The diffusion of the forward SDE, g = s sqrt(2 sigma' sigma)."""
        return self.s(t) * torch.sqrt(2 * self.sigma_dot(t) * self.sigma(t))

    def alpha(self, t: Tensor) -> Tensor:
        """alpha_t of x_t = alpha_t y + std_t n: the scaling s."""
        return self.s(t)

    def std(self, t: Tensor) -> Tensor:
        """std_t of x_t = alpha_t y + std_t n: s sigma."""
        return self.s(t) * self.sigma(t)

    def log_snr(self, t: Tensor) -> Tensor:
        """The logarithm of the signal-to-noise ratio, ln(alpha^2 / std^2) = -2 ln sigma."""
        return -2 * torch.log(self.sigma(t))

    def add_noise(self, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = s(t) (y + sigma(t) noise), [B, *]; t is [] or [B]."""
        t = t.reshape(-1, *(1,) * (y.ndim - 1))
        return (self.s(t) * (y + self.sigma(t) * noise)).to(y.dtype)


def _derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        value = function(t)
        if not value.requires_grad:  # a constant
            return torch.zeros_like(t)
        (slope,) = torch.autograd.grad(value.sum(), t)
    return slope


def _bisect(function: Callable[[Tensor], Tensor], target: Tensor, upper: float | None) -> Tensor:
    """t with function(t) = target, for an increasing function with function(0) = 0, elementwise."""
    goal = target.detach().to(torch.float64)
    if not bool(torch.isfinite(goal).all()) or bool((goal < 0).any()):
        raise InputError(f"sigma is {target.tolist()}; noise levels are finite and not negative")
    low = torch.zeros_like(goal)
    high = torch.full_like(goal, 1.0 if upper is None else upper)
    start = function(low)
    if bool((start > goal).any()):
        raise InputError(f"sigma = {goal.min().item()} is below sigma(t = 0) = {start.max().item()} of this process")
    if upper is None:
        for _ in range(1024):
            short = function(high) < goal
            if not bool(short.any()):
                break
            high = torch.where(short, 2 * high, high)
    reached = function(high)
    if not bool((reached >= goal * (1 - 1e-14)).all()):
        raise InputError(
            f"sigma = {goal.max().item()} is never reached: sigma(t_max = {high.max().item()}) = {reached.max().item()}"
        )
    low = torch.where(start == goal, high * 0, low)
    for _ in range(1100):  # float64 has fewer than 1100 halvings between its largest and its smallest number
        middle = (low + high) / 2
        below = function(middle) < goal
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        if bool(((high - low <= 1e-15 * high) | (goal == 0)).all()):
            break
    return torch.where(goal == 0, torch.zeros_like(goal), (low + high) / 2).to(target.dtype)


def _check_betas(beta_d: float, beta_min: float) -> None:
    """Raises InputError unless B(t) = beta_d t^2 / 2 + beta_min t rises up to t = 1 and is positive there."""
    if check_number("beta_d", beta_d) + check_number("beta_min", beta_min) <= 0 or beta_d / 2 + beta_min <= 0:
        raise InputError(f"beta_d is {beta_d!r}, beta_min is {beta_min!r}; the noise must rise up to t = 1")


class _Scheduled(Process):
    """A schedule in closed form with a scaling that is a function of sigma; the ready processes derive from it."""

    scaling: str

    def __post_init__(self) -> None:
        if self.scaling not in SCALINGS:
            raise unknown("scaling", self.scaling, SCALINGS)

    def s(self, t: Tensor) -> Tensor:
        return SCALINGS[self.scaling].value(self.sigma(t))

    def s_dot(self, t: Tensor) -> Tensor:
        return SCALINGS[self.scaling].slope(self.sigma(t)) * self.sigma_dot(t)


def _time_of_integral(integral: Tensor, beta_d: float, beta_min: float) -> Tensor:
    """t with beta_d t^2 / 2 + beta_min t = integral; 0 where the integral is 0.

    Of the root's two forms the one without cancellation.
    """
    root = torch.sqrt(beta_min**2 + 2 * beta_d * integral)
    t = 2 * integral / (root + beta_min) if beta_min >= 0 else (root - beta_min) / beta_d
    return torch.where(integral == 0, torch.zeros_like(t), t)


@dataclass(frozen=True)
class VP(_Scheduled):
    """Variance preserving (Song et al. 2021): sigma = sqrt(exp(B) - 1) with B(t) = beta_d t^2 / 2 + beta_min t. t runs
    over [0, 1].
    """

    name: ClassVar[str] = "vp"
    t_max = 1.0
    beta_d: float = 19.9
    beta_min: float = 0.1
    scaling: str = "vp"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_betas(self.beta_d, self.beta_min)

    @staticmethod
    def for_range(sigma_min: float, sigma_max: float, epsilon_s: float = 1e-3, scaling: str = "vp") -> VP:
        """The VP process whose sigma(epsilon_s) and sigma(1) are the two ends of a range (formulas of Karras et al.
        2022, Appendix C.1).
        """
        check_range(sigma_min, sigma_max)
        if not 0 < epsilon_s < 1:
            raise InputError(f"epsilon_s is {epsilon_s!r}; it must lie between 0 and 1")
        upper = math.log1p(sigma_max**2)
        beta_d = 2 * (math.log1p(sigma_min**2) / epsilon_s - upper) / (epsilon_s - 1)
        beta_min = upper - beta_d / 2
        # B is a parabola through B(0) = 0: it rises from epsilon_s on, unless it is concave with its top before 1.
        # (beta_min may come out slightly negative for a small sigma_min: sigma(t) then exists from a t below epsilon_s
        # on.)
        if beta_d + beta_min <= 0:
            raise InputError(
                f"epsilon_s is {epsilon_s!r}: no increasing VP schedule goes from sigma_min = {sigma_min} there "
                f"to sigma_max = {sigma_max} at 1; "
                "a smaller sigma_min or a larger epsilon_s would do"
            )
        return VP(beta_d, beta_min, scaling)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.expm1(self.beta_d * t**2 / 2 + self.beta_min * t))

    def sigma_dot(self, t: Tensor) -> Tensor:
        sigma = self.sigma(t)
        return (self.beta_min + self.beta_d * t) * (sigma + 1 / sigma) / 2

    def t(self, sigma: Tensor) -> Tensor:
        return _time_of_integral(torch.log1p(sigma**2), self.beta_d, self.beta_min)


@dataclass(frozen=True)
class SubVP(_Scheduled):
    """Sub-VP (Song et al. 2021): s = exp(-B/2), std = 1 - exp(-B), so sigma = 2 sinh(B/2), with VP's B(t). t runs over
    [0, 1].
    """

    name: ClassVar[str] = "subvp"
    t_max = 1.0
    beta_d: float = 19.9
    beta_min: float = 0.1
    scaling: str = "subvp"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_betas(self.beta_d, self.beta_min)

    def sigma(self, t: Tensor) -> Tensor:
        return 2 * torch.sinh((self.beta_d * t**2 / 2 + self.beta_min * t) / 2)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.cosh((self.beta_d * t**2 / 2 + self.beta_min * t) / 2) * (self.beta_min + self.beta_d * t)

    def t(self, sigma: Tensor) -> Tensor:
        return _time_of_integral(2 * torch.asinh(sigma / 2), self.beta_d, self.beta_min)


@dataclass(frozen=True)
class VE(_Scheduled):
    """Variance exploding (Song et al. 2021): sigma = sqrt(t), so t is the variance."""

    name: ClassVar[str] = "ve"
    scaling: str = "none"

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return 0.5 / torch.sqrt(t)

    def t(self, sigma: Tensor) -> Tensor:
        return sigma**2


@dataclass(frozen=True)
class EDM(_Scheduled):
    """sigma = t, s = 1 (Karras et al. 2022): the flow lines of the ODE are straightest. iDDPM with DDIM uses it too."""

    name: ClassVar[str] = "edm"
    scaling: str = "none"

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def t(self, sigma: Tensor) -> Tensor:
        return sigma


@dataclass(frozen=True)
class RectifiedFlow(_Scheduled):
    """x_t = (1 - t) y + t n (Liu et al. 2022, Lipman et al. 2022): sigma = t / (1 - t), s = 1 - t = 1 / (1 + sigma). t
    runs over [0, 1).
    """

    name: ClassVar[str] = "flow"
    t_max = 1.0
    scaling: str = "flow"

    def sigma(self, t: Tensor) -> Tensor:
        return t / (1 - t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return (1 - t) ** -2

    def t(self, sigma: Tensor) -> Tensor:
        return sigma / (1 + sigma)


@dataclass(frozen=True)
class Cosine(_Scheduled):
    """alpha = cos(pi t / 2), std = sin(pi t / 2) (Nichol & Dhariwal 2021; Salimans & Ho 2022): sigma = tan(pi t / 2). t
    runs over [0, 1).
    """

    name: ClassVar[str] = "cosine"
    t_max = 1.0
    scaling: str = "vp"

    def sigma(self, t: Tensor) -> Tensor:
        return torch.tan(math.pi / 2 * t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return math.pi / 2 * (1 + self.sigma(t) ** 2)

    def t(self, sigma: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(sigma)


def check_range(sigma_min: float, sigma_max: float) -> None:
    """Raises InputError unless 0 < sigma_min < sigma_max < infinity."""
    check_positive("sigma_min", sigma_min)
    check_positive("sigma_max", sigma_max)
    if sigma_min >= sigma_max:
        raise InputError(f"sigma_min is {sigma_min!r}, sigma_max is {sigma_max!r}; sigma_min must be below sigma_max")


@functools.lru_cache
def _iddpm_levels(M: int, C_1: float, C_2: float) -> Tensor:
    def alpha_bar(j: int) -> float:
        return math.sin(math.pi / 2 * j / (M * (C_2 + 1))) ** 2

    levels = [0.0]
    for j in range(M, 0, -1):
        levels.append(math.sqrt((levels[-1] ** 2 + 1) / max(alpha_bar(j - 1) / alpha_bar(j), C_1) - 1))
    return torch.tensor(levels[::-1], dtype=torch.float64)


def iddpm_levels(M: int = 1000, C_1: float = 0.001, C_2: float = 0.008) -> Tensor:
    """The noise levels u_0 > u_1 > ... > u_M = 0 that iDDPM's discrete steps visit: float64 [M + 1] (Karras et al.
    2022, Appendix C.3).

    u_{j-1} = sqrt((u_j^2 + 1) / max(alpha_bar(j-1) / alpha_bar(j), C_1) - 1), alpha_bar(j) = sin^2(pi/2 j / (M (C_2 +
    1))).
    """
    check_count("M", M)
    if not 0 < check_number("C_1", C_1) < 1:
        raise InputError(f"C_1 is {C_1!r}; it must lie between 0 and 1")
    if check_number("C_2", C_2) < 0:
        raise InputError(f"C_2 is {C_2!r}; it must not be negative")
    return _iddpm_levels(M, C_1, C_2).clone()


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

_MOST_STEPS = 2**24
"""Networks are told their step in float32, which has no more integers than these."""


@dataclass(frozen=True)
class DiscreteSteps:
    """The noise levels of discrete time steps: sigma_i = sqrt((1 - abar_i) / abar_i) with abar_i = prod_{j <= i} (1 -
    beta_j), rising with i = 0 .. M - 1 (Ho et al. 2020).

    schedule: "linear", "scaled_linear" or "sigmoid", betas between beta_start (None: 1e-4) and beta_end (None: 0.02),
    or "squared_cosine" (also "cosine", "squaredcos_cap_v2"), of num_steps steps (None: 1000); the names and values are
    those of diffusers' schedulers. Or abar_0 > abar_1 > ... themselves. zero_snr: the named schedule's sqrt(abar)
    shifted and scaled to end at zero (Lin et al. 2024, Algorithm 1); the last step, whose level is infinite, is left
    out.
    """

    schedule: str | tuple[float, ...]
    beta_start: float | None
    beta_end: float | None
    num_steps: int | None
    zero_snr: bool

    def __init__(
        self,
        schedule: str | Tensor | Sequence[float] = "linear",
        beta_start: float | None = None,
        beta_end: float | None = None,
        num_steps: int | None = None,
        zero_snr: bool = False,
    ) -> None:
        if not isinstance(schedule, str):
            given = {"beta_start": beta_start, "beta_end": beta_end, "num_steps": num_steps, "zero_snr": zero_snr}
            _refuse(given, "the schedule is given as alphas_cumprod")
            values = _check_alphas(schedule)
            own: str | tuple[float, ...] = tuple(values.tolist())
        else:
            num_steps = 1000 if num_steps is None else check_count("num_steps", num_steps, least=2)
            if num_steps > _MOST_STEPS:
                raise InputError(f"num_steps is {num_steps}; there can be no more than {_MOST_STEPS} steps")
            if schedule in _SQUARED_COSINE:
                _refuse({"beta_start": beta_start, "beta_end": beta_end}, f"the {schedule!r} schedule has none")
                betas = _squared_cosine(num_steps)
            elif schedule in _BETWEEN_BETAS:
                beta_start = 1e-4 if beta_start is None else check_number("beta_start", beta_start)
                beta_end = 0.02 if beta_end is None else check_number("beta_end", beta_end)
                if not 0 < beta_start <= beta_end < 1:
                    raise InputError(
                        f"beta_start is {beta_start!r}, beta_end is {beta_end!r}; they must be 0 < beta_start <= "
                        f"beta_end < 1"
                    )
                betas = _BETWEEN_BETAS[schedule](beta_start, beta_end, num_steps)
            else:
                raise unknown("schedule", schedule, (*_BETWEEN_BETAS, *_SQUARED_COSINE))
            values = torch.cumprod(1 - betas, 0)
            values = _check_alphas(_with_zero_snr(values) if zero_snr else values)
            own = schedule
        fields = (own, beta_start, beta_end, num_steps, zero_snr)
        for field, value in zip(dataclasses.fields(self), fields, strict=True):
            object.__setattr__(self, field.name, value)
        object.__setattr__(self, "_alphas_cumprod", values)

    @property
    def alphas_cumprod(self) -> Tensor:
        """abar_i of each step, float64 [M], falling."""
        values: Tensor = vars(self)["_alphas_cumprod"]
        return values.clone()

    @property
    def levels(self) -> Tensor:
        """sigma_i of each step, float64 [M], rising."""
        alphas_cumprod = self.alphas_cumprod
        return torch.sqrt((1 - alphas_cumprod) / alphas_cumprod)

    def within(self, sigma_min: float, sigma_max: float) -> Tensor:
        """The levels from sigma_max down to sigma_min."""
        levels = self.levels.flip(0)
        return levels[(levels >= sigma_min) & (levels <= sigma_max)]


def check_steps(steps: DiscreteSteps) -> DiscreteSteps:
    """`steps`, if they are DiscreteSteps; else an InputError."""
    if not isinstance(steps, DiscreteSteps):
        raise InputError(f"steps is {steps!r}; it must be a process.DiscreteSteps")
    return steps


def _with_zero_snr(alphas_cumprod: Tensor) -> Tensor:
    """Lin et al. 2024, Algorithm 1, without the last step."""
    root = torch.sqrt(alphas_cumprod)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1]))[:-1] ** 2


def _refuse(given: Mapping[str, object], why: str) -> None:
    for argument, value in given.items():
        if value is not None and value is not False:
            raise InputError(f"{argument} is {value!r}, but {why}; leave it out")


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


def nearest_level(sigma: Tensor, levels: Tensor) -> Tensor:
    """The index of the level nearest to each sigma, int64 of sigma's shape; levels [L] fall strictly."""
    rising = levels.flip(0).contiguous()
    above = torch.searchsorted(rising, sigma.detach().to(rising.dtype).contiguous()).clamp(1, len(rising) - 1)
    closer_below = (sigma - rising[above - 1]) <= (rising[above] - sigma)
    return len(rising) - 1 - torch.where(closer_below, above - 1, above)


def named() -> dict[str, type[Process]]:
    """The ready processes by name."""
    return registry.in_module(sys.modules[__name__], Process)
