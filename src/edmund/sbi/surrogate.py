"""A learned simulator: more simulations than were paid for, from a model of p(x | theta).

A posterior network that has seen each simulation hundreds of times knows it by heart long before it has learned the
posterior. The likelihood is often the simpler of the two (one Gaussian where the posterior has four curved modes), and
a model of it is learned from the same simulations without harm. Its draws, at fresh parameters from the prior, are what
the posterior network then sees beside the simulator's own; how well the result predicts the simulator's held-out
simulations, and nothing else, says whether that was of use.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edmund import data
from edmund.data import DataSet
from edmund.errors import InputError
from edmund.formulation import Formulation
from edmund.model import Model
from edmund.progress import say, track
from edmund.sbi.conditional import (
    Effort,
    held_out_density,
    most_held_out,
    passes,
    sample_about_means,
    train_conditional,
)
from edmund.sbi.gaussian_regression import GaussianRegression, fit_gaussian
from edmund.sbi.network import ConditionalNetwork, mlp_for
from edmund.sbi.priors import Prior
from edmund.sbi.seeding import seeded
from edmund.sbi.simulations import CONDITION
from edmund.sbi.standardise import Standardise
from edmund.training import fingerprint
from edmund.training.output import replacing, writing_to

MOST_NUMBERS = 64
"""Numbers of x up to which a simulator is learned: a density of more is harder to learn than the posterior."""
_PER_SIMULATION, _MOST_DRAWN = 20, 400_000
"""Simulations drawn for each that there is, and at most."""
_LR = 1e-3
_ROWS = 20_000
"""Simulations that are drawn at a time."""
_STEPS = 24
_DRAWN, _GAUSSIAN, _OF = "drawn.safetensors", "gaussian.safetensors", "of"
"""The files of what was drawn and of the Gaussian, which may differ by the number of threads, and their entry that says
of what simulations and settings they are.
"""


class LearnedSimulator:
    """A model of p(x | theta) for vectors x, trained on simulations.

    With s the standardised x and z = prior.to_input(theta), a diffusion model is trained of s given z, and another of
    what a Gaussian of mean and covariance that depend on z leaves of s, white and of one scale; the density of held-out
    simulations chooses. The Gaussian is what scales need that vary by orders of magnitude, but it is not smooth, and
    where one scale is all there is a model has to learn its errors. Values that are whole numbers in all simulations
    are spread evenly over the unit around them, as a density at points has no bound, and drawn ones are rounded.

    gaussian: None where the model is of s itself. whole: which values those are, bool [*x_shape].
    """

    def __init__(
        self, prior: Prior, standard: Standardise, gaussian: GaussianRegression | None, model: Model, whole: Tensor
    ) -> None:
        self.prior, self.standard, self.gaussian, self.model, self.whole = prior, standard, gaussian, model, whole

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
        identity: str,
        *,
        seed: int,
        device: torch.device | str | None,
        progress: bool,
    ) -> LearnedSimulator:
        """From simulations as `Simulations.split` gives them, with vectors x.

        identity: of the simulations and settings; what `directory` has of the same is gone on with.
        """
        pairs = [_whole(each) for each in (train, validation)]
        x = pairs[0][1]
        whole = (x == x.round()).all(0)
        generator = torch.Generator().manual_seed(seed)
        standard = Standardise(x.shape[1:])
        sets: list[tuple[Tensor, Tensor]] = []
        for theta, x in pairs:
            spread = torch.where(whole, x + torch.rand(x.shape, generator=generator) - 0.5, x)
            if not sets:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # constant columns are told of with the posterior's network
                    standard.fit([spread])
            sets.append((prior.to_input(theta).float(), standard(spread)))
        fitted = _gaussian(sets[0], sets[1], directory / _GAUSSIAN, identity, seed, progress)
        candidates: dict[str, GaussianRegression | None] = {"plain": None, "whitened": fitted}
        found = []
        for name, gaussian in candidates.items():
            with torch.no_grad():
                left = [(s if gaussian is None else gaussian.whiten(z, s), z) for z, s in sets]
            pair = [data.from_arrays(w, observation=z) for w, z in left]
            with seeded(seed):
                network = ConditionalNetwork(len(whole), (prior.dim,), body=body)
            model, _ = train_conditional(
                pair[0],
                pair[1],
                network,
                formulation,
                effort,
                directory / name,
                seed=seed,
                device=device,
                progress=progress,
            )
            density = held_out_density(model, pair[1])
            if gaussian is not None:
                with torch.no_grad():
                    density += float(gaussian.log_abs_det(sets[1][0][: most_held_out(len(whole))]).mean())
            found.append((density, gaussian, model))
        say(
            f"simulator: ln p(x | theta) {found[0][0]:.5g} on average of held-out simulations, {found[1][0]:.5g} about "
            f"a Gaussian (of standardised x): the {'first' if found[0][0] >= found[1][0] else 'second'} is kept",
            progress,
        )
        _, gaussian, model = max(found, key=lambda each: each[0])
        return cls(prior, standard, gaussian, model, whole)

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
        z = self.prior.to_input(theta)
        context = network.encode(z.to(network.location_bias.device))
        seeds = range(first_seed, first_seed + len(theta))
        w = sample_about_means(self.model, context, seeds, num_steps=_STEPS, dtype=torch.float32, progress=False)
        s = self.model.transform.inverse(w)
        x = self.standard.inverse(s if self.gaussian is None else self.gaussian.unwhiten(z, s))
        # A learned density reaches a little beyond the values that there are: whole numbers end where the data end.
        rounded = x.round().clamp(self.standard.low.round(), self.standard.high.round())
        return torch.where(self.whole, rounded, x)


class Enlarged(DataSet):
    """Drawn simulations (theta [M, D], x [M, *]) and all of the simulator's own, which are at least that share of the
    whole: few of them come round more often than the drawn.
    """

    def __init__(self, simulations: DataSet, theta: Tensor, x: Tensor, share: float) -> None:
        super().__init__(simulations.shape)
        self._simulations, self._theta, self._x = simulations, theta, x
        self._own = max(round(len(theta) * share / (1 - share)), len(simulations))

    def __len__(self) -> int:
        return len(self._theta) + self._own

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.tensor(indices)
        own = index >= len(self._theta)
        y = self._theta.new_empty(len(index), *self._theta.shape[1:])
        x = self._x.new_empty(len(index), *self._x.shape[1:])
        y[~own], x[~own] = self._theta[index[~own]], self._x[index[~own]]
        if own.any():
            rows = (index[own] - len(self._theta)) % len(self._simulations)
            theta, condition = self._simulations.__getitems__(rows.tolist())
            y[own], x[own] = theta, condition[CONDITION]
        return y, {CONDITION: x}


def check_learns(learn_simulator: Any, x_shape: Sequence[int], nan: str, auto: bool) -> bool:
    """The user's choice of whether a simulator is learned; auto: what "auto" means."""
    if learn_simulator not in (True, False, "auto"):
        raise InputError(f"learn_simulator is {learn_simulator!r}; it must be True, False or 'auto'")
    if learn_simulator is True and (len(x_shape) != 1 or nan != "refuse"):
        raise InputError(
            f"learn_simulator is True, but x has the shape {list(x_shape)} and nan is {nan!r}; a simulator is learned "
            "for vectors without missing values"
        )
    return auto if learn_simulator == "auto" else bool(learn_simulator)


def drawn_for(size: int) -> int:
    """How many simulations are drawn beside that many."""
    return min(_PER_SIMULATION * size, _MOST_DRAWN)


def draw_simulations(
    train: DataSet,
    validation: DataSet,
    prior: Prior,
    formulation: Formulation,
    directory: Path,
    *,
    samples: int,
    batch_size: int,
    seed: int,
    device: torch.device | str | None,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """(theta [M, D], x [M, *]) of a simulator that is learned from simulations.

    validation: decides when it has learned. directory: of the runs of its diffusion models, from which the same call
    goes on, and of what was drawn, which the same call finds there; samples: that each sees at most.
    """
    size = len(train) + len(validation)
    seen = max(samples, batch_size)
    data_sets = [fingerprint.of_data(each) for each in (train, validation)]
    drawn_by = [*data_sets, prior.config(), formulation.config(), seen, batch_size, drawn_for(size), seed]
    file, identity = directory / _DRAWN, json.dumps(drawn_by)
    found = _kept(file, identity)
    if found is None:
        simulator = LearnedSimulator.train(
            train,
            validation,
            prior,
            formulation,
            mlp_for(size),
            Effort(seen, batch_size, _LR, max(seen // 4, batch_size)),
            directory,
            identity,
            seed=seed,
            device=device,
            progress=progress,
        )
        theta, x = simulator.simulate(drawn_for(size), seed + 1, progress)
        found = {"theta": theta, "x": x}
        _keep(file, identity, found)
    return found["theta"], found["x"]


def _gaussian(
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    file: Path,
    identity: str,
    seed: int,
    progress: bool,
) -> GaussianRegression:
    """The Gaussian of (z, s), which `file` may have from before."""
    weights = _kept(file, identity)
    if weights is not None:
        found = GaussianRegression(train[0].shape[1], train[1].shape[1])
        found.load_state_dict(weights)
        return found.eval()
    found = fit_gaussian(train, validation, seed=seed, progress=progress)
    _keep(file, identity, found.state_dict())
    return found


def _kept(file: Path, identity: str) -> dict[str, Tensor] | None:
    """The tensors of a file of the same simulations and settings."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as kept:
            if (kept.metadata() or {}).get(_OF) == identity:
                return {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118
    except SafetensorError:  # damaged: it is made again
        pass
    return None


def _keep(file: Path, identity: str, tensors: Mapping[str, Tensor]) -> None:
    with writing_to(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            save_file(dict(tensors), temporary, {_OF: identity})


def _whole(data: DataSet) -> tuple[Tensor, Tensor]:
    """All of (y [N, *], x [N, *]) at once."""
    y, x = zip(*passes(data), strict=True)
    return torch.cat(y), torch.cat(x)
