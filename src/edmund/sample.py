r"""Sampling: from noise to data, with any sampler, grid and process.

Sample k starts at s(t_0) sigma_0 n_k with n_k unit normal, the limit of the noisy data's law at large sigma_0. What
that misses: of a data mean m about m d / sqrt(sigma_0^2 + d^2), with d the data's standard deviation.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from edmund import formulation as formulations
from edmund import grid as grids
from edmund import process as processes
from edmund import progress as progress_bars
from edmund import registry, samplers
from edmund.arguments import check_batch_size, check_condition, check_shape, device_of, evaluation_mode, rows_of
from edmund.choices import levels_of, resolve_grid, resolve_sampler, sources
from edmund.denoiser import Denoiser
from edmund.errors import InputError
from edmund.noise import NoiseSource, Seeded


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
    if hasattr(denoiser, "denoiser") and not callable(denoiser):
        raise InputError(f"denoiser is a {type(denoiser).__name__}; use its own sample(n), or give its .denoiser")
    if not callable(denoiser):
        raise InputError(f"denoiser is {denoiser!r}; it must be a callable (x, sigma, **condition) -> E[y | x]")
    defaults = getattr(denoiser, "formulation", None) or formulations.EDM()
    n, item = check_shape(shape)
    solver = resolve_sampler(sampler, defaults)
    path = (
        registry.resolve("process", process, processes.named(), processes.Process)
        if process is not None
        else defaults.process
    )
    nodes = resolve_grid(grid, defaults)
    sigmas = levels_of(denoiser, defaults, nodes, num_steps, sigma_min, sigma_max)
    visited = (solver.visited(sigmas) if isinstance(solver, samplers.Sampler) else sigmas[:-1]).clone()
    brownian = isinstance(solver, samplers.Sampler) and solver.brownian
    source, starts = sources(n, len(visited), item, seeds, latents, noise, brownian=brownian)
    conditions = check_condition(condition, n, denoiser)
    size = check_batch_size(batch_size, n, item)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype is {dtype!r}; the state is floating point, such as torch.float64")
    if callback is not None and not callable(callback):
        raise InputError(f"callback is {callback!r}; it must be a function of a Step")
    where = device_of(device, denoiser, latents, conditions)
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
    with torch.no_grad(), evaluation_mode(denoiser), bar:
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
            x = solver(
                denoiser,
                begin.mul_(scale),
                sigmas,
                process=path,
                noise=batch_source,
                condition=rows_of(conditions, start, stop, where),
                callback=report,
            )
            out[start:stop] = x if s_end == 1.0 else x / s_end
    if return_trajectory:
        states[-1] = out
        return Trajectory(out, torch.cat([visited, sigmas[-1:]]), states, denoised)
    return out


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
