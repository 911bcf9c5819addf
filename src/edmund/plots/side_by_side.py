"""Real data beside generated ones, class by class: what the eye should be asked before any number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edmund.errors import InputError, check_count
from edmund.plots import style
from edmund.plots.grid import range_text, show, to_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def side_by_side(
    real: Tensor | np.ndarray,
    generated: Tensor | np.ndarray,
    value_range: tuple[float, float],
    *,
    real_labels: Tensor | np.ndarray | None = None,
    labels: Tensor | np.ndarray | None = None,
    rows: int = 10,
    columns: int = 8,
    class_names: Sequence[str] | None = None,
    title: str = "Real and generated",
) -> Figure:
    """Real images [M, C, H, W] at the left, generated ones [N, C, H, W] at the right, at most `rows` of `columns` each.

    With `labels` [N] of the generated and `real_labels` [M], a row is a class, and shows the first of it in each set;
    without, the first images are shown as they come. The images shown are those of `chosen`.
    """
    first, second = chosen(len(real), len(generated), real_labels, labels, rows=rows, columns=columns)
    left = to_bytes(torch.as_tensor(real)[first.flatten()], value_range)
    right = to_bytes(torch.as_tensor(generated)[second.flatten()], value_range)
    names = None
    if labels is not None:
        classes = torch.as_tensor(labels).cpu()[second[:, 0]].tolist()
        names = [class_names[c] if class_names else str(c) for c in classes]
    shown_rows, shown_columns = first.shape
    with style.styled():
        cell = min(0.5, 4.5 / shown_columns)
        height = cell * left.shape[1] / left.shape[2]
        figure = style.new_figure(max(2 * shown_columns * cell + 0.9, 4.0), shown_rows * height + 1.15)
        axes = figure.subplots(1, 2)
        show(axes[0], left, shown_columns, names)
        show(axes[1], right, shown_columns)
        axes[0].set_title("real", color=style.COLOURS[0])
        axes[1].set_title("generated", color=style.COLOURS[1])
        if names:
            axes[0].set_ylabel("class")
        order = "The first of each class, not chosen by hand" if names else "The first of each, not chosen by hand"
        style.describe(figure, title, f"{order}; {range_text(value_range)}.")
    return figure


def chosen(
    real_count: int,
    count: int,
    real_labels: Tensor | np.ndarray | None,
    labels: Tensor | np.ndarray | None,
    *,
    rows: int,
    columns: int,
) -> tuple[Tensor, Tensor]:
    """Indices [R, S] of the real and of the generated images to show.

    S is less than `columns` where a class, or a set, has fewer.
    """
    check_count("rows", rows)
    check_count("columns", columns)
    if (labels is None) != (real_labels is None):
        raise InputError("one of labels and real_labels is None; give both, or neither")
    if labels is None or real_labels is None:
        columns = min(columns, real_count, count)
        rows = min(rows, real_count // columns, count // columns)
        index = torch.arange(rows * columns).reshape(rows, columns)
        return index, index
    sets = []
    for argument, values, n in (("real_labels", real_labels, real_count), ("labels", labels, count)):
        tensor = torch.as_tensor(values).cpu()
        if tuple(tensor.shape) != (n,):
            raise InputError(f"{argument} has shape {tuple(tensor.shape)}; it must have one label an image: [{n}]")
        sets.append(tensor)
    classes = sorted(set(sets[1].tolist()))[:rows]
    members = [[(tensor == c).nonzero().flatten() for c in classes] for tensor in sets]
    for c, found in zip(classes, members[0], strict=True):
        if len(found) == 0:
            raise InputError(f"labels has the class {c}, which real_labels does not have")
    columns = min(columns, *(len(found) for of_set in members for found in of_set))
    first, second = (torch.stack([found[:columns] for found in of_set]) for of_set in members)
    return first, second
