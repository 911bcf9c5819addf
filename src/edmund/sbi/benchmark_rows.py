"""The benchmark's file: one CSV row for each task, budget and observation, in the columns of sbibm's result files.

The first eight columns have sbibm's names and meaning (C2ST: the `mlp` one; MMD: squared and unbiased, on raw values;
NLTP: minus the log-density of the true parameters; RT: minutes), except that num_simulations is a number. A row is
appended in one write when it is known, so a killed run loses no finished row, and processes on different tasks can
share a file.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from edmund.errors import InputError
from edmund.training.output import write_atomically, writing_to


@dataclass(frozen=True)
class Options:
    """What two rows must share for a mean over them to be one of one method.

    num_samples: posterior draws of an observation. C2ST_samples: how many of them, and of the reference, are compared
    by C2ST and MMD.
    """

    algorithm: str
    seed: int
    formulation: str
    network: str
    num_samples: int
    C2ST_samples: int
    edmund_version: str


@dataclass(frozen=True)
class Row:
    """One line of the file; None is an empty field: not asked for, or not known.

    C2ST_rf: by the random forest. mean_error, std_error: of the draws' means and standard deviations against the
    reference's, root mean square over the parameters, in units of the reference's std. Where the posterior is known in
    closed form: exact_mean_error, the largest absolute error of a mean, in the parameter's units;
    exact_covariance_error, of the covariance in the Frobenius norm, as a share of the exact one's;
    exact_log_prob_error, the mean absolute error in nats over draws of the exact posterior. train_seconds: of all
    train_calls calls that it took, with the simulations (a call that was killed is counted, its time unknown).
    parameters: of the network. validation_loss: held-out.
    """

    task: str
    num_simulations: int
    num_observation: int
    algorithm: str
    C2ST: float | None
    MMD: float | None
    NLTP: float | None
    RT: float | None
    C2ST_rf: float | None
    mean_error: float | None
    std_error: float | None
    exact_mean_error: float | None
    exact_covariance_error: float | None
    exact_log_prob_error: float | None
    train_seconds: float | None
    train_calls: int
    sample_seconds: float | None
    parameters: int
    validation_loss: float | None
    num_samples: int
    C2ST_samples: int
    seed: int
    formulation: str
    network: str
    device: str
    threads: int
    edmund_version: str

    @property
    def options(self) -> Options:
        """The part of the row that says how it was made."""
        return Options(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Options)})

    @property
    def key(self) -> tuple[object, ...]:
        """What no two rows of a file share."""
        return (self.options, self.task, self.num_simulations, self.num_observation)


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
_TYPES = get_type_hints(Row)


def read(path: Path) -> list[Row]:
    """The rows of a file, none where it is not there; a last line that was cut short is left out.

    Raises InputError for a file of something else.
    """
    if not path.exists():
        return []
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"out: {str(path)!r} cannot be read: {error}") from error
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    if not lines or tuple(lines[0]) != COLUMNS:
        found = ",".join(lines[0]) if lines else "nothing"
        raise InputError(
            f"out: {str(path)!r} begins with {found[:80]!r}; a benchmark's file begins with {COLUMNS[0]!r}"
        )
    return [_parsed(path, number, values) for number, values in enumerate(lines[1:], start=2)]


def repair(path: Path) -> None:
    """Makes the file if it is not there, and takes a last line that was cut short off it."""
    with writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_atomically(path, _text([COLUMNS]))
            return
        with path.open("r+b") as file:
            content = file.read()
            if not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)


def put(path: Path, row: Row) -> None:
    """Appends the row, or puts it in the place of the one with its key; on the disk when this returns."""
    rows = read(path)
    with writing_to(path.parent):
        if all(other.key != row.key for other in rows):
            with path.open("ab", buffering=0) as file:
                file.write(_text([_values(row)]).encode())
                os.fsync(file.fileno())
        else:
            kept = [row if other.key == row.key else other for other in rows]
            write_atomically(path, _text([COLUMNS, *map(_values, kept)]))


def _values(row: Row) -> list[str]:
    return [
        "" if value is None else repr(value) if isinstance(value, float) else str(value)
        for value in (getattr(row, column) for column in COLUMNS)
    ]


def _text(lines: Iterable[Iterable[str]]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


def _parsed(path: Path, number: int, values: list[str]) -> Row:
    try:
        found: dict[str, Any] = {name: _value(name, text) for name, text in zip(COLUMNS, values, strict=True)}
    except ValueError as error:
        raise InputError(f"out: line {number} of {str(path)!r} is not a row of a benchmark: {error}") from None
    return Row(**found)


def _value(name: str, text: str) -> str | int | float | None:
    if _TYPES[name] is str:
        return text
    if _TYPES[name] is int:
        return int(text)
    if text == "":
        return None
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{name} is {text}")
    return value
