"""The look that all figures share: quiet axes, a title that says what is seen, a caption that says how to read it.

Colours are Okabe and Ito's (2008), which people with any colour vision can tell apart, ordered by contrast on white;
where lines cross, a dash pattern tells them apart as well. Figures are built on `matplotlib.figure.Figure`, never
through pyplot, so drawing needs no display and leaves no state behind.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Blue, vermilion, green, purple, sky, orange."""
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
INK = "#1F2933"
GREY = "#66707C"
SHADE = "#D9DEE4"

SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E9ED",
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "lines.linewidth": 1.7,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "figure.dpi": 150,
    "savefig.dpi": 150,
}


@contextmanager
def styled() -> Iterator[None]:
    """What is created inside has the shared look; matplotlib's own settings are untouched afterwards."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` by `height` inches that lays its axes out by itself."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    return figure


def describe(figure: Figure, title: str, caption: str) -> None:
    """Set the title above and the caption below, wrapped to the figure's width."""
    characters = max(int(figure.get_figwidth() * 15.5), 24)  # of 8-point letters on a line
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    figure.supxlabel(textwrap.fill(caption, characters), x=0.01, ha="left", fontsize=8, color=GREY)


def plain_image(axes: Axes) -> None:
    """Axes that hold a picture: no frame, no grid, no ticks."""
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure; the suffix (.png, .pdf, .svg) chooses the format. Returns the path."""
    with styled():
        figure.savefig(path)
    return Path(path)
