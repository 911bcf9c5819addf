"""A learned simulator: more simulations than were paid for, from a model of p(x | theta).

A posterior network that has seen each simulation hundreds of times knows it by heart long before it has learned the
posterior. The likelihood is often the simpler of the two (one Gaussian where the posterior has four curved modes), and
a model of it is learned from the same simulations without harm. Its draws, at fresh parameters from the prior, are what
the posterior network then sees beside the simulator's own; how well the result predicts the simulator's held-out
simulations, and nothing else, says whether that was of use.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from edmund.data import DataSet
from edmund.formulation import Formulation
from edmund.model import Model
from edmund.progress import track
from edmund.sample import sample
from edmund.sbi.conditional import Effort, Mapped, passes, train_conditional
from edmund.sbi.network import ConditionalNetwork
from edmund.sbi.priors import Prior
from edmund.sbi.simulations import CONDITION
from edmund.sbi.standardise import Standardise

_ROWS = 20_000
"""Simulations that are drawn at a time."""
_STEPS = 24


class LearnedSimulator:
    """A model of p(x | theta) for vectors x, trained on simulations; called on theta [B, D] it gives x [B, *x_shape].

    standard: how x is standardised, fitted. model: of the standardised x given z = prior.to_model(theta).
    """

    def __init__(self, model: Model, standard: Standardise, prior: Prior, whole: Tensor) -> None:
        self.model, self.standard, self.prior = model, standard, prior
        self.whole = whole
        """Which values of x are whole numbers in all simulations: drawn ones are rounded."""

    @classmethod
    def train(
        cls,
        train: DataSet,
        validation: DataSet,
        prior: Prior,
        formulation: Formulation,
        network: dict[str, object],
        effort: Effort,
        directory: Path,
        *,
        seed: int,
        device: torch.device | str | None,
        progress: bool,
    ) -> LearnedSimulator:
        """From simulations as `Simulations.split` gives them, with vectors x."""
        standard = Standardise(_x_shape(train))
        standard.fit(x for _, x in passes(train))
        standardised, held_out = (
            Mapped(data, prior.to_model, standard, exchanged=True) for data in (train, validation)
        )
        body = ConditionalNetwork(math.prod(standard.shape), (prior.dim,), body=network)
        model, _ = train_conditional(
            standardised, held_out, body, formulation, effort, directory, seed=seed, device=device, progress=progress
        )
        return cls(model, standard, prior, _whole(x for _, x in passes(train)))

    def simulate(self, n: int, seed: int, progress: bool) -> tuple[Tensor, Tensor]:
        """(theta [n, D], x [n, *x_shape]), float32: parameters from the prior, and what the model draws for them."""
        theta = self.prior.sample(n, seed)
        drawn = []
        with track(n, "drawing simulations", enabled=progress) as bar, torch.no_grad():
            for start in range(0, n, _ROWS):
                rows = theta[start : start + _ROWS]
                drawn.append(self(rows, start + seed * n))
                bar.advance(len(rows))
        return theta, torch.cat(drawn)

    def __call__(self, theta: Tensor, first_seed: int) -> Tensor:
        network = self.model.network
        assert isinstance(network, ConditionalNetwork)
        where = network.location_bias.device
        context = network.encode(self.prior.to_model(theta).to(where))
        w = sample(
            self.model.denoiser,
            (len(theta), *self.model.shape),
            condition={"context": context},
            seeds=range(first_seed, first_seed + len(theta)),
            num_steps=_STEPS,
            dtype=torch.float32,
            progress=False,
        )
        assert isinstance(w, Tensor)
        x = self.standard.inverse(self.model.transform.inverse(w))
        # A learned density reaches a little beyond the values that there are: whole numbers end where the data end.
        rounded = x.round().clamp(self.standard.low, self.standard.high)
        return torch.where(self.whole, rounded, x)


class Enlarged(DataSet):
    """Simulations and drawn ones, half and half: the shorter set comes round as often as it takes."""

    def __init__(self, simulations: DataSet, theta: Tensor, x: Tensor) -> None:
        super().__init__(simulations.shape)
        self._simulations, self._theta, self._x = simulations, theta, x

    def __len__(self) -> int:
        return 2 * max(len(self._theta), len(self._simulations))

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.tensor(indices)
        half = len(self) // 2
        own, drawn = index[index < half] % len(self._simulations), (index[index >= half] - half) % len(self._theta)
        y = self._theta.new_empty(len(index), *self._theta.shape[1:])
        x = self._x.new_empty(len(index), *self._x.shape[1:])
        theta, condition = self._simulations.__getitems__(own.tolist())
        y[index < half], x[index < half] = theta, condition[CONDITION]
        y[index >= half], x[index >= half] = self._theta[drawn], self._x[drawn]
        return y, {CONDITION: x}


def _x_shape(data: DataSet) -> tuple[int, ...]:
    return tuple(data.__getitems__([0])[1][CONDITION].shape[1:])


def _whole(batches: Iterable[Tensor]) -> Tensor:
    whole: Tensor | None = None
    for x in batches:
        here = (x == x.round()).all(0)
        whole = here if whole is None else whole & here
    assert whole is not None
    return whole
