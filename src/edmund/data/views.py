"""Views of a data set: parts of it, or it without its labels. Nothing is copied."""

from __future__ import annotations

import torch
from torch import Tensor

from edmund.data.dataset import Condition, DataSet
from edmund.errors import InputError


def split(dataset: DataSet, fraction: float = 0.2, seed: int = 0) -> tuple[DataSet, DataSet]:
    """(training set, held-out set), views of a shuffle by `seed`; `fraction` of the samples is held out.

    Where the labels are known (`dataset.labels`), each class gives that fraction of its own, to the nearest sample.
    Raises InputError where a part would be empty.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction is {fraction!r}; it must be between 0 and 1")
    kept = round(len(dataset) * fraction)
    if not 0 < kept < len(dataset):
        raise InputError(f"fraction is {fraction!r}; of {len(dataset)} samples it leaves a part empty")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(dataset), generator=generator)
    if dataset.labels is not None and dataset.labels.ndim == 1:
        # Of an order in which every class is spread evenly, any stretch holds the classes in proportion.
        order = _interleaved(order, dataset.labels)
    held_out, train = (part[torch.randperm(len(part), generator=generator)] for part in (order[:kept], order[kept:]))
    return _Part(dataset, train), _Part(dataset, held_out)


def unlabelled(dataset: DataSet) -> DataSet:
    """The data set without its labels, for an unconditional model; other conditions stay."""
    return _Unlabelled(dataset)


def _interleaved(order: Tensor, labels: Tensor) -> Tensor:
    """`order` rearranged so that the k-th of a class's n samples stands at about (k + 1/2) / n of the whole."""
    position = torch.empty(len(order), dtype=torch.float64)
    of_order = labels[order]
    for label, size in enumerate(torch.bincount(labels + 1).tolist(), start=-1):
        if size:
            position[of_order == label] = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return order[position.argsort(stable=True)]


class _Part(DataSet):
    def __init__(self, parent: DataSet, indices: Tensor) -> None:
        super().__init__(
            parent.shape,
            num_classes=parent.num_classes,
            class_names=parent.class_names,
            value_range=parent.value_range,
            labels=None if parent.labels is None else parent.labels[indices],
        )
        self.parent = parent
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Condition]:
        return self.parent.__getitems__(self.indices[torch.tensor(indices, dtype=torch.int64)].tolist())


class _Unlabelled(DataSet):
    def __init__(self, parent: DataSet) -> None:
        super().__init__(parent.shape, value_range=parent.value_range)
        self.parent = parent

    def __len__(self) -> int:
        return len(self.parent)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Condition]:
        y, condition = self.parent.__getitems__(indices)
        return y, {name: value for name, value in condition.items() if name != "labels"}
