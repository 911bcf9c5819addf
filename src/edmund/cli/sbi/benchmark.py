"""`edmund sbi benchmark`: the ten tasks of sbibm, trained, scored and set beside the published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edmund.cli._run import parse_numbers, pick_device, say
from edmund.cli.sbi._run import plain_warnings
from edmund.errors import InputError
from edmund.sbi import benchmark, benchmark_rows
from edmund.sbi.benchmark_summary import summary
from edmund.sbi.tasks import NAMES


class Setting(NamedTuple):
    """What the rows of a run share; see `sbi.benchmark.run`."""

    samples: int
    c2st_samples: int | None
    seed: int
    formulation: str
    network: str


def run(
    names: str,
    budgets: str,
    observations: str,
    reference: Path | None,
    out: Path,
    classifiers: str,
    setting: Setting,
    *,
    workers: int,
    device: str | None,
) -> None:
    """The command."""
    if reference is None:
        raise InputError("--reference is not given; name a folder of reference posteriors in sbibm's layout")
    with plain_warnings():
        rows = benchmark.run(
            NAMES if names.strip() == "all" else _split(names),
            _parse_budgets(budgets),
            parse_numbers("--observations", observations),
            reference=reference,
            out=out,
            classifiers=_split(classifiers),
            workers=workers,
            device=pick_device(device),
            **setting._asdict(),
        )
    say(summary(rows))


def summarise(out: Path) -> None:
    """The command with `--summary`: all that is in the file."""
    rows = benchmark_rows.read(out)
    if not rows:
        raise InputError(f"--out is {str(out)!r}, which has no rows; without --summary they are computed")
    say(summary(rows))


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _parse_budgets(text: str) -> list[int]:
    """ "1e3,20000" as whole numbers."""
    budgets = []
    for part in text.split(","):
        try:
            value = float(part)
            whole = int(value)
        except (ValueError, OverflowError):
            value, whole = 0.5, 0
        if value != whole or whole < 1:
            raise InputError(
                f"--budgets is {text!r}; {part.strip()!r} must be a whole number of simulations, such as 1e4 or 20000"
            )
        budgets.append(whole)
    return budgets
