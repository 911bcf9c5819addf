"""`edmund presets`: the named recipes as a table, or one of them as YAML."""

from __future__ import annotations

import textwrap

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edmund import presets
from edmund.cli._run import console, say
from edmund.config import dump
from edmund.presets import Preset


def run(name: str | None) -> None:
    """The command."""
    if name is not None:
        say(_document(presets.find(name)), end="")
        return
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        caption="Train one: edmund train --preset NAME --set data.path=PATH. Print it, to make one of your own: "
        "edmund presets NAME. batch and images: of the training, M = 10^6.",
        caption_justify="left",
    )
    for title in ("name", "network", "parameters", "data", "batch", "images", "expected"):
        number = title in ("parameters", "batch", "images")
        table.add_column(title, no_wrap=number or title in ("name", "network"), justify="right" if number else "left")
    for preset in presets.named().values():
        training = preset.document["training"]
        table.add_row(
            preset.name,
            preset.document["network"]["type"],
            f"{preset.parameters / 1e6:.2f} M",
            Text(preset.data),
            str(training["batch_size"]),
            f"{training['samples'] / 1e6:.4g} M",
            Text(preset.expected),
        )
    # A pipe has no width to keep to.
    (console if console.is_terminal else Console(width=180)).print(table)


def _document(preset: Preset) -> str:
    """The preset as a config file, which says what it is in comments."""
    about = (
        f"{preset.name}: {preset.summary}, {preset.parameters:,} parameters.",
        f"Data: {preset.data}.",
        f"Expected: {preset.expected}.",
        "Train it: edmund train THIS_FILE --set data.path=PATH",
    )
    lines = [line for text in about for line in textwrap.wrap(text, 118, break_long_words=False)]
    return "".join(f"# {line}\n" for line in lines) + dump(preset.document)
