"""The record of a run: `metrics.jsonl`, one JSON object a line, and TensorBoard's files beside it where that is
installed.

Every line has `samples`, the samples seen. A run that goes on from a checkpoint first drops the lines beyond it, so no
interval appears twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edmund.training.output import write_atomically, writing_to

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FILE = "metrics.jsonl"


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, in order; a last line that was cut short is left out."""
    path = directory / FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


class MetricsLog:
    """Appends to a run's metrics, from `samples_seen` on; a context manager."""

    def __init__(self, directory: Path, samples_seen: int) -> None:
        self.directory = directory
        with writing_to(directory):
            directory.mkdir(parents=True, exist_ok=True)
            kept = [record for record in read_metrics(directory) if record.get("samples", 0) <= samples_seen]
            write_atomically(directory / FILE, "".join(map(_line, kept)))
            self._file = (directory / FILE).open("a", encoding="utf-8")
            self._board = _tensorboard(directory, samples_seen)

    def add(self, samples: int, **values: float | int | str | None) -> None:
        """One line: the samples seen, then the values; None where a value is not known."""
        with writing_to(self.directory):
            self._file.write(_line({"samples": samples, **values}))
            self._file.flush()
            if self._board is not None:
                for name, value in values.items():
                    if isinstance(value, float | int):
                        self._board.add_scalar(name, value, samples)

    def sync(self) -> None:
        """Waits until the lines are on the disk."""
        with writing_to(self.directory):
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with writing_to(self.directory):
            self._file.close()
            if self._board is not None:
                self._board.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _tensorboard(directory: Path, samples_seen: int) -> SummaryWriter | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory / "tensorboard"), purge_step=samples_seen + 1)
