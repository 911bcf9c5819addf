"""Samples side by side: as a figure with labels, or as a plain PNG of their very pixels.

A batch [N, C, H, W] with one or three channels becomes bytes by a linear map of its value range to 0 .. 255, rounded to
the nearest; values outside the range are shown as its ends, as a screen must.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edmund.errors import InputError, check_count
from edmund.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER = 255
"""Colour of the gaps between images: white."""


def to_bytes(images: Tensor | np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Images [N, C, H, W], C 1 or 3, as uint8 [N, H, W, C]; `value_range` (low, high) is black and full brightness.

    Errors: another shape, a value that is not finite, low >= high.
    """
    batch = torch.as_tensor(images).detach().cpu()
    if batch.ndim != 4 or batch.shape[1] not in (1, 3) or 0 in batch.shape:
        raise InputError(
            f"images has shape {tuple(batch.shape)}; it must be [N, C, H, W] with 1 or 3 channels, none of them empty"
        )
    low, high = value_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(
            f"value_range is {value_range!r}; it must be two finite numbers, the lower first, such as (0, 255)"
        )
    batch = batch.double()
    if not torch.isfinite(batch).all():
        raise InputError("images has NaN or infinite values; they must be finite")
    scaled = ((batch - low) / (high - low) * 255).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).numpy()


def tile(pictures: np.ndarray, columns: int, *, scale: int = 1, gap: int = 1) -> np.ndarray:
    """Pictures [N, H, W, C] uint8 in rows of `columns`, as one picture [R, S, C] uint8.

    Each pixel becomes `scale` x `scale`; `gap` white pixels lie between the pictures and around them.
    The picture k lies at row k // columns and column k % columns; places left over in the last row stay white.
    """
    check_count("columns", columns)
    check_count("scale", scale)
    check_count("gap", gap, least=0)
    n, height, width, channels = pictures.shape
    rows = -(-n // columns)
    big = pictures.repeat(scale, axis=1).repeat(scale, axis=2)
    down, across = height * scale + gap, width * scale + gap
    sheet = np.full((rows * down + gap, columns * across + gap, channels), PAPER, dtype=np.uint8)
    for k in range(n):
        top, left = gap + k // columns * down, gap + k % columns * across
        sheet[top : top + height * scale, left : left + width * scale] = big[k]
    return sheet


def write_png(
    path: str | Path,
    images: Tensor | np.ndarray,
    value_range: tuple[float, float],
    *,
    columns: int | None = None,
    scale: int | None = None,
    gap: int | None = None,
) -> np.ndarray:
    """Write images [N, C, H, W] as a PNG grid, pixel by pixel; returns the bytes written, [R, S, C].

    Each pixel becomes `scale` x `scale`, without smoothing.
    `columns` None: as square as can be. `scale` None: small images are enlarged to about 48 pixels. `gap` None: a
    twelfth of an image's width.
    """
    from PIL import Image

    pictures = to_bytes(images, value_range)
    n, height, width, channels = pictures.shape
    columns = square(n) if columns is None else columns
    scale = max(1, round(48 / max(height, width))) if scale is None else scale
    gap = max(1, width * scale // 12) if gap is None else gap
    sheet = tile(pictures, columns, scale=scale, gap=gap)
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(path, format="PNG")
    return sheet


def image_grid(
    images: Tensor | np.ndarray,
    value_range: tuple[float, float],
    *,
    columns: int | None = None,
    row_labels: Sequence[str] | None = None,
    title: str = "Samples",
    caption: str | None = None,
) -> Figure:
    """Images [N, C, H, W] in rows of `columns`, with a name at the left of each row if `row_labels` are given.

    `columns` None: as square as can be. The data shown are `tile(to_bytes(images, value_range), columns)`, enlarged.
    """
    pictures = to_bytes(images, value_range)
    columns = square(len(pictures)) if columns is None else columns
    rows = -(-len(pictures) // check_count("columns", columns))
    with style.styled():
        cell = min(0.6, 7.0 / columns)
        aspect = pictures.shape[1] / pictures.shape[2]
        figure = style.new_figure(max(columns * cell + (0.8 if row_labels else 0.2), 3.2), rows * cell * aspect + 0.9)
        axes = figure.add_subplot()
        show(axes, pictures, columns, row_labels)
        style.describe(figure, title, caption or f"{len(pictures)} images; {range_text(value_range)}.")
    return figure


def show(axes: Axes, pictures: np.ndarray, columns: int, row_labels: Sequence[str] | None = None) -> None:
    """Draw pictures [N, H, W, C] uint8 as a sheet on `axes`, rows named at the left."""
    n, height, width, _ = pictures.shape
    rows = -(-n // columns)
    gap = max(1, round(width / 12))
    # Whole pixels of small pictures, so that a gap can be finer than one of them.
    scale = max(1, 96 // max(height, width))
    sheet = tile(pictures, columns, scale=scale, gap=max(1, gap * scale // 2))
    style.plain_image(axes)
    axes.imshow(sheet[..., 0] if sheet.shape[2] == 1 else sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    if row_labels is not None:
        if len(row_labels) != rows:
            raise InputError(f"row_labels has {len(row_labels)} names; {rows} rows need one each")
        step = (sheet.shape[0] - max(1, gap * scale // 2)) / rows
        axes.set_yticks([(r + 0.5) * step for r in range(rows)], list(row_labels))
        axes.tick_params(axis="y", length=0)


def square(n: int) -> int:
    """The number of columns that makes n images a square, or lying rather than standing."""
    return math.ceil(math.sqrt(n))


def range_text(value_range: tuple[float, float]) -> str:
    """How brightness is to be read, for a caption."""
    low, high = value_range
    return f"black is {low:g}, full brightness {high:g}"
