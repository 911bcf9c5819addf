"""A learned simulator: more simulations than were paid for, from a model of p(x | theta).

A posterior network that has seen each simulation hundreds of times knows it by heart long before it has learned the
posterior. The likelihood is often the simpler of the two (one Gaussian where the posterior has four curved modes), and
a model of it is learned from the same simulations without harm. Its draws, at fresh parameters from the prior, are what
the posterior network then sees beside the simulator's own; how well the result predicts the simulator's held-out
simulations, and nothing else, says whether that was of use.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edmund.data import DataSet
from edmund.formulation import Formulation
from edmund.model import Model
from edmund.progress import track
from edmund.sample import sample
from edmund.sbi.conditional import Effort, Mapped, passes, train_conditional
from edmund.sbi.gaussian_regression import GaussianRegression, fit_gaussian
from edmund.sbi.network import ConditionalNetwork
from edmund.sbi.priors import Prior
from edmund.sbi.seeding import seeded
from edmund.sbi.simulations import CONDITION
from edmund.sbi.standardise import Standardise

_ROWS = 20_000
"""Simulations that are drawn at a time."""
_STEPS = 24


class LearnedSimulator:
    """A model of p(x | theta) for vectors x, trained on simulations.

    With s the standardised x and z = prior.to_model(theta), a Gaussian of mean and covariance that depend on z is
    fitted to s; what it leaves, white and of one scale, is a diffusion model's.
    """

    def __init__(self, prior: Prior, standard: Standardise, gaussian: GaussianRegression, model: Model) -> None:
        self.prior, self.standard, self.gaussian, self.model = prior, standard, gaussian, model
        self.whole = torch.zeros(standard.shape, dtype=torch.bool)
        """Which values of x are whole numbers in all simulations: drawn ones are rounded."""

    @classmethod
    def train(
        cls,
        train: DataSet,
        validation: DataSet,
        prior: Prior,
        formulation: Formulation,
        body: Mapping[str, Any],
        effort: Effort,
        directory: Path,
        *,
        seed: int,
        device: torch.device | str | None,
        progress: bool,
    ) -> LearnedSimulator:
        """From simulations as `Simulations.split` gives them, with vectors x."""
        standard = Standardise(train.__getitems__([0])[1][CONDITION].shape[1:])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant columns are told of when the posterior's network is fitted
            standard.fit(x for _, x in passes(train))
        spaces = [Mapped(data, lambda theta, x: (prior.to_model(theta), standard(x))) for data in (train, validation)]
        gaussian = fit_gaussian(_whole(spaces[0]), _whole(spaces[1]), seed=seed, progress=progress)
        white = [Mapped(data, lambda z, s: (gaussian.whiten(z, s), z)) for data in spaces]
        with seeded(seed):
            network = ConditionalNetwork(gaussian.features, (prior.dim,), body=body)
        model, _ = train_conditional(
            white[0], white[1], network, formulation, effort, directory, seed=seed, device=device, progress=progress
        )
        made = cls(prior, standard, gaussian, model)
        made.whole = torch.stack([(x == x.round()).all(0) for _, x in passes(train)]).all(0)
        return made

    def simulate(self, n: int, seed: int, progress: bool) -> tuple[Tensor, Tensor]:
        """(theta [m, D], x [m, *x_shape]), float32: parameters from the prior, and what the model draws for them.

        A model's density has tails that the simulator need not have: of the n draws those are left out that lie more
        than a standard deviation outside the range of the simulations.
        """
        theta = self.prior.sample(n, seed)
        drawn = []
        with track(n, "drawing simulations", enabled=progress) as bar:
            for start in range(0, n, _ROWS):
                rows = theta[start : start + _ROWS]
                drawn.append(self._draw(rows, (seed << 32) + start))
                bar.advance(len(rows))
        x = torch.cat(drawn)
        within = self._within(x)
        return theta[within], x[within]

    def _within(self, x: Tensor) -> Tensor:
        low, high = self.standard(torch.stack([self.standard.low, self.standard.high]))
        s = self.standard(x)
        # NaN and infinities are in no range.
        within: Tensor = ((s >= low - 1) & (s <= high + 1)).all(1)
        return within

    @torch.no_grad()
    def _draw(self, theta: Tensor, first_seed: int) -> Tensor:
        network = self.model.network
        assert isinstance(network, ConditionalNetwork)
        z = self.prior.to_model(theta)
        w = sample(
            self.model.denoiser,
            (len(theta), *self.model.shape),
            condition={"context": network.encode(z.to(network.location_bias.device))},
            seeds=range(first_seed, first_seed + len(theta)),
            num_steps=_STEPS,
            dtype=torch.float32,
            progress=False,
        )
        assert isinstance(w, Tensor)
        x = self.standard.inverse(self.gaussian.unwhiten(z, self.model.transform.inverse(w)))
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


def _whole(data: DataSet) -> tuple[Tensor, Tensor]:
    """All of (y [N, *], x [N, *]) at once."""
    y, x = zip(*passes(data), strict=True)
    return torch.cat(y), torch.cat(x)
