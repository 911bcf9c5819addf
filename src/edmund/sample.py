r"""Sampling: from noise to data, with any sampler, grid and process.

Sample k starts at s(t_0) sigma_0 n_k with n_k unit normal, the limit of the noisy data's law at large sigma_0. What
that misses: of a data mean m about m d / sqrt(sigma_0^2 + d^2), with d the data's standard deviation.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edmund import formulation as formulations
from edmund import grid as grids
from edmund import process as processes
from edmund import progress as progress_bars
from edmund import registry, samplers
from edmund.denoiser import Denoiser
from edmund.devices import known_device
from edmund.errors import InputError, check_count, check_positive, unknown
from edmund.noise import NoiseSource, Recorded, Seeded

# Without a batch_size, a batch has about this many numbers: 8 MiB in float64, large enough to keep a device busy.
_DEFAULT_BATCH_ELEMENTS = 1 << 20


class Trajectory(NamedTuple):
    """Samples and how they came about, on the CPU.

    samples: [n, *]. sigmas: the levels visited [N + 1], falling to 0 (a sampler that restarts visits some again). x:
    the unscaled noisy samples y + sigma n at each level, [N + 1, n, *] (the last are the samples). denoised: D(x;
    sigma) at the first N levels, [N, n, *] (with churn: at the raised level).
    """

    samples: Tensor
    sigmas: Tensor
    x: Tensor
    denoised: Tensor


def sample(
    denoiser: Denoiser,
    shape: Sequence[int],
    *,
    sampler: str | samplers.Sampler | None = None,
    num_steps: int | None = None,
    grid: str | grids.Grid | None = None,
    process: str | processes.Process | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    seeds: Sequence[int] | range | Tensor | None = None,
    batch_size: int | None = None,
    condition: Mapping[str, Tensor] | None = None,
    latents: Tensor | None = None,
    noise: NoiseSource | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    progress: bool = True,
    callback: samplers.Callback | None = None,
    return_trajectory: bool = False,
) -> Tensor | Trajectory:
    """Draws samples from a denoiser: a tensor [n, *] on the CPU, or a Trajectory.

    shape: (n, *), n samples of one shape. What is not given of sampler, num_steps, grid, process, sigma_min and
    sigma_max comes from the denoiser's `formulation`, or for a plain callable from EDM's; sampler, grid and process may
    be names. num_steps: steps, the last one to sigma = 0.

    seeds: one integer a sample, None: 0 .. n-1. Each sample has a random stream of its own, so it is the same whatever
    the batch size, the order, the device and the other samples. latents: unit normals [n, *] to start from instead.
    noise: the source of the normals that stochastic samplers draw; None: the seeds' own, which to the solver of an SDE
    are the increments of one Brownian path a seed: more steps refine the same sample. condition: keyword tensors with a
    batch axis of n or 1.

    batch_size: samples at a time; the device holds O(batch_size) of them. dtype: of the state (float32 where the device
    has no float64). device: where the state lives; None: where the denoiser's parameters, the latents or the conditions
    are. callback: called with a `samplers.Step` after each step of each batch. A module in training mode is put in
    evaluation mode meanwhile. Runs under no_grad.

    Raises InputError for every argument that cannot be used, before the denoiser is called.
    """
    if not callable(denoiser):
        raise InputError(f"denoiser is {denoiser!r}; it must be a callable (x, sigma, **condition) -> E[y | x]")
    defaults = getattr(denoiser, "formulation", None) or formulations.EDM()
    n, item = _check_shape(shape)
    solver = _resolve_sampler(sampler, defaults)
    path = (
        registry.resolve("process", process, processes.named(), processes.Process)
        if process is not None
        else defaults.process
    )
    nodes = _resolve_grid(grid, defaults)
    sigmas = _levels(denoiser, defaults, nodes, num_steps, sigma_min, sigma_max)
    visited = (solver.visited(sigmas) if isinstance(solver, samplers.Sampler) else sigmas[:-1]).clone()
    brownian = isinstance(solver, samplers.Sampler) and solver.brownian
    source, starts = _sources(n, len(visited), item, seeds, latents, noise, brownian=brownian)
    conditions = _check_condition(condition, n, denoiser)
    size = _check_batch_size(batch_size, n, item)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype is {dtype!r}; the state is floating point, such as torch.float64")
    if callback is not None and not callable(callback):
        raise InputError(f"callback is {callback!r}; it must be a function of a Step")
    where = _device(device, denoiser, latents, conditions)
    dtype = torch.float32 if where.type == "mps" else dtype
    if where.type == "cpu":
        _keep_freed_memory()

    ends = path.t(sigmas[[0, -1]])
    s_start, s_end = path.s(ends).tolist()
    scale = s_start * sigmas[0].item()
    out = torch.empty(n, *item, dtype=dtype)
    states = torch.empty(len(visited) + 1, n, *item, dtype=dtype) if return_trajectory else out
    denoised = torch.empty(len(visited), n, *item, dtype=dtype) if return_trajectory else out
    batches = [(start, min(start + size, n)) for start in range(0, n, size)]

    bar = progress_bars.track(len(batches) * len(visited), "sampling", enabled=progress)
    with torch.no_grad(), _evaluation_mode(denoiser), bar:
        for start, stop in batches:

            def report(step: samplers.Step, start: int = start, stop: int = stop) -> None:
                bar.advance()
                if return_trajectory:
                    visited[step.index] = step.sigma  # as the sampler rounded it to the levels of a discrete model
                    states[step.index, start:stop] = step.unscaled.cpu()
                    denoised[step.index, start:stop] = step.denoised.cpu()
                if callback is not None:
                    callback(step)

            begin = _start(starts, start, stop, item, dtype, where)
            batch_source = source.rows(start, stop) if hasattr(source, "rows") else source
            given = {
                key: (value if len(value) == 1 else value[start:stop]).to(where) for key, value in conditions.items()
            }
            given = {key: value.expand(stop - start, *value.shape[1:]) for key, value in given.items()}
            x = solver(
                denoiser,
                begin.mul_(scale),
                sigmas,
                process=path,
                noise=batch_source,
                condition=given,
                callback=report,
            )
            out[start:stop] = x if s_end == 1.0 else x / s_end
    if return_trajectory:
        states[-1] = out
        return Trajectory(out, torch.cat([visited, sigmas[-1:]]), states, denoised)
    return out


def _check_shape(shape: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    sizes = tuple(shape) if hasattr(shape, "__iter__") else ()
    if len(sizes) < 2 or any(isinstance(size, bool) or not isinstance(size, Integral) or size < 1 for size in sizes):
        raise InputError(
            f"shape is {shape!r}; it must be (n, *), the number of samples and the shape of one, positive integers"
        )
    whole = tuple(int(size) for size in sizes)
    return whole[0], whole[1:]


def _resolve_sampler(sampler: str | samplers.Sampler | None, defaults: formulations.Formulation) -> samplers.Sampler:
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


def _resolve_grid(grid: str | grids.Grid | None, defaults: formulations.Formulation) -> grids.Grid:
    if grid is None:
        return defaults.grid
    if callable(grid) and not isinstance(grid, type):
        return grid
    return registry.resolve("grid", grid, grids.named(), grids.Grid)


def _levels(
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
    trained_low = getattr(denoiser, "sigma_min", None) or 0.0
    trained_high = getattr(denoiser, "sigma_max", None) or math.inf
    if getattr(denoiser, "formulation", None) is None and not isinstance(grid, grids.Fixed):
        # EDM's range is a default for any denoiser; one that says its own is sampled within that.
        low, high = max(low, trained_low), min(high, trained_high)
    low = low if sigma_min is None else check_positive("sigma_min", sigma_min)
    high = high if sigma_max is None else check_positive("sigma_max", sigma_max)
    # A rounding of the range's ends is no reason to refuse it.
    for argument, value, inside in (
        ("sigma_min", low, low >= trained_low * (1 - 1e-9)),
        ("sigma_max", high, high <= trained_high * (1 + 1e-9)),
    ):
        if not inside:
            raise InputError(
                f"{argument} is {value!r}, outside the range that the model was trained on, {trained_low:.6g} "
                f"to {trained_high:.6g}"
            )
    levels = grid(steps, low, high, getattr(denoiser, "round_sigma", None))
    if not isinstance(levels, Tensor) or levels.ndim != 1 or len(levels) < 2 or not bool((levels.diff() < 0).all()):
        told = levels.tolist() if isinstance(levels, Tensor) else repr(levels)
        raise InputError(f"grid gave {told}; noise levels are a tensor [num_steps + 1] that falls strictly to 0")
    if levels[-1] != 0 or not bool(torch.isfinite(levels).all()):
        raise InputError(f"grid gave {levels.tolist()}; noise levels are finite and the last one is 0")
    return levels.to(torch.float64)


def _sources(
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
    source = noise if noise is not None else seeded
    if latents is None:
        return source, seeded
    if not isinstance(latents, Tensor):
        raise InputError(f"latents is a {type(latents).__name__}; it must be a tensor of shape {(n, *item)}")
    if tuple(latents.shape) != (n, *item):
        raise InputError(f"latents has shape {tuple(latents.shape)}; it must be that of the samples, {(n, *item)}")
    if not latents.is_floating_point() or not bool(torch.isfinite(latents).all()):
        raise InputError("latents holds NaN, infinite or integer values; it must be finite and floating point")
    return source, latents


def _check_condition(condition: Mapping[str, Tensor] | None, n: int, denoiser: Denoiser) -> dict[str, Tensor]:
    if condition is not None and not isinstance(condition, Mapping):
        raise InputError(
            f"condition is a {type(condition).__name__}; it must be a mapping such as {{'labels': tensor}}"
        )
    checked = dict(condition or {})
    for key, value in checked.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) not in (1, n):
            told = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise InputError(
                f"condition {key!r} is {told}; it must be a tensor with a batch axis of {n} (the number of "
                f"samples) or 1"
            )
    labels = checked.get("labels")
    if labels is not None and hasattr(denoiser, "check_labels"):
        # Here and not in the network, where looking at values would wait for the device.
        denoiser.check_labels(labels)
    return checked


def _check_batch_size(batch_size: int | None, n: int, item: tuple[int, ...]) -> int:
    if batch_size is None:
        return min(n, max(1, _DEFAULT_BATCH_ELEMENTS // math.prod(item)))
    return check_count("batch_size", batch_size)


def _device(
    device: torch.device | str | None, denoiser: Denoiser, latents: Tensor | None, condition: Mapping[str, Tensor]
) -> torch.device:
    if device is not None:
        return known_device(device)
    if isinstance(denoiser, nn.Module):
        for tensor in (*denoiser.parameters(), *denoiser.buffers()):
            return tensor.device
    for value in (latents, *condition.values()):
        if value is not None:
            return value.device
    return torch.device("cpu")


@functools.cache
def _keep_freed_memory() -> None:
    """Lets freed states be used again instead of going back to the system, once a process.

    glibc's malloc returns freed memory beyond twice the largest block below 32 MiB that was ever freed, and each page
    taken anew costs a fault: a third of what sampling adds to the denoiser for a state of 1.5 MiB. Freeing one large
    block, of which no page was touched, raises that bound to 64 MiB. Other allocators do not notice.
    """
    torch.empty((1 << 25) - (1 << 16), dtype=torch.uint8)


def _start(
    starts: Seeded | Tensor, start: int, stop: int, item: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The unit normals [stop - start, *item] that a batch starts from, as a tensor of its own."""
    if isinstance(starts, Seeded):
        return starts.rows(start, stop).latents(item, dtype=dtype, device=device)
    return starts[start:stop].to(device=device, dtype=dtype, copy=True)


@contextlib.contextmanager
def _evaluation_mode(denoiser: Denoiser) -> Iterator[None]:
    """Dropout and the like are off while sampling; each part is then put back in the mode that it was in."""
    if not isinstance(denoiser, nn.Module) or not denoiser.training:
        yield
        return
    frozen = [part for part in denoiser.modules() if not part.training]
    denoiser.eval()
    try:
        yield
    finally:
        denoiser.train()
        for part in frozen:
            part.training = False
