"""What a call of `edmund.sample` or of its kin leaves to the denoiser's formulation, and what it asks for in its place:
the sampler, the grid, the noise levels, the noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edmund import formulation as formulations
from edmund import grid as grids
from edmund import registry, samplers
from edmund.arguments import range_of
from edmund.denoiser import Denoiser
from edmund.errors import InputError, check_count, unknown
from edmund.noise import Brownian, NoiseSource, Recorded, Seeded


def resolve_sampler(sampler: str | samplers.Sampler | None, defaults: formulations.Formulation) -> samplers.Sampler:
    """The sampler given, made by its name, or the default."""
    if sampler is None:
        return defaults.sampler
    if isinstance(sampler, str):
        makers = samplers.named()
        if sampler not in makers:
            raise unknown("sampler", sampler, makers)
        return makers[sampler]()
    if isinstance(sampler, type) or not callable(sampler):
        raise InputError(
            f"sampler is {sampler!r}; it must be a sampler or one of {', '.join(sorted(samplers.named()))}"
        )
    return sampler


def resolve_grid(grid: str | grids.Grid | None, defaults: formulations.Formulation) -> grids.Grid:
    """The grid given, made by its name, or the default."""
    if grid is None:
        return defaults.grid
    if callable(grid) and not isinstance(grid, type):
        return grid
    if isinstance(grid, Tensor | list | tuple):
        raise InputError(f"grid is {grid!r}; noise levels of your own are a grid as grid.Fixed(levels)")
    return registry.resolve("grid", grid, grids.named(), grids.Grid)


def levels_of(
    denoiser: Denoiser,
    defaults: formulations.Formulation,
    grid: grids.Grid,
    num_steps: int | None,
    sigma_min: float | None,
    sigma_max: float | None,
) -> Tensor:
    """The noise levels to visit, checked against the denoiser's trained range."""
    if isinstance(grid, grids.Fixed):
        # A fixed grid says its own steps and range; what the user also gave must agree with it.
        steps, low, high = len(grid.sigmas), grid.sigmas[-1], grid.sigmas[0]
    else:
        steps, low, high = defaults.num_steps, defaults.sigma_min, defaults.sigma_max
    steps = steps if num_steps is None else check_count("num_steps", num_steps)
    # EDM's range is a default for any denoiser; one that says its own is sampled within that.
    clip = getattr(denoiser, "formulation", None) is None and not isinstance(grid, grids.Fixed)
    low, high = range_of(denoiser, sigma_min, sigma_max, (low, high), clip=clip)
    levels = grid(steps, low, high, getattr(denoiser, "round_sigma", None))
    if not isinstance(levels, Tensor) or levels.ndim != 1 or len(levels) < 2 or not bool((levels.diff() < 0).all()):
        told = levels.tolist() if isinstance(levels, Tensor) else repr(levels)
        raise InputError(f"grid gave {told}; noise levels are a tensor [num_steps + 1] that falls strictly to 0")
    if levels[-1] != 0 or not bool(torch.isfinite(levels).all()):
        raise InputError(f"grid gave {levels.tolist()}; noise levels are finite and the last one is 0")
    return levels.to(torch.float64)


def sources(
    n: int,
    num_steps: int,
    item: tuple[int, ...],
    seeds: Sequence[int] | range | Tensor | None,
    latents: Tensor | None,
    noise: NoiseSource | None,
    *,
    brownian: bool,
) -> tuple[NoiseSource, Seeded | Tensor]:
    """The sampler's noise source, and what the samples start from: seeds or given latents."""
    if noise is not None and not callable(noise):
        raise InputError(
            f"noise is a {type(noise).__name__}; it must be a noise source; noise.Recorded(tensor) makes one"
        )
    if isinstance(noise, Recorded):
        noise.check(num_steps, (n, *item))
    given = range(n) if seeds is None else seeds
    if not hasattr(given, "__len__") or getattr(given, "ndim", 1) != 1:
        raise InputError(f"seeds is {given!r}; it must be a sequence of {n} integers, one seed a sample")
    if len(given) != n:
        raise InputError(f"seeds has {len(given)} entries, but shape asks for {n} samples; one seed a sample")
    seeded = Seeded(given)
    source = noise if noise is not None else Brownian(given) if brownian else seeded
    if latents is None:
        return source, seeded
    if not isinstance(latents, Tensor):
        raise InputError(f"latents is a {type(latents).__name__}; it must be a tensor of shape {(n, *item)}")
    if tuple(latents.shape) != (n, *item):
        raise InputError(f"latents has shape {tuple(latents.shape)}; it must be that of the samples, {(n, *item)}")
    if not latents.is_floating_point() or not bool(torch.isfinite(latents).all()):
        raise InputError("latents holds NaN, infinite or integer values; it must be finite and floating point")
    return source, latents
