"""What a person sees of a run on stderr: its progress, and what there is to say of it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from edmund.progress import say, track


class Report:
    """Counts samples up to `samples`, `samples_seen` of them behind us; a context manager. Silent unless enabled."""

    def __init__(self, samples: int, samples_seen: int, enabled: bool) -> None:
        self.enabled = enabled
        self._bar = track(samples, "training", enabled, samples_seen)
        self._values: dict[str, float] = {}

    def advance(self, count: int) -> None:
        """Counts samples."""
        self._bar.advance(count)

    def show(self, **values: float | None) -> None:
        """Values to stand beside the count from now on; None: not known."""
        self._values |= {name: value for name, value in values.items() if value is not None}
        self._bar.advance(0, **self._values)

    def say(self, text: str) -> None:
        """One line."""
        say(text, self.enabled)

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)
