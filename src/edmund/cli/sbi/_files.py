"""The files that a person brings: simulations and observations. Nothing in them is ever unpickled."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from edmund.errors import InputError

_NAMES = ("theta", "x")
_UNREADABLE = (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, zlib.error)


def read_simulations(argument: str, path: Path) -> tuple[Any, Any]:
    """theta [N, D] and x [N, *] of an .npz, a folder with theta.npy and x.npy (which are mapped), a Zarr group, or the
    folder of a finished `edmund.sbi.simulate`.
    """
    if not path.exists():
        raise InputError(f"{argument}: {str(path)!r} does not exist")
    if path.is_dir():
        if (path / "theta.npy").is_file() and (path / "x.npy").is_file():
            theta, x = (_array(argument, path / f"{name}.npy") for name in _NAMES)
            return theta, x
        if any((path / name).is_file() for name in (".zgroup", "zarr.json")):
            return _zarr(argument, path)
        if (path / "manifest.json").is_file():
            return _simulated(argument, path)
        raise InputError(
            f"{argument}: the folder {str(path)!r} holds no simulations; they are theta.npy and x.npy, a Zarr group "
            "with theta and x, or what edmund.sbi.simulate wrote"
        )
    if path.suffix.lower() != ".npz":
        raise InputError(
            f"{argument}: {str(path)!r} has the suffix {path.suffix!r}; simulations are an .npz with theta and x, a "
            "folder with theta.npy and x.npy, or a Zarr group"
        )
    if not zipfile.is_zipfile(path):
        raise InputError(f"{argument}: {str(path)!r} is not an .npz, whatever its name; numpy.savez writes them")
    try:
        with np.load(path, allow_pickle=False) as file:
            _check_names(argument, path, file.files)
            return tuple(_numbers(argument, path, name, file) for name in _NAMES)  # type: ignore[return-value]
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(f"{argument}: {str(path)!r} is not an .npz that can be read: {_line(error)}") from None


def read_observations(argument: str, path: Path) -> np.ndarray:
    """x [B, F] of a CSV file, an observation in each row; or the array of a .npy, as it is."""
    if not path.is_file():
        raise InputError(f"{argument}: {str(path)!r} is not a file that is there")
    if path.suffix.lower() == ".npy":
        return np.asarray(_array(argument, path))
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(
            f"{argument}: {str(path)!r} is not text; it must be a CSV file of numbers, or a .npy"
        ) from None
    rows: list[list[float | None]] = []
    names_passed = False
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        fields = [field.strip() for field in line.split(",")] if "," in line else line.split()
        row = [_number(field) for field in fields]
        if None in row:
            if not rows and not names_passed and all(value is None for value in row):
                names_passed = True  # a header
                continue
            wrong = fields[row.index(None)]
            raise InputError(
                f"{argument}: line {number} of {str(path)!r} has {wrong!r}, which is no number; numbers are separated "
                "by commas or spaces, and only a first line of names may hold none"
            )
        if rows and len(row) != len(rows[0]):
            raise InputError(
                f"{argument}: line {number} of {str(path)!r} has {len(row)} values; those before have {len(rows[0])}"
            )
        rows.append(row)
    if not rows:
        header = ", as its only line was taken for names" if names_passed else ""
        raise InputError(f"{argument}: {str(path)!r} holds no observation{header}; it must have one in each row")
    return np.array(rows, dtype=np.float64)


def _number(field: str) -> float | None:
    """What a field of a table says; NaN where it is empty, None where it is not a number."""
    try:
        return float(field) if field else math.nan
    except ValueError:
        return None


def _array(argument: str, path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise InputError(f"{argument}: {str(path)!r} is not a .npy of numbers: {_line(error)}") from None


def _numbers(argument: str, path: Path, name: str, file: Any) -> np.ndarray:
    try:
        array: np.ndarray = file[name]
    except ValueError as error:
        raise InputError(
            f"{argument}: {name} in {str(path)!r} cannot be read ({_line(error)}); save it as an array of numbers"
        ) from None
    return array


def _zarr(argument: str, path: Path) -> tuple[Any, Any]:
    try:
        import zarr
    except ImportError:
        raise InputError(
            f"{argument}: {str(path)!r} is a Zarr group, and zarr is not installed: pip install 'edmund[fields]'"
        ) from None
    try:
        group = zarr.open_group(str(path), mode="r")
        names = list(group.array_keys())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{argument}: {str(path)!r} is not a Zarr group that can be read: {_line(error)}") from None
    _check_names(argument, path, names)
    return group["theta"], group["x"]


def _simulated(argument: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """All that succeeded of the batches of `simulate`, in the order of their draws."""
    thetas, xs, seen = [], [], 0
    try:
        total = int(json.loads((path / "manifest.json").read_text(encoding="utf-8"))["n"])
        for batch in sorted(path.glob("batch-*.npz")):
            with np.load(batch, allow_pickle=False) as file:
                seen += len(file["rows"]) + len(file["failed_rows"])
                if len(file["rows"]):
                    thetas.append(file["theta"])
                    xs.append(file["x"])
    except (*_UNREADABLE, KeyError, TypeError) as error:
        raise InputError(f"{argument}: {str(path)!r} is not a folder of simulate: {_line(error)}") from None
    if seen != total or not thetas:
        raise InputError(
            f"{argument}: {str(path)!r} holds {seen} of {total} simulations, {sum(map(len, thetas))} of which "
            "succeeded; the call of simulate that wrote it goes on"
        )
    return np.concatenate(thetas), np.concatenate(xs)


def _check_names(argument: str, path: Path, names: list[str]) -> None:
    missing = [name for name in _NAMES if name not in names]
    if missing:
        raise InputError(
            f"{argument}: {str(path)!r} has no array {' and no array '.join(missing)}; it has "
            f"{', '.join(sorted(names)) or 'none'}"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
