r"""Formulations: Table 1 of Karras et al. 2022 as values. A column is a `Formulation`, a row is a field, and any cell
can be changed alone:

    dataclasses.replace(formulation.VP(), grid=grid.EDM(), sampler=samplers.Heun())

The functions of this module are the columns: VP, VE, IDDPM, EDM, and beside them Flow (rectified flow) and Cosine
(v-prediction). VP, VE, IDDPM, Flow and Cosine are written for data of unit scale; EDM's preconditioning is told the
data's standard deviation sigma_data. The cells are Table 1's but for the default samplers, which came with Euler's
method and hundreds of steps, or with Heun's: multistep methods of 36 calls are nearer to the exact solution than Heun's
of as many (docs/samplers.md). On the grids of EDM and VE that is DEIS; on the others, where the step to come can be far
longer in ln sigma than those before, iPNDM, whose coefficients are those of equal steps.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from edmund import grid, loss, noise_density, preconditioning, process, samplers
from edmund.errors import InputError, check_count
from edmund.process import check_range


@dataclass(frozen=True)
class Formulation:
    """One column of Table 1: every independent choice of a diffusion model but its network.

    process: how noise is added, and the ODE. grid, num_steps, sigma_min, sigma_max: the noise levels that sampling
    visits by default. sampler: the
    default solver. preconditioning, noise_density, loss_weight: how the network is wrapped and trained.
    """

    name: str
    process: process.Process
    grid: grid.Grid
    preconditioning: preconditioning.Preconditioning
    noise_density: noise_density.NoiseDensity
    loss_weight: loss.Weight
    sampler: samplers.Sampler
    num_steps: int
    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        check_count("num_steps", self.num_steps)
        check_range(self.sigma_min, self.sigma_max)
        low, high = self.trained_range
        if self.sigma_min < low * (1 - 1e-9) or self.sigma_max > high * (1 + 1e-9):
            raise InputError(
                f"sigma_min is {self.sigma_min!r}, sigma_max is {self.sigma_max!r}; "
                f"the noise density trains only {low:.6g} to {high:.6g}"
            )

    @property
    def needs_sigma_data(self) -> bool:
        """Whether the preconditioning or the loss weight still waits for the data's standard deviation."""
        return any(getattr(part, "sigma_data", 0.0) is None for part in (self.preconditioning, self.loss_weight))

    def with_sigma_data(self, sigma_data: float | Sequence[float]) -> Formulation:
        """The same formulation with the data's standard deviation filled in where it is not known yet."""
        value = preconditioning.check_sigma_data(sigma_data)
        changes = {
            field: dataclasses.replace(part, sigma_data=value)
            for field in ("preconditioning", "loss_weight")
            if getattr(part := getattr(self, field), "sigma_data", 0.0) is None
        }
        return dataclasses.replace(self, **changes)

    @property
    def trained_range(self) -> tuple[float, float]:
        """The noise levels a network of this formulation is trained for: the density's support, or the formulation's
        range where that is unbounded.
        """
        low, high = self.noise_density.support
        return (low, high) if low > 0 and high < math.inf else (self.sigma_min, self.sigma_max)

    def config(self) -> dict[str, Any]:
        """The formulation as JSON-able values: each part as {"type": its class, ...its fields}. Raises InputError for a
        process of one's own functions.
        """
        return {field.name: _part_config(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)}


# Where the classes of each field's parts are looked up, when a formulation is read back.
_PART_MODULES: dict[str, ModuleType] = {
    "process": process,
    "grid": grid,
    "preconditioning": preconditioning,
    "noise_density": noise_density,
    "loss_weight": loss,
    "sampler": samplers,
    "churn": samplers,
    "steps": process,
}


_PART_BASES: dict[str, type] = {
    "process": process.Process,
    "grid": grid.Grid,
    "preconditioning": preconditioning.Preconditioning,
    "noise_density": noise_density.NoiseDensity,
    "loss_weight": loss.Weight,
    "sampler": samplers.Sampler,
}


def _part_config(field: str, value: Any) -> Any:
    if isinstance(value, float) and math.isinf(value):
        return "infinity"  # JSON has no infinite number
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return [_part_config(field, item) for item in value]
    known = field in _PART_MODULES and getattr(_PART_MODULES[field], type(value).__name__, None) is type(value)
    if not known or not dataclasses.is_dataclass(value):
        raise InputError(
            f"{field} is {value!r}, which is not one of edmund's own parts: it cannot be written to a file"
        )
    return {"type": type(value).__name__} | {
        part.name: _part_config(part.name, getattr(value, part.name)) for part in dataclasses.fields(value)
    }


def _part(field: str, value: Any) -> Any:
    if value == "infinity":
        return math.inf
    if isinstance(value, list):
        return tuple(_part(field, item) for item in value)
    if not isinstance(value, Mapping):
        return value
    arguments = {key: _part(key, item) for key, item in value.items() if key != "type"}
    kind = getattr(_PART_MODULES.get(field), str(value.get("type")), None)
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        raise InputError(f"{field} has type {value.get('type')!r}, which is not a part that this version of edmund has")
    try:
        return kind(**arguments)
    except TypeError as error:
        raise InputError(f"{field}: {kind.__name__} cannot be made from {arguments}: {error}") from error


def from_config(config: Mapping[str, Any]) -> Formulation:
    """The formulation that `Formulation.config` wrote. Raises InputError for missing, unknown or unusable entries."""
    fields = [field.name for field in dataclasses.fields(Formulation)]
    if sorted(config) != sorted(fields):
        raise InputError(f"formulation has the entries {sorted(config)}; it must have {sorted(fields)}")
    made = {field: _part(field, config[field]) for field in fields}
    for field, base in _PART_BASES.items():
        if not isinstance(made[field], base):
            raise InputError(f"formulation.{field} is {config[field]!r}; it must be one of edmund's parts")
    return Formulation(**made)


def EDM(
    sigma_data: float | tuple[float, ...] | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    P_mean: float = -1.2,
    P_std: float = 1.2,
) -> Formulation:
    """EDM (Karras et al. 2022). sigma_data: the data's standard deviation, a number or one a channel; None: estimated
    from the data.
    """
    return Formulation(
        name="EDM",
        process=process.EDM(),
        grid=grid.EDM(rho),
        preconditioning=preconditioning.EDM(sigma_data),
        noise_density=noise_density.LogNormal(P_mean, P_std),
        loss_weight=loss.EDM(sigma_data),
        sampler=samplers.DEIS(order=4),
        num_steps=36,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
    )


def VP(
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    beta_d: float | None = None,
    beta_min: float | None = None,
    epsilon_s: float = 1e-3,
    epsilon_t: float | None = None,
    M: int = 1000,
) -> Formulation:
    """VP (Song et al. 2021), noise prediction. The betas (19.9, 0.1), or a range that they are fitted to:
    sigma(epsilon_s) and sigma(1).

    epsilon_t: where the training times start; 1e-5, or epsilon_s with fitted betas, so that the range is what is
    trained.
    """
    fitted = sigma_min is not None or sigma_max is not None
    if fitted and (beta_d is not None or beta_min is not None):
        raise InputError(
            f"beta_d is {beta_d}, beta_min is {beta_min}, sigma_min is {sigma_min}, sigma_max is {sigma_max}: "
            f"give VP its betas or a range they are fitted to"
        )
    own = process.VP(19.9 if beta_d is None else beta_d, 0.1 if beta_min is None else beta_min)
    low, high = own.sigma(torch.tensor([epsilon_s, 1.0], dtype=torch.float64)).tolist()
    if fitted:
        low, high = low if sigma_min is None else sigma_min, high if sigma_max is None else sigma_max
        own = process.VP.for_range(low, high, epsilon_s)
    return Formulation(
        name="VP",
        process=own,
        grid=grid.VP(epsilon_s),
        preconditioning=preconditioning.VP(own.beta_d, own.beta_min, M),
        noise_density=noise_density.VPUniform(
            epsilon_t if epsilon_t is not None else epsilon_s if fitted else 1e-5, own.beta_d, own.beta_min
        ),
        loss_weight=loss.Noise(),
        sampler=samplers.IPNDM(),
        num_steps=36,
        sigma_min=low,
        sigma_max=high,
    )


def VE(sigma_min: float = 0.02, sigma_max: float = 100.0) -> Formulation:
    """VE (Song et al. 2021). sigma_max ought to be about the largest distance between two data points (Song & Ermon
    2020).
    """
    return Formulation(
        name="VE",
        process=process.VE(),
        grid=grid.VE(),
        preconditioning=preconditioning.VE(),
        noise_density=noise_density.LogUniform(sigma_min, sigma_max),
        loss_weight=loss.Noise(),
        sampler=samplers.DEIS(order=4),
        num_steps=36,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
    )


def IDDPM(
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    M: int = 1000,
    C_1: float = 0.001,
    C_2: float = 0.008,
) -> Formulation:
    """iDDPM + DDIM (Nichol & Dhariwal 2021; Song et al. 2020), noise prediction on M discrete levels.

    The levels between sigma_min and sigma_max are sampled; by default from u_8 = 80.2 (j_0 = 8 at M = 1000) down to
    u_{M-1}.
    """
    levels = process.iddpm_levels(M, C_1, C_2)
    low = levels[-2].item() if sigma_min is None else sigma_min
    high = levels[8 * M // 1000].item() if sigma_max is None else sigma_max
    check_range(low, high)
    inside = levels[(levels >= low) & (levels <= high)]
    if len(inside) < 2:
        raise InputError(f"sigma_min is {low!r}, sigma_max is {high!r}; iDDPM has fewer than two levels between")
    return Formulation(
        name="iDDPM",
        process=process.EDM(),
        grid=grid.IDDPM(M, C_1, C_2),
        preconditioning=preconditioning.IDDPM(M, C_1, C_2),
        noise_density=noise_density.IDDPM(M, C_1, C_2),
        loss_weight=loss.Noise(),
        sampler=samplers.IPNDM(),
        num_steps=36,
        sigma_min=inside[-1].item(),
        sigma_max=inside[0].item(),
    )


def Flow(sigma_min: float = 0.002, sigma_max: float = 1000.0, t_mean: float = 0.0, t_std: float = 1.0) -> Formulation:
    """Rectified flow (Liu et al. 2022), velocity prediction, logit(t) ~ N(t_mean, t_std^2) in training (Esser et al.
    2024).

    sigma = infinity at t = 1, so sampling starts at sigma_max 1000, that is t = 0.999.
    """
    own = process.RectifiedFlow()
    return Formulation(
        name="Flow",
        process=own,
        grid=grid.UniformTime(own),
        preconditioning=preconditioning.Flow(),
        noise_density=noise_density.LogitNormal(t_mean, t_std),
        loss_weight=loss.Flow(),
        sampler=samplers.IPNDM(),
        num_steps=36,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
    )


def Cosine(sigma_min: float = 0.002, sigma_max: float = 200.0) -> Formulation:
    """The cosine process with v-prediction (Salimans & Ho 2022), t uniform in training.

    Sampling starts at t = 0.9968, sigma 200.
    """
    own = process.Cosine()
    return Formulation(
        name="Cosine",
        process=own,
        grid=grid.UniformTime(own),
        preconditioning=preconditioning.Velocity(),
        noise_density=noise_density.CosineUniform(),
        loss_weight=loss.Velocity(),
        sampler=samplers.IPNDM(),
        num_steps=36,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
    )


_OF_PREDICTION: dict[str, loss.Weight] = {"noise": loss.Noise(), "v": loss.Velocity(), "data": loss.Data()}


def discrete(
    steps: process.DiscreteSteps,
    prediction: str = "noise",
    sampler: samplers.Sampler | None = None,
    num_steps: int | None = None,
) -> Formulation:
    """A network of discrete time steps (DDPM and its descendants), such as one trained elsewhere; no column of Table 1.

    steps: its levels, all of which are sampled by default, evenly by their index. prediction: "noise", "v" or "data"
    (or diffusers' names for them). sampler: iPNDM when None. num_steps: 36 when None, or as many as there are levels.
    """
    own = preconditioning.Discrete(steps, prediction)
    levels = steps.levels
    return Formulation(
        name="Discrete",
        process=process.EDM(),
        grid=grid.Discrete(steps),
        preconditioning=own,
        noise_density=noise_density.Discrete(steps),
        loss_weight=_OF_PREDICTION[own.prediction],
        sampler=samplers.IPNDM() if sampler is None else sampler,
        num_steps=min(36, len(levels)) if num_steps is None else num_steps,
        sigma_min=levels[0].item(),
        sigma_max=levels[-1].item(),
    )


def named() -> dict[str, Callable[..., Formulation]]:
    """Formulation name (EDM, VP, VE, iDDPM, Flow, Cosine) -> the function that makes it, from the functions of this
    module.
    """
    columns = (
        part for part in vars(sys.modules[__name__]).values() if inspect.isfunction(part) and part.__name__[0].isupper()
    )
    return {column().name: column for column in columns}
