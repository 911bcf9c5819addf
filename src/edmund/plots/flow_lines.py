"""Flow lines in one dimension: how samples move from noise to data, over the density that they move in (Figure 3 of
Karras et al. 2022).

In the unscaled z = y + sigma n the lines of every process are the same; a process decides where on its time axis each
noise level lies, and by what the line is scaled there. So a sampler that steps in t sees straight lines or bent ones.
In one dimension lines never cross: the line that starts at a quantile of p(x; sigma_max) is at that quantile of
p(x; sigma) all the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from edmund.errors import InputError, check_count
from edmund.integrate import integrate
from edmund.plots import style
from edmund.process import Process, check_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TOLERANCE = 1e-8
_REACH = 1.15  # of a panel's x axis, beyond the outermost line


class Exact(Protocol):
    """An exact denoiser over vectors of one element, such as `denoiser.GaussianMixture`."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor: ...

    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """log p(x; sigma) [B] of x [B, 1]."""
        ...


@dataclass(frozen=True)
class FlowLines:
    """The picture of one process as arrays, float64."""

    t: np.ndarray
    """[P] times, rising evenly from t(sigma_min) to t(sigma_max)."""
    sigma: np.ndarray
    """[P] noise levels at these times."""
    x: np.ndarray
    """[P, L] scaled states s(t) z of the lines, which start at the quantiles (k + 1/2) / L of p(x; sigma_max)."""
    places: np.ndarray
    """[Q] places on the axis of x, rising evenly."""
    density: np.ndarray
    """[P, Q] density of the scaled state at each time and place; integrates to 1 over all x."""
    curvature: float
    """Mean over the lines of arc length over chord, less 1, with the ranges of t and of the axis of x scaled to 1; 0
    where all lines are straight."""


def flow_line_arrays(
    process: Process,
    denoiser: Exact,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 4.0,
    lines: int = 12,
    points: int = 400,
) -> FlowLines:
    """The flow lines of one process with `lines` lines, at `points` times and places."""
    check_range(sigma_min, sigma_max)
    check_count("lines", lines)
    check_count("points", points, least=2)
    if not hasattr(denoiser, "log_prob") or getattr(denoiser, "dim", 1) != 1:
        raise InputError(
            f"denoiser is {denoiser!r}; flow lines are drawn of an exact denoiser over vectors of one element"
        )
    ends = process.t(torch.tensor([sigma_min, sigma_max], dtype=torch.float64))
    t = ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, points, dtype=torch.float64)
    sigma = process.sigma(t)
    sigma[0], sigma[-1] = sigma_min, sigma_max  # exactly, whatever the inverse's rounding

    def slope(log_sigma: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        return z - denoiser(z, log_sigma.exp())

    with torch.no_grad():
        start = _quantiles(denoiser, sigma_max, lines)
        level = sigma.log()
        solution = integrate(
            slope,
            start[:, None],
            level[-1].item(),
            level[0].item(),
            rtol=_TOLERANCE,
            atol=_TOLERANCE,
            times=level,
        )
        s = process.s(t)
        x = solution.at[..., 0] * s[:, None]
        reach = _REACH * x.abs().max().item()
        places = torch.linspace(-reach, reach, points, dtype=torch.float64)
        density = torch.stack(
            [(denoiser.log_prob(places[:, None] / a, b) - a.log()).exp() for a, b in zip(s, sigma, strict=True)]
        )
    steps_t = (t.diff() / (t[-1] - t[0]))[:, None]
    steps_x = x.diff(dim=0) / (2 * reach)
    arcs = torch.hypot(steps_t.expand_as(steps_x), steps_x).sum(0)
    chords = torch.hypot(torch.ones_like(arcs), steps_x.sum(0))
    return FlowLines(
        t.numpy(), sigma.numpy(), x.numpy(), places.numpy(), density.numpy(), (arcs / chords - 1).mean().item()
    )


def _quantiles(denoiser: Exact, sigma: float, count: int) -> Tensor:
    """The quantiles (k + 1/2) / count of p(x; sigma), [count]."""
    reach = torch.tensor(sigma, dtype=torch.float64)
    while True:  # until the window holds the mass
        places = torch.linspace(-1, 1, 20_001, dtype=torch.float64) * reach
        density = denoiser.log_prob(places[:, None], sigma).exp()
        mass = torch.cumulative_trapezoid(density, places)
        if mass[-1] > 1 - 1e-6:
            break
        reach = 2 * reach
    wanted = (torch.arange(count, dtype=torch.float64) + 0.5) / count * mass[-1]
    right = torch.searchsorted(mass, wanted).clamp(1, len(mass) - 1)
    share = (wanted - mass[right - 1]) / (mass[right] - mass[right - 1])
    return torch.lerp(places[right], places[right + 1], share)


def flow_lines(
    processes: Mapping[str, Process],
    denoiser: Exact,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 4.0,
    lines: int = 12,
    columns: int = 3,
    title: str = "Flow lines of the probability-flow ODE",
) -> Figure:
    """One panel for each of the processes, by name: its lines over the density of the scaled state.

    sigma_max: where the lines start; low, since from far away the data are a point. A panel's title says by how much
    its lines are longer than their chords. Its data are those of `flow_line_arrays`.
    """
    if not processes:
        raise InputError("processes is empty; give at least one")
    check_count("columns", columns)
    drawn = {
        name: flow_line_arrays(process, denoiser, sigma_min=sigma_min, sigma_max=sigma_max, lines=lines)
        for name, process in processes.items()
    }
    columns = min(columns, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    with style.styled():
        figure = style.new_figure(max(3.2 * columns, 4.8), 2.45 * rows + 1.1)
        grid = figure.subplots(rows, columns, squeeze=False)
        for k, (place, (name, panel)) in enumerate(zip(grid.flat, drawn.items(), strict=False)):
            _draw(place, name, panel)
            if k % columns == 0:
                place.set_ylabel("state x = s(t) (y + σ n)")
        for place in list(grid.flat)[len(drawn) :]:
            place.set_axis_off()
        style.describe(
            figure,
            title,
            f"{lines} samples from noise (right, σ = {sigma_max:g}) to data (left), at even quantiles, over the "
            "density of x at each time (dark: high; each time to its own scale). Beside the name: by how much the "
            "lines are longer than their chords, in the panel's coordinates; less is easier for a sampler over t.",
        )
    return figure


def _draw(place: Axes, name: str, panel: FlowLines) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("density", ["#FFFFFF", "#9CC3DE", style.COLOURS[0]])
    # To the power 1/2, so that the thin density of high noise can be seen beside the data's peaks.
    shade = np.sqrt(panel.density / panel.density.max(axis=1, keepdims=True))
    place.imshow(
        shade.T,
        origin="lower",
        aspect="auto",
        cmap=colours,
        vmin=0,
        vmax=1,
        extent=(panel.t[0], panel.t[-1], panel.places[0], panel.places[-1]),
        interpolation="bilinear",
    )
    place.plot(panel.t, panel.x, color=style.INK, linewidth=0.8)
    place.grid(False)
    place.set_xlim(panel.t[0], panel.t[-1])
    place.set_ylim(panel.places[0], panel.places[-1])
    place.set_xlabel("time t")
    place.set_title(f"{name}: +{100 * panel.curvature:.2g} %")
