r"""Editing: from data instead of noise, part of the way up and down again.

SDEdit (Meng et al. 2022, arXiv 2108.01073) adds noise of a chosen sigma to given data and samples from there,

    z = x + sigma n,    n ~ N(0, I),

so that what is larger than the noise stays and what is smaller is drawn anew: sigma is the strength of the edit, in the
units of the data. Data that follow the model's law come back with that law, whatever sigma; anything else (a sketch, a
rough simulation) is drawn towards it, the more the larger sigma.

With a mask m the denoiser says of the kept region what is known there,

    D_m(z; sigma) = m D(z; sigma) + (1 - m) x

whose probability-flow ODE dz/dsigma = (z - x)/sigma keeps the state of that region at x + sigma n with the one n of its
start, and ends at x; so it is for every sampler, up to its own error, and a stochastic one renews n. In the changed
region the network sees its surroundings as noisy as itself, and fits to them. A fractional mask blends the two.

That is no exact conditional sampling: D tells the changed region what the *noisy* surroundings imply, E[y | z], where
the law given x needs E[y_changed | z_changed, y_kept = x]. The less sigma, the less they differ; at large sigma the
changed region is decided before its surroundings show, and follows them less than it should.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edmund import formulation as formulations
from edmund import grid as grids
from edmund.arguments import check_condition, device_of
from edmund.choices import levels_of, resolve_grid, sources
from edmund.denoiser import Denoiser
from edmund.errors import InputError, check_positive, unknown
from edmund.guidance import Wrapper
from edmund.model import Model
from edmund.noise import Seeded
from edmund.probability_flow import check_data, opened
from edmund.sample import Trajectory, sample

_OPTIONS = frozenset(inspect.signature(sample).parameters) - {"denoiser", "shape", "sigma_max"}


def edit(
    model: Denoiser | Model,
    /,
    x: Tensor,
    sigma: float,
    *,
    mask: Tensor | None = None,
    denoiser: Denoiser | None = None,
    **options: Any,
) -> Tensor | Trajectory:
    """Data x [n, *] with noise sigma added and taken away again: [n, *] on the CPU, or a Trajectory.

    model: a denoiser, or a `Model`: then x and the result are in the user's units, sigma in the model's, and the
    result is float32 unless `dtype` is given. denoiser: with a Model, what is used instead of its own, such as one of
    `edmund.guidance` around it. sigma: where the way down starts, within the trained range (a discrete
    model starts from its level nearest to that). mask: [*] or [n, *] (axes may be 1), in [0, 1] or bool: 1 where x may
    change, 0 where exactly x is returned; None: everywhere.

    options: those of `edmund.sample` (sampler, num_steps, grid, seeds, batch_size, condition, return_trajectory, ...),
    which runs num_steps steps from sigma down; latents are n. Each sample's n comes from its seed; what a stochastic
    sampler then draws is independent of it.

    Raises InputError for x, sigma, a mask or options that cannot be used, before the denoiser is called.
    """
    for key in options:
        if key not in _OPTIONS:
            raise unknown("argument of edit", key, ["mask", "denoiser", *_OPTIONS])
    inner, transform = opened(model, denoiser)
    data = check_data(x, model)
    n, *item = data.shape
    changed = None if mask is None else _check_mask(mask, data)
    first = _first_level(inner, sigma, options)

    # In float64, which MPS has not: the state is made from it on the denoiser's device.
    kept = transform.forward(data)
    _, starts = sources(n, 0, tuple(item), options.get("seeds"), options.get("latents"), None, brownian=False)
    normals = starts.latents(item, dtype=kept.dtype, device=kept.device) if isinstance(starts, Seeded) else starts
    # sample starts at s(t_0) sigma_0 latents, where s(t_0) (x + sigma_0 n) is wanted.
    options["latents"] = (kept / first).add(normals.to(kept))
    if changed is None:
        out = sample(inner, data.shape, sigma_max=sigma, **options)
    else:
        real = torch.float32 if device_of(options.get("device"), inner, kept, {}).type == "mps" else kept.dtype
        told = dict(
            check_condition(options.pop("condition", None), n, inner),
            edit_mask=changed.to(real),
            edit_kept=kept.to(real),
        )
        out = sample(_Masked(inner), data.shape, sigma_max=sigma, condition=told, **options)

    samples = out.samples if isinstance(out, Trajectory) else out
    dtype = options.get("dtype", torch.float32) if isinstance(model, Model) else samples.dtype
    done = transform.inverse(samples).to(dtype)
    if changed is not None:
        untouched = (changed == 0).cpu()
        done = torch.where(untouched, data.cpu().to(dtype), done)
        if isinstance(out, Trajectory):
            out.x[-1] = torch.where(untouched, kept.cpu().to(samples.dtype), samples)
    return out._replace(samples=done) if isinstance(out, Trajectory) else done


class _Masked(Wrapper):
    """D_m of the module's docstring. Mask and x come as conditions, of which a batch is handed its own rows."""

    def forward(self, x: Tensor, sigma: Tensor, *, edit_mask: Tensor, edit_kept: Tensor, **condition: Tensor) -> Tensor:
        return torch.lerp(edit_kept.to(x.dtype), self.denoiser(x, sigma, **condition), edit_mask.to(x.dtype))


def _check_mask(mask: Tensor, x: Tensor) -> Tensor:
    """The mask as float64 [n or 1, *item] beside x [n, *item]."""
    if not isinstance(mask, Tensor) or mask.is_complex():
        told = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"mask is {told}; it must be a tensor of numbers in [0, 1] or bool")
    item = tuple(x.shape[1:])
    whole = mask[None] if mask.ndim == len(item) else mask
    if whole.ndim != x.ndim or any(a not in (1, b) for a, b in zip(whole.shape, x.shape, strict=True)):
        raise InputError(
            f"mask has shape {tuple(mask.shape)}; it must be {item}, one for all samples, or {tuple(x.shape)}, one a "
            f"sample"
        )
    if not bool(((whole >= 0) & (whole <= 1)).all()):
        raise InputError(
            f"mask goes from {float(whole.min())!r} to {float(whole.max())!r}; it must lie in [0, 1]: 1 where x may "
            f"change, 0 where it is kept"
        )
    return whole.to(x).expand(len(whole), *item)


def _first_level(denoiser: Denoiser, sigma: float, options: Mapping[str, Any]) -> float:
    """The level that sampling starts from when it is asked to start from sigma."""
    check_positive("sigma", sigma)
    defaults = getattr(denoiser, "formulation", None) or formulations.EDM()
    grid = resolve_grid(options.get("grid"), defaults)
    if isinstance(grid, grids.Fixed):
        if sigma != grid.sigmas[0]:
            raise InputError(f"sigma is {sigma!r}, but the fixed grid starts from {grid.sigmas[0]!r}; they must agree")
    else:
        trained_low = getattr(denoiser, "sigma_min", None) or 0.0
        own = defaults.sigma_min if getattr(denoiser, "formulation", None) else max(defaults.sigma_min, trained_low)
        low = options.get("sigma_min")
        low = own if low is None else check_positive("sigma_min", low)
        if sigma <= low:
            raise InputError(f"sigma is {sigma!r}; it must be above sigma_min = {low!r}, where the way down ends")
    high = getattr(denoiser, "sigma_max", None) or math.inf
    if sigma > high * (1 + 1e-9):
        raise InputError(f"sigma is {sigma!r}; the model was trained up to {high:.6g}")
    levels = levels_of(denoiser, defaults, grid, options.get("num_steps"), options.get("sigma_min"), sigma)
    return levels[0].item()
