"""What every measure compares: data sets as rows of raw features.

A set is a tensor or array [N, *] of images, fields or vectors in the user's units; its features are the values
themselves, flattened to [N, D], which mean the same on every machine and for every kind of data. Those of a network are
in `edmund.metrics.classifier`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edmund.errors import InputError

Data = Tensor | np.ndarray
"""A set of samples [N, *], real numbers of any dtype."""


def flatten(argument: str, data: Data, least: int = 1) -> Tensor:
    """`data` [N, *] as [N, D] on the CPU, dtype kept; an error for fewer than `least` rows or a value not finite."""
    rows = torch.as_tensor(data).detach().cpu()
    if rows.ndim < 2 or rows.is_complex():
        raise InputError(
            f"{argument} has shape {tuple(rows.shape)} and dtype {rows.dtype}; "
            "it must be real, [N, features] or [N, C, H, W]"
        )
    if len(rows) < least:
        raise InputError(f"{argument} has {len(rows)} samples; at least {least} are needed")
    rows = rows.flatten(1)
    if rows.shape[1] == 0:
        raise InputError(
            f"{argument} has shape {tuple(torch.as_tensor(data).shape)}; a sample must have at least one value"
        )
    if rows.is_floating_point():
        bad = (~torch.isfinite(rows)).any(1)
        if bad.any():
            raise InputError(
                f"{argument} has NaN or infinite values in {int(bad.sum())} of {len(rows)} samples; they must be finite"
            )
    return rows


def flatten_pair(first_name: str, first: Data, second_name: str, second: Data, least: int = 1) -> tuple[Tensor, Tensor]:
    """Both sets as [N, D]; an error if one sample has not the same shape in both."""
    rows = flatten(first_name, first, least), flatten(second_name, second, least)
    if tuple(first.shape[1:]) != tuple(second.shape[1:]):
        raise InputError(
            f"{first_name} has samples of shape {tuple(first.shape[1:])} and {second_name} of "
            f"{tuple(second.shape[1:])}; they must be the same"
        )
    return rows


def class_labels(argument: str, labels: Data, count: int) -> Tensor:
    """`labels` as int64 [count] on the CPU; an error for another length, values that are not whole, and -1 (none)."""
    tensor = torch.as_tensor(labels).detach().cpu()
    if tuple(tensor.shape) != (count,) or tensor.is_floating_point() or tensor.is_complex():
        raise InputError(
            f"{argument} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}; "
            f"it must be integers, one a sample: [{count}]"
        )
    if count and tensor.min() < 0:
        raise InputError(
            f"{argument} has the value {int(tensor.min())}; classes are counted from 0, and every sample needs one here"
        )
    return tensor.long()


def optional_labels(argument: str, labels: Data, count: int) -> Tensor:
    """As `class_labels`, but -1 is allowed and says that a sample has no class."""
    tensor = torch.as_tensor(labels).detach().cpu()
    missing = tensor == -1
    return torch.where(missing, -1, class_labels(argument, torch.where(missing, 0, tensor), count))


def count_in_common(first: Tensor, second: Tensor) -> Tensor:
    """Of each class the number [classes] that both sets have, by their labels [N] and [M] (-1: none)."""
    most = int(max(first.max(), second.max(), torch.tensor(0))) + 1
    return torch.minimum(*(torch.bincount(labels[labels >= 0], minlength=most) for labels in (first, second)))


def subsample(rows: Tensor, limit: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """At most `limit` random rows without repetition, and their indices, ascending."""
    if len(rows) <= limit:
        return rows, torch.arange(len(rows))
    index = torch.randperm(len(rows), generator=generator)[:limit].sort().values
    return rows[index], index
