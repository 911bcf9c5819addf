"""The validation loss: the training loss on held-out data under noise that is the same every time, so two values differ
by the weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edmund import noise
from edmund.noise_density import NoiseDensity
from edmund.training.batches import Batch, TrainingData, read
from edmund.training.objective import Objective, clean, drawn, levels, normals
from edmund.training.order import Part, parts, seed_for
from edmund.transform import Transform


class Validation:
    """The loss over `dataset`, keyed by the index of a datum and `seed`; process `rank` of `world` evaluates its share.

    The noise levels are stratified over the whole set, in an order of their own, so that a set sorted by class has
    every level in every class.
    """

    def __init__(
        self,
        dataset: TrainingData,
        transform: Transform,
        density: NoiseDensity,
        *,
        seed: int,
        batch_size: int,
        rank: int,
        world: int,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.batch_size = batch_size
        self.share = parts(0, len(dataset), 1, rank, world)[0]
        # Negative indices: training counts its samples from 0 on.
        self._keys = noise.keys(seed, -1 - torch.arange(len(dataset)))
        generator = torch.Generator().manual_seed(seed_for(seed, -1))
        strata = torch.randperm(len(dataset), generator=generator)
        self.sigma = levels(density, self._keys, strata, len(dataset))
        """The noise level of each datum, float64 [N]."""

    @torch.no_grad()
    def total(self, objective: Objective, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The sum of the losses of this process's share over the size of the whole set: a scalar on the device."""
        objective.eval()
        total = torch.zeros((), device=device)
        for start in range(self.share.start, self.share.stop, self.batch_size):
            part = Part(start, min(start + self.batch_size, self.share.stop))
            rows = slice(part.start, part.stop)
            batch = Batch(part, *read(self.dataset, list(range(part.start, part.stop)))).to(device)
            x = clean(batch, self.transform, dtype)
            sigma = self.sigma[rows].to(device, dtype)
            condition = drawn(self.dataset, batch.condition, self._keys[rows])
            total += objective(x, sigma, normals(self._keys[rows], x), condition, 1 / len(self.dataset))
        return total


@dataclass(frozen=True)
class Best:
    """The lowest validation loss so far and the samples seen when it was measured."""

    loss: float
    samples_seen: int

    def state(self) -> dict[str, Any]:
        """JSON-able; `Best(**state)` is the same."""
        return {"loss": self.loss, "samples_seen": self.samples_seen}
