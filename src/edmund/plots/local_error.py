"""The local truncation error of a sampler's steps against the noise level (Figure 13 of Karras et al. 2022).

A step's local error is what it adds by itself: it starts from the converged solution of the probability-flow ODE, and
its end is compared with the solution there. Multistep samplers remember images from before the step; those, too, are of
the solution. A grid spends its steps well where none of them stands out by what it does to the end, which is how
`grid.Optimised.fit` places them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from edmund.denoiser import Denoiser
from edmund.errors import InputError
from edmund.integrate import integrate
from edmund.plots import style
from edmund.process import EDM, Process
from edmund.samplers import LinearSampler

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TOLERANCE = 1e-8


class LocalErrors(NamedTuple):
    """sigma: [N] levels that the steps start from, falling, float64. error: [N] local errors of these steps, the root
    mean square over samples and elements of the unscaled state.
    """

    sigma: np.ndarray
    error: np.ndarray


def local_errors(
    denoiser: Denoiser,
    sampler: LinearSampler,
    sigmas: Tensor | Sequence[float],
    latents: Tensor,
    *,
    process: Process | None = None,
    condition: Mapping[str, Tensor] | None = None,
    tolerance: float = _TOLERANCE,
) -> LocalErrors:
    """The local errors of the steps of a deterministic fixed-step sampler along the ODE's solution.

    sigmas: [N + 1] falling, as a grid gives them; a final 0 is left out, since the ODE has no value there to compare
    with. latents: unit normals [n, *], float64, scaled by sigma_0 to start the solution. process: None: EDM's.
    tolerance: of the solution, absolute and relative; errors below it are noise.
    """
    if not isinstance(sampler, LinearSampler) or sampler.stochastic:
        raise InputError(f"sampler is {sampler!r}; local errors are of deterministic samplers with steps of a grid")
    levels = torch.as_tensor(sigmas, dtype=torch.float64).cpu()
    levels = levels[levels > 0] if levels.ndim == 1 else levels
    if levels.ndim != 1 or len(levels) < 2 or not bool((levels.diff() < 0).all()):
        raise InputError(f"sigmas is {levels.tolist()}; it must be at least two positive levels that fall")
    given = dict(condition or {})
    path = EDM() if process is None else process

    def slope(log_sigma: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        known = {name: value.expand(len(latents), *value.shape[1:])[rows] for name, value in given.items()}
        return z - denoiser(z, log_sigma.exp(), **known)

    def denoised(z: Tensor, sigma: float) -> Tensor:
        return denoiser(z, torch.full((), sigma, dtype=torch.float64, device=z.device), **given)

    log_sigma = levels.log()
    with torch.no_grad():
        solution = integrate(
            slope,
            latents * levels[0].item(),
            log_sigma[0].item(),
            log_sigma[-1].item(),
            rtol=tolerance,
            atol=tolerance,
            times=log_sigma,
        ).at
        errors = []
        plan = sampler.plan(path, levels[:-1], levels[1:])
        images: deque[Tensor] = deque(maxlen=max(len(stage.kept) for step in plan for stage in step.stages) or 1)
        for k, step in enumerate(plan):
            z = solution[k]
            if step.stages[0].sigma is None and images:
                # A predictor-corrector's image at its start is of the prediction that the step before corrected.
                images[0] = denoised(z, levels[k].item())
            for stage in step.stages:
                if stage.sigma is not None:
                    image = denoised(z, stage.sigma)
                    images.appendleft(image if stage.keep is None else stage.keep[0] * z + stage.keep[1] * image)
                z = stage.x * solution[k]
                for weight, image in zip(stage.kept, images, strict=False):
                    z = z + weight * image
            errors.append((z - solution[k + 1]).square().mean().sqrt().item())
    return LocalErrors(levels[:-1].numpy(), np.array(errors))


def local_error_against_sigma(
    curves: Mapping[str, LocalErrors],
    nodes: Mapping[str, Tensor | Sequence[float]] | None = None,
    *,
    title: str = "Local error of each step",
) -> Figure:
    """The local errors of samplers, grids or denoisers, by name, logarithmic; each step a point where it starts.

    nodes: noise levels of further grids, by name, shown as rows of ticks below. The data are those of `local_errors`.
    """
    if not curves:
        raise InputError("curves is empty; give at least one")
    rows = {
        name: np.asarray(torch.as_tensor(levels, dtype=torch.float64).cpu()) for name, levels in (nodes or {}).items()
    }
    with style.styled():
        figure = style.new_figure(6.8, 4.2 + 0.22 * len(rows))
        heights = [1.0, 0.075 * len(rows)] if rows else [1.0]
        axes, *below = figure.subplots(
            len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
        )[:, 0]
        for k, (name, curve) in enumerate(curves.items()):
            seen = curve.error > 0  # a step without any error has no place on a logarithmic axis
            axes.plot(
                curve.sigma[seen],
                curve.error[seen],
                linestyle=style.DASHES[k // len(style.COLOURS) % len(style.DASHES)],
                marker="o",
                markersize=3,
                linewidth=1.2,
                color=style.COLOURS[k % len(style.COLOURS)],
                label=name,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.set_ylabel("local error, RMS (units of the data)")
        axes.legend(loc="best")
        for place in below:
            place.set_yticks(range(len(rows)), list(rows))
            place.set_ylim(len(rows) - 0.4, -0.6)
            place.tick_params(axis="y", length=0)
            place.grid(False)
            for k, levels in enumerate(rows.values()):
                colour = style.COLOURS[k % len(style.COLOURS)]
                place.plot(levels[levels > 0], np.full((levels > 0).sum(), k), "|", color=colour, markersize=8)
            place.minorticks_off()
        (below[0] if below else axes).set_xlabel("noise level σ at the step's start")
        style.describe(
            figure,
            title,
            "What each step adds by itself, when it starts from the exact solution; root mean square over samples and "
            "elements, unscaled. The last step, to σ = 0, is left out."
            + (" Below: the levels that grids visit." if rows else ""),
        )
    return figure
