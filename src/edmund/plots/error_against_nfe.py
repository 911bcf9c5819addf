"""Error against the number of denoiser calls (NFE): the picture by which samplers are chosen."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edmund.errors import InputError, unknown
from edmund.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINE_HEIGHT = 0.145  # inches, of a label of 7.5 points


def error_against_nfe(
    table: Mapping[str, Mapping[int, float]],
    *,
    highlight: Collection[str] = (),
    quantity: str = "RMS distance from the converged solution",
    title: str = "Error against denoiser calls",
    caption: str = "",
) -> Figure:
    """One line a sampler: table[name][NFE] is its error; logarithmic axes, each line named to the right.

    Lines may have their own NFE. highlight: the names drawn in strong lines, the others then being pale. Errors that
    are 0, infinite or NaN have no place and are left out. Names are ordered by the error at the line's end and stand as
    near to it as they can, each beside a sample of its line; a thin leader joins those of the most NFE.
    """
    curves = {name: _curve(name, errors) for name, errors in table.items()}
    if not curves:
        raise InputError("table is empty; give at least one sampler's errors")
    for name in highlight:
        if name not in curves:
            raise unknown("highlight", name, curves)
    with style.styled():
        figure = style.new_figure(8.2, max(4.6, _LINE_HEIGHT * len(curves) + 1.6))
        axes = figure.add_subplot()
        for k, (name, (nfe, error)) in enumerate(curves.items()):
            pale = bool(highlight) and name not in highlight
            axes.plot(
                nfe,
                error,
                linewidth=2.2 if name in highlight else 1.1,
                alpha=0.45 if pale else 1.0,
                **_look(k),
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.minorticks_off()
        ticks = sorted({int(calls) for nfe, _ in curves.values() for calls in nfe})
        axes.set_xticks(_apart(ticks), [str(tick) for tick in _apart(ticks)])
        axes.set_xlabel("denoiser calls a sample (NFE)")
        axes.set_ylabel(quantity)
        _name_lines(axes, curves, highlight)
        style.describe(figure, title, caption or "Both axes logarithmic; lower and further left is better.")
    return figure


def _curve(name: str, errors: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """NFE, rising, and error of the entries that have a place on logarithmic axes."""
    placed = sorted((int(nfe), float(error)) for nfe, error in errors.items() if np.isfinite(error) and error > 0)
    if not placed or placed[0][0] < 1:
        raise InputError(f"table[{name!r}] is {dict(errors)}; it must have NFE of at least 1 and an error above 0")
    columns = np.array(placed)
    return columns[:, 0], columns[:, 1]


def _look(k: int) -> dict[str, Any]:
    """Colour, dashes and marker of the k-th line: 210 before one comes again."""
    return {
        "color": style.COLOURS[k % len(style.COLOURS)],
        "linestyle": style.DASHES[k // len(style.COLOURS) % (len(style.DASHES) - 1)],  # the last looks like dots
        "marker": _MARKERS[k % len(_MARKERS)],
        "markersize": 3.5,
    }


def _apart(ticks: Sequence[int]) -> list[int]:
    """The ticks without those that would run into the one before: closer than a factor 1.15."""
    kept = list(ticks[:1])
    for tick in ticks[1:]:
        if tick >= 1.15 * kept[-1]:
            kept.append(tick)
    return kept


def _name_lines(axes: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], highlight: Collection[str]) -> None:
    """Names in a column to the right, each as near to the height of its line's end as the others let it."""
    logs = np.log10(np.concatenate([error for _, error in curves.values()]))
    room = max(0.05 * (logs.max() - logs.min()), 0.1)
    low, high = logs.min() - room, logs.max() + room
    axes.set_ylim(10**low, 10**high)
    inches = axes.get_figure().get_figheight() - 1.35  # type: ignore[union-attr]
    order = sorted(range(len(curves)), key=lambda k: list(curves.values())[k][1][-1])
    names, ends = list(curves), [(nfe[-1], error[-1]) for nfe, error in curves.values()]
    wanted = [(np.log10(ends[k][1]) - low) / (high - low) for k in order]
    for k, height in zip(order, spread(wanted, _LINE_HEIGHT / inches), strict=True):
        strong = names[k] in highlight
        axes.plot(
            (1.055, 1.08, 1.105),
            (height,) * 3,
            transform=axes.transAxes,
            clip_on=False,
            markevery=[1],
            **(_look(k) | {"linewidth": 2.2 if strong else 1.1}),
        )
        axes.text(
            1.12,
            height,
            names[k],
            transform=axes.transAxes,
            va="center",
            fontsize=7.5,
            fontweight="bold" if strong else "normal",
        )
        if ends[k][0] == max(nfe for nfe, _ in ends):  # a leader from a line that ends before would cross the others
            axes.annotate(
                "",
                ends[k],
                xytext=(1.05, height),
                textcoords="axes fraction",
                annotation_clip=False,
                arrowprops={
                    "arrowstyle": "-",
                    "color": _look(k)["color"],
                    "linewidth": 0.6,
                    "alpha": 0.6,
                    "shrinkA": 0,
                    "shrinkB": 3,
                },
            )


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Rising heights at least `gap` apart, within [0, 1] if they fit, that are nearest to the wanted, rising ones in
    the sum of squares.

    With height_i = u_i + i gap the u_i must not fall: isotonic regression, by pooling neighbours that are out of order.
    """
    pools: list[list[float]] = []  # of (mean, size)
    for i, height in enumerate(wanted):
        pools.append([height - i * gap, 1.0])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, size = pools.pop()
            pools[-1] = [(pools[-1][0] * pools[-1][1] + mean * size) / (pools[-1][1] + size), pools[-1][1] + size]
    highest = 1 - (len(wanted) - 1) * gap
    levels = [min(max(mean, 0.0), max(highest, 0.0)) for mean, size in pools for _ in range(int(size))]
    return [level + i * gap for i, level in enumerate(levels)]
