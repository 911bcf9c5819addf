"""Table 1 as pictures: what each formulation chooses, a formulation a row, a choice a column.

The schedule sigma(t) and the scaling s(t) over the times that sampling visits, the preconditioning D = c_skip x + c_out
F(c_in x; c_noise) over noise levels, and the grid. t runs from data (left) to noise; the grid's steps run from noise to
data, as the sampler goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edmund.errors import InputError, check_count
from edmund.formulation import Formulation
from edmund.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curves:
    """One formulation as arrays, float64. `t` is of the process; the coefficients stand at `sigma`."""

    name: str
    sigma: np.ndarray
    """[P] rising from sigma_min to sigma_max of the formulation, logarithmically even."""
    t: np.ndarray
    """[P] times at which the process has these noise levels."""
    s: np.ndarray
    """[P] scaling at these times."""
    c_skip: np.ndarray
    c_out: np.ndarray
    c_in: np.ndarray
    c_noise: np.ndarray
    nodes: np.ndarray
    """[N + 1] noise levels of a grid of N steps, falling, the last 0."""


def formulation_curves(
    formulation: Formulation, *, num_steps: int = 18, points: int = 400, sigma_data: float = 0.5
) -> Curves:
    """The curves of one formulation.

    `sigma_data` is used where the formulation still waits for the data's (0.5: images in [-1, 1]).
    """
    check_count("points", points, least=2)
    if formulation.needs_sigma_data:
        formulation = formulation.with_sigma_data(sigma_data)
    low, high = (torch.tensor(v, dtype=torch.float64).log() for v in (formulation.sigma_min, formulation.sigma_max))
    sigma = torch.exp(low + (high - low) * torch.linspace(0, 1, points, dtype=torch.float64))
    process, scale = formulation.process, formulation.preconditioning
    t = process.t(sigma)
    return Curves(
        formulation.name,
        sigma.numpy(),
        t.numpy(),
        process.s(t).numpy(),
        scale.c_skip(sigma).numpy(),
        scale.c_out(sigma).numpy(),
        scale.c_in(sigma).numpy(),
        scale.c_noise(sigma).numpy(),
        formulation.grid(num_steps, formulation.sigma_min, formulation.sigma_max).numpy(),
    )


def formulations(
    rows: Sequence[Formulation],
    *,
    num_steps: int = 18,
    sigma_data: float = 0.5,
    title: str = "Formulations",
) -> Figure:
    """Each of `rows`: sigma(t), s(t), the preconditioning coefficients against sigma, the nodes of a grid.

    The data of a row are those of `formulation_curves`.
    """
    if not rows:
        raise InputError("rows is empty; give at least one formulation")
    drawn = [formulation_curves(f, num_steps=num_steps, sigma_data=sigma_data) for f in rows]
    with style.styled():
        figure = style.new_figure(12.0, 1.45 * len(rows) + 1.4)
        axes = figure.subplots(len(rows), 5, squeeze=False)
        span = min(c.sigma[0] for c in drawn), max(c.sigma[-1] for c in drawn)
        for row, c in zip(axes, drawn, strict=True):
            draw_row(row, c, span)
        for place, heading in zip(axes[0], HEADINGS, strict=True):
            place.set_title(heading, pad=8)
        for place, label in zip(
            axes[-1], ("time t", "time t", "noise level σ", "noise level σ", "step i"), strict=True
        ):
            place.set_xlabel(label)
        for row, c in zip(axes, drawn, strict=True):
            row[0].set_ylabel(c.name, fontsize=11, fontweight="bold", rotation=0, ha="right", va="center", labelpad=12)
        handles, labels = axes[0][2].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=3)
        waiting = [f.name for f in rows if f.needs_sigma_data]
        assumed = f" {', '.join(waiting)}: with σ_data = {sigma_data:g}." if waiting else ""
        style.describe(
            figure,
            title,
            f"Over each formulation's own range of noise levels. D = c_skip x + c_out F(c_in x; c_noise). Grids "
            f"of {num_steps} steps; "
            f"the last step goes to 0.{assumed}",
        )
    return figure


LINE_COLOURS = (style.COLOURS[4], style.COLOURS[1], style.INK)
HEADINGS = ("schedule σ(t)", "scaling s(t)", "c_skip, |c_out|, c_in", "c_noise", "grid σ_i")


def draw_row(row: Sequence[Axes], c: Curves, span: tuple[float, float]) -> None:
    """The five pictures of one formulation; `span` is the range of sigma of all rows."""
    schedule, scaling, coefficients, level, grid = row
    schedule.plot(c.t, c.sigma, color=style.COLOURS[0])
    schedule.set_yscale("log")
    schedule.set_ylim(span[0] / 2, span[1] * 2)
    scaling.plot(c.t, c.s, color=style.COLOURS[0])
    scaling.set_ylim(0, 1.1)
    scaling.set_yticks([0, 0.5, 1])
    if c.t[-1] > 1 + 1e-9:  # a time without an end, such as t = sigma or sigma^2
        for place in (schedule, scaling):
            place.set_xscale("log")

    # Where two of them are equal, the wider line shows beneath the narrower.
    lines = (("c_skip", c.c_skip, "-", 3.6), ("|c_out|", np.abs(c.c_out), "--", 1.7), ("c_in", c.c_in, "-", 1.3))
    for colour, (name, values, dash, width) in zip(LINE_COLOURS, lines, strict=True):
        coefficients.plot(c.sigma, values, color=colour, linestyle=dash, linewidth=width, label=name)
    coefficients.set_yscale("log")
    coefficients.set_ylim(1e-3, 1e3)
    level.plot(c.sigma, c.c_noise, color=style.COLOURS[0])
    for place in (coefficients, level):
        place.set_xscale("log")
        place.set_xlim(*span)

    positive = c.nodes[:-1]
    grid.plot(np.arange(len(positive)), positive, "o", color=style.COLOURS[0], markersize=3)
    grid.set_yscale("log")
    grid.set_ylim(span[0] / 2, span[1] * 2)
    for place in row:
        place.minorticks_off()
