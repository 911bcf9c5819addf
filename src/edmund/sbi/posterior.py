"""The posterior p(theta | x) that a trained model gives: draws, density and mode, for one observation or many."""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from edmund import model as models
from edmund import noise, samplers
from edmund.devices import known_device
from edmund.errors import InputError, check_count
from edmund.likelihood import log_prob
from edmund.model import Model
from edmund.sample import sample
from edmund.sbi import saved
from edmund.sbi.composition import Composition, posterior_covariances
from edmund.sbi.conditional import DENSITY_STEPS, means, sample_about_means
from edmund.sbi.diffused_prior import prior_denoiser
from edmund.sbi.network import ConditionalNetwork
from edmund.sbi.priors import Prior
from edmund.sbi.seeding import seeded

FILE = "posterior.json"
_START = 1 << 41
"""The stream of a key that a composition's start is drawn from; samplers draw from none so far out."""
_MODE_LEVELS = (0.3, 0.1, 0.03)
"""Noise levels, in posterior stds, of the scores that `map` climbs by."""
_MODE_STEPS = 30


class Posterior:
    """p(theta | x) for any x, under `prior`.

    `NPSE.build_posterior` makes one, `save` and `Posterior.load` keep it. All observations are in the simulator's
    units: one x [*x_shape] (or [1, *x_shape]), or a batch [B, *x_shape] where a method says so. An observation outside
    the range of the training simulations is warned about. theta is in the prior's units and always in its support.

    The methods and their conventions are those of the `sbi` toolkit, whose diagnostics take this object as it is.
    """

    def __init__(self, prior: Prior, model: Model) -> None:
        network = model.network
        if not isinstance(network, ConditionalNetwork):
            raise InputError(f"model has a {type(network).__name__}; a posterior's network is a ConditionalNetwork")
        self.prior = prior
        self.model = model
        self.network = network
        self.default_x: Tensor | None = None

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Of one observation."""
        return self.network.standardise.shape

    def to(self, device: torch.device | str) -> Self:
        """The same posterior with its network on another device."""
        self.model.to(known_device(device))
        return self

    def set_default_x(self, x: Any) -> Self:
        """From now on, x is this observation where none is given."""
        self.default_x = self._one(x)
        return self

    def sample(
        self,
        sample_shape: Sequence[int] = (),
        x: Any = None,
        *,
        seed: int = 0,
        sampler: str | samplers.Sampler | None = None,
        num_steps: int | None = None,
        batch_size: int | None = None,
        show_progress_bars: bool = False,
    ) -> Tensor:
        """Draws of p(theta | x): [*sample_shape, D] float32 on the CPU, every one in the prior's support.

        sampler, num_steps: of `edmund.sample`; None: the formulation's. seed: the same seed gives the same draws.
        batch_size: rows at a time.
        """
        n, shape = _counted(sample_shape)
        w = self._draw(self._context(self._one(x)), n, seed, sampler, num_steps, batch_size, show_progress_bars)
        return self._to_user(w).reshape(*shape, self.prior.dim)

    def sample_batched(
        self,
        sample_shape: Sequence[int],
        x: Any,
        *,
        seed: int = 0,
        sampler: str | samplers.Sampler | None = None,
        num_steps: int | None = None,
        batch_size: int | None = None,
        show_progress_bars: bool = False,
    ) -> Tensor:
        """Draws for each observation of x [B, *x_shape], all in one call of the solver: [*sample_shape, B, D]."""
        n, shape = _counted(sample_shape)
        context = self._context(self._many(x))
        w = self._draw(context, n, seed, sampler, num_steps, batch_size, show_progress_bars)
        return self._to_user(w).reshape(*shape, len(context), self.prior.dim)

    def log_prob(self, theta: Any, x: Any = None, *, show_progress_bars: bool = False, **options: Any) -> Tensor:
        """ln p(theta | x) of theta [n, D], in nats: float64 [n], -inf outside the prior's support.

        options: of `edmund.log_prob` (rtol, atol, or num_steps and sampler). The divergence is exact.
        """
        return self._log_prob(self._theta(theta), self._context(self._one(x)), show_progress_bars, **options)

    def _log_prob(self, rows: Tensor, context: Tensor, progress: bool, **options: Any) -> Tensor:
        inside = self.prior.accepts(rows)
        result = torch.full((len(rows),), -torch.inf, dtype=torch.float64)
        if inside.any():
            found = log_prob(
                self.model,
                self.prior.box.inward(rows[inside]).double(),
                condition={"context": context},
                progress=progress,
                **options,
            )
            assert isinstance(found, Tensor)
            result[inside] = found
        return result

    def map(self, x: Any = None, *, num_init: int = 100, seed: int = 0) -> Tensor:
        """The mode of p(theta | x), the density per unit of theta: [D].

        Draws climb the learned score at noise levels down to 0.03 posterior stds, below which a network's score is too
        rough to climb; the one of the highest `log_prob` is returned. num_init: how many climb.
        """
        context = self._context(self._one(x))
        w = self._draw(context, check_count("num_init", num_init), seed, None, None, None, False)
        for level in _MODE_LEVELS:
            sigma = torch.tensor(level, dtype=w.dtype)
            for _ in range(_MODE_STEPS):
                with torch.no_grad():
                    step = self.model.denoiser(w, sigma, context=context) - w
                slope = self._volume_slope(w)
                w = (w + step + level**2 * slope.clamp(-10 / level, 10 / level)).detach()
        theta = self._to_user(w)
        found = self._log_prob(theta, context, False, sampler=samplers.Heun(), num_steps=DENSITY_STEPS)
        return theta[int(found.argmax())]

    def sample_iid(
        self,
        sample_shape: Sequence[int],
        x: Any,
        *,
        method: str = "gauss",
        prior: Any = None,
        temperature: float = 1.0,
        seed: int = 0,
        sampler: str | samplers.Sampler | None = None,
        num_steps: int | None = None,
        batch_size: int | None = None,
        show_progress_bars: bool = False,
    ) -> Tensor:
        """Draws of p(theta | x_1, ..., x_k) for k independent observations x [k, *x_shape]: [*sample_shape, D].

        method: "gauss", "jac" (Linhart et al. 2024) or "geffner" (Geffner et al. 2023); see `Composition`. prior: one
        to put in the place of that of the training (None: that one). temperature: T of the likelihood, whose exponent
        is 1 / T; below 1 sharpens. One observation with another prior or temperature is k = 1.
        """
        n, shape = _counted(sample_shape)
        context = self._context(self._many(x))
        composed = self._compose(context, method, prior, temperature)
        default = (None, None) if method == "geffner" else ("dpmpp_3m", 48)
        w = sample(
            composed,
            (n, self.prior.dim),
            sampler=default[0] if sampler is None else sampler,
            num_steps=default[1] if num_steps is None else num_steps,
            latents=self._latents(context, None if method == "geffner" else composed, n, seed),
            seeds=_seeds(seed, n),
            batch_size=batch_size,
            progress=show_progress_bars,
        )
        assert isinstance(w, Tensor)
        lost = int((~w.isfinite()).any(1).sum())
        if lost:
            raise InputError(
                f"x: {lost} of {n} draws are not finite by method {method!r}; these observations are too far from the "
                "simulations, or from each other, for their scores to be composed"
            )
        theta = self._to_user(w)
        return (theta if prior is None else Prior.of(prior).box.inward(theta)).reshape(*shape, self.prior.dim)

    def compose(self, x: Any, *, method: str = "gauss", prior: Any = None, temperature: float = 1.0) -> Composition:
        """The denoiser behind `sample_iid`, in the model's space, from which `model.transform.inverse` leads back to
        theta: for any sampler.
        """
        return self._compose(self._context(self._many(x)), method, prior, temperature)

    def _compose(self, context: Tensor, method: str, prior: Any, temperature: float) -> Composition:
        if not isinstance(temperature, int | float) or isinstance(temperature, bool) or not 0 < temperature < math.inf:
            raise InputError(f"temperature is {temperature!r}; it must be a finite number above 0")
        observed = {"context": context}
        space = dataclasses.replace(self.prior, transform=self.model.transform)
        covariances = None
        if method == "gauss":
            covariances = posterior_covariances(self.model.denoiser, observed, self.prior.dim)
        return Composition(
            self.model.denoiser,
            observed,
            prior_denoiser(self.prior, space),
            method=method,
            covariances=covariances,
            new_prior=None if prior is None else prior_denoiser(Prior.of(prior), space),
            beta=1 / temperature,
        ).to(self._device)

    @torch.no_grad()
    def _latents(self, context: Tensor, composed: Composition | None, n: int, seed: int) -> Tensor:
        """Unit normals [n, D] moved so that at sigma_max they lie around the mean of what is sampled.

        That is what `composed` says about the mean of the single posteriors' means, or this where it is None: scores
        that are added alone, as Geffner's, say nothing of the mean there.
        """
        mean = means(self.model, context).mean(0, keepdim=True)
        if composed is not None:
            mean = composed(mean, torch.tensor(self.model.formulation.sigma_max, dtype=mean.dtype, device=mean.device))
        mean = mean[0].cpu().double()
        normals = noise.normal(noise.keys(seed, torch.arange(n)), (self.prior.dim,), _START)
        return normals + mean / self.model.formulation.sigma_max

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Writes the posterior's folder: a model's, and `posterior.json` with the prior and the network's arguments."""
        folder = self.model.save(directory)
        saved.write(folder, FILE, {"prior": self.prior.config(), "network": self.network.config})
        return folder

    def push_to_hub(self, repo_id: str, *, private: bool = True) -> str:
        """Uploads the posterior's folder to the Hugging Face hub as `repo_id` ("user/name") and returns its address.

        InputError where that fails.
        """
        return models.push_to_hub(self.save, repo_id, private=private)

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str],
        *,
        prior: Any = None,
        network: nn.Module | None = None,
        embedding: nn.Module | None = None,
        device: torch.device | str = "cpu",
    ) -> Posterior:
        """The posterior that `save` wrote to a folder, or "hf://user/name" to download it from the Hugging Face hub.

        prior: for one of the user's own making, which does not go to JSON. network, embedding: instances of the user's
        own modules, where it was trained with such. Raises InputError for a folder without a posterior, and where what
        was given does not fit it.
        """
        folder = models.local(directory, FILE)
        with saved.reading(folder, FILE, "posterior") as content:
            arguments = dict(content["network"])
            saved_prior = content["prior"]
        for name, given, own in (("body", network, "network"), ("embedding", embedding, "embedding")):
            if given is not None:
                arguments[name] = given
            elif arguments[name] is None:
                raise InputError(f"{own} is None, but the posterior was saved with one of the user's own: give it")
        with seeded(0):  # of weights that are read next; the global stream is left alone
            built = ConditionalNetwork(arguments.pop("dim"), arguments.pop("x_shape"), **arguments)
        return cls(Prior.from_config(saved_prior, prior), models.load(folder, network=built, device=device))

    @property
    def _device(self) -> torch.device:
        return self.network.location_bias.device

    def _draw(
        self,
        context: Tensor,
        n: int,
        seed: int,
        sampler: str | samplers.Sampler | None,
        num_steps: int | None,
        batch_size: int | None,
        progress: bool,
    ) -> Tensor:
        """w [n B, D]: n draws for each row of context [B, D + E], all rows once, then again."""
        return sample_about_means(
            self.model,
            context,
            _seeds(seed, n * len(context)),
            sampler=sampler,
            num_steps=num_steps,
            batch_size=self.network.rows_at_once if batch_size is None else batch_size,
            progress=progress,
        )

    def _to_user(self, w: Tensor) -> Tensor:
        """theta float32 of w [n, D], inside the support whatever rounding does."""
        return self.prior.box.inward(self.model.transform.inverse(w.double()).float())

    def _volume_slope(self, w: Tensor) -> Tensor:
        """The gradient of ln |det dw/dtheta| in w, [n, D]: what the density per unit of theta has beside that of w."""
        with torch.enable_grad():
            at = w.detach().requires_grad_()
            theta = self.prior.box.inward(self.model.transform.inverse(at))
            total = self.model.transform.log_abs_det(theta).sum()
            # An affine transform has a constant volume, which knows nothing of w.
            return torch.autograd.grad(total, at)[0] if total.requires_grad else torch.zeros_like(at)

    def _context(self, x: Tensor) -> Tensor:
        self.network.standardise.check(x)
        self.network.eval()
        with torch.no_grad():
            return self.network.encode(x.to(self._device))

    def _one(self, x: Any) -> Tensor:
        if x is None:
            if self.default_x is None:
                raise InputError("x is None; give an observation, or set one by set_default_x")
            return self.default_x
        rows = self._rows(x)
        if len(rows) != 1:
            raise InputError(
                f"x has {len(rows)} observations; one is taken: sample_batched takes many, sample_iid all of one theta"
            )
        return rows

    def _many(self, x: Any) -> Tensor:
        if x is None:
            return self._one(None)
        return self._rows(x)

    def _rows(self, x: Any) -> Tensor:
        try:
            values = torch.as_tensor(x)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"x is a {type(x).__name__}; it must be a tensor or an array of numbers") from None
        values = values.to(torch.float32)
        if values.ndim == 0:
            values = values[None]
        rows = values[None] if values.ndim == len(self.x_shape) else values
        if not len(rows):
            raise InputError(f"x has shape {list(values.shape)}, which is no observation; at least one is needed")
        return rows

    def _theta(self, theta: Any) -> Tensor:
        try:
            rows = torch.as_tensor(theta)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"theta is a {type(theta).__name__}; it must be a tensor [n, {self.prior.dim}]") from None
        if rows.isnan().any():
            raise InputError(
                f"theta: {int(rows.isnan().sum())} of {rows.numel()} values are NaN; a density needs them all"
            )
        return rows[None] if rows.ndim == 1 else rows


def _counted(sample_shape: Sequence[int] | int) -> tuple[int, tuple[int, ...]]:
    """(number of draws, shape) of the toolkit's `sample_shape`: (n,), () for one, or a number."""
    if not isinstance(sample_shape, numbers.Integral | Sequence):
        raise InputError(f"sample_shape is {sample_shape!r}; it must be numbers of draws such as (1000,)")
    shape = tuple(sample_shape) if isinstance(sample_shape, Sequence) else (sample_shape,)
    counts = tuple(check_count("sample_shape", length) for length in shape)
    return math.prod(counts), counts


def _seeds(seed: int, n: int) -> range:
    """n seeds, other ones for another `seed`."""
    first = check_count("seed", seed, least=0) << 32
    return range(first, first + n)
