r"""Snapshots of a run's tracked averages, and an average of any width made of them afterwards (`ema`).

    ema/00012800/                  12 800 samples seen
        ema_0.05.safetensors       one file a width: the average's parameters, in float32 at least
        buffers.safetensors        the network's buffers, which are not averaged, where it has some
        state.json                 the size and SHA-256 of every file beside it

They are written as checkpoints are and stay when those go. Half precision would halve their size, but its rounding adds
up: the weights of the sum have both signs, and at the edges of what can be reached they are larger than 1. What is
summed are the profiles, so how well the one that is wanted can be met is known before any weight is read. A profile
ends abruptly at its time, which no sum of profiles of other times does, so the time is one of the snapshots'.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from edmund import progress
from edmund.errors import InputError, check_count
from edmund.model import Model, load
from edmund.training import ema
from edmund.training.checkpoint import Checkpoint, CheckpointStore, Damaged, check_shapes

FOLDER = "ema"
BUFFERS = "buffers"
_PREFIX = "ema_"


def group_of(width: float) -> str:
    """The name of the tensors of the average of relative width `width`, in snapshots and checkpoints."""
    return f"{_PREFIX}{width!r}"


class Snapshots:
    """The snapshots of the run in `run_directory`, every byte of them checked.

    Raises InputError for a run without any and for a damaged one.
    """

    def __init__(self, run_directory: str | os.PathLike[str], *, show_progress: bool = False) -> None:
        directory = Path(run_directory)
        store = CheckpointStore(directory, keep=None, name=FOLDER)
        times = store.samples()
        if not times:
            raise InputError(
                f"run {str(directory)!r} has no snapshots of averages, of which one of another width could be made; "
                "train with ema_widths, such as [0.05, 0.1], and ema_snapshot_interval, in samples"
            )
        self.directory = directory
        self._found: list[Checkpoint] = []
        with progress.track(len(times), "reading snapshots", enabled=show_progress) as bar:
            for samples_seen in times:
                try:
                    self._found.append(store.read(samples_seen))
                except Damaged as problem:
                    folder = store.path(samples_seen)
                    raise InputError(
                        f"snapshot {str(folder)!r} is damaged: {problem}; remove that folder to do without it"
                    ) from None
                bar.advance()
        self._averages = [
            (found, group) for found in self._found for group in sorted(found.groups) if group.startswith(_PREFIX)
        ]
        self.profiles = [(found.samples_seen, float(group.removeprefix(_PREFIX))) for found, group in self._averages]
        """(samples seen, sigma_rel) of each stored average."""

    def at(self, samples_seen: int | None) -> Checkpoint:
        """The snapshot at `samples_seen` (None: the last); InputError where there is none."""
        times = [found.samples_seen for found in self._found]
        if samples_seen is None:
            return self._found[-1]
        wanted = check_count("samples_seen", samples_seen, least=0)
        if wanted not in times:
            near = sorted(times, key=lambda time: abs(time - wanted))[:2]
            raise InputError(
                f"samples_seen is {wanted}; there are {len(times)} snapshots from {times[0]} to {times[-1]}, "
                f"the nearest at {' and '.join(map(str, sorted(near)))}"
            )
        return self._found[times.index(wanted)]

    def profile_error(self, width: float, samples_seen: int | None = None) -> float:
        """By how much the profile of the sum misses that of `width`, as `ema.posthoc_error` has it."""
        time = self.at(samples_seen).samples_seen
        return ema.posthoc_error(self.profiles, self._weights(width, time), time, width)

    def fill(self, model: Model, width: float, samples_seen: int | None = None) -> None:
        """Gives `model`, one of this run, the average of relative width `width` at the snapshot `samples_seen` (None:
        the last) and that one's buffers; files are read one after the other.
        """
        snapshot = self.at(samples_seen)
        weights = self._weights(width, snapshot.samples_seen)
        parameters = dict(model.denoiser.named_parameters())
        total = ema.weighted_sum(self._read(parameters), weights)
        with torch.no_grad():
            for parameter, value in zip(parameters.values(), total, strict=True):
                parameter.copy_(value)
            if BUFFERS in snapshot.groups:
                buffers = dict(model.denoiser.named_buffers())
                for name, value in snapshot.tensors(BUFFERS).items():
                    buffers[name].copy_(value)

    def _weights(self, width: float, time: int) -> list[float]:
        weights: list[float] = ema.posthoc_weights(self.profiles, time, width).tolist()
        return weights

    def _read(self, parameters: dict[str, nn.Parameter]) -> Iterator[list[Tensor]]:
        for found, group in self._averages:
            stored = found.tensors(group)
            check_shapes({name: list(value.shape) for name, value in stored.items()}, parameters, found.folder)
            yield [stored[name] for name in parameters]


def reconstruct(
    run_directory: str | os.PathLike[str],
    width: float,
    samples_seen: int | None = None,
    *,
    network: nn.Module | None = None,
) -> Model:
    """The run's model with the average of relative width `width` (sigma_rel), as if it had been tracked; in evaluation
    mode, on the CPU.

    samples_seen: at which snapshot; None: the last. network: as in `edmund.load`, for a run with a network of one's
    own. How closely the width is met: `Snapshots.profile_error`.
    Raises InputError for a run without snapshots, a damaged one, and a width or time that there cannot be.
    Karras et al. (2024), Section 3.2.
    """
    model = load(run_directory, network=network)
    Snapshots(run_directory).fill(model, width, samples_seen)
    return model
