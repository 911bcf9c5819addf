"""Checkpoints: folders that are whole or detectably not, and hold no code.

    checkpoints/00012800/        12 800 samples seen
        network.safetensors      one file a group of tensors: network, ema, best_ema, ema_WIDTH, optimizer
        state.json               counters, what the run is, and the size and SHA-256 of every file beside it

The snapshots of averages (`snapshots`) are such folders too, in another place, and all stay.

A checkpoint is written under a hidden name, flushed to the disk and renamed, so a process killed at any moment leaves
the previous ones as they were. On reading, sizes and digests are compared: a damaged checkpoint is reported and the one
before it is used. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from edmund.errors import InputError
from edmund.training.output import sync, writing_to

FORMAT = 1
STATE = "state.json"
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint: `state` as it was given, and where the tensors are."""

    folder: Path
    samples_seen: int
    state: dict[str, Any]
    groups: tuple[str, ...]

    def tensors(self, group: str) -> dict[str, Tensor]:
        """The tensors of one group, on the CPU."""
        return load_file(_tensor_file(self.folder, group))


class Damaged(Exception):
    """What is wrong with a checkpoint."""


class CheckpointStore:
    """The checkpoints of one run in `directory`/`name`; the last `keep` stay (None: all)."""

    def __init__(self, directory: Path, keep: int | None, name: str = "checkpoints") -> None:
        self.folder = directory / name
        self.keep = keep

    def samples(self) -> list[int]:
        """The samples seen of every checkpoint, damaged ones too, in rising order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.folder.iterdir() if entry.name.isdecimal())

    def path(self, samples_seen: int) -> Path:
        """Where the checkpoint at `samples_seen` is or will be."""
        return self.folder / f"{samples_seen:08d}"

    def save(self, samples_seen: int, groups: Mapping[str, Tensors], state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint and removes those that are no longer kept.

        groups: name -> tensors by name; state: JSON-able. Raises InputError, with every earlier checkpoint as it was,
        where the folder cannot be written.
        """
        final = self.path(samples_seen)
        temporary = self.folder / f".incomplete-{final.name}"
        with writing_to(self.folder):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._clear_leftovers()
                temporary.mkdir()
                self._write(temporary, samples_seen, groups, state)
                if final.exists():  # only a damaged one: a run does not come twice to a count that it has saved
                    self._remove(final)
                temporary.rename(final)
                sync(self.folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            self._prune(samples_seen)
        return final

    def read(self, samples_seen: int) -> Checkpoint:
        """The checkpoint at `samples_seen`, every byte of it checked; raises Damaged."""
        return _read(self.path(samples_seen), samples_seen)

    def discard_after(self, samples_seen: int) -> None:
        """Removes the checkpoints beyond `samples_seen`, for a run that goes on from there; InputError where it
        cannot.
        """
        with writing_to(self.folder):
            for ahead in self.samples():
                if ahead > samples_seen:
                    self._remove(self.path(ahead))

    def latest(self, quiet: bool = False) -> Checkpoint | None:
        """The newest whole checkpoint; None where there is none at all. Warns (unless quiet) of each damaged one that
        it passes over.

        Raises InputError when every checkpoint is damaged.
        """
        found = self.samples()
        problems: list[str] = []
        for samples_seen in reversed(found):
            try:
                checkpoint = self.read(samples_seen)
            except Damaged as problem:
                problems.append(f"{self.path(samples_seen)}: {problem}")
                continue
            if not quiet:
                for text in problems:
                    warnings.warn(f"damaged checkpoint {text}; going on from {checkpoint.folder}", stacklevel=2)
            return checkpoint
        if found:
            raise InputError(
                f"directory: every checkpoint in {str(self.folder)!r} is damaged ({'; '.join(problems)}); "
                "remove that folder to start the run again"
            )
        return None

    def _write(self, folder: Path, samples_seen: int, groups: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
        files: dict[str, dict[str, int | str]] = {}
        for group, tensors in groups.items():
            path = _tensor_file(folder, group)
            save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
            sync(path)
            files[path.name] = {"size": path.stat().st_size, "sha256": _digest(path)}
        document = {"format": FORMAT, "samples_seen": samples_seen, "files": files, "state": dict(state)}
        document["sha256"] = _digest_of(document)
        (folder / STATE).write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
        sync(folder / STATE)
        sync(folder)

    def _prune(self, newest: int) -> None:
        found = self.samples()
        # Anything newer than what was just written is damaged and was passed over when the run went on.
        ahead = [samples_seen for samples_seen in found if samples_seen > newest]
        behind = [samples_seen for samples_seen in found if samples_seen <= newest]
        for samples_seen in ahead + (behind[: -self.keep] if self.keep is not None else []):
            self._remove(self.path(samples_seen))

    def _remove(self, folder: Path) -> None:
        # Renamed first: a process killed half-way leaves a hidden leftover, not a damaged checkpoint.
        hidden = folder.with_name(f".removed-{folder.name}")
        folder.rename(hidden)
        shutil.rmtree(hidden)

    def _clear_leftovers(self) -> None:
        for pattern in (".incomplete-*", ".removed-*"):
            for leftover in self.folder.glob(pattern):
                shutil.rmtree(leftover)


def check_shapes(saved: Mapping[str, list[int]], network: Tensors, folder: Path) -> None:
    """Refuses a checkpoint of another network: InputError with the first parameter that differs and both shapes."""
    for name in [*network, *(name for name in saved if name not in network)]:
        there = saved.get(name)
        here = list(network[name].shape) if name in network else None
        if there != here:
            none = " (None: it has none)" if None in (there, here) else ""
            raise InputError(
                f"network: the checkpoint {str(folder)!r} is of another network: {name!r} has shape {there} there and "
                f"{here} in this one{none}; use another folder (output.directory), or the same network"
            )


def _tensor_file(folder: Path, group: str) -> Path:
    return folder / f"{group}.safetensors"


def _digest_of(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path, samples_seen: int) -> Checkpoint:
    """The checkpoint in `folder`, every byte of it checked; raises Damaged."""
    try:
        document = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except OSError as error:
        raise Damaged(f"{STATE} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise Damaged(f"{STATE} is not JSON") from error
    if not isinstance(document, dict):
        raise Damaged(f"{STATE} is not a checkpoint's")
    try:
        version, stated = document["format"], document["samples_seen"]
        files = {name: (entry["size"], entry["sha256"]) for name, entry in document["files"].items()}
        state = dict(document["state"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{STATE} is not a checkpoint's") from error
    if version != FORMAT:
        raise InputError(f"directory: {str(folder)!r} is of format {version!r}; this version of edmund reads {FORMAT}")
    if stated != samples_seen:
        raise Damaged(f"{STATE} says {stated!r} samples")
    if document.pop("sha256", None) != _digest_of(document):
        raise Damaged(f"{STATE} was altered: its SHA-256 is not the one in it")
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        if path.stat().st_size != size:
            raise Damaged(f"{name} has {path.stat().st_size} bytes of {size}")
        if _digest(path) != sha256:
            raise Damaged(f"{name} was altered: its SHA-256 is not the one in {STATE}")
    return Checkpoint(folder, samples_seen, state, tuple(Path(name).stem for name in files))
