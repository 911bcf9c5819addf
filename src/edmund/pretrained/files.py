"""Published networks from files and folders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from edmund.errors import InputError
from edmund.model import Model
from edmund.pretrained.folder import load_folder
from edmund.pretrained.original import from_state_dict
from edmund.pretrained.snapshot import read_snapshot
from edmund.pretrained.state import read_tensors

_SNAPSHOT = ".pkl"
_SAFETENSORS = ".safetensors"
_STATE = "state."


def load(path: str | os.PathLike[str]) -> Model:
    """The model of a published network's file or folder, in evaluation mode; `Model.save` then writes it as edmund's
    own.

    path: NVIDIA's `.pkl` snapshot of EDM or EDM2, of which nothing is run (P_mean and P_std of its training levels are
    taken over where its loss says them, else they are the formulation's defaults); or a `.safetensors` file of the
    original parameters with the constructor's arguments as JSON under `config` in its metadata (names that start with
    `state.` are the parameters, where there are any such); see `from_state_dict` for the units. Or the folder of a
    diffusers pipeline with a UNet2DModel, its weights as safetensors; see `edmund.pretrained.folder` for what is taken
    over.

    Raises InputError for any other file or folder, a damaged one, and one that wants to run code. Warns with `LeftOut`
    of what a folder's scheduler does that a model here does not.
    """
    file = Path(path)
    if file.is_dir():
        return load_folder(file)
    if not file.is_file():
        raise InputError(f"path {str(file)!r} is no file or folder")
    if file.suffix == _SNAPSHOT:
        state, config, levels = read_snapshot(file)
    elif file.suffix == _SAFETENSORS:
        (state, config), levels = _read_safetensors(file), {}
    else:
        raise InputError(
            f"path {str(file)!r} ends in {file.suffix!r}; it must be a {_SNAPSHOT} or {_SAFETENSORS} file, or a "
            f"diffusers pipeline's folder"
        )
    try:
        return from_state_dict(state, config, **levels)
    except InputError as error:
        raise InputError(f"path {str(file)!r} cannot be used: {error}") from error


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], Any]:
    tensors, metadata = read_tensors(file)
    chosen = [name for name in tensors if name.startswith(_STATE)] or list(tensors)
    state = {name.removeprefix(_STATE): tensors[name] for name in chosen}
    config = metadata.get("config")
    if config is None:
        raise InputError(f"path {str(file)!r} has no 'config' in its metadata; use from_state_dict(state, config)")
    try:
        return state, json.loads(config)
    except (ValueError, RecursionError) as error:
        raise InputError(f"path {str(file)!r} has a 'config' in its metadata that is no JSON: {error}") from error
