"""What every data set of edmund offers, and the one pass over it that statistics need."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.utils.data import Dataset

from edmund.errors import check_count
from edmund.moments import Moments
from edmund.transform import Identity, Transform

Condition = dict[str, Tensor]
"""The condition of a batch: name -> [B, *]. `labels` is [B] int64 classes (-1: none) or [B, L] values."""


class DataSet(Dataset[tuple[Tensor, Condition]], ABC):
    """Samples y in the user's units and stored dtype, with their conditions; a map-style torch data set.

    shape: of one sample, [D] or [C, H, W]. num_classes: 0 where there are no labels; for labels [N, L] it is L.
    class_names: one for each class, or None. value_range: (lowest, highest) value that the format allows, or None.
    labels: of all samples, where they are known without reading the samples; else None.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        num_classes: int = 0,
        class_names: Sequence[str] | None = None,
        value_range: tuple[float, float] | None = None,
        labels: Tensor | None = None,
    ) -> None:
        self.shape = tuple(int(length) for length in shape)
        self.num_classes = num_classes
        self.class_names = None if class_names is None else [str(name) for name in class_names]
        self.value_range = value_range
        self.labels = labels

    @abstractmethod
    def __len__(self) -> int:
        """How many samples there are."""

    @abstractmethod
    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Condition]:
        """The batch (y [B, *shape], condition) of the samples with these indices, in their order."""

    def __getitem__(self, index: int) -> tuple[Tensor, Condition]:
        """One sample: y of `shape`, and its condition without the batch axis."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index is {index}; the data set has {len(self)} samples")
        y, condition = self.__getitems__([index % len(self)])
        return y[0], {name: value[0] for name, value in condition.items()}


def batches(dataset: DataSet, batch_size: int | None = None) -> Iterator[Tensor]:
    """Every sample once and in order, as batches y [B, *]; what `Transform.fit` reads.

    batch_size: by default as many samples as make about four million numbers.
    """
    rows = (
        max(1, (1 << 22) // math.prod(dataset.shape)) if batch_size is None else check_count("batch_size", batch_size)
    )
    for start in range(0, len(dataset), rows):
        yield dataset.__getitems__(list(range(start, min(start + rows, len(dataset)))))[0]


def moments(dataset: DataSet, transform: Transform | None = None, *, batch_size: int | None = None) -> Moments:
    """Mean, population std and range of the data in the model's units, per feature and in total, in one pass.

    `moments(...).total_std`, the std of all numbers about their one mean, is the sigma_data of EDM's preconditioning
    (Karras et al. 2022, Table 1: 0.5 for images scaled to [-1, 1]). Raises InputError for NaN or infinite values.
    """
    forward = (transform if transform is not None else Identity()).forward
    return Moments.of(forward(y) for y in batches(dataset, batch_size))
