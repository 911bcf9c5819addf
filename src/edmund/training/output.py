"""The output folder of a run: one clear error when it cannot be written, and writes that a crash cannot tear."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from edmund.errors import InputError


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turns a failure to write (a full disk, no permission, a file in the way) into one InputError that names the
    folder and the system's words.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"directory: cannot write to {str(folder)!r}: {error.strerror or error}") from error
    except SafetensorError as error:  # how safetensors reports an OSError
        raise InputError(f"directory: cannot write to {str(folder)!r}: {error}") from error


def sync(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write a new `path`, which holds either what it held before or the whole of what was written, whenever
    the process dies.
    """
    temporary = path.with_name(f".{path.name}.incomplete")
    yield temporary
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """Text by `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
