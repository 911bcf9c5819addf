r"""The loss of a part of a batch: what one call of the distributed wrapper computes.

Training draws, for sample number n of the run, the noise level sigma = Q(u) from the formulation's density and the unit
normals n ~ N(0, I), both from counter-based streams keyed by (seed, n): one process and several draw the same numbers.
Within a batch of B samples u is stratified, u_i = (i + v_i) / B with v_i uniform, so every batch covers the density.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edmund import noise
from edmund.denoiser import Preconditioned, drop_condition
from edmund.formulation import Formulation
from edmund.loss import DenoisingLoss
from edmund.noise_density import NoiseDensity
from edmund.speed import PRECISIONS
from edmund.training.batches import Batch
from edmund.training.order import Part, seed_for
from edmund.transform import Transform

# Streams of a key; far from those that sampling uses with the same seeds.
_NOISE = 1 << 40
_LEVEL = _NOISE + 1
_DROP = _NOISE + 2


class Objective(nn.Module):
    """The sum over a part of the weighted denoising losses, times a factor: a scalar, for `backward`."""

    def __init__(self, denoiser: Preconditioned, formulation: Formulation, precision: str) -> None:
        super().__init__()
        self.loss = DenoisingLoss(denoiser, formulation.loss_weight)
        self.precision = PRECISIONS[precision]

    def forward(
        self, x: Tensor, sigma: Tensor, normals: Tensor, condition: Mapping[str, Tensor], factor: float
    ) -> Tensor:
        """x [B, *] clean, in the model's units; sigma [B]; normals like x."""
        with torch.autocast(x.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            losses: Tensor = self.loss(x, sigma, normals, condition)
        return losses.sum() * factor


def clean(batch: Batch, transform: Transform, dtype: torch.dtype) -> Tensor:
    """The batch in the model's units and the dtype that it trains in."""
    return transform.forward(batch.y).to(dtype)


def levels(density: NoiseDensity, sample_keys: Tensor, strata: Tensor, count: int) -> Tensor:
    """Training levels, float64 [B]: one in each given stratum (int64 [B]) of `count` equal parts of the density."""
    u = (strata + noise.uniform(sample_keys, _LEVEL)) / count
    # A v_i next to 1 may round (i + v_i) / count up to 1, the end of the density, which can lie at infinity.
    return density.quantile(torch.clamp(u, max=1 - 2.0**-53))


def normals(sample_keys: Tensor, like: Tensor) -> Tensor:
    """Unit normals like `like` [B, *], on its device."""
    # A device without float64 gets the numbers of the CPU.
    place = torch.device("cpu") if like.device.type == "mps" else like.device
    return noise.normal(sample_keys.to(place, non_blocking=True), like.shape[1:], _NOISE, dtype=like.dtype).to(
        like.device
    )


def drawn(dataset: object, condition: Mapping[str, Tensor], sample_keys: Tensor) -> dict[str, Tensor]:
    """The condition with what the data set draws anew each time that a sample is seen, by a method
    `draw_condition(condition, sample_keys)` -> condition; as it is where there is no such method.
    """
    draw = getattr(dataset, "draw_condition", None)
    return dict(condition) if draw is None else draw(condition, sample_keys)


def drop(condition: Mapping[str, Tensor], sample_keys: Tensor, probability: float) -> dict[str, Tensor]:
    """The condition with that share of the samples told nothing: labels -1 or a zero row, context and image by
    `condition_dropped`.
    """
    if probability == 0 or not condition:
        return dict(condition)
    return drop_condition(condition, noise.uniform(sample_keys, _DROP) < probability)


@contextmanager
def seeded_dropout(device: torch.device, seed: int, part: Part) -> Iterator[None]:
    """Random numbers inside the network as a function of the run's position; the user's global streams are left as they
    were.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        value = seed_for(seed, part.start)
        torch.default_generator.manual_seed(value)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(value)
        yield
