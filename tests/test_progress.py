"""The bar: silent at first, there on a terminal, gone cleanly after an error; and the lines of a log."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import textwrap
import timeit

import pytest

from edmund import progress


def run_on_terminal(code: str) -> str:
    """What `code`, run by a fresh Python whose stderr is a pseudo-terminal, writes there."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(follower)
    written = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # Linux reports the closed far end so
            break
        if not piece:
            break
        written += piece
    os.close(leader)
    assert process.stdout is not None
    stdout = process.stdout.read()
    process.stdout.close()
    process.wait()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode()) + "|" + stdout.decode()


def test_a_log_gets_a_line_now_and_then(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress, "perf_counter", lambda: now)
    with progress.track(50, "work", done=10) as bar, progress.track(None, "other") as other:
        for _ in range(40):
            now += 1.0
            bar.advance(1, loss=0.5)
        other.advance(400)
    lines = ["work: 25 of 50, 1/s, 0:25 left, loss 0.5", "work: 40 of 50, 1/s, 0:10 left, loss 0.5", "other: 400, 10/s"]
    assert capfd.readouterr() == ("", "\n".join([*lines, ""]))


def test_short_or_unwanted_work_leaves_no_trace_in_a_log(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress.track(10, "work") as bar:
        for _ in range(10):
            bar.advance(1, loss=0.5)
    assert bar.done == 10
    monkeypatch.setattr(progress, "LINE_INTERVAL", 0.0)
    with progress.track(10, "work", enabled=False) as bar:
        bar.advance(10)
    monkeypatch.setattr("sys.stderr", None)
    with progress.track(10, "work") as bar:
        bar.advance(10)
    assert capfd.readouterr() == ("", "")


def test_shown_on_a_terminal_with_count_rate_and_fields() -> None:
    shown = run_on_terminal("""
        import time
        from edmund import progress
        progress.DELAY = 0.0
        with progress.track(4, "sampling") as bar:
            for k in range(4):
                time.sleep(0.15)
                bar.advance(1, loss=k / 3)
            print("a line for stdout")
        """)
    assert "sampling" in shown and "1/4" in shown and "4/4" in shown
    assert "/s" in shown and "left" in shown
    assert "loss 0" in shown and "loss 0.6667" in shown and "loss 1" in shown
    assert shown.endswith("|a line for stdout\n")  # stdout is a pipe there: it must get its line


@pytest.mark.parametrize(("enabled", "delay"), [(False, 0.0), (True, 60.0)])
def test_silent_when_not_wanted_or_quick(enabled: bool, delay: float) -> None:
    shown = run_on_terminal(f"""
        import sys
        from edmund import progress
        progress.DELAY = {delay}
        with progress.track(2, "sampling", enabled={enabled}) as bar:
            bar.advance(2)
        print("rich" in sys.modules)
        """)
    assert shown == "|False\n"


def test_nested_bar_stays_silent_and_an_error_closes_the_bar() -> None:
    shown = run_on_terminal("""
        import sys
        from edmund import progress
        progress.DELAY = 0.0
        before = sys.stderr
        try:
            with progress.track(2, "outer") as outer:
                outer.advance(1)
                with progress.track(2, "inner") as inner:
                    inner.advance(2)
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            print(sys.stderr is before, progress.Bar._on_screen)
        with progress.track(7, "later") as later:
            later.advance(7)
        """)
    assert "outer" in shown and "inner" not in shown and "later" in shown and "7/7" in shown
    assert shown.endswith("|True None\n")


def test_resumed_work_is_not_counted_in_the_rate() -> None:
    bar = progress.track(2000, "training", done=1000)
    bar.advance(100)
    assert bar._parts(bar._start + 10.0) == ["10/s", "1:30 left"]
    bar.advance(0, loss=0.25, phase="ramp")
    assert bar._parts(bar._start + 0.02) == ["5000/s", "0:00 left", "loss 0.25", "phase ramp"]


def test_advance_is_cheap() -> None:
    with progress.track(10**6, "work") as bar:
        seconds = min(timeit.repeat(bar.advance, number=10_000, repeat=5)) / 10_000
    assert seconds < 5e-6  # about 0.1 us on an idle machine; the margin is for a busy one
