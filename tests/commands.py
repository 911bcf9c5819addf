"""The command line in this process, for the tests of its commands."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from edmund.cli import main


class Done(NamedTuple):
    stdout: str
    stderr: str


def run(*arguments: object, cwd: Path, code: int = 0) -> Done:
    """`edmund` with these arguments, in this process: what `python -m edmund` does, without its start-up time."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        mock.patch.object(sys, "argv", ["edmund", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            ended = 0
        except SystemExit as stopped:
            ended = stopped.code or 0
    assert ended == code, out.getvalue() + err.getvalue()
    return Done(out.getvalue(), err.getvalue())


def error_line(*arguments: object, cwd: Path) -> str:
    done = run(*arguments, cwd=cwd, code=2)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
