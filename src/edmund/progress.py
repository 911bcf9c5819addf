"""A progress bar that costs nothing until somebody can look at it, and a line now and then in a log.

Sampling, data loading and training count their work through `track`. On a terminal, stderr gets a bar, drawn by Rich,
once the work has lasted longer than a second; elsewhere it gets a plain line every quarter of a minute, so work that is
shorter leaves no trace in a log. Until then `advance` is an addition and a comparison. No thread is started: bar and
lines are written from `advance`, the bar at most ten times a second.
"""

from __future__ import annotations

import math
import sys
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

DELAY = 1.0
"""Seconds of work before a bar appears."""
INTERVAL = 0.1
"""Least seconds between two drawings."""
LINE_INTERVAL = 15.0
"""Seconds of work before a line in a log, and least seconds between two."""


class Bar:
    """The counter behind `track`; a context manager. `done` is what has been counted so far."""

    __slots__ = ("_drawn", "_due", "_fields", "_start", "_start_done", "_terminal", "description", "done", "total")

    _on_screen: ClassVar[Bar | None] = None  # one bar at a time: two would overwrite each other's line

    def __init__(self, total: int | None, description: str, enabled: bool, done: int) -> None:
        self.total = total
        self.description = description
        self.done = done
        self._start_done = done
        self._start = perf_counter()
        self._terminal = _stderr_is_open() and sys.stderr.isatty()
        wanted = enabled and _stderr_is_open()
        self._due = self._start + (DELAY if self._terminal else LINE_INTERVAL) if wanted else math.inf
        self._fields: dict[str, object] = {}
        self._drawn: tuple[Progress, TaskID] | None = None

    def advance(self, n: int = 1, **fields: object) -> None:
        """Count `n` more; `fields` (`loss=0.12`) replace the ones shown, and stay until the next that are given."""
        self.done += n
        if fields:
            self._fields = fields
        now = perf_counter()
        if now >= self._due:
            if self._terminal:
                self._draw(now)
            else:
                self._write_line(now)

    def _write_line(self, now: float) -> None:
        self._due = now + LINE_INTERVAL
        count = f"{self.done}" if self.total is None else f"{self.done} of {self.total}"
        say(f"{self.description}: {', '.join([count, *self._parts(now)])}")

    def _draw(self, now: float) -> None:
        self._due = now + INTERVAL
        if self._drawn is None:
            if Bar._on_screen is not None:
                return
            self._drawn = self._open()
            Bar._on_screen = self
        progress, task = self._drawn
        progress.update(task, completed=self.done, text="  ".join(self._parts(now)), refresh=True)

    def _open(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(stderr=True),
            auto_refresh=False,
            # Lines printed meanwhile belong above the bar, unless stdout goes elsewhere: then they must go there.
            redirect_stdout=sys.stdout.isatty(),
        )
        progress.start()
        return progress, progress.add_task(self.description, total=self.total, completed=self.done, text="")

    def _parts(self, now: float) -> list[str]:
        """`3120/s`, `0:12 left`, `loss 0.1234`: rate since the start (a resumed count apart), time left, fields."""
        rate = (self.done - self._start_done) / (now - self._start)
        parts = [f"{rate:.3g}/s" if rate < 100 else f"{rate:.0f}/s"]
        if self.total is not None and rate > 0:
            minutes, seconds = divmod(round(max(self.total - self.done, 0) / rate), 60)
            hours, minutes = divmod(minutes, 60)
            parts.append(f"{hours}:{minutes:02d}:{seconds:02d} left" if hours else f"{minutes}:{seconds:02d} left")
        parts += [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self._fields.items()
        ]
        return parts

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._due = math.inf
        if self._drawn is None:
            return
        progress, task = self._drawn
        self._drawn = None
        Bar._on_screen = None
        try:
            progress.update(task, completed=self.done, text="  ".join(self._parts(perf_counter())), refresh=True)
        finally:
            progress.stop()  # gives the cursor and the streams back, after an error too


def track(total: int | None, description: str, enabled: bool = True, done: int = 0) -> Bar:
    """A bar over `total` pieces of work (None: unknown), `done` of them behind us when a run is resumed.

    >>> with track(3, "sampling") as bar:
    ...     for _ in range(3):
    ...         bar.advance(1, sigma=0.5)
    >>> bar.done
    3

    A bar that becomes due while another is on the screen (previews during training) stays silent; lines in a log do not
    get in each other's way.
    """
    return Bar(total, description, enabled, done)


def say(text: str, enabled: bool = True) -> None:
    """A line on stderr."""
    if enabled and _stderr_is_open():  # a program may close it while we work
        print(text, file=sys.stderr, flush=True)


def _stderr_is_open() -> bool:
    return sys.stderr is not None and not sys.stderr.closed
