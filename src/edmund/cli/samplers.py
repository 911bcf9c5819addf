"""`edmund samplers`: every sampler by name."""

from __future__ import annotations

import inspect
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edmund import samplers
from edmund.cli._run import console
from edmund.config import sampler_keys


def run() -> None:
    """The command."""
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        caption="order: of the samples, or of their law where stochastic. NFE a step: denoiser calls between positive "
        "levels. arguments: keys of `sampling` in a config and of --set; s_churn, s_min, s_max, s_noise are churn's.",
        caption_justify="left",
    )
    for title in ("name", "order", "NFE a step", "stochastic", "arguments", "source"):
        table.add_column(
            title, no_wrap=title in ("name", "order"), justify="right" if title == "order" else "left", overflow="fold"
        )
    for name, make in samplers.named().items():
        solver = make()
        table.add_row(
            name,
            str(solver.order),
            str(solver.nfe_per_step),
            "yes" if solver.stochastic else "",
            Text(", ".join(_argument(key, value.default) for key, value in sampler_keys(name).items())),
            Text(solver.source),
        )
    # A pipe has no width to keep to.
    (console if console.is_terminal else Console(width=180)).print(table)


def _argument(key: str, default: Any) -> str:
    """`order=4`, or only the key where there is no value to begin with."""
    if default is None or default is inspect.Parameter.empty:
        return key
    return f"{key}={default:.3g}" if isinstance(default, float) else f"{key}={default}"
