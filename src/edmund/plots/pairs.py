"""Vectors as pictures: every pair of the first few features, and each feature's histogram on the diagonal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edmund.errors import InputError, check_count
from edmund.plots import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More points than this hide each other.
_POINTS = 2000


def pairs(
    samples: Tensor | np.ndarray,
    real: Tensor | np.ndarray | None = None,
    *,
    features: int = 5,
    names: Sequence[str] | None = None,
    title: str = "Samples",
) -> Figure:
    """Samples [N, D] over real data [M, D] if given: a scatter of each pair of the first `features`, histograms on the
    diagonal (as densities). Axes span the 0.5th to the 99.5th percentile of what is shown, widened by a tenth.
    names: of the D features.
    """
    drawn = _points("samples", samples)
    other = None if real is None else _points("real", real)
    if other is not None and other.shape[1] != drawn.shape[1]:
        raise InputError(f"real has {other.shape[1]} features, samples have {drawn.shape[1]}")
    if names is not None and len(names) != drawn.shape[1]:
        raise InputError(f"names has {len(names)} names, samples have {drawn.shape[1]} features")
    labels = [f"feature {k}" for k in range(drawn.shape[1])] if names is None else list(names)
    count = min(check_count("features", features), drawn.shape[1])
    sets = [(drawn, style.COLOURS[0], "samples")]
    if other is not None:
        sets.insert(0, (other, style.COLOURS[5], "real data"))
    limits = [_limits(np.concatenate([rows[:, k] for rows, _, _ in sets])) for k in range(count)]
    with style.styled():
        figure = style.new_figure(1.6 * count + 1.2, 1.6 * count + 0.8)
        axes = figure.subplots(count, count, squeeze=False)
        for row in range(count):
            for column in range(count):
                panel = axes[row, column]
                if column > row:
                    panel.set_visible(False)
                    continue
                for rows, colour, name in sets:
                    if row == column:
                        bins = np.linspace(*limits[row], 41)
                        panel.hist(rows[:, row], bins=bins, density=True, histtype="step", color=colour, label=name)
                        panel.set_yticks([])
                    else:
                        panel.scatter(rows[:, column], rows[:, row], s=2, alpha=0.35, color=colour, linewidths=0)
                        panel.set_ylim(*limits[row])
                panel.set_xlim(*limits[column])
                if row == count - 1:
                    panel.set_xlabel(labels[column])
                if column == 0 and row > 0:
                    panel.set_ylabel(labels[row])
        axes[0, 0].legend(loc="upper left", bbox_to_anchor=(1.05, 1.0))
        shown = "all features" if count == drawn.shape[1] else f"the first {count} of {drawn.shape[1]} features"
        style.describe(figure, title, f"At most {_POINTS} points of each; {shown}, in the data's units.")
    return figure


def _points(argument: str, values: Tensor | np.ndarray) -> np.ndarray:
    rows = torch.as_tensor(values).detach().cpu().double().numpy()
    if rows.ndim != 2 or len(rows) == 0:
        raise InputError(f"{argument} has shape {rows.shape}; it must be [N, D], N at least 1")
    return rows[:_POINTS]


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [0.5, 99.5])
    margin = 0.1 * (high - low) or 1.0
    return float(low - margin), float(high + margin)
