"""Validation loss against the width of the average: the picture by which a width is chosen after training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edmund.errors import InputError
from edmund.plots import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_against_width(
    widths: Sequence[float] | np.ndarray,
    losses: Sequence[float] | np.ndarray,
    met: Sequence[bool] | np.ndarray | None = None,
    *,
    delivered: float | None = None,
    title: str = "Validation loss of each width of the average",
) -> Figure:
    """Losses [K] against relative widths sigma_rel [K]; the lowest is marked.

    met: bool [K], which widths could be made (None: all); the others are hollow and never the best. delivered: the loss
    of the run's own average, a level line. Losses that are not finite are left out.
    """
    width, loss = np.asarray(widths, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    solid = np.ones(width.shape, dtype=bool) if met is None else np.asarray(met, dtype=bool)
    if width.ndim != 1 or len(width) == 0 or not width.shape == loss.shape == solid.shape or not (width > 0).all():
        raise InputError(
            f"widths, losses and met have shapes {width.shape}, {loss.shape} and {solid.shape}; all must be [K], K at "
            "least 1, the widths above 0"
        )
    order = np.argsort(width)
    order = order[np.isfinite(loss[order])]
    width, loss, solid = width[order], loss[order], solid[order]
    caption = "Same held-out data and noise for all. The axis of widths is logarithmic."
    if not solid.all():
        caption += " Hollow: widths that the snapshots cannot make well."
    with style.styled():
        figure = style.new_figure(6.4, 3.9)
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.plot(width, loss, color=style.COLOURS[0], linewidth=1.2, zorder=2)
        axes.plot(width[solid], loss[solid], "o", color=style.COLOURS[0], markersize=5, label="reconstructed")
        axes.plot(width[~solid], loss[~solid], "o", color=style.COLOURS[0], markerfacecolor="white", markersize=5)
        if delivered is not None and np.isfinite(delivered):
            axes.axhline(delivered, color=style.COLOURS[1], linestyle="--", linewidth=1.2, label="delivered average")
        if solid.any():
            best = int(np.argmin(np.where(solid, loss, np.inf)))
            axes.plot(
                width[best],
                loss[best],
                "o",
                color=style.COLOURS[2],
                markersize=10,
                markerfacecolor="none",
                markeredgewidth=1.8,
                label=f"best: {width[best]:.3g}",
            )
        ticks = _apart(width)
        axes.set_xticks(ticks, [f"{value:.3g}" for value in ticks])
        axes.minorticks_off()
        axes.set_xlabel("relative width of the average, σ_rel")
        axes.set_ylabel("validation loss")
        axes.legend(loc="best")
        style.describe(figure, title, caption)
    return figure


def _apart(widths: np.ndarray) -> list[float]:
    """Those of the rising widths whose labels do not touch on a logarithmic axis: a fourteenth of it apart."""
    least = (widths[-1] / widths[0]) ** (1 / 14) if len(widths) else 1.0
    kept: list[float] = []
    for value in widths.tolist():
        if not kept or value >= least * kept[-1]:
            kept.append(value)
    return kept
