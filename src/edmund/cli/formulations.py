"""`edmund formulations`: Table 1, as it stands in the library."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from edmund import formulation, plots
from edmund.cli._run import console, make_folder, say


def run(picture: Path) -> None:
    """The command."""
    columns = [make() for make in formulation.named().values()]
    for column in columns:
        console.print(_table(column))
    make_folder(picture.parent)
    say(str(plots.save(plots.formulations(columns), picture)))


def _table(column: formulation.Formulation) -> Table:
    """One column of Table 1, a row a cell: the part and, in its own words, what it does."""
    table = Table(
        title=column.name, title_justify="left", title_style="bold", box=None, pad_edge=False, show_header=False
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for field in dataclasses.fields(column):
        value = getattr(column, field.name)
        if dataclasses.is_dataclass(value):
            table.add_row(field.name, Text(_text(value)))
            table.add_row(
                "", Text(inspect.cleandoc(value.__doc__ or "").split("\n\n")[0].replace("\n", " "), style="italic")
            )
        elif field.name != "name":
            table.add_row(field.name, Text(_text(value)))
    table.add_row("", "")
    return table


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if not dataclasses.is_dataclass(value):
        return str(value)
    fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    inside = ", ".join(f"{name}={_text(item)}" for name, item in fields if item is not None)
    return f"{type(value).__name__}({inside})"
