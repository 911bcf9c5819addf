r"""The probability-flow ODE run upwards, from data to noise: what encoding and likelihoods share.

In the unscaled z = x / s(t) and over ln sigma the ODE of every process is the same (Karras et al. 2022, Eq. 4 with s
divided out),

    dz / d ln sigma = z - D(z; sigma)

so steps that an error estimate chooses are taken in these coordinates, where the process does not matter. Fixed steps
are those of a sampler over the rising levels of a grid, and a sampler that works in t sees its process there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edmund import formulation as formulations
from edmund import grid as grids
from edmund import process as processes
from edmund import registry, samplers
from edmund.arguments import check_denoised
from edmund.choices import levels_of, resolve_grid, resolve_sampler
from edmund.denoiser import Denoiser
from edmund.errors import InputError, check_positive
from edmund.integrate import integrate, rms
from edmund.model import Model
from edmund.transform import Identity, Transform

TOLERANCE = 1e-6
"""rtol and atol where none is given."""


@dataclass(frozen=True)
class Path:
    """How the ODE is integrated from sigma_min up to sigma_max: by `sampler` over the rising `sigmas` [N], or, where it
    is None, to the tolerances rtol and atol.
    """

    sigmas: Tensor
    process: processes.Process
    sampler: samplers.Sampler | None
    rtol: float
    atol: float

    @property
    def sigma_min(self) -> float:
        """Where it starts."""
        return self.sigmas[0].item()

    @property
    def sigma_max(self) -> float:
        """Where it ends."""
        return self.sigmas[-1].item()

    def run(
        self,
        denoiser: Denoiser,
        z: Tensor,
        condition: Mapping[str, Tensor],
        *,
        norm: Callable[[Tensor], Tensor] = rms,
        arrived: Callable[[int], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The unscaled state at sigma_max from z [B, *] at sigma_min, and the denoiser calls of each sample, int64 [B].

        condition: tensors of batch B. norm, arrived: see `integrate`.
        """
        if self.sampler is None:
            return self._adaptive(denoiser, z, condition, norm, arrived)
        s_start, s_end = self.process.s(self.process.t(self.sigmas[[0, -1]])).tolist()
        calls = [0]

        def count(step: samplers.Step) -> None:
            calls[0] = step.nfe

        x = self.sampler(denoiser, z * s_start, self.sigmas, process=self.process, condition=condition, callback=count)
        if arrived is not None:
            arrived(len(z))
        return x / s_end, torch.full((len(z),), calls[0], device=z.device)

    def _adaptive(
        self,
        denoiser: Denoiser,
        z: Tensor,
        condition: Mapping[str, Tensor],
        norm: Callable[[Tensor], Tensor],
        arrived: Callable[[int], None] | None,
    ) -> tuple[Tensor, Tensor]:
        def slope(log_sigma: Tensor, z: Tensor, rows: Tensor) -> Tensor:
            return z - checked_call(
                denoiser, z, log_sigma.exp(), {key: value[rows] for key, value in condition.items()}
            )

        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        done = integrate(slope, z, low, high, rtol=self.rtol, atol=self.atol, norm=norm, arrived=arrived)
        return done.y, done.calls


def checked_call(denoiser: Denoiser, z: Tensor, sigma: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
    """D(z; sigma), like z [B, *]; InputError where the denoiser returns anything else."""
    return check_denoised(denoiser(z, sigma, **condition), z)


def opened(model: Denoiser | Model, denoiser: Denoiser | None = None) -> tuple[Denoiser, Transform]:
    """The denoiser of a model, or the one given instead, and the transform of its data; a plain denoiser is its own, in
    its own units.
    """
    if denoiser is not None and not isinstance(model, Model):
        raise InputError(
            f"denoiser is given besides a {type(model).__name__}; it takes the place of a Model's own, and without a "
            f"Model a denoiser is the first argument"
        )
    if isinstance(model, Model):
        if denoiser is not None and not callable(denoiser):
            raise InputError(f"denoiser is {denoiser!r}; it must be a callable (x, sigma, **condition) -> E[y | x]")
        return model.denoiser if denoiser is None else denoiser, model.transform
    if not callable(model):
        raise InputError(f"model is {model!r}; it must be a Model or a denoiser, (x, sigma, **condition) -> E[y | x]")
    return model, Identity()


def check_data(x: Tensor, model: Denoiser | Model) -> Tensor:
    """x [B, *] as finite float64 on its own device, of as many axes as the model's samples have."""
    if not isinstance(x, Tensor):
        raise InputError(f"x is a {type(x).__name__}; it must be a tensor of data [B, *]")
    if x.ndim < 2 or x.numel() == 0:
        raise InputError(
            f"x has shape {tuple(x.shape)}; it must be [B, *], a batch axis before the shape of one sample"
        )
    if isinstance(model, Model) and x.ndim != 1 + len(model.shape):
        raise InputError(f"x has shape {tuple(x.shape)}; the model's samples have {model.shape}, after a batch axis")
    if x.is_complex() or x.dtype == torch.bool:
        raise InputError(f"x is {x.dtype}; data are real numbers")
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise InputError(f"x holds {bad} NaN or infinite values among {x.numel()}; every value must be finite")
    return x.detach().to("cpu" if x.device.type == "mps" else x.device, torch.float64)


def resolve(
    denoiser: Denoiser,
    *,
    sampler: str | samplers.Sampler | None,
    num_steps: int | None,
    grid: str | grids.Grid | None,
    process: str | processes.Process | None,
    sigma_min: float | None,
    sigma_max: float | None,
    rtol: float | None,
    atol: float | None,
    purpose: str,
) -> Path:
    """How to go from sigma_min to sigma_max: fixed steps where any of sampler, num_steps and grid is given, else steps
    to the tolerances. What is not given comes from the denoiser's formulation, as in `edmund.sample`.

    Raises InputError for a sampler that draws noise (`purpose` says what wanted it), arguments of one way with the
    other, steps to a tolerance of a denoiser that knows only certain levels, and a range beyond the trained one.
    """
    defaults = getattr(denoiser, "formulation", None) or formulations.EDM()
    if sampler is None and num_steps is None and grid is None:
        if process is not None:
            raise InputError(
                f"process is {process!r}, but steps to a tolerance are the same for every process; give num_steps to "
                f"integrate over this one's t"
            )
        if hasattr(denoiser, "round_sigma"):
            raise InputError(
                f"num_steps is None, but the denoiser has round_sigma, levels that it knows, and steps to a tolerance "
                f"go between them; give num_steps, and {purpose} takes fixed steps from level to level"
            )
        ends = levels_of(denoiser, defaults, grids.VE(), 2, sigma_min, sigma_max)
        return Path(ends[:2].flip(0), defaults.process, None, _tolerance("rtol", rtol), _tolerance("atol", atol))
    solver = resolve_sampler(sampler, defaults)
    for argument, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and isinstance(solver, samplers.Adaptive):
            raise InputError(
                f"{argument} is {value!r}, but the sampler has tolerances of its own; give "
                f"samplers.Adaptive(rtol=..., atol=...), or leave sampler, num_steps and grid out"
            )
        if value is not None:
            raise InputError(
                f"{argument} is {value!r}, but sampler, num_steps or grid asks for fixed steps, which have no tolerance"
            )
    if getattr(solver, "stochastic", False):
        raise InputError(
            f"sampler is {solver!r}, which draws noise; {purpose} follows the probability-flow ODE and needs a "
            f"deterministic sampler, such as samplers.Heun()"
        )
    path = (
        registry.resolve("process", process, processes.named(), processes.Process)
        if process is not None
        else defaults.process
    )
    levels = levels_of(denoiser, defaults, resolve_grid(grid, defaults), num_steps, sigma_min, sigma_max)
    rising = levels[:-1].flip(0)
    if len(rising) < 2:
        raise InputError(
            f"num_steps is {len(rising)}; the last step of a grid, to sigma = 0, is not taken: there must be 2 or more"
        )
    return Path(rising, path, solver, TOLERANCE, TOLERANCE)


def _tolerance(argument: str, value: float | None) -> float:
    return TOLERANCE if value is None else check_positive(argument, value)


def check_answers(denoiser: Denoiser, z: Tensor, path: Path, condition: Mapping[str, Tensor]) -> None:
    """InputError where the denoiser of z [B, *] is not finite, or does not take one sigma a sample as steps to a
    tolerance ask it.

    `edmund.sample` only ever hands it one number, and a sigma [B] that broadcasts along the wrong axis may be silent.
    """
    middle = math.sqrt(path.sigma_min * path.sigma_max)
    levels = torch.logspace(math.log10(middle), math.log10(path.sigma_max), len(z), dtype=z.dtype, device=z.device)
    one_for_all = checked_call(denoiser, z, levels[0], condition)
    if not bool(torch.isfinite(one_for_all).all()):
        raise InputError(f"the denoiser returned NaN or infinite values for finite x at sigma = {levels[0].item():.6g}")
    if path.sampler is not None or len(z) == 1:
        return
    try:
        own = checked_call(denoiser, z, levels, condition)
        alike = bool((own[0] - one_for_all[0]).abs().max() <= 1e-3 * one_for_all.abs().max())
    except RuntimeError:  # shapes that do not broadcast
        alike = False
    if not alike:
        raise InputError(
            f"the denoiser does not take a sigma of shape [{len(z)}], one level a sample: let it reshape sigma to "
            f"broadcast against x, or give num_steps to integrate with one level for all"
        )
