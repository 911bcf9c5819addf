r"""One model of all conditionals of a joint density: p(any variables | any others), from simulations (theta, x).

A transformer over all columns of (theta, x), one token each, is trained as a denoiser under random masks: in each
sample some variables are given, some asked and some missing (Gloeckler et al. 2024, arXiv 2404.09636, "All-in-one
simulation-based inference"). Given values are never noised, and only the asked ones bear a loss. Of the samples, 60 %
train the posterior, 10 % the likelihood, 5 % the joint, 2.5 % each the prior and the evidence; in 10 % each column is
given with a probability of the sample's own, the others asked, and in 10 % some are missing besides. What is drawn is a
function of the seed and the number of the sample in the run, as all of training's noise.

The network is trained by Muon: of 10^6 samples of the task slcp Adam learned to a loss of 0.813 on fresh simulations,
and Muon, at its better learning rate, to 0.796.

The network's part starts at 0, where the model is the Gaussian of the data's moments, exactly and for every mask. It is
kept only if it lowers the held-out loss by more than chance does: what it adds for Gaussian data is noise. Parameters
whose prior's law is known are Gaussian by themselves in the model's units, and so the prior and its conditionals, where
no x is asked or given, are the Gaussian's alone.
"""

from __future__ import annotations

import copy
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from edmund import formulation as formulations
from edmund import model as models
from edmund import noise, samplers
from edmund.data import DataSet
from edmund.errors import InputError, check_count
from edmund.likelihood import log_prob
from edmund.model import Model, count_parameters
from edmund.networks import TokenTransformer
from edmund.progress import say
from edmund.sample import sample
from edmund.sbi import saved
from edmund.sbi.conditional import NUM_STEPS, P_STD, Effort, edm
from edmund.sbi.dependency import check_graph
from edmund.sbi.joint_network import RIDGE, JointDenoiser, JointNetwork
from edmund.sbi.joint_space import JointSpace, Names, named_columns
from edmund.sbi.priors import Prior
from edmund.sbi.seeding import seeded
from edmund.sbi.simulations import CONDITION, Simulations
from edmund.sbi.surrogate import MOST_NUMBERS, Enlarged, check_learns, draw_simulations, drawn_for
from edmund.training import Trainer, TrainingResult
from edmund.training.objective import levels, normals

FILE = "joint.json"
_ROWS = 1 << 14
_BATCH = 512
_LEARN_FROM = 50
"""Times that a simulation is seen in training above which a simulator is learned."""
_SIMULATOR = 2 / 3
"""Samples that a learned simulator sees, in those of the joint model: by default as many as NPSE's sees."""
_SHARE_OWN = 0.1
"""Of the simulator's own simulations among those of a learned one."""
_ERRORS = 2.0
"""Standard errors by which the network must lower the held-out loss to be kept."""
# Streams of a sample's key; those of training's noise are next to 1 << 40.
_KIND = (1 << 40) + 64
_SHARE_GIVEN = _KIND + 1
_SHARE_MISSING = _KIND + 2
_EACH = _KIND + 3
_POSTERIOR, _LIKELIHOOD, _JOINT, _PRIOR, _EVIDENCE, _COMPLEMENT = 0.6, 0.7, 0.75, 0.775, 0.8, 0.9
"""Shares of the kinds of masks, added up; what is left is the last kind."""


def draw_masks(sample_keys: Tensor, parameters: int, missing: Tensor) -> tuple[Tensor, Tensor]:
    """(given, missing), bool [B, V], of samples with these keys; at least one variable is asked in each.

    parameters: the number of theta's columns, the first ones. missing [B, V]: what the data lack.
    """
    count = missing.shape[1]
    kind, share_given, share_missing = (
        noise.uniform(sample_keys, stream)[:, None] for stream in (_KIND, _SHARE_GIVEN, _SHARE_MISSING)
    )
    each = torch.special.ndtr(noise.normal(sample_keys, (2 * count,), _EACH))
    theta = torch.arange(count) < parameters
    given = torch.where(kind < _POSTERIOR, ~theta, theta) & (kind < _LIKELIHOOD)
    given = given | ((kind >= _EVIDENCE) & (each[:, :count] < share_given))
    lost = ((kind >= _JOINT) & (kind < _PRIOR) & ~theta) | ((kind >= _PRIOR) & (kind < _EVIDENCE) & theta)
    lost = lost | ((kind >= _COMPLEMENT) & (each[:, count:] < share_missing))
    away = missing | lost
    none = (away | given).all(1, keepdim=True)
    one = torch.where(missing, -1, each[:, :count]).argmax(1, keepdim=True) == torch.arange(count)
    away = away & ~(none & one)
    return given & ~away & ~(none & one), away


class JointData(DataSet):
    """Simulations as the joint model is trained on them: y = z [V] in the model's units, 0 where missing; the
    condition says what is missing, and `draw_condition` adds what is given.
    """

    def __init__(self, data: DataSet, space: JointSpace) -> None:
        super().__init__((space.dim,))
        self._data, self._space = data, space

    def __len__(self) -> int:
        return len(self._data)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        theta, condition = self._data.__getitems__(indices)
        values = torch.cat([theta, condition[CONDITION]], 1)
        z = self._space.standardised(values, range(self._space.dim))
        missing = z.isnan()
        return torch.where(missing, 0, z).float(), {"missing": missing}

    def draw_condition(self, condition: Mapping[str, Tensor], sample_keys: Tensor) -> dict[str, Tensor]:
        """The masks of samples with these keys."""
        missing = condition["missing"]
        masks = draw_masks(sample_keys.cpu(), self._space.prior.dim, missing.cpu())
        return dict(zip(("given", "missing"), (mask.to(missing.device) for mask in masks), strict=True))

    def passes(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every (z, missing) once and in order."""
        for start in range(0, len(self), _ROWS):
            z, condition = self.__getitems__(list(range(start, min(start + _ROWS, len(self)))))
            yield z, condition["missing"]


def moments(data: JointData) -> tuple[Tensor, Tensor]:
    """(mean [V], covariance [V, V]) float64 of standardised data, each number from the rows that have both variables.

    Made positive definite by a share of `RIDGE` of unit variance.
    """
    size = data.shape[0]
    first, products, counts = torch.zeros(3, size, size, dtype=torch.float64)
    for z, missing in data.passes():
        there, values = (~missing).double(), z.double()
        first += values.mT @ there  # [i, j]: sum of z_i over the rows that have j too
        products += values.mT @ values
        counts += there.mT @ there
    counts = counts.clamp(min=1)
    mean = (first / counts).diagonal().clone()
    covariance = products / counts - (first / counts) * (first / counts).mT
    # Of different rows each, they may not be the covariances of any one law.
    values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
    covariance = (vectors * values.clamp(min=0)) @ vectors.mT
    return mean, covariance + RIDGE * torch.eye(size, dtype=torch.float64)


@torch.no_grad()
def held_out_gain(model: Model, data: JointData, seed: int) -> tuple[float, float, float]:
    """(loss of the Gaussian, by how much the network lowers it, the standard error of that), under the same noise."""
    denoiser = model.denoiser
    assert isinstance(denoiser, JointDenoiser)
    gaussian = copy.deepcopy(denoiser)
    gaussian.network.silence()
    keys = noise.keys(seed, -1 - torch.arange(len(data)))
    strata = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    sigma = levels(model.formulation.noise_density, keys, strata, len(data))
    device = denoiser.network.mean.device
    losses, gains = [], []
    start = 0
    for z, missing in data.passes():
        rows = slice(start, start + len(z))
        start += len(z)
        condition = data.draw_condition({"missing": missing.to(device)}, keys[rows])
        drawn = z.to(device), sigma[rows].to(device, z.dtype), normals(keys[rows], z).to(device), condition
        losses.append(gaussian.training_loss(*drawn))
        gains.append(losses[-1] - denoiser.training_loss(*drawn))
    gain = torch.cat(gains)
    return float(torch.cat(losses).mean()), float(gain.mean()), float(gain.std() / math.sqrt(len(gain)))


class Conditional(nn.Module):
    """p(asked | given) as a denoiser over the asked columns only, [B, n]; it goes wherever a denoiser does.

    What it denoises is w = z - E[z | given], z being the values in the model's units and the expectation that of the
    linear regression: centred, as samplers that start from noise of mean 0 like their data. `to_user` and `to_model`
    lead there and back.

    denoiser: of the joint model, in `space`. asked, given: columns. values: of the given ones, z [1, g] or one row a
    sample; NaN is missing. A condition `given` [B or 1, g] stands for other values in a call.
    """

    values: Tensor

    def __init__(
        self, denoiser: JointDenoiser, space: JointSpace, asked: Sequence[int], given: Sequence[int], values: Tensor
    ) -> None:
        super().__init__()
        self.denoiser, self.space = denoiser, space
        self.asked, self.given = list(asked), list(given)
        self.register_buffer("values", values.to(denoiser.network.mean.device))
        self.formulation = denoiser.formulation
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max
        self.known_conditions = ("given",)

    def forward(self, x: Tensor, sigma: Tensor, *, given: Tensor | None = None) -> Tensor:
        """D(x; sigma) of x [B, n]; sigma [] or [B]."""
        if x.ndim != 2 or x.shape[1] != len(self.asked):
            raise InputError(f"x has shape {list(x.shape)}; this conditional is of [B, {len(self.asked)}]")
        values = (self.values if given is None else given).to(x.dtype)
        if values.ndim != 2 or values.shape[1] != len(self.given) or len(values) not in (1, len(x)):
            raise InputError(f"given has shape {list(values.shape)}; it must be [1 or {len(x)}, {len(self.given)}]")
        z, known = self._all(values)
        location = self.denoiser.network.location(z, known)[:, self.asked]
        full = z.repeat(len(x) // len(z), 1)
        full[:, self.asked] = x + location
        missing = ~known
        missing[:, self.asked] = False
        denoised: Tensor = self.denoiser(full, sigma, given=known, missing=missing)
        return denoised[:, self.asked] - location

    def to_user(self, w: Tensor) -> Tensor:
        """The values float32 [B, n], in the user's units, of w [B, n]."""
        return self.space.to_user(w + self._location(w), self.asked)

    def to_model(self, values: Tensor) -> Tensor:
        """w [B, n] of values [B, n] in the user's units."""
        z = self.space.to_model(values, self.asked, "values")
        return z - self._location(z)

    def _location(self, like: Tensor) -> Tensor:
        location = self.denoiser.network.location(*self._all(self.values))
        return location[:, self.asked].to(like)

    def _all(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(z [R, V] with these values where they are given, which columns these are [R, V])."""
        there = ~values.isnan()
        full = values.new_zeros(len(values), self.space.dim)
        full[:, self.given] = torch.where(there, values, 0)
        known = torch.zeros(full.shape, dtype=torch.bool, device=full.device)
        known[:, self.given] = there
        return full, known


class JointEstimator:
    """Estimation of every conditional of p(theta, x) by one model.

    >>> joint = JointEstimator(prior).append_simulations(theta, x).train()          # doctest: +SKIP
    >>> joint.sample(1000, given={"x": x_o}, asked="theta")                         # doctest: +SKIP
    >>> joint.log_prob({"x": x_o}, given={"theta": theta_o})                        # doctest: +SKIP

    prior: of theta, see `Prior.of`. variables: names for columns of (theta, x), as widths that follow one another, such
    as {"beta": 1, "gamma": 1, "infected": 10}; "theta", "x" and the prior's own names are known besides, and so are
    columns by their numbers. graph: which column depends directly on which, see `dependency.check_graph`; None: all on
    all. nan: "refuse" NaN in x, or "mask" it as missing. channels, blocks, heads, expansion, dropout: of the
    `TokenTransformer`. device: where to train and sample.
    """

    def __init__(
        self,
        prior: Any,
        *,
        variables: Mapping[str, int] | None = None,
        graph: Any = None,
        nan: Literal["refuse", "mask"] = "refuse",
        channels: int = 64,
        blocks: int = 4,
        heads: int = 2,
        expansion: int = 3,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
    ) -> None:
        self.prior = Prior.of(prior)
        self.variables = variables
        self.graph = graph
        self.device = device
        self.simulations = Simulations(self.prior.dim, self.prior.accepts, nan=nan)
        self.result: TrainingResult | None = None
        self._size = {"channels": channels, "blocks": blocks, "heads": heads, "expansion": expansion}
        self._dropout = dropout
        with seeded(0):  # of weights that are thrown away
            self._tokens(1)  # refuses what does not fit here, and not after hours
        self._model: Model | None = None
        self._space: JointSpace | None = None

    def append_simulations(self, theta: Any, x: Any = None) -> Self:
        """Adds simulations theta [N, D], x [N, E]; see `Simulations.append`. Returns the estimator itself."""
        self.simulations.append(theta, x)
        return self

    def train(
        self,
        *,
        directory: str | os.PathLike[str] | None = None,
        samples: int | None = None,
        batch_size: int | None = None,
        lr: float = 4e-3,
        learn_simulator: bool | Literal["auto"] = "auto",
        validation_fraction: float = 0.1,
        seed: int = 0,
        progress: bool = True,
    ) -> Self:
        """Trains on all that was appended; returns the estimator itself.

        samples: training samples seen, at most (None: 600 a simulation, 2 to 6 million); training stops when the held-
        out loss no longer falls. batch_size: None: 512, or a quarter of few simulations. learn_simulator: whether a
        model of p(x | theta) draws further simulations to train on ("auto": where each would be seen more than 50 times
        otherwise, x has up to 64 numbers, and none may be missing). validation_fraction: of the simulations, held out
        (at most 4000); the average with the lowest loss on them is what is kept. directory: of the run, from which the
        same call goes on when it was interrupted; None: a temporary one.

        Raises InputError for too few simulations, x that are no vectors, a graph of another size or with a directed
        cycle, and for what the options of training refuse; KeyboardInterrupt where a signal ended the run: what was
        trained is saved, and the same call goes on.
        """
        size = len(self.simulations)
        fraction = min(validation_fraction, 4000 / size) if size else validation_fraction
        halves = self.simulations.split(fraction, seed)
        shape = halves[0].x_shape
        if len(shape) != 1:
            raise InputError(f"x has rows of shape {list(shape)}; a joint model has a token a number: flatten them")
        columns = named_columns(self.prior, shape[0], self.variables)
        self._space = space = JointSpace.fit(self.prior, columns, shape[0], halves[0].observations())
        train, validation = (JointData(half, space) for half in halves)
        network = self._build(space.dim, seed)
        for buffer, value in zip((network.mean, network.covariance), moments(train), strict=True):
            buffer.copy_(value)
        model = _model(network)
        seen = check_count("samples", samples) if samples is not None else min(max(600 * size, 2_000_000), 6_000_000)
        batch = check_count("batch_size", batch_size) if batch_size is not None else min(_BATCH, max(64, size // 4))
        plain = shape[0] <= MOST_NUMBERS and self.simulations.nan == "refuse"
        learns = check_learns(learn_simulator, shape, self.simulations.nan, plain and seen > _LEARN_FROM * size)
        say(
            f"JointEstimator: {size} simulations of {self.prior.dim} parameters and {shape[0]} numbers; "
            f"{count_parameters(network)} weights; {seen} samples in batches of {batch}"
            f"{f'; a learned simulator draws {drawn_for(size)} more' if learns else ''}",
            progress,
        )
        options = Effort(seen, batch, lr, max(seen // 3, batch), "muon").options(seed, self.device)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary if directory is None else directory)
            if learns:
                drawn = draw_simulations(
                    halves[0],
                    halves[1],
                    self.prior,
                    edm(),
                    folder / "simulator",
                    samples=int(_SIMULATOR * seen),
                    batch_size=min(4 * batch, max(64, size // 4)),
                    seed=seed,
                    device=self.device,
                    progress=progress,
                )
                train = JointData(Enlarged(halves[0], *drawn, _SHARE_OWN), space)
            self.result = Trainer(
                model,
                train,
                folder,
                validation=validation,
                options=options,
                progress=progress,
                device=self.device,
            ).run()
        if self.result.interrupted is not None:
            raise KeyboardInterrupt(self.result.interrupted)
        without, gain, error = held_out_gain(model, validation, seed)
        keeps = gain > _ERRORS * error
        if not keeps:
            network.silence()
        kept = "kept" if keeps else "left out: the model is the Gaussian of the data's moments"
        say(
            f"JointEstimator: held-out loss {without:.5g} of a Gaussian, lowered by {gain:.3g} +- {error:.2g} by the "
            f"network, which is {kept}",
            progress,
        )
        self._model = model
        return self

    def conditional(self, given: Mapping[Any, Any] | None = None, asked: Names | None = None) -> Conditional:
        """p(asked | given) as a denoiser over the asked columns, in the model's units: see `Conditional`.

        given: values by name or column, in the user's units, each [n], [1, n] or one row a sample (a number for a
        single column); NaN is missing, and a column of nothing else is as if it were not given: it may be
        asked. asked: names or columns; None: all that is not given. What is neither is marginalised.
        """
        columns, values = self._given(given)
        there = [place for place, absent in enumerate(values.isnan().all(0).tolist()) if not absent]
        columns, values = [columns[place] for place in there], values[:, there]
        wanted = self._asked(asked, columns)
        z = self.space.to_model(values, columns, "given")
        return Conditional(self.denoiser, self.space, wanted, columns, z)

    def sample(
        self,
        n: int,
        *,
        given: Mapping[Any, Any] | None = None,
        asked: Names | None = None,
        seed: int = 0,
        sampler: str | samplers.Sampler | None = None,
        num_steps: int | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """n draws of the asked columns, in the order asked, float32 [n, a] in the user's units.

        Parameters are always in the prior's support. given, asked: as of `conditional`; given values of n rows are one
        condition a draw. sampler, num_steps: of `edmund.sample`; None: the formulation's.
        """
        conditional = self.conditional(given, asked)
        rows = len(conditional.values)
        if rows not in (1, check_count("n", n)):
            raise InputError(f"given has {rows} rows and n is {n}; there must be 1 row or {n}")
        first = check_count("seed", seed, least=0) << 32
        w = sample(
            conditional,
            (n, len(conditional.asked)),
            condition=None if rows == 1 else {"given": conditional.values},
            seeds=range(first, first + n),
            sampler=sampler,
            num_steps=num_steps,
            batch_size=batch_size,
            progress=progress,
        )
        assert isinstance(w, Tensor)
        return conditional.to_user(w)

    def log_prob(
        self,
        values: Mapping[Any, Any],
        *,
        given: Mapping[Any, Any] | None = None,
        progress: bool = False,
        **options: Any,
    ) -> Tensor:
        """ln p(values | given), in nats and per unit of the user's: float64 [B], -inf outside the prior's support.

        values: what is asked, by name or column, each [B, n] (or [n]); given: as of `conditional`. One
        row of either goes with all of the other.
        options: of `edmund.log_prob` (rtol, atol, or num_steps and sampler).
        """
        asked, rows = self._given(values, "values")
        if rows.isnan().any():
            raise InputError(f"values: {int(rows.isnan().sum())} are NaN; a density needs them all")
        conditional = self.conditional(given, asked)
        if len(rows) == 1:
            rows = rows.expand(len(conditional.values), -1)
        if len(conditional.values) not in (1, len(rows)):
            raise InputError(f"given has {len(conditional.values)} rows; there must be 1, or {len(rows)} as in values")
        inside = self.space.contains(rows, asked)
        result = torch.full((len(rows),), -torch.inf, dtype=torch.float64)
        if inside.any():
            if len(conditional.values) > 1:
                conditional.values = conditional.values[inside]
            condition = None if len(conditional.values) == 1 else {"given": conditional.values}
            w = conditional.to_model(rows[inside])
            found = log_prob(conditional, w, condition=condition, progress=progress, **options)
            assert isinstance(found, Tensor)
            result[inside] = found + self.space.log_abs_det(rows[inside], asked)
        return result

    @property
    def space(self) -> JointSpace:
        """The names of the columns and the way to the model's units. Raises InputError before `train`."""
        self._trained()
        assert self._space is not None
        return self._space

    @property
    def denoiser(self) -> JointDenoiser:
        """The joint model over all columns, in the model's units. Raises InputError before `train`."""
        found = self._trained().denoiser
        assert isinstance(found, JointDenoiser)
        return found

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Writes the folder of a model, and `joint.json` with the prior, the columns and the network's arguments."""
        model = self._trained()
        folder = model.save(directory)
        saved.write(folder, FILE, {"space": self.space.config(), "network": model.network.config})
        return folder

    def push_to_hub(self, repo_id: str, *, private: bool = True) -> str:
        """Uploads the estimator's folder to the Hugging Face hub as `repo_id` ("user/name") and returns its address.

        InputError where that fails.
        """
        return models.push_to_hub(self.save, repo_id, private=private)

    @classmethod
    def load(
        cls, directory: str | os.PathLike[str], *, prior: Any = None, device: torch.device | str = "cpu"
    ) -> JointEstimator:
        """The estimator that `save` wrote, ready to sample.

        directory: a folder, or "hf://user/name" to download it from the Hugging Face hub. prior: for one of the user's
        own making.
        """
        folder = models.local(directory, FILE)
        with saved.reading(folder, FILE, "joint model") as content:
            space = JointSpace.from_config(content["space"], prior)
            tokens, graph, gaussian = (content["network"][key] for key in ("tokens", "graph", "gaussian"))
        checked = None if graph is None else check_graph(graph, space.dim)
        with seeded(0):  # of weights that are read next
            network = JointNetwork(TokenTransformer(**tokens), checked, gaussian)
        loaded = models.load(folder, network=network, device=device)
        size = {name: tokens[name] for name in ("channels", "blocks", "heads", "expansion", "dropout")}
        joint = cls(space.prior, graph=graph, device=device, **size)
        joint._model, joint._space = _model(loaded.network), space
        joint._model.denoiser.eval()
        return joint

    def _build(self, count: int, seed: int) -> JointNetwork:
        graph = None if self.graph is None else check_graph(self.graph, count)
        with seeded(seed):
            return JointNetwork(self._tokens(count), graph, self.prior.dim if self.prior.gaussian else 0)

    def _tokens(self, count: int) -> TokenTransformer:
        return TokenTransformer(count, **self._size, dropout=self._dropout, numbers=2)

    def _trained(self) -> Model:
        if self._model is None:
            raise InputError("there is no trained network; call train first")
        return self._model

    def _given(self, given: Mapping[Any, Any] | None, argument: str = "given") -> tuple[list[int], Tensor]:
        """(columns, values [R, n]) of values by name."""
        if given is not None and not isinstance(given, Mapping):
            raise InputError(f"{argument} is {given!r}; it must be a mapping such as {{'x': values}}")
        columns: list[int] = []
        parts: list[Tensor] = []
        for name, value in (given or {}).items():
            named = self.space.resolve(argument, name)
            parts.append(_rows(f"{argument}: {name}", value, len(named)))
            columns += named
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if twice:
            raise InputError(f"{argument} is {list(given or {})!r}; column {twice[0]} is in it more than once")
        lengths = sorted({len(part) for part in parts if len(part) > 1})
        if len(lengths) > 1:
            raise InputError(f"{argument} has {lengths[0]} and {lengths[1]} rows; all must have 1 or the same number")
        count = lengths[0] if lengths else 1
        expanded = [part.expand(count, -1) for part in parts]
        return columns, torch.cat(expanded, 1) if expanded else torch.zeros(1, 0, dtype=torch.float64)

    def _asked(self, asked: Names | None, given: list[int]) -> list[int]:
        if asked is None:
            wanted = [column for column in range(self.space.dim) if column not in given]
        else:
            wanted = self.space.resolve("asked", asked)
        if not wanted:
            raise InputError(f"asked is {asked!r}; at least one variable must be asked")
        both = [column for column in wanted if column in given]
        if both:
            raise InputError(f"asked is {asked!r}; column {both[0]} is given")
        return wanted


def _rows(argument: str, value: Any, width: int) -> Tensor:
    """A user's values as float64 [R, width]."""
    try:
        rows = torch.as_tensor(value).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"{argument} is a {type(value).__name__}; it must be numbers, [{width}] or [B, {width}]"
        ) from None
    if rows.ndim == 0 or (rows.ndim == 1 and width == 1 and len(rows) > 1):
        rows = rows.reshape(-1, 1)
    elif rows.ndim == 1:
        rows = rows[None]
    if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
        raise InputError(
            f"{argument} has shape {list(torch.as_tensor(value).shape)}; it must be [{width}] or [B, {width}]"
        )
    return rows


def _model(network: nn.Module) -> Model:
    """The model whose denoiser is the joint one."""
    assert isinstance(network, JointNetwork)
    chosen = replace(formulations.EDM(1.0, P_std=P_STD), num_steps=NUM_STEPS)
    model = Model(network, chosen, shape=(network.tokens.variables,))
    low, high = chosen.trained_range
    model.denoiser = JointDenoiser(network, chosen.preconditioning, formulation=chosen, sigma_min=low, sigma_max=high)
    return model
