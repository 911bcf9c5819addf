"""Any map-style torch data set as one of edmund's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edmund.data.arrays import as_labels
from edmund.data.dataset import Condition, DataSet
from edmund.errors import InputError
from edmund.progress import track


def wrap(
    dataset: Any,
    *,
    key: str | None = None,
    labels_key: str = "labels",
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    value_range: tuple[float, float] | None = None,
) -> DataSet:
    """A `torch.utils.data.Dataset` with a length, whose items are tensors or arrays y, pairs (y, label), or mappings.

    y: [D] or [C, H, W], of one shape. key: under which a mapping has y. labels_key: under which it has the label, if
    it has one; its other entries become conditions by their names. num_classes, class_names: of the labels; when
    neither is given, every item is read once to see them. Samples are read when they are asked for, as often as they
    are, so a data set that augments at random does so anew each time. One of edmund's own is returned as it is.
    """
    if isinstance(dataset, DataSet):
        return dataset
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InputError(f"dataset is a {type(dataset).__name__}; it must have a length and items by number")
    if len(dataset) == 0:
        raise InputError("dataset is empty; it must have at least one sample")
    read = _Reader(dataset, key, labels_key)
    first, condition = read(0)
    if first.ndim not in (1, 3):
        raise InputError(f"dataset: sample 0 has shape {list(first.shape)}; it must be [D] or [C, H, W]")
    labels = None
    if "labels" in condition:
        if num_classes is None and class_names is None:
            labels, num_classes = _all_labels(read)
        elif class_names is not None:
            _, num_classes = as_labels(condition["labels"][None], num_classes, class_names)
    elif num_classes or class_names:
        raise InputError("dataset: sample 0 has no label, but num_classes or class_names is given")
    return _Wrapped(
        read,
        first.shape,
        num_classes=num_classes or 0,
        class_names=class_names,
        value_range=value_range,
        labels=labels,
    )


class _Reader:
    """One item of the wrapped data set as (y, condition)."""

    def __init__(self, dataset: Any, key: str | None, labels_key: str) -> None:
        self.dataset = dataset
        self.key = key
        self.labels_key = labels_key

    def __len__(self) -> int:
        return len(self.dataset)

    def __call__(self, index: int) -> tuple[Tensor, Condition]:
        item = self.dataset[index]
        if isinstance(item, Mapping):
            if self.key is None or self.key not in item:
                said = "is not given" if self.key is None else f"is {self.key!r}"
                raise InputError(f"key {said}; the items of dataset are mappings with {', '.join(map(repr, item))}")
            y = item[self.key]
            condition = {
                "labels" if name == self.labels_key else name: value for name, value in item.items() if name != self.key
            }
        elif isinstance(item, tuple | list):
            if len(item) != 2:
                raise InputError(f"dataset: sample {index} has {len(item)} parts; it must be y or (y, label)")
            y, condition = item[0], {"labels": item[1]}
        else:
            y, condition = item, {}
        return _tensor(f"sample {index}", y), {
            name: _tensor(f"{name} of sample {index}", value) for name, value in condition.items()
        }


class _Wrapped(DataSet):
    def __init__(self, read: _Reader, shape: Sequence[int], **attributes: Any) -> None:
        super().__init__(shape, **attributes)
        self.read = read

    def __len__(self) -> int:
        return len(self.read)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Condition]:
        samples = [self.read(index) for index in indices]
        names = samples[0][1].keys()
        for index, (y, condition) in zip(indices, samples, strict=True):
            if tuple(y.shape) != self.shape:
                raise InputError(f"dataset: sample {index} has shape {list(y.shape)}, sample 0 has {list(self.shape)}")
            if condition.keys() != names:
                raise InputError(
                    f"dataset: sample {index} has the conditions {sorted(condition)}, "
                    f"sample {indices[0]} has {sorted(names)}"
                )
        stacked = {name: _stack(name, indices, [condition[name] for _, condition in samples]) for name in names}
        if "labels" in stacked:
            stacked["labels"], _ = as_labels(stacked["labels"], self.num_classes)
        return torch.stack([y for y, _ in samples]), stacked


def _all_labels(read: _Reader) -> tuple[Tensor, int]:
    found = []
    with track(len(read), "reading labels") as bar:
        for index in range(len(read)):
            _, condition = read(index)
            if "labels" not in condition:
                raise InputError(f"dataset: sample {index} has no label, sample 0 has one; -1 stands for none")
            found.append(condition["labels"])
            bar.advance()
    return as_labels(_stack("labels", range(len(read)), found))


def _stack(name: str, indices: Sequence[int], values: list[Tensor]) -> Tensor:
    for index, value in zip(indices, values, strict=True):
        if value.shape != values[0].shape:
            raise InputError(
                f"dataset: {name} of sample {index} has shape {list(value.shape)}, "
                f"of sample {indices[0]} {list(values[0].shape)}"
            )
    return torch.stack(values)


def _tensor(what: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, bool | int | float | np.ndarray | np.generic):
        return torch.as_tensor(value)
    raise InputError(f"dataset: {what} is a {type(value).__name__}; it must be a tensor, an array or a number")
