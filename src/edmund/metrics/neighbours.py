"""Nearest neighbours: has the model learned the training set by heart, or does it miss its surroundings?

Held-out data lie at a typical distance from their nearest training sample. Samples of the same law lie at the same
distances (ratio 1); blurred or averaged ones too near (below 1), noisy or wrong ones too far (above 1). A *near-copy*
is a sample nearer to a training sample than all but 1 % of the held-out data are: 1 % of honest samples are near-copies
by definition, all of a memorised set's are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edmund.errors import InputError, check_count
from edmund.metrics.features import Data, flatten_pair

COPY_PERCENTILE = 1.0


@dataclass(frozen=True)
class Neighbours:
    """Nearest distances, in the data's units, of samples and of held-out data to the training set."""

    distances: Tensor
    """[N] float64: from each sample."""
    held_out_distances: Tensor
    """[M] float64: from each held-out one."""

    @property
    def ratio(self) -> float:
        """Mean nearest distance of the samples over that of the held-out data."""
        return float(self.distances.mean() / self.held_out_distances.mean())

    @property
    def copy_threshold(self) -> float:
        """The held-out data's 1st percentile."""
        return float(self.held_out_distances.quantile(COPY_PERCENTILE / 100))

    @property
    def near_copies(self) -> float:
        """The fraction of samples strictly nearer than the threshold; exact copies count even where that is 0."""
        return float(((self.distances < self.copy_threshold) | (self.distances == 0)).double().mean())


def neighbours(samples: Data, train: Data, held_out: Data, *, chunk: int = 1024) -> Neighbours:
    """Euclidean distances on raw values of `samples` [N, *] and `held_out` [M, *] to the nearest of `train` [K, *]."""
    result = Neighbours(
        nearest_distances(samples, train, chunk=chunk, names=("samples", "train")),
        nearest_distances(held_out, train, chunk=chunk, names=("held_out", "train")),
    )
    if result.held_out_distances.max() == 0:
        raise InputError(
            "held_out has only samples that are in train as well; it must be data that the model was not trained on"
        )
    return result


def nearest_distances(
    queries: Data, references: Data, *, chunk: int = 1024, names: tuple[str, str] = ("queries", "references")
) -> Tensor:
    """Distance [N] float64 from each query [N, *] to the nearest reference [M, *]; exactly 0 for a copy.

    Memory beside the two sets is O(chunk (chunk + D)), whatever N and M.
    """
    check_count("chunk", chunk)
    a, b = flatten_pair(names[0], queries, names[1], references)
    found = []
    for query in torch.split(a, chunk):
        query = query.double()
        best = torch.full((len(query),), torch.inf, dtype=torch.float64)
        nearest = torch.zeros_like(query)
        for block in torch.split(b, chunk):
            block = block.double()
            # |q - r|^2 less |q|^2, which is the same for all r: one matrix product finds the nearest one ...
            value, index = (block.square().sum(1) - 2 * query @ block.T).min(1)
            better = value < best
            best = torch.where(better, value, best)
            nearest[better] = block[index[better]]
        found.append((query - nearest).norm(dim=1))  # ... and the difference its distance without cancellation
    return torch.cat(found)
