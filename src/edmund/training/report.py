"""What a person sees of a run: a progress bar on a terminal, a plain line now and then elsewhere; all on stderr."""

from __future__ import annotations

import sys
from time import perf_counter
from types import TracebackType
from typing import Self

from edmund.progress import track

LINE_SECONDS = 15.0
"""Least time between two plain lines."""


class Report:
    """Counts samples up to `samples`, `samples_seen` of them behind us; a context manager. Silent unless enabled."""

    def __init__(self, samples: int, samples_seen: int, enabled: bool) -> None:
        self.samples = samples
        self.enabled = enabled
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar = track(samples, "training", enabled, samples_seen)
        self._first = samples_seen
        self._values: dict[str, float] = {}
        self._start = self._last_line = perf_counter()

    def advance(self, count: int) -> None:
        """Counts samples."""
        self._bar.advance(count)

    def show(self, **values: float | None) -> None:
        """Values to stand beside the count from now on; None: not known."""
        self._values |= {name: value for name, value in values.items() if value is not None}
        self._bar.advance(0, **self._values)
        now = perf_counter()
        if not self._terminal and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self.say(self._line(now))

    def _line(self, now: float) -> str:
        done = self._bar.done
        rate = (done - self._first) / (now - self._start)
        minutes, seconds = divmod(round(max(self.samples - done, 0) / rate), 60)
        values = "".join(f", {name} {value:.4f}" for name, value in self._values.items())
        return f"{done} of {self.samples} samples{values}, {rate:.0f} samples/s, {minutes}:{seconds:02d} left"

    def say(self, text: str) -> None:
        """One line."""
        if self.enabled:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)
