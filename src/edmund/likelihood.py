r"""Likelihoods: the density that a diffusion model gives to data, by the probability-flow ODE.

The ODE carries the noisy density p(x; sigma) from one level to another, and along it the log-density changes by the
divergence of the flow (the instantaneous change of variables; Song et al. 2021, "Score-Based Generative Modeling
through Stochastic Differential Equations", Section 4.3 and Appendix D.2). In the unscaled z and over ln sigma,

    dz / d ln sigma = z - D(z; sigma)
    ln p(x; sigma_min) = ln p(z(sigma_max); sigma_max) + integral of (dim - tr dD/dz) d ln sigma,    z(sigma_min) = x

which is the same for every process. The density is that at sigma_min, of data with noise of that size: the ODE is
singular at 0, and data on a manifold have no density there.

The trace is exact, by one vector-Jacobian product for each of the sample's `dim` numbers, or Hutchinson's estimate
("A stochastic estimator of the trace of the influence matrix", 1989), the mean of v . (dD/dz) v over random v with
E v v^T = I. These are unit normals brought to the length sqrt(dim): unbiased, without error where the Jacobian is a
multiple of I, and of less variance than the normals. (Random signs have no less but where the diagonal is uneven, and
in few dimensions they coincide so often that their spread says nothing of their error.) The probes of a sample stay the
same on the whole way, so the spread over them gives the standard error of its log-density.

The law at sigma_max is all but Gaussian. A mean m of the data moves ln p by m . z / sigma_max^2, about |m| / sigma_max:
at sigma_max = 80 and m = 1 that is 0.01 nats a dimension. The covariance C changes it by tr C / sigma_max^2 or so,
1e-4. So the base has both (`base="moments"`), read off the denoiser at sigma_max: near there it is affine,

    D(z; sigma) = m + J (z - m),    J = C (C + sigma^2 I)^-1,    C + sigma^2 I = sigma^2 (I - J)^-1

and m and J follow from D at pairs of points m +- sigma_max v, where it was trained; with conditions they are those of
each sample's own condition. What remains is the data's skewness, of order (d / sigma_max)^3 for data of std d.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from edmund import grid as grids
from edmund import noise, samplers
from edmund import process as processes
from edmund import progress as progress_bars
from edmund.arguments import check_condition, device_of, evaluation_mode, rows_of
from edmund.denoiser import Denoiser
from edmund.errors import InputError, check_count, unknown
from edmund.integrate import rms
from edmund.model import Model
from edmund.noise import Seeded
from edmund.probability_flow import Path, check_answers, check_data, checked_call, opened, resolve
from edmund.transform import Identity, MinMax

# The denoiser is called on about this many numbers at a time, with the graph for a product with its Jacobian.
_BATCH_ELEMENTS = 1 << 16
# Streams of a seed that no sampler draws from.
_STREAM_DEQUANTISE = -1
_STREAM_SIGNS = -2
_STREAM_PROBES = -3
# How a sampler hands the probes on with the conditions, and what `_WithDivergence` calls a; no keyword of a network can
# have these names.
_PROBES = "edmund.probes"
_GROWTH = "edmund.growth"


class LogProb(NamedTuple):
    """value: ln p(x; sigma_min) in nats, [B]. error: the standard error of its divergence, [B]; 0 where that is exact.
    nfe: denoiser evaluations along each sample's path, int64 [B], each of one pass forward and back for every dimension
    or probe.
    """

    value: Tensor
    error: Tensor
    nfe: Tensor


class _HasLogProb(Protocol):
    def log_prob(self, value: Tensor) -> Tensor: ...


Base = Literal["moments", "normal"] | _HasLogProb | Callable[[Tensor], Tensor]
"""The law of z at sigma_max: its name, an object with log_prob(z [B, *]) -> [B], or such a function."""


def log_prob(
    model: Denoiser | Model,
    /,
    x: Tensor,
    *,
    denoiser: Denoiser | None = None,
    condition: Mapping[str, Tensor] | None = None,
    base: Base = "moments",
    n_probes: int | None = None,
    seeds: Sequence[int] | range | Tensor | None = None,
    sampler: str | samplers.Sampler | None = None,
    num_steps: int | None = None,
    grid: str | grids.Grid | None = None,
    process: str | processes.Process | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    return_error: bool = False,
) -> Tensor | LogProb:
    """ln p(x; sigma_min) of data x [B, *], in nats: float64 [B] on the CPU, or with return_error a `LogProb`.

    model: a denoiser, or a `Model`: then x is in the user's units, and so is the density (per unit of x; the model's
    transform is accounted for). denoiser: with a Model, what is used instead of its own, such as one of
    `edmund.guidance` around it (the density that the guided ODE gives). condition: keyword tensors with a batch axis of
    B or 1. base: the law of the unscaled z = y + sigma_max n, in the denoiser's units: "moments", the Gaussian of the
    data's mean and covariance (above); "normal", N(0, sigma_max^2 I); an object with log_prob(z) -> [B], or such a
    function.

    n_probes: None: the exact divergence, at `dim` products with the Jacobian for each evaluation, so for vectors; for
    images 2 or more probes of Hutchinson's estimate, whose standard error is in `LogProb.error`. seeds: of the probes,
    one integer a sample, None: 0 .. B-1; a sample's probes depend on its seed alone.

    rtol, atol: the error allowed in each step, of z and of the log-density per dimension; None: 1e-6. Each sample takes
    steps of its own. Fixed steps instead where sampler, num_steps or grid is given: the sampler goes up the levels of
    `edmund.sample` (without the last, 0) over the process's t; what is not given comes from the denoiser's formulation.
    sigma_min, sigma_max: the range; None: the formulation's. A denoiser that knows only certain levels, such as
    `Discrete`, is asked between them by steps to a tolerance, so it needs num_steps.

    batch_size: samples at a time; rows of about 2^16 numbers go through the denoiser at once. device: as of
    `edmund.sample`. A module in training mode is put in evaluation mode meanwhile.

    Raises InputError for every argument that cannot be used, a sampler that draws noise among them.
    """
    oracle, transform = opened(model, denoiser)
    data = check_data(x, model)
    n, item = len(data), tuple(data.shape[1:])
    dim = math.prod(item)
    path = resolve(
        oracle,
        sampler=sampler,
        num_steps=num_steps,
        grid=grid,
        process=process,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        rtol=rtol,
        atol=atol,
        purpose="a likelihood",
    )
    conditions = check_condition(condition, n, oracle)
    keys = _probe_keys(n, n_probes, seeds)
    directions = dim if n_probes is None else n_probes
    size = (
        max(1, _BATCH_ELEMENTS // (dim * directions)) if batch_size is None else check_count("batch_size", batch_size)
    )
    law = _check_base(base)
    where = device_of(device, oracle, data, conditions)
    real = torch.float32 if where.type == "mps" else torch.float64

    value, error = torch.empty(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    nfe = torch.empty(n, dtype=torch.int64)
    scale = None if path.sampler is None else _scale_of(oracle)
    widened = _WithDivergence(oracle, item, exact=n_probes is None, scale=scale)
    bar = progress_bars.track(n, "log-density", enabled=progress)
    with torch.no_grad(), evaluation_mode(oracle), bar:
        z_all = transform.forward(data)
        for start in range(0, n, size):
            stop = min(start + size, n)
            z = z_all[start:stop].to(where, real)
            given = rows_of(conditions, start, stop, where)
            if start == 0:
                check_answers(oracle, z, path, given)
            probes = None if keys is None else _probes(keys[start:stop], directions, item).to(where, real)
            told = given if probes is None else given | {_PROBES: probes}
            growth = None
            if path.sampler is not None:
                growth = widened.growth(z, path.sigma_max, given, probes)
                told = {**told, _GROWTH: growth}
            state = torch.cat([z.flatten(1), z.new_zeros(len(z), 1 if probes is None else directions)], dim=1)
            state, calls = path.run(widened, state, told, norm=lambda e: _largest(e, dim), arrived=bar.advance)
            end = state[:, :dim].reshape(z.shape)
            gained = dim * widened.gain(state[:, dim:], growth, path).to(torch.float64)
            if law == "moments":
                shared = all(len(each) == 1 for each in conditions.values())
                there = _Gaussian.at(oracle, path.sigma_max, end, given, n_probes, shared).log_prob(end)
            elif law == "normal":
                flat = end.flatten(1)
                there = -0.5 * (flat / path.sigma_max).square().sum(1) - dim * _log_normal_peak(path.sigma_max)
            else:
                there = _given_law(law, end)
            value[start:stop] = (there + gained.mean(1)).cpu()
            if probes is not None:
                error[start:stop] = (gained.std(1) / math.sqrt(directions)).cpu()
            nfe[start:stop] = calls.cpu()
        value += transform.log_abs_det(data).cpu()
    return LogProb(value, error, nfe) if return_error else value


class BitsPerDim(NamedTuple):
    """value: bits per dimension of each image, [B]. error: their standard error, from the divergence, [B]."""

    value: Tensor
    error: Tensor


_DENSITY_OPTIONS = frozenset(inspect.signature(log_prob).parameters) - {"model", "x", "return_error"}


def bits_per_dim(
    model: Denoiser | Model,
    /,
    images: Tensor,
    *,
    levels: int = 256,
    seeds: Sequence[int] | range | Tensor | None = None,
    return_error: bool = False,
    **options: Any,
) -> Tensor | BitsPerDim:
    """Bits per dimension of images of whole numbers 0 .. levels - 1, [B, *]: float64 [B], or a `BitsPerDim`.

    Uniform dequantisation (Theis et al. 2016, "A note on the evaluation of generative models"): with u uniform in
    [-1/2, 1/2), each pixel alone, -E log2 p(images + u) is at least -log2 of the probability of the image, the integral
    of p over its cell. One u is drawn an image, a function of its seed alone; the mean over images (or over seeds)
    estimates the bound.

    A Model's density is in the units of its data, which must be these levels. A denoiser's is in [-1, 1]: levels 0 and
    levels - 1 are its ends. seeds: one integer an image, None: 0 .. B-1. options: those of `log_prob` (n_probes, rtol,
    condition, denoiser, ...). A model that never saw dequantised data puts peaks of width sigma_min on the levels, and
    wider ones, of about 0.3 levels, suit it better: choose sigma_min so.
    """
    check_count("levels", levels, least=2)
    for key in options:
        if key not in _DENSITY_OPTIONS:
            raise unknown("argument of bits_per_dim", key, sorted(_DENSITY_OPTIONS | {"levels", "return_error"}))
    whole = _check_levels(images, levels)
    n, dim = len(whole), math.prod(whole.shape[1:])
    keys = _keys(n, seeds)
    dequantised = whole + _uniform(keys, dim).reshape(whole.shape).to(whole.device)
    probing: dict[str, Any] = {} if options.get("n_probes") is None else {"seeds": seeds}
    scale = Identity() if isinstance(model, Model) else MinMax(0.0, levels - 1.0)
    found = log_prob(model, scale.forward(dequantised), return_error=True, **probing, **options)
    assert isinstance(found, LogProb)
    nats = found.value + scale.log_abs_det(dequantised).cpu()
    per_dim = dim * math.log(2)
    value = -nats / per_dim
    return BitsPerDim(value, found.error / per_dim) if return_error else value


class _WithDivergence:
    """A denoiser whose state [B, dim + P] carries the log-density per dimension beside the flattened z, once for each
    of P probes (once, where the divergence is exact).

    Samplers and the integrator follow d state / d ln sigma = state - D(state; sigma); with l - (1 - tr dD/dz / dim) in
    the place of D, that is d l / d ln sigma = 1 - tr dD/dz / dim.

    Samplers of fixed steps are made for a state that grows in proportion to sigma where the noise is all there is, and
    l grows there as ln sigma: a long step at high levels takes it for 1 + (sigma' - sigma) / sigma times as much. With
    a `scale` c, about the data's std, and a = 1 - tr dD/dz / dim as it is at sigma_max (1, all but), they carry

        m = (l - a ln(sigma^2 + c^2) / 2) sqrt(1 + sigma^2 / c^2),    w = c^2 / (sigma^2 + c^2)
        d m / d ln sigma = m - D_m,    D_m = w m - (1 - tr dD/dz / dim - a (1 - w)) / sqrt(w)

    instead, less its value at the start: what l has beyond that of Gaussian data of std c, scaled as such data's z is.
    Of those m is 0 all the way, and of others D_m is as bounded as data are.
    """

    def __init__(self, denoiser: Denoiser, item: tuple[int, ...], exact: bool, scale: float | None = None) -> None:
        self._denoiser = denoiser
        self._scale = scale
        self._item = item
        self._dim = math.prod(item)
        self._exact = exact
        if hasattr(denoiser, "round_sigma"):
            self.round_sigma = denoiser.round_sigma

    def __call__(self, x: Tensor, sigma: Tensor, **condition: Tensor) -> Tensor:
        """The widened D, like x [B, dim + P]."""
        probes, growth = condition.pop(_PROBES, None), condition.pop(_GROWTH, None)
        z = x[:, : self._dim].reshape(-1, *self._item)
        denoised, products = self._products(z, sigma, condition, probes)
        carried, speed = x[:, self._dim :], 1 - products / self._dim
        if growth is None or self._scale is None:
            grown = carried - speed
        else:
            level = (sigma.reshape(-1, 1).to(carried) / self._scale).square()
            grown = carried / (1 + level) - (speed - growth * level / (1 + level)) * torch.sqrt(1 + level)
        return torch.cat([denoised.flatten(1), grown], dim=1)

    def growth(self, z: Tensor, sigma: float, condition: Mapping[str, Tensor], probes: Tensor | None) -> Tensor:
        """a [B, P] of the samples at z [B, *] for the way up to sigma: as it is at a typical place there."""
        away = torch.ones_like(z) if probes is None else probes[:, 0]
        level = torch.full((), sigma, dtype=z.dtype, device=z.device)
        _, products = self._products(z + sigma * away, level, condition, probes)
        return 1 - products / self._dim

    def gain(self, carried: Tensor, growth: Tensor | None, path: Path) -> Tensor:
        """The log-density per dimension that was gained on the whole way, from the state's columns at its end."""
        if growth is None or self._scale is None:
            return carried
        low, high = (path.sigma_min / self._scale) ** 2, (path.sigma_max / self._scale) ** 2
        return carried / math.sqrt(1 + high) + 0.5 * (math.log1p(high) - math.log1p(low)) * growth

    def _products(
        self, z: Tensor, sigma: Tensor, condition: Mapping[str, Tensor], probes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """D(z; sigma) [B, *], and the trace [B, 1] or its estimates [B, P]."""
        if self._exact:
            probes = torch.eye(self._dim, dtype=z.dtype, device=z.device).reshape(1, self._dim, *self._item)
            probes = probes.expand(len(z), -1, *self._item)
        assert probes is not None
        denoised, products = _with_products(self._denoiser, z, sigma, condition, probes)
        return denoised, products.sum(1, keepdim=True) if self._exact else products


def _scale_of(denoiser: Denoiser) -> float:
    """About the data's standard deviation: the preconditioning's sigma_data, or the unit that the others are made
    for.
    """
    formulation = getattr(denoiser, "formulation", None)
    told = getattr(getattr(formulation, "preconditioning", None), "sigma_data", None)
    if told is None:
        return 1.0
    values = (told,) if isinstance(told, float) else told
    return math.sqrt(sum(value**2 for value in values) / len(values))


def _with_products(
    denoiser: Denoiser, z: Tensor, sigma: Tensor, condition: Mapping[str, Tensor], probes: Tensor
) -> tuple[Tensor, Tensor]:
    """D(z; sigma) [B, *] and v . (dD/dz) v for the probes v [B, K, *], as [B, K].

    Each probe has a copy of its sample, so one pass forward and one back make many products, whatever operations the
    denoiser is made of; at most about _BATCH_ELEMENTS numbers at a time.
    """
    at_once = max(1, _BATCH_ELEMENTS // z.numel())
    denoised, products = z, []
    for part in torch.split(probes, at_once, dim=1):
        count = part.shape[1]
        copies = z.detach().repeat_interleave(count, 0)
        levels = sigma if sigma.ndim == 0 else sigma.repeat_interleave(count)
        told = {key: value.repeat_interleave(count, 0) for key, value in condition.items()}
        with torch.enable_grad():
            copies.requires_grad_()
            out = checked_call(denoiser, copies, levels, told)
            if not out.requires_grad:
                raise InputError(
                    "the denoiser's result has no gradient in x, which the divergence needs; it must not run under "
                    "no_grad or inference_mode, or detach"
                )
            (gradient,) = torch.autograd.grad(out, copies, part.flatten(0, 1))
        products.append((gradient.reshape(part.shape) * part).flatten(2).sum(2))
        denoised = out.detach().reshape(len(z), count, *z.shape[1:])[:, 0]
    return denoised, torch.cat(products, dim=1)


def _largest(scaled: Tensor, dim: int) -> Tensor:
    """The norm of a step's scaled error: of z, or of the log-density per dimension where that is larger."""
    return torch.maximum(rms(scaled[:, :dim]), scaled[:, dim:].abs().amax(1))


class _Gaussian:
    """The Gaussian law of z at sigma by the mean [b, dim] and (I - J) = sigma^2 (C + sigma^2 I)^-1, a matrix
    [b, dim, dim] or its diagonal [b, dim]; b is B, or 1 for all.
    """

    def __init__(self, mean: Tensor, kept: Tensor, sigma: float) -> None:
        self._mean, self._kept, self._sigma = mean, kept, sigma
        if kept.ndim == 3:
            root, failed = torch.linalg.cholesky_ex(kept)
            self._log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
            wrong = bool(failed.any())
        else:
            self._log_det = kept.log().sum(1)
            wrong = not bool((kept > 0).all())
        if wrong:
            raise InputError(
                f"sigma_max is {sigma!r}, where the denoiser's slope does not lie below 1, so no Gaussian has its "
                f"moments: take a larger sigma_max, or give base"
            )

    def log_prob(self, z: Tensor) -> Tensor:
        """[B], of z [B, *]."""
        offset = z.flatten(1) - self._mean
        if self._kept.ndim == 3:
            turned = (self._kept @ offset[..., None])[..., 0]
        else:
            turned = self._kept * offset
        square = (offset * turned).sum(1) / self._sigma**2
        density: Tensor = 0.5 * (self._log_det - square) - offset.shape[1] * _log_normal_peak(self._sigma)
        return density

    @classmethod
    def at(
        cls,
        denoiser: Denoiser,
        sigma: float,
        z: Tensor,
        condition: Mapping[str, Tensor],
        n_pairs: int | None,
        shared: bool,
    ) -> _Gaussian:
        """From the data's moments, where the denoiser tells them, else from itself: along every axis, or, for the
        diagonal, along n_pairs directions of random signs, the same for all. shared: whether one condition is
        everybody's.
        """
        dim = z[0].numel()
        eye = torch.eye(dim, dtype=z.dtype, device=z.device) if n_pairs is None else None
        moments = getattr(denoiser, "moments", None)
        if callable(moments) and not condition and eye is not None:
            mean, covariance = (each.to(z) for each in moments())
            noisy = covariance.reshape(dim, dim) + sigma**2 * eye
            return cls(mean.reshape(1, dim), (sigma**2 * torch.linalg.inv(noisy))[None], sigma)
        count = 1 if shared else len(z)
        told = {key: value[:count] for key, value in condition.items()}
        steps = math.sqrt(dim) * eye if eye is not None else _signs(n_pairs or 0, dim).to(z)
        mean = z.new_zeros(count, dim)
        # Once from 0 and once from the mean found; each round is exact where D is affine, but for what the diagonal
        # leaves out, which is J times as large in the second.
        for _ in range(2):
            middle, slopes = _secants(denoiser, sigma, mean, steps, z.shape[1:], told)
            if eye is not None:
                j = slopes.mT / math.sqrt(dim)
                kept = eye - (j + j.mT) / 2
                mean = mean + torch.linalg.solve(kept, middle - mean)
            else:
                kept = 1 - (slopes * steps).mean(1)
                mean = mean + (middle - mean) / kept
        return cls(mean, kept, sigma)


def _secants(
    denoiser: Denoiser, sigma: float, mean: Tensor, steps: Tensor, item: torch.Size, condition: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The mean [b, dim] of D(mean +- sigma v) over the steps v [K, dim], and J v = (D(mean + sigma v) - D(mean -
    sigma v)) / (2 sigma), [b, K, dim].
    """
    total, slopes = torch.zeros_like(mean), []
    level = torch.full((), sigma, dtype=mean.dtype, device=mean.device)
    for part in torch.split(steps, max(1, _BATCH_ELEMENTS // (2 * mean.numel()))):
        count = len(part)
        points = mean[:, None, None] + sigma * torch.stack([part, -part], dim=1)  # [b, K, 2, dim]
        told = {key: value.repeat_interleave(2 * count, 0) for key, value in condition.items()}
        denoised = checked_call(denoiser, points.reshape(-1, *item), level, told).reshape(points.shape)
        total += denoised.mean(2).sum(1)
        slopes.append((denoised[:, :, 0] - denoised[:, :, 1]) / (2 * sigma))
    return total / len(steps), torch.cat(slopes, dim=1)


def _log_normal_peak(sigma: float) -> float:
    return 0.5 * math.log(2 * math.pi) + math.log(sigma)


def _check_base(base: Base) -> Literal["moments", "normal"] | Callable[[Tensor], Tensor]:
    if isinstance(base, str):
        if base not in ("moments", "normal"):
            raise unknown("base", base, ("moments", "normal"))
        return base
    law = getattr(base, "log_prob", base)
    if isinstance(base, type) or not callable(law):
        raise InputError(
            f"base is {base!r}; it must be 'moments', 'normal', a distribution with log_prob(z) -> [B], or such a "
            f"function"
        )
    function: Callable[[Tensor], Tensor] = law
    return function


def _given_law(law: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    found = law(z)
    if not isinstance(found, Tensor) or found.shape != (len(z),):
        told = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"base gave {told} for z of shape {tuple(z.shape)}; it must give one log-density a sample, [{len(z)}] "
            f"(torch.distributions.Independent sums over axes)"
        )
    return found


def _keys(n: int, seeds: Sequence[int] | range | Tensor | None) -> Tensor:
    given = range(n) if seeds is None else seeds
    if not hasattr(given, "__len__") or getattr(given, "ndim", 1) != 1:
        raise InputError(f"seeds is {given!r}; it must be a sequence of {n} integers, one seed a sample")
    if len(given) != n:
        raise InputError(f"seeds has {len(given)} entries, but x has {n} samples; one seed a sample")
    Seeded(given)  # checks the values
    return noise.keys(0, torch.as_tensor([int(seed) for seed in given], dtype=torch.int64))


def _probe_keys(n: int, n_probes: int | None, seeds: Sequence[int] | range | Tensor | None) -> Tensor | None:
    if n_probes is None:
        if seeds is not None:
            raise InputError(f"seeds is {seeds!r}, but the exact divergence draws nothing; give n_probes, or no seeds")
        return None
    check_count("n_probes", n_probes, least=2)  # one has no spread, and so no error
    return _keys(n, seeds)


def _probes(keys: Tensor, count: int, item: tuple[int, ...]) -> Tensor:
    """Directions [B, count, *item] of length sqrt(dim), float64: each a function of key and number."""
    drawn = [noise.normal(keys, (math.prod(item),), _STREAM_PROBES - probe) for probe in range(count)]
    probes = torch.nn.functional.normalize(torch.stack(drawn, dim=1), dim=2, eps=0.0) * math.sqrt(math.prod(item))
    return probes.reshape(len(keys), count, *item)


def _signs(count: int, dim: int) -> Tensor:
    """Random signs [count, dim], float64, always the same."""
    drawn = noise.normal(noise.keys(0, torch.arange(count)), (dim,), _STREAM_SIGNS)
    return torch.where(drawn < 0, -1.0, 1.0).to(torch.float64)


def _uniform(keys: Tensor, count: int) -> Tensor:
    """Numbers in (-1/2, 1/2), float64 [B, count]: the normal law's own distribution function of unit normals."""
    uniform: Tensor = torch.special.ndtr(noise.normal(keys, (count,), _STREAM_DEQUANTISE))
    return uniform - 0.5


def _check_levels(images: Tensor, levels: int) -> Tensor:
    """The images as float64; InputError unless they hold whole numbers from 0 to levels - 1."""
    if not isinstance(images, Tensor) or images.ndim < 2 or images.numel() == 0:
        told = f"of shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise InputError(f"images is {told}; it must be a tensor of whole numbers [B, *]")
    values = images.detach().to("cpu" if images.device.type == "mps" else images.device, torch.float64)
    wrong = ~((values >= 0) & (values <= levels - 1) & (values == values.round()))
    if bool(wrong.any()):
        raise InputError(
            f"images holds {values[wrong][0].item():g}; with levels = {levels} it must hold whole numbers from 0 to "
            f"{levels - 1}"
        )
    return values
