"""Published networks from files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from edmund.errors import InputError
from edmund.model import Model
from edmund.pretrained.original import from_state_dict
from edmund.pretrained.snapshot import read_snapshot

_SNAPSHOT = ".pkl"
_SAFETENSORS = ".safetensors"
_STATE = "state."


def load(path: str | os.PathLike[str]) -> Model:
    """The model of a published network's file, in evaluation mode; `Model.save` then writes it as edmund's own.

    path: NVIDIA's `.pkl` snapshot of EDM or EDM2, of which nothing is run; or a `.safetensors` file of the original
    parameters with the constructor's arguments as JSON under `config` in its metadata (names that start with `state.`
    are the parameters, where there are any such). See `from_state_dict` for the units.

    Raises InputError for any other file, a damaged one, and one that wants to run code.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"path {str(file)!r} is no file")
    if file.suffix == _SNAPSHOT:
        state, config = read_snapshot(file)
    elif file.suffix == _SAFETENSORS:
        state, config = _read_safetensors(file)
    else:
        raise InputError(f"path {str(file)!r} ends in {file.suffix!r}; it must be a {_SNAPSHOT} or {_SAFETENSORS} file")
    try:
        return from_state_dict(state, config)
    except InputError as error:
        raise InputError(f"path {str(file)!r} cannot be used: {error}") from error


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            names = opened.keys()
            chosen = [name for name in names if name.startswith(_STATE)] or names
            config = (opened.metadata() or {}).get("config")
            state = {name.removeprefix(_STATE): opened.get_tensor(name) for name in chosen}
    except (SafetensorError, OSError) as error:
        raise InputError(f"path {str(file)!r} is damaged: {error}") from error
    if config is None:
        raise InputError(f"path {str(file)!r} has no 'config' in its metadata; use from_state_dict(state, config)")
    try:
        return state, json.loads(config)
    except ValueError as error:
        raise InputError(f"path {str(file)!r} has a 'config' in its metadata that is no JSON: {error}") from error
