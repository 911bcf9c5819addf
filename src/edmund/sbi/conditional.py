"""A conditional density p(y | x) trained: the network, its location and whitening, one run of the Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edmund import formulation as formulations
from edmund.data import DataSet
from edmund.errors import InputError
from edmund.formulation import Formulation
from edmund.likelihood import log_prob
from edmund.model import Model
from edmund.sample import sample
from edmund.samplers import Heun
from edmund.sbi.location import regress
from edmund.sbi.network import ConditionalNetwork
from edmund.sbi.simulations import CONDITION
from edmund.speed import training_precision
from edmund.training import Trainer, TrainingOptions, TrainingResult
from edmund.transform import Chain, Identity, Transform, Whiten

P_STD = 1.6
"""Of EDM: wider than for images, as a posterior may be far narrower in one direction than another."""
_SIGMA_MAX = 20.0
"""Of EDM: where noise hides what has unit variance and is sampled about its mean; above are a quarter of the steps of
images.
"""
NUM_STEPS = 48
"""Of sampling: posteriors are compared to a finer measure than images."""
_ROWS = 1 << 14
DENSITY_STEPS = 32
"""Of a density by Heun's method, a solver of every grid and formulation."""
_HELD_OUT, _LEAST_HELD_OUT = 5000, 50
"""Numbers, of as many simulations as have them, whose density chooses among networks, and the least simulations: a
density costs as many derivatives as there are numbers.
"""


def edm(num_steps: int = NUM_STEPS) -> Formulation:
    """EDM for what is whitened, and sampled about its mean."""
    return replace(formulations.EDM(1.0, P_std=P_STD), num_steps=num_steps, sigma_max=_SIGMA_MAX)


@dataclass(frozen=True)
class Effort:
    """How long and how a network is trained: `samples` seen at most, given up after `patience` without progress."""

    samples: int
    batch_size: int
    lr: float
    patience: int
    optimizer: str = "adam"

    def options(self, seed: int, device: torch.device | str | None) -> TrainingOptions:
        """The Trainer's. The learning rate falls as a cosine to 0, and what is delivered is the best average."""
        where = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
        interval = max(self.samples // 40, self.batch_size)
        return TrainingOptions(
            samples=self.samples,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            lr=self.lr,
            betas=(0.9, 0.99),
            lr_ramp=min(200 * self.batch_size, self.samples // 10),
            lr_schedule="cosine",
            clip_norm=1.0,
            precision=training_precision(torch.device(where)),
            ema_halflife=max(self.samples // 20, 1),
            seed=seed,
            validation_interval=interval,
            patience=self.patience,
            checkpoint_interval=max(self.samples // 4, self.batch_size),
            keep_checkpoints=1,
            log_interval=interval,
        )


def train_conditional(
    train: DataSet,
    validation: DataSet,
    network: ConditionalNetwork,
    formulation: Formulation,
    effort: Effort,
    directory: Path,
    *,
    transform: Transform | None = None,
    fitted_on: DataSet | None = None,
    diagonal: bool = False,
    seed: int,
    device: torch.device | str | None,
    progress: bool,
) -> tuple[Model, TrainingResult]:
    """The model of p(y | x), with y in the data's units and the folder of its run.

    Raises KeyboardInterrupt where a signal ended the run: what was trained is saved, and the same call goes on.

    train, validation: y [D] with the condition "observation". transform: y to unbounded space; what the model works in
    is that space, whitened about the location. fitted_on: the data that statistics are taken of; None: train.
    diagonal: see `regress`.
    """
    source = train if fitted_on is None else fitted_on
    model = linear_gaussian(source, validation, network, formulation, transform=transform, diagonal=diagonal)
    options = effort.options(seed, device)
    result = Trainer(
        model, train, directory, validation=validation, options=options, progress=progress, device=device
    ).run()
    if result.interrupted is not None:
        raise KeyboardInterrupt(result.interrupted)
    model.denoiser.eval()
    return model, result


def linear_gaussian(
    data: DataSet,
    validation: DataSet,
    network: ConditionalNetwork,
    formulation: Formulation,
    *,
    transform: Transform | None = None,
    diagonal: bool = False,
) -> Model:
    """The model of p(y | x) before training, where F = 0: the Gaussian of a linear regression in `transform`'s space.

    data: what all statistics are of; the rest is as of `train_conditional`.
    """
    to_space = Identity() if transform is None else transform
    network.fit(batch[1] for batch in passes(data))

    def pairs(data: DataSet) -> Iterator[tuple[Tensor, Tensor]]:
        with torch.no_grad():
            for y, x in passes(data):
                yield to_space.forward(y.double()), network.standardise(x)

    linear = regress(pairs(data), pairs(validation), diagonal=diagonal)
    whiten = Whiten(torch.zeros(len(linear.bias)), linear.cholesky)
    inverse = torch.linalg.inv(linear.cholesky)
    network.location_weight.copy_(inverse @ linear.weight)
    network.location_bias.copy_(inverse @ linear.bias)
    model = Model(network, formulation, Chain([to_space, whiten]), shape=(len(linear.bias),))
    model.denoiser.eval()
    return model


@torch.no_grad()
def means(model: Model, context: Tensor) -> Tensor:
    """The means of w given context [B, dim + E], [B, dim], all but: what D says at sigma_max about the location."""
    network = model.network
    assert isinstance(network, ConditionalNetwork)
    sigma_max = torch.tensor(model.formulation.sigma_max, dtype=context.dtype)
    parts = [
        model.denoiser(part[:, : network.dim], sigma_max, context=part)
        for part in torch.split(context, network.rows_at_once)
    ]
    return torch.cat(parts)


def sample_about_means(model: Model, context: Tensor, seeds: Sequence[int], **options: Any) -> Tensor:
    """w [n B, dim], n draws for each row of context [B, dim + E], all rows once, then again; n B seeds.

    A solver starts from noise around 0, and what is drawn lies around its mean, which may be far from there in its
    stds: what is sampled is w - mean. options: of `sample`.
    """
    mean = means(model, context)
    dim = mean.shape[1]
    rows = torch.cat([context[:, :dim] - mean, context[:, dim:]], 1)
    if len(context) > 1:
        times = len(seeds) // len(context)
        mean, rows = mean.repeat(times, 1), rows.repeat(times, 1)
    centred = sample(model.denoiser, (len(seeds), dim), condition={"context": rows}, seeds=seeds, **options)
    assert isinstance(centred, Tensor)
    w: Tensor = centred + mean.to(centred)
    return w


def held_out_density(model: Model, data: DataSet) -> float:
    """The `mean_density` of `held_out_log_prob`."""
    return mean_density(held_out_log_prob(model, data))


def mean_density(log_prob: Tensor) -> float:
    """The mean of ln p [n]; -inf where it is not finite, so that it wins no comparison."""
    mean = float(log_prob.mean())
    return mean if math.isfinite(mean) else -math.inf


def held_out_log_prob(model: Model, data: DataSet) -> Tensor:
    """ln p(y | x), in nats and the user's units, of the first of the data (`most_held_out`), float64; -inf where the
    denoiser is too far from one to have a density.
    """
    network = model.network
    assert isinstance(network, ConditionalNetwork)
    y, x = next(passes(data))
    most = most_held_out(y.shape[1])
    y, x = y[:most], x[:most]
    with torch.no_grad():
        context = network.encode(x.to(network.location_bias.device))
    try:
        found = log_prob(
            model, y.double(), condition={"context": context}, sampler=Heun(), num_steps=DENSITY_STEPS, progress=False
        )
    except InputError:
        return torch.full((len(y),), -torch.inf, dtype=torch.float64)
    assert isinstance(found, Tensor)
    return found


def most_held_out(numbers: int) -> int:
    """How many held-out simulations a density of that many numbers is averaged over, at most."""
    return max(_HELD_OUT // numbers, _LEAST_HELD_OUT)


def passes(data: DataSet) -> Iterator[tuple[Tensor, Tensor]]:
    """Every (y, x) once and in order, in batches of some ten thousand."""
    for start in range(0, len(data), _ROWS):
        y, condition = data.__getitems__(list(range(start, min(start + _ROWS, len(data)))))
        yield y, condition[CONDITION]


class Mapped(DataSet):
    """Data through a function of (y [B, *], observation [B, *]) that gives another such pair."""

    def __init__(self, data: DataSet, of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.may_be_missing: frozenset[str] = getattr(data, "may_be_missing", frozenset())
        self._data, self._of = data, of
        super().__init__(self.__getitems__([0])[0].shape[1:])

    def __len__(self) -> int:
        return len(self._data)

    @torch.no_grad()
    def __getitems__(self, indices: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        y, condition = self._data.__getitems__(indices)
        y, x = self._of(y, condition[CONDITION])
        return y, {CONDITION: x}
