"""Curves of training: the loss as it falls, and the loss at each noise level.

The second is Figure 5a of the EDM paper (arXiv 2206.00364), the picture by which the density of training noise levels
is chosen: at very low noise the network cannot beat its start because the target is noise, at very high noise it has
nothing to learn but the data's mean; training belongs where the gap between the two curves is widest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from edmund.errors import InputError
from edmund.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Quantiles(Protocol):
    """A density of training noise levels, as `edmund.noise_density` has them."""

    def quantile(self, u: Tensor) -> Tensor:
        """The noise level below which the fraction u lies."""
        ...


def read_curve(path: str | Path, value: str, against: str = "samples") -> tuple[np.ndarray, np.ndarray]:
    """Two columns of a metrics.jsonl, float64: `against` and `value` of every line that has both.

    Errors: a line that is not a JSON object (the last one may be cut off by a crash and is left out then), no line that
    has both.
    """
    if not Path(path).is_file():
        raise InputError(f"path is {str(path)!r}, and there is no such file; it must be a run's metrics.jsonl")
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    found: list[tuple[float, float]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # no newline after it: it was being written
                continue
            raise InputError(f"line {number} of {path} is not JSON ({error.msg}); the file is damaged") from error
        if not isinstance(record, dict):
            raise InputError(f"line {number} of {path} is not a JSON object; it must be a run's metrics.jsonl")
        if record.get(against) is not None and record.get(value) is not None:
            found.append((float(record[against]), float(record[value])))
    if not found:
        raise InputError(f"{path} has no line with {against!r} and {value!r}; is it the metrics.jsonl of a run?")
    columns = np.array(found)
    return columns[:, 0], columns[:, 1]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of `values` [N] over `window` points about each.

    At the start over fewer, evenly to both sides, so that a steep fall keeps its slope; at the end over those left.
    """
    place = np.arange(len(values))
    left = np.minimum(window // 2, place)
    right = np.minimum(left, len(values) - 1 - place)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    result: np.ndarray = (sums[place + right + 1] - sums[place - left]) / (left + right + 1)
    return result


def loss_curve(
    samples: np.ndarray,
    loss: np.ndarray,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    title: str = "Training loss",
) -> Figure:
    """Training loss [N] against samples seen [N], faint as it is, and smoothed.

    `validation` (samples seen [M], loss [M]) are points on a line.
    """
    samples, loss = np.asarray(samples, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if samples.shape != loss.shape or samples.ndim != 1 or len(samples) == 0:
        raise InputError(
            f"samples and loss have shapes {samples.shape} and {loss.shape}; both must be [N], N at least 1"
        )
    mean = smooth(loss, len(loss) // 40)
    caption = "Mean weighted loss of a batch (no unit)."
    with style.styled():
        figure = style.new_figure(6.4, 3.7)
        axes = figure.add_subplot()
        axes.plot(samples, loss, color=style.COLOURS[0], alpha=0.25, linewidth=0.8)
        axes.plot(samples, mean, color=style.COLOURS[0], label="training, smoothed")
        if validation is not None:
            seen, values = validation
            axes.plot(
                seen,
                values,
                "o-",
                color=style.COLOURS[1],
                markersize=4,
                linewidth=1.2,
                label="validation (EMA weights)",
            )
            best = int(np.argmin(values))
            caption += f" Lowest validation loss {values[best]:.4g} after {seen[best]:,.0f} samples."
        limits = np.concatenate([mean] + ([np.asarray(validation[1])] if validation is not None else []))
        set_loss_axis(axes, limits)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: thousands(value))
        axes.set_xlabel("training samples seen")
        axes.set_ylabel("loss")
        axes.legend(loc="upper right")
        style.describe(figure, title, caption)
    return figure


def set_loss_axis(axes: Axes, curve: np.ndarray) -> None:
    """Logarithmic where the curve falls by more than a factor of five, else from 0; single batches may stick out."""
    low, high = float(curve.min()), float(curve.max())
    if low > 0 and high > 5 * low:
        from matplotlib.ticker import LogLocator

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_ylim(low / 1.3, high * 1.3)
    else:
        axes.set_ylim(min(0.0, 1.1 * low), max(high, 0.0) + 0.15 * (high - min(low, 0.0)))


def thousands(value: float) -> str:
    """A count for an axis: 250 000 as 250k, 1 500 000 as 1.5M."""
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def density_of(noise_density: Quantiles, bins: int = 60, points: int = 60_000) -> tuple[np.ndarray, np.ndarray]:
    """Density of ln sigma, from the quantiles alone: the bins' middles in sigma [bins] and the density in them [bins].

    The outermost 1e-4 of the levels at each end are left out, so that a density without bounds has some.
    """
    u = 1e-4 + (1 - 2e-4) * (torch.arange(points, dtype=torch.float64) + 0.5) / points
    logs = noise_density.quantile(u).log().numpy()
    density, edges = np.histogram(logs, bins=bins, density=True)
    return np.exp((edges[1:] + edges[:-1]) / 2), density


def loss_against_sigma(
    sigma: np.ndarray,
    current: np.ndarray | None = None,
    initial: np.ndarray | None = None,
    densities: Mapping[str, Quantiles] | None = None,
    *,
    linear: np.ndarray | None = None,
    title: str = "Loss at each noise level",
) -> Figure:
    """Losses [K] against the noise level [K]: now, at initialisation, of the best linear denoiser, whichever are given;
    below, where training puts its noise levels.

    The losses are per element and weighted as in training with weight lambda(sigma), so that one without a prediction
    is near 1 under EDM's preconditioning. `densities`: by name; the first is shaded, others (a suggested one) are
    outlined.
    """
    sigma = np.asarray(sigma, dtype=np.float64)
    curves = [
        (np.asarray(values, dtype=np.float64), label, colour, dash)
        for values, label, colour, dash in (
            (initial, "at initialisation", style.COLOURS[2], "--"),
            (linear, "best linear denoiser", style.COLOURS[3], "-."),
            (current, "now", style.COLOURS[0], "-"),
        )
        if values is not None
    ]
    shapes = [values.shape for values, *_ in curves]
    if sigma.ndim != 1 or len(sigma) < 2 or not (sigma > 0).all() or set(shapes) != {sigma.shape}:
        raise InputError(
            f"sigma has shape {sigma.shape} and the losses {shapes}; all must be [K], K at least 2, sigma above 0, "
            f"and there must be one loss"
        )
    with style.styled():
        figure = style.new_figure(6.4, 4.2)
        axes = figure.add_subplot()
        axes.set_xscale("log")
        for values, label, colour, dash in curves:
            axes.plot(sigma, values, color=colour, linestyle=dash, label=label)
        highest = float(max(values.max() for values, *_ in curves))
        axes.set_ylim(0, 1.35 * highest)
        axes.set_xlim(sigma.min(), sigma.max())
        axes.set_xlabel("noise level σ (units of the scaled data)")
        axes.set_ylabel("weighted loss per element")
        tallest = max((density_of(d)[1].max() for d in (densities or {}).values()), default=1.0)
        for k, (name, density) in enumerate((densities or {}).items()):
            level, height = density_of(density)
            shape = 0.45 * highest * height / tallest
            if k == 0:
                axes.fill_between(level, shape, color=style.SHADE, linewidth=0, zorder=0.5, label=name)
            else:
                axes.plot(level, shape, color=style.COLOURS[1], linewidth=1.2, linestyle=":", label=name)
        axes.legend(loc="upper center", ncols=2, columnspacing=1.5)
        style.describe(
            figure,
            title,
            "1: no better than the data's mean and variance. Densities of ln σ are to one scale, without a unit.",
        )
    return figure
