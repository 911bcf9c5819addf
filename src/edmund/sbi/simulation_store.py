"""A folder of finished batches of simulations: plain arrays, and a manifest of what makes them these and no others."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edmund.errors import InputError
from edmund.sbi.simulator_batch import Batch, one_line
from edmund.training.fingerprint import check_same
from edmund.training.output import replacing, write_atomically, writing_to


@dataclass(frozen=True)
class Store:
    """A folder of finished batches: manifest.json, what makes them these, and a batch-NUMBER.npz for each."""

    folder: Path

    @classmethod
    def open(cls, folder: Path, manifest: dict[str, Any]) -> Self:
        """The folder, made if it is not there; InputError if it holds anything but these simulations."""
        path = folder / "manifest.json"
        if path.is_file():
            try:
                saved = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise InputError(f"directory: {str(path)!r} cannot be read: {error}") from error
            # All but the prior's draws, which are told by a digest that says nothing to a reader.
            if isinstance(saved, dict) and saved != manifest and saved | {"prior": manifest["prior"]} == manifest:
                raise InputError(
                    f"directory: {str(folder)!r} holds another run: the prior's draws under seed {manifest['seed']} "
                    "differ there and here; it is another prior, or draws from a generator of its own, which cannot be "
                    "resumed: let it draw from the global generator, and use another folder"
                )
            check_same(saved, manifest, folder)
        elif folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"directory: {str(folder)!r} holds other files and no simulations; use an empty folder")
        else:
            with writing_to(folder):
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(path, json.dumps(manifest, indent=1) + "\n")
        return cls(folder)

    def save(self, batch: Batch, theta: Tensor) -> None:
        """A file for a finished batch, whole or not at all. theta: of all n draws, [n, D]."""
        failed = np.array([row for row, _, _ in batch.failures], dtype=np.int64)
        blank = np.full(batch.shape or (0,), np.nan, dtype=np.float32)
        failed_x = [blank if x is None else x for _, _, x in batch.failures]
        arrays: dict[str, NDArray[Any]] = {
            "rows": batch.rows,
            "theta": theta.numpy()[batch.rows],
            "x": np.zeros((0, *blank.shape), np.float32) if batch.x is None else batch.x,
            "failed_rows": failed,
            "failed_theta": theta.numpy()[failed],
            "failed_messages": np.array([message for _, message, _ in batch.failures], dtype=np.str_),
            "failed_x": np.stack(failed_x) if failed_x else np.zeros((0, *blank.shape), np.float32),
            "failed_with_x": np.array([x is not None for _, _, x in batch.failures], dtype=np.bool_),
        }
        with (
            writing_to(self.folder),
            replacing(self._path(batch.number)) as temporary,
            temporary.open("wb") as file,
        ):
            np.savez(file, allow_pickle=False, **arrays)

    def load(self, number: int) -> Batch | None:
        """The batch of that number, if it was finished."""
        path = self._path(number)
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                rows, x = file["rows"], file["x"]
                failed = [
                    (int(row), str(message), value if has_x else None)
                    for row, message, value, has_x in zip(
                        *(file[f"failed_{name}"] for name in ("rows", "messages", "x", "with_x")), strict=True
                    )
                ]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"directory: {str(path)!r} is damaged ({one_line(str(error))}); delete it, and the same call simulates "
                f"it again"
            ) from error
        with_x = len(rows) or any(value is not None for _, _, value in failed)
        return Batch(number, rows, x if len(rows) else None, failed, x.shape[1:] if with_x else None)

    def _path(self, number: int) -> Path:
        return self.folder / f"batch-{number:06d}.npz"
