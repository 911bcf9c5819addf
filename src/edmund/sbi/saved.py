"""The JSON beside a saved model: what the parts of this package know that a model's own folder does not hold."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edmund.errors import InputError
from edmund.training.output import write_atomically, writing_to

_FORMAT = 1


def write(folder: Path, file: str, content: dict[str, Any]) -> None:
    """Writes `content` to a file of the folder, whole or not at all. Raises InputError where it cannot."""
    with writing_to(folder):
        write_atomically(folder / file, json.dumps({"format": _FORMAT, **content}, indent=2, allow_nan=False) + "\n")


@contextmanager
def reading(directory: str | os.PathLike[str], file: str, what: str) -> Iterator[dict[str, Any]]:
    """The content of a folder's file; what goes wrong in taking it apart is an InputError that names the file.

    what: the folder should hold, for the error where there is no such file.
    """
    path = Path(directory) / file
    if not path.is_file():
        raise InputError(f"directory {str(directory)!r} holds no {what}: there is no {file} in it")
    try:
        content = json.loads(path.read_text())
        if content["format"] != _FORMAT:
            raise InputError(f"{path} is of format {content['format']!r}; this version reads {_FORMAT}")
        yield content
    except InputError:
        raise
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
