"""Neural posterior score estimation: from simulations to p(theta | x)."""

from __future__ import annotations

import copy
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from edmund import formulation as formulations
from edmund.data import DataSet
from edmund.errors import InputError, check_count, unknown
from edmund.formulation import Formulation
from edmund.model import Model, count_parameters
from edmund.progress import say
from edmund.sbi.conditional import (
    NUM_STEPS,
    Effort,
    Mapped,
    edm,
    held_out_log_prob,
    linear_gaussian,
    mean_density,
    train_conditional,
)
from edmund.sbi.network import BODIES, NO_BODY, ConditionalNetwork, mlp_for
from edmund.sbi.posterior import Posterior
from edmund.sbi.priors import Prior
from edmund.sbi.seeding import seeded
from edmund.sbi.simulations import SimulationData, Simulations
from edmund.sbi.surrogate import MOST_NUMBERS, Enlarged, check_learns, draw_simulations, drawn_for
from edmund.training import TrainingResult


class _Candidate(NamedTuple):
    """A way to train the posterior's network, of which the held-out density chooses one.

    share: of the simulator's own simulations among those of a learned one. The more there are, the sooner a network
    knows them by heart; the fewer, the more it learns of the learned simulator's errors. compact: trained in the space
    of `Prior.compact`, where what ends at a limit of the prior is learned better, or in that of `Prior.transform`,
    where all is smoother.
    """

    folder: str
    share: float
    compact: bool


_ALONE = (_Candidate("simulations", 1.0, False),)
_LIMITED = (_Candidate("compact", 0.1, True), _Candidate("normal", 0.1, False))
"""Where parameters have two limits: there the space matters more than the share."""
_UNLIMITED = (_Candidate("half", 0.5, False), _Candidate("tenth", 0.1, False))
_TRANSFORMER_STEPS = 28
"""Of sampling, each of which costs ten times as much as an MLP's."""
_ERRORS = 2.0
"""Standard errors by which a network must raise the held-out density above that of a linear Gaussian posterior."""
_BATCH, _BATCH_ALONE = 2048, 1024
"""Samples of a batch at most, and where no simulations are drawn besides: larger ones are quicker, and know few
simulations by heart sooner.
"""
_VP_M = 6
"""Of VP's noise input (M - 1) t: of the 1000 of images, the network's tones make two thousand turns on the way from
noise to data, which it does not unlearn from a few simulations, and which an adaptive solver resolves one by one.
"""


@dataclass(frozen=True)
class _Plan:
    """What is chosen from the numbers of parameters, of x and of simulations."""

    body: dict[str, Any] | nn.Module
    effort: Effort
    drawn: int
    """Simulations to draw of a learned simulator; 0: none is learned."""

    def __str__(self) -> str:
        body = self.body
        if isinstance(body, nn.Module):
            what = type(body).__name__
        else:
            what = f"{body['type']} of {body['blocks']} blocks of {body['channels']}"
        text = f"{what}; at most {self.effort.samples} samples in batches of {self.effort.batch_size}"
        return f"{text}; a learned simulator draws {self.drawn} more" if self.drawn else text


class NPSE:
    """Posterior estimation by a diffusion model of theta given x.

    >>> inference = NPSE(prior)                                                   # doctest: +SKIP
    >>> posterior = inference.append_simulations(theta, x).train().build_posterior()  # doctest: +SKIP
    >>> posterior.sample((1000,), x=x_o)                                          # doctest: +SKIP

    prior: see `Prior.of`. formulation: "edm", "vp", "ve", "flow", "iddpm", "cosine", or a Formulation of data of unit
    variance. network: "mlp"; "transformer", of one token a parameter and feature; "auto", the MLP, or none where the
    held-out simulations of a learned simulator show nothing beyond a linear Gaussian posterior; or a module (z [B, D],
    c_noise [B], *, context [B, E]) -> [B, D] (E: the embedding's features). embedding: of x, see `embedding.build`.
    Modules of one's own are copied, and stay as they were. nan: "refuse" NaN in x, or "mask" it as missing. device:
    where to train and sample.
    """

    def __init__(
        self,
        prior: Any,
        formulation: str | Formulation = "edm",
        network: Literal["auto", "mlp", "transformer"] | nn.Module = "auto",
        embedding: Any = None,
        *,
        nan: Literal["refuse", "mask"] = "refuse",
        device: torch.device | str | None = None,
    ) -> None:
        self.prior = Prior.of(prior)
        if isinstance(network, str) and network not in ("auto", *BODIES):
            raise unknown("network", network, ("auto", *BODIES))
        if not isinstance(network, str | nn.Module):
            raise InputError(f"network is {network!r}; it must be 'auto', 'mlp', 'transformer' or a module")
        self.network = network
        self.formulation = _resolve(formulation, _TRANSFORMER_STEPS if network == "transformer" else NUM_STEPS)
        self.embedding = embedding
        self.device = device
        self.simulations = Simulations(self.prior.dim, self.prior.accepts, nan=nan)
        self.result: TrainingResult | None = None
        self.held_out: SimulationData | None = None
        """The simulations that `train` did not train on."""
        self._model: Model | None = None

    def append_simulations(self, theta: Any, x: Any = None) -> NPSE:
        """Adds simulations theta [N, D], x [N, *]; see `Simulations.append`. Returns the inference itself."""
        self.simulations.append(theta, x)
        return self

    def train(
        self,
        *,
        directory: str | os.PathLike[str] | None = None,
        samples: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        learn_simulator: bool | Literal["auto"] = "auto",
        validation_fraction: float = 0.1,
        seed: int = 0,
        progress: bool = True,
    ) -> NPSE:
        """Trains on all that was appended; returns the inference itself.

        What is None or "auto" is chosen from the numbers of parameters and simulations, and printed. samples: training
        samples seen, at most; training stops when the held-out loss no longer falls, and the best average is kept.
        learn_simulator: whether a model of p(x | theta) draws further simulations to train on (vectors x only; "auto":
        where x is short enough); then two networks are trained, in two spaces where parameters have two limits, and
        else where the simulator's own are half of all and where they are a tenth, and the density of held-out
        simulations decides. validation_fraction: of the simulations, held out (at most 2000). directory: of the runs,
        from which the same call goes on when it was interrupted; None: a temporary one.

        Raises InputError for too few simulations, and for what the options of training refuse; KeyboardInterrupt where
        a signal ended it, what was trained being saved in `directory`.
        """
        size = len(self.simulations)
        fraction = min(validation_fraction, 2000 / size) if size else validation_fraction
        train, validation = self.simulations.split(fraction, seed)
        self.held_out = validation
        plan = self._plan(size, samples, batch_size, lr, learn_simulator)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary if directory is None else directory)
            self._model, self.result = self._train(train, validation, plan, folder, seed, progress)
        return self

    def build_posterior(self) -> Posterior:
        """The posterior, for any x. Raises InputError before `train`."""
        if self._model is None:
            raise InputError("there is no trained network; call train first")
        return Posterior(self.prior, self._model)

    def _train(
        self, train: DataSet, validation: DataSet, plan: _Plan, folder: Path, seed: int, progress: bool
    ) -> tuple[Model, TrainingResult]:
        candidates: tuple[_Candidate, ...] = _ALONE
        if plan.drawn:
            candidates = _UNLIMITED if self.prior.compact is self.prior.transform else _LIMITED
        # What does not fit is refused here, and not after the simulator's training.
        options = plan.effort.options(seed, self.device)
        networks = [self._build(plan.body, self.embedding, seed) for _ in candidates]
        say(
            f"NPSE: {len(train) + len(validation)} simulations of {self.prior.dim} parameters, x "
            f"{list(self.simulations.x_shape or ())} through the embedding {networks[0].embedding.name!r}, "
            f"{len(validation)} held out; {self.formulation.name}; {plan}; learning rate {options.lr:g}",
            progress,
        )
        found = []
        drawn: tuple[Tensor, Tensor] | None = None
        if plan.drawn:
            drawn = draw_simulations(
                train,
                validation,
                self.prior,
                self.formulation,
                folder / "simulator",
                samples=plan.effort.samples // 2,
                batch_size=plan.effort.batch_size,
                seed=seed,
                device=self.device,
                progress=progress,
            )
        for (name, share, compact), network in zip(candidates, networks, strict=True):
            data: DataSet = train if drawn is None else Enlarged(train, *drawn, share)
            transform = self.prior.compact if compact else self.prior.transform
            model, result = train_conditional(
                Mapped(data, self._inward),
                Mapped(validation, self._inward),
                network,
                self.formulation,
                plan.effort,
                folder / name,
                transform=transform,
                fitted_on=Mapped(train, self._inward),
                diagonal=transform is not self.prior.transform or not self.prior.gaussian,
                seed=seed,
                device=self.device,
                progress=progress,
            )
            log_prob, density, whose, nats = torch.zeros(0), -math.inf, "", ""
            if drawn is not None:
                log_prob = held_out_log_prob(model, Mapped(validation, self._inward))
                density = mean_density(log_prob)
                whose = f" ({name}, {share:.0%} the simulator's own)"
                nats = f", ln p(theta | x) {density:.5g} on average"
            say(
                f"NPSE: trained on simulations{whose}: held-out loss {result.best_validation_loss:.5g}{nats} after "
                f"{result.best_samples_seen} samples ({count_parameters(network)} parameters, {result.seconds:.0f} s)",
                progress,
            )
            loss = math.inf if result.best_validation_loss is None else result.best_validation_loss
            found.append(((density, -loss), model, result, log_prob))
        chosen = max(range(len(found)), key=lambda each: found[each][0])
        _, model, result, log_prob = found[chosen]
        if len(found) > 1:
            say(f"NPSE: of the two, {candidates[chosen].folder} is kept", progress)
        if drawn is not None and self.network == "auto" and _gaussian_without_network(self.formulation):
            model = self._unless_linear(model, log_prob, train, validation, seed, progress)
        return model, result

    def _unless_linear(
        self, model: Model, log_prob: Tensor, train: DataSet, validation: DataSet, seed: int, progress: bool
    ) -> Model:
        """The model of these held-out ln p(theta | x), or the linear Gaussian one if that is no worse but by chance:
        what a network adds to an exact posterior is noise.
        """
        linear = linear_gaussian(
            Mapped(train, self._inward),
            Mapped(validation, self._inward),
            self._build(NO_BODY, None, seed),
            self.formulation,
            transform=self.prior.transform,
            diagonal=not self.prior.gaussian,
        ).to(next(model.network.parameters()).device)
        without = held_out_log_prob(linear, Mapped(validation, self._inward))
        gain = log_prob - without
        mean, error = float(gain.mean()), float(gain.std()) / math.sqrt(len(gain))
        keeps = not bool(without.isfinite().all()) or mean > _ERRORS * error
        say(
            f"NPSE: ln p(theta | x) {float(without.mean()):.5g} of a linear Gaussian posterior, raised by {mean:.3g} "
            f"+- {error:.2g} by the network, which is {'kept' if keeps else 'left out'}",
            progress,
        )
        return model if keeps else linear

    def _build(self, body: dict[str, Any] | nn.Module, embedding: Any, seed: int) -> ConditionalNetwork:
        """One more network, of copies of the user's own modules."""
        with seeded(seed):  # of the first weights, which come from the global stream
            return ConditionalNetwork(
                self.prior.dim,
                self.simulations.x_shape or (),
                body=copy.deepcopy(body),
                embedding=copy.deepcopy(embedding),
                mask=self.simulations.nan == "mask",
            )

    def _inward(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """theta that rounding has put on a limit of the prior, moved inside."""
        return self.prior.box.inward(theta), x

    def _plan(
        self,
        size: int,
        samples: int | None,
        batch_size: int | None,
        lr: float | None,
        learn_simulator: bool | Literal["auto"],
    ) -> _Plan:
        shape = self.simulations.x_shape or ()
        short = len(shape) == 1 and shape[0] <= MOST_NUMBERS and self.simulations.nan == "refuse"
        learns = check_learns(learn_simulator, shape, self.simulations.nan, short)
        network = "mlp" if self.network == "auto" else self.network
        body = mlp_for(size) if network == "mlp" else {**_TRANSFORMER} if network == "transformer" else network
        most = _BATCH if learns else _BATCH_ALONE
        batch = check_count("batch_size", batch_size) if batch_size is not None else min(most, max(64, size // 4))
        seen = check_count("samples", samples) if samples is not None else min(max(800 * size, 4_000_000), 16_000_000)
        effort = Effort(seen, batch, 2e-3 if lr is None else lr, max(seen // 3, batch))
        return _Plan(body, effort, drawn_for(size) if learns else 0)


_TRANSFORMER = {"type": "transformer", "channels": 64, "blocks": 4}


def _gaussian_without_network(formulation: Formulation) -> bool:
    """Whether F = 0 is the denoiser of unit variance: so it is by EDM's skip, and not where F predicts the noise."""
    sigma = torch.tensor([0.1, 1.0, 10.0])
    return torch.allclose(torch.as_tensor(formulation.preconditioning.c_skip(sigma)), 1 / (1 + sigma**2))


def _resolve(formulation: str | Formulation, num_steps: int) -> Formulation:
    makers = {name.lower(): make for name, make in formulations.named().items()}
    if isinstance(formulation, str):
        name = formulation.lower()
        if name not in makers:
            raise unknown("formulation", formulation, makers)
        if name == "edm":
            return edm(num_steps)
        formulation = formulations.VP(M=_VP_M) if name == "vp" else makers[name]()
    if not isinstance(formulation, Formulation):
        raise InputError(f"formulation is {formulation!r}; it must be one of {', '.join(makers)} or a Formulation")
    # What the model works in is whitened: its unit variance is not estimated, but made.
    return formulation.with_sigma_data(1.0) if formulation.needs_sigma_data else formulation
