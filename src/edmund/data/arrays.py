"""Data sets over arrays in memory or mapped from a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from edmund.data.dataset import Condition, DataSet
from edmund.errors import InputError

Array: TypeAlias = Tensor | np.ndarray[Any, Any]

_CHUNK = 1 << 22
"""Numbers that are looked at together when an array is checked."""


def from_arrays(
    y: Array | Sequence[Any],
    labels: Array | Sequence[int] | None = None,
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    value_range: tuple[float, float] | None = None,
    **condition: Array | Sequence[Any],
) -> DataSet:
    """The data set of samples y [N, D] or [N, C, H, W]; nothing is copied, and a memory map is read as it is needed.

    Grey images [N, H, W] get their channel axis, and 8-bit images [N, H, W, 1 or 3] become channel-first; 8-bit
    images have value_range (0, 255) unless another is given. labels: [N] whole numbers (-1: none), or [N, L] one-hot
    or continuous. num_classes: by default what class_names or the greatest label says. condition: further keywords for
    the network, [N, *] each. Raises InputError for NaN or infinite values (with their number), no samples, another
    number of labels or conditions than samples, labels that are no classes, and arrays of no numbers.
    """
    values = _layout(_array("y", y))
    if 0 in values.shape:
        raise InputError(f"y is empty (shape {list(values.shape)}); there must be at least one sample")
    check_finite("y", values)
    conditions = {name: _array(name, value) for name, value in condition.items()}
    targets, classes = None, 0
    if labels is not None:
        targets, classes = as_labels(labels, num_classes, class_names)
        conditions["labels"] = targets
    elif num_classes or class_names:
        raise InputError("labels is None, but num_classes or class_names is given; classes need labels")
    for name, value in conditions.items():
        if value.ndim == 0 or len(value) != len(values):
            raise InputError(
                f"{name} has shape {list(value.shape)}; it must have {len(values)} rows, one a sample of y"
            )
        check_finite(name, value)
    if value_range is None and values.ndim == 4 and values.dtype in (torch.uint8, np.uint8):
        value_range = (0.0, 255.0)
    return _Arrays(
        values,
        conditions,
        num_classes=classes,
        class_names=class_names,
        value_range=value_range,
        labels=targets,
    )


class _Arrays(DataSet):
    def __init__(self, y: Array, condition: dict[str, Array], **attributes: Any) -> None:
        super().__init__(y.shape[1:], **attributes)
        self.y = y
        self.condition = condition

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Condition]:
        return _take(self.y, indices), {name: _take(value, indices) for name, value in self.condition.items()}


def as_labels(
    labels: Any, num_classes: int | None = None, class_names: Sequence[str] | None = None, argument: str = "labels"
) -> tuple[Tensor, int]:
    """Labels as [N] int64 or [N, L] float32, and the number of classes.

    Raises InputError for numbers that are no classes: not whole, below -1, or not below the number of classes.
    """
    values = torch.as_tensor(_native(_array(argument, labels)))
    if class_names is not None:
        if num_classes not in (None, len(class_names)):
            raise InputError(f"num_classes is {num_classes}, but class_names has {len(class_names)} names")
        num_classes = len(class_names)
    if values.ndim == 2:
        if num_classes not in (None, values.shape[1]):
            raise InputError(f"{argument} has {values.shape[1]} columns; there are {num_classes} classes")
        return values.to(torch.float32), values.shape[1]
    if values.ndim != 1:
        raise InputError(f"{argument} has shape {list(values.shape)}; it must be [N] classes or [N, L] values")
    whole = values.to(torch.int64)
    broken = ~(whole == values)
    if broken.any():
        example = float(values[broken][0])
        raise InputError(
            f"{argument}: {int(broken.sum())} of {len(values)} are not whole numbers (the first: {example:g})"
        )
    if num_classes is None:
        num_classes = int(whole.max()) + 1 if len(whole) else 0
    outside = (whole < -1) | (whole >= num_classes)
    if outside.any():
        raise InputError(
            f"{argument}: {int(outside.sum())} of {len(whole)} are out of range (the first: {int(whole[outside][0])}); "
            f"they must be -1 (no label) or 0 to {max(num_classes - 1, 0)}"
        )
    return whole, num_classes


def check_finite(argument: str, values: Array) -> None:
    """Refuses NaN and infinite values, with how many there are; a part at a time, so that no mask as large is made."""
    if not (values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"):
        return
    rows = max(1, _CHUNK // max(1, math.prod(values.shape[1:])))
    nan, infinite = 0, 0
    for start in range(0, len(values), rows):
        part = torch.as_tensor(_native(values[start : start + rows]))
        nan += int(part.isnan().sum())
        infinite += int(part.isinf().sum())
    if nan or infinite:
        total = math.prod(values.shape)
        raise InputError(f"{argument}: {nan} values are NaN and {infinite} infinite among {total}; all must be finite")


def _array(argument: str, value: Any) -> Array:
    """A tensor on the CPU or an array that torch can read, without a copy where it already is one."""
    if isinstance(value, Tensor):
        if value.is_complex():
            raise InputError(f"{argument} holds {value.dtype}; it must hold real numbers")
        return value.detach().cpu()
    try:
        array: np.ndarray[Any, Any] = np.asanyarray(value)
    except ValueError:
        raise InputError(f"{argument} is ragged; all samples must have one shape") from None
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise InputError(f"{argument} holds {array.dtype}; it must hold real numbers")
    return array


def _layout(y: Array) -> Array:
    """[N, D] or [N, C, H, W]."""
    if y.ndim == 3:
        return y[:, None]
    if y.ndim == 4 and y.dtype in (torch.uint8, np.uint8) and y.shape[3] in (1, 3) and y.shape[1] not in (1, 3):
        return y.permute(0, 3, 1, 2) if isinstance(y, Tensor) else y.transpose(0, 3, 1, 2)
    if y.ndim == 4 and y.shape[3] in (1, 3) and y.shape[1] == y.shape[2] and y.shape[1] not in (1, 3):
        raise InputError(f"y has shape {list(y.shape)}, which looks channel-last; it must be [N, C, H, W]")
    if y.ndim not in (2, 4):
        raise InputError(f"y has shape {list(y.shape)}; it must be [N, D], [N, H, W] or [N, C, H, W]")
    return y


def _take(values: Array, indices: list[int]) -> Tensor:
    if isinstance(values, Tensor):
        return values[torch.tensor(indices, dtype=torch.int64)].contiguous()
    return torch.from_numpy(np.ascontiguousarray(_native(values[np.asarray(indices, dtype=np.int64)])))


def _native(values: Array) -> Array:
    """The array in the byte order and one of the integer types that torch has."""
    if isinstance(values, Tensor):
        return values
    unsigned = values.dtype.kind == "u" and values.dtype.itemsize > 1
    if unsigned or not values.dtype.isnative:
        native: np.ndarray[Any, Any] = values.astype(np.int64 if unsigned else values.dtype.newbyteorder("="))
        return native
    # torch cannot hold a read-only array (it warns); only small parts come here.
    writeable: np.ndarray[Any, Any] = values if values.flags.writeable else values.copy()
    return writeable
