"""Which samples a run sees, and in which order: a function of the seed and of the number of samples seen, and of
nothing else.

Sample number n of a run over N data is number n mod N of epoch n // N, and each epoch is a permutation of its own. So
`samples_seen` is the whole position in the data, a batch may span two epochs, and every datum is seen equally often.

The global batch of B samples is cut into one contiguous part for each process and accumulation step; part sizes differ
by at most one.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from edmund.errors import InputError


def seed_for(seed: int, *position: int) -> int:
    """A 63-bit seed for a generator, unrelated for different positions."""
    text = ",".join(map(str, (seed, *position))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Part:
    """Samples `start` .. `stop` - 1 of a run: what goes through the network at once in one process."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def parts(samples_seen: int, batch_size: int, accumulate: int, rank: int = 0, world: int = 1) -> list[Part]:
    """The `accumulate` parts that process `rank` of `world` takes of the batch that starts at `samples_seen`."""
    count = accumulate * world
    edges = [samples_seen + batch_size * k // count for k in range(rank * accumulate, (rank + 1) * accumulate + 1)]
    return [Part(start, stop) for start, stop in pairwise(edges)]


class DataOrder:
    """The datum behind every sample number of a run over `size` data."""

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise InputError(f"dataset: it has {size} samples; training needs at least 1")
        self.size = size
        self.seed = seed
        # A batch spans at most two epochs, unless it is larger than the data.
        self._permutation = functools.lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_for(self.seed, epoch))
        return torch.randperm(self.size, generator=generator)

    def indices(self, part: Part) -> list[int]:
        """The data of samples `part.start` .. `part.stop` - 1."""
        found: list[int] = []
        position = part.start
        while position < part.stop:
            epoch, offset = divmod(position, self.size)
            count = min(part.stop - position, self.size - offset)
            found += self._permutation(epoch)[offset : offset + count].tolist()
            position += count
        return found


class PartSampler:
    """What a DataLoader asks for: (part, its data) of every step of this process, from `samples_seen` to the end of the
    run.
    """

    def __init__(
        self, order: DataOrder, samples_seen: int, samples: int, batch_size: int, accumulate: int, rank: int, world: int
    ) -> None:
        self.order = order
        self.starts = range(samples_seen, samples, batch_size)
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.rank = rank
        self.world = world

    def __iter__(self) -> Iterator[tuple[Part, list[int]]]:
        for start in self.starts:
            for part in parts(start, self.batch_size, self.accumulate, self.rank, self.world):
                yield part, self.order.indices(part)
