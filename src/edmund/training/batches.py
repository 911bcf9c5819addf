"""Batches on their way from a data set to the device: read (by workers, if asked), checked on the host, moved."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edmund.errors import InputError
from edmund.training.order import Part, PartSampler, seed_for


class TrainingData(Protocol):
    """What the trainer needs of a data set; those of `edmund.data` have it.

    One whose conditions may hold NaN, for values that are missing, names them in an attribute `may_be_missing`.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """y [B, *] in the user's units, and the condition, [B, *] each."""


@dataclass
class Batch:
    """Data y [B, *] in the user's units and the condition of the samples of one part of a run."""

    part: Part
    y: Tensor
    condition: dict[str, Tensor]

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        return Batch(
            self.part,
            self.y.to(device, non_blocking=True),
            {name: value.to(device, non_blocking=True) for name, value in self.condition.items()},
        )

    def pin_memory(self) -> Batch:
        """The batch in memory from which copies to a GPU run beside the computation (called by the DataLoader)."""
        return Batch(self.part, self.y.pin_memory(), {name: v.pin_memory() for name, v in self.condition.items()})


def read(dataset: TrainingData, indices: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Samples of a data set; InputError that names the sample where one holds NaN or infinite values."""
    y, condition = dataset.__getitems__(indices)
    check_finite("data", y, indices)
    may_be_missing = getattr(dataset, "may_be_missing", ())
    for name, value in condition.items():
        if name not in may_be_missing:
            check_finite(f"data: {name}", value, indices)
    return y, condition


def check_finite(what: str, values: Tensor, indices: Sequence[int]) -> None:
    """Refuses NaN and infinite values [B, *] with an InputError that names the first sample that has one."""
    # The sum is finite only if every value is (or very large ones overflowed it, and then the values are looked at).
    if not values.is_floating_point() or bool(torch.isfinite(values.sum())):
        return
    for index, value in zip(indices, values, strict=True):
        if not bool(torch.isfinite(value).all()):
            wrong = value[~torch.isfinite(value)].flatten()[0].item()
            raise InputError(f"{what}: sample {index} holds {wrong}; every value must be finite")


class _Reader(Dataset[Any]):
    """The data set as the DataLoader's workers see it.

    torch's generator is seeded from the sample number around each read, so random augmentation by torch is a function
    of the run's position too. An InputError travels back as a value: raised in a worker it would come out as the text
    of a traceback.
    """

    def __init__(self, dataset: TrainingData, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitems__(self, item: tuple[Part, list[int]]) -> Batch | InputError:
        part, indices = item
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_for(self.seed, part.start))
            try:
                return Batch(part, *read(self.dataset, indices))
            except InputError as error:
                return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_trainer(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the trainer finishes its step and then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def batches(
    dataset: TrainingData, sampler: PartSampler, *, seed: int, workers: int, device: torch.device
) -> Iterator[Batch]:
    """The batches of a run on `device`, in the sampler's order. Raises InputError for data that are not finite."""
    loader = DataLoader(
        _Reader(dataset, seed),
        batch_sampler=cast(Any, sampler),
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_signals_to_the_trainer,
        generator=torch.Generator().manual_seed(seed),  # else the loader draws from the user's global stream
    )
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield batch.to(device)
