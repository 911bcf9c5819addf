"""`edmund ema`: an average of another width, or the validation loss of many, of a run's snapshots."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from rich.table import Table

from edmund import plots
from edmund.cli._run import CONFIG_FILE, check_new, console, load_model, make_folder, read_config, say
from edmund.errors import InputError
from edmund.training import ema
from edmund.training.output import write_atomically
from edmund.training.snapshots import FOLDER, Snapshots
from edmund.training.width_sweep import MET, Sweep, sweep

DEFAULT_WIDTHS = "0.03-0.25"
_IN_A_RANGE = 10


def run(
    directory: Path, width: float | None, widths: str | None, samples: int | None, out: Path | None, device: str | None
) -> None:
    """The command."""
    if width is None:
        _sweep(directory, _parse_widths(DEFAULT_WIDTHS if widths is None else widths), samples, out, device)
    elif widths is not None:
        raise InputError(f"--width is {width!r} and --sweep {widths!r}; give one of them")
    elif device is not None:
        raise InputError(f"--device is {device!r}; with --width nothing is computed on it, so leave it out")
    else:
        _reconstruct(directory, _check_width("--width", width), samples, out)


def _reconstruct(directory: Path, width: float, samples: int | None, out: Path | None) -> None:
    model = load_model(directory, "cpu")
    snapshots = Snapshots(directory, show_progress=True)
    time = snapshots.at(samples).samples_seen
    folder = directory / FOLDER / (f"width-{width!r}" + ("" if samples is None else f"-at-{time}"))
    if out is not None:
        check_new("--out", out)
        folder = out
    snapshots.fill(model, width, time)
    say(str(model.save(folder)))
    if (directory / CONFIG_FILE).is_file():  # what data to compare with, and how it was trained
        write_atomically(folder / CONFIG_FILE, (directory / CONFIG_FILE).read_text(encoding="utf-8"))
    error = snapshots.profile_error(width, time)
    say(f"the average of relative width {width!r} at {time} samples; its profile is met to {_percent(error)}")
    if error > MET:
        say(_cannot([width]))
    say(f"next: edmund sample {folder}")


def _sweep(directory: Path, widths: list[float], samples: int | None, out: Path | None, device: str | None) -> None:
    model, config = load_model(directory, device), read_config(directory)
    snapshots = Snapshots(directory, show_progress=True)
    snapshots.at(samples)
    folder = make_folder(directory / FOLDER if out is None else out)
    found = sweep(model, snapshots, widths, config.datasets()[1], config.options(), samples_seen=samples)
    _show(found)
    best = found.best
    numbers = folder / "sweep.json"
    document = {
        "samples_seen": found.samples_seen,
        "delivered_validation_loss": _finite(found.delivered),
        "best_width": None if best is None else best.width,
        "widths": [
            {
                "width": swept.width,
                "validation_loss": _finite(swept.validation_loss),
                "profile_error": swept.profile_error,
            }
            for swept in found.widths
        ],
    }
    write_atomically(numbers, json.dumps(document, indent=2, allow_nan=False) + "\n")
    figure = plots.loss_against_width(
        [swept.width for swept in found.widths],
        [swept.validation_loss for swept in found.widths],
        [swept.met for swept in found.widths],
        delivered=found.delivered,
    )
    say(f"{plots.save(figure, folder / 'sweep.png')}\n{numbers}")
    if best is not None:
        at = "" if samples is None else f" --samples {samples}"
        say(f"next: edmund ema {directory} --width {best.width!r}{at}")


def _show(found: Sweep) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("width", "validation loss", "profile off by", ""):
        table.add_column(heading, justify="right")
    best = found.best
    for swept in found.widths:
        note = "best" if swept is best else "" if swept.met else "not met"
        table.add_row(f"{swept.width!r}", f"{swept.validation_loss:.5g}", _percent(swept.profile_error), note)
    say(f"averages at {found.samples_seen} samples")
    console.print(table)
    say(f"the run's own average: {found.delivered:.5g}")
    missed = [swept.width for swept in found.widths if not swept.met]
    if missed:
        say(_cannot(missed))


def _cannot(widths: list[float]) -> str:
    return (
        f"the snapshots cannot make {', '.join(map(repr, widths))} well (profile off by more than {_percent(MET)}); "
        f"a smaller ema_snapshot_interval, or ema_widths nearer to {'it' if len(widths) == 1 else 'them'}, could"
    )


def _percent(error: float) -> str:
    return f"{100 * error:.2g} %" if error < 0.1 else f"{100 * error:.0f} %"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check_width(argument: str, width: float) -> float:
    try:
        ema.gamma(width)
    except InputError as error:
        raise InputError(f"{argument}: {error}") from None
    return width


def _parse_widths(text: str) -> list[float]:
    """ "0.03-0.25,0.27" as widths in rising order; a range is 10 of them, each larger by the same factor."""
    widths: set[float] = set()
    for part in text.split(","):
        try:
            ends = [float(end) for end in part.split("-")]
            first, last = ends if len(ends) == 2 else ends * 2
        except ValueError:
            raise InputError(f"--sweep is {text!r}; it must be widths and ranges such as 0.03-0.25,0.27") from None
        for end in (first, last):
            _check_width("--sweep", end)
        if last < first:
            raise InputError(f"--sweep is {text!r}; the range {part.strip()} runs backwards")
        between = [float(f"{value:.3g}") for value in np.geomspace(first, last, _IN_A_RANGE)[1:-1]]
        widths |= {first, last, *(value for value in between if first < value < last)}
    return sorted(widths)
