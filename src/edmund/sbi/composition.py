r"""Posteriors composed of posteriors: k observations, another prior, a tempered likelihood, without training anew.

In the model's unbounded space, with p(z0) the prior and p(z0 | x) the posterior that a denoiser was trained on, the
likelihood of an observation is p(x | z0) ~ p(z0 | x) / p(z0). So every target

    q(z0) prod_j [p(z0 | x_j) / p(z0)]^beta

is made of parts that have denoisers. With q = p and beta = 1 it is the posterior of k independent observations,
p(z0)^(1 - k) prod_j p(z0 | x_j) (Geffner et al. 2023); with k = 1 and another q it is the posterior under the prior q;
beta below or above 1 tempers the likelihood. A sampler needs D = E[z0 | z] of the target, for z = z0 + sigma n, and the
parts' E[z0 | z, x_j] do not determine it: diffusing a product is not multiplying what is diffused. Three ways on:

**gauss** and **jac** (Linhart et al. 2024, arXiv 2404.07593). Multiply the target with the kernel of the noise, N(z;
z0, sigma^2 I). A part times the kernel is p(z0 | z, x_j), or p(z0 | z), and as the exponents of the parts, 1 + k beta -
k beta, are 1 in total, the product of these has the kernel in it exactly once. With Gaussian parts, of means m and
covariances S, it is a Gaussian of precision and mean

    P = S_q^-1 + L,    L = beta sum_j (S_j^-1 - S_0^-1)
    D = P^-1 [S_q^-1 m_q + beta sum_j (S_j^-1 m_j - S_0^-1 m_0)]

where the means are what the denoisers say. That is exact, at every sigma, where prior and posteriors are Gaussian; of
other posteriors it is an approximation that gets better as sigma falls, so that the shapes of separate modes come out
better than their weights. The covariances are those of Gaussians, S_j^-1 = C_j^-1 + I / sigma^2, with C_j from samples
of p(z0 | x_j) (gauss: nothing but the denoisers' calls); or Tweedie's, S_j = sigma^2 dD_j/dz, which follow the
posterior's shape about z (jac: D products with the Jacobian a call; its eigenvalues are bounded below, as those of a
network are unsure at high noise). With networks the two agree, and what limits both is the error of the means that
all k posteriors share: it stays, while the target's std falls as 1 / sqrt(k).

For any point r the same is

    D = r + P^-1 [S_q^-1 (m_q - r) + beta sum_j (S_j^-1 (m_j - r) - S_0^-1 (m_0 - r))],

a Newton step from r. Where a likelihood is not Gaussian (between two modes of it, say) or its covariance was estimated,
its precision L may be negative along some direction, and P may then be no precision. So L is projected on the positive
semi-definite matrices, its negative eigenvalues being taken as 0: P is never below S_q^-1, and steps are bounded. With
r the mean of the m_j, one observation under its own prior gives its own denoiser whatever is projected, and where the
m_j agree on r and q is p the step along a projected direction is D = m_0 + k beta (r - m_0), that of the plain sum of
scores.

**geffner** (Geffner et al. 2023, arXiv 2209.14249, Section 3.2). The scores are added as if diffusion did not matter,

    (D - z) / sigma^2 = beta sum_j s_j + w(sigma) (s_q - k beta s_0),    w = 1 - t(sigma)

with t the time of VP's schedule: w is 1 at sigma = 0, and 0 from sigma = 152 on. This is the score of densities that
bridge from N(0, sigma^2 / (k beta)) to the target, but do not come of each other by diffusion: with a solver of the ODE
or SDE the samples are wrong. Langevin steps at each level (`AnnealedLangevin`) have that level's density as their law,
and so they end near the target, after a thousand calls. `edmund.sample` takes that sampler by itself. (The paper has
the prior itself where this has the diffused prior; in its coordinates, z / sqrt(1 + sigma^2), a standard normal prior
is the same diffused or not.) Where each observation tells little against the prior, or at k = 100, means stay off by
parts of a standard deviation and more: w is not near enough to 1 where the steps still mix.

The scores of gauss and jac tend to the target's too as sigma falls, and are near the diffused target's above, so that
Langevin steps 1 / k as many serve: `sample(composition, shape, sampler=AnnealedLangevin(), grid="ve", num_steps=60)`,
300 calls, is the way to posteriors far from Gaussian. It rests on the scores at low sigma alone, where the errors of a
network add up over observations: where gauss fits, a solver of the ODE is more accurate as well as faster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

from edmund import formulation as formulations
from edmund import grid, noise, process
from edmund.arguments import check_denoised, device_of
from edmund.denoiser import Denoiser, condition_names, expand_condition
from edmund.errors import InputError, check_count, check_positive, unknown
from edmund.guidance import Wrapper
from edmund.sample import sample
from edmund.samplers import Sampler
from edmund.sbi.langevin import AnnealedLangevin

METHODS = ("gauss", "geffner", "jac")
"""The ways to compose."""

# The stream of the latents that covariances are estimated with.
_LATENTS = 1 << 41
# The posterior's denoiser gets at most this many rows at once, unless told otherwise.
_ROWS = 1 << 14
# A Jacobian's eigenvalues are taken to be at least this share of the prior's largest. At high noise they tend to the
# ratio of posterior to prior variance, and a network's are too unsure there to weight observations by: with posterior
# stds a fifth of the prior's, a share of 1e-4 made the composed stds twice too large. An exact denoiser of that ratio
# 1e-4 pays with 2 % of the variance.
_FLOOR = 1e-2


class Composition(Wrapper):
    """The denoiser of q(z0) prod_j [p(z0 | x_j) / p(z0)]^beta, for vectors z [B, D] (see the module).

    denoiser: that of p(z0 | x), called as denoiser(z, sigma, **condition). observations: its conditions, a mapping such
    as {"x": tensor [k, *]}, each of k observations or 1 for all. prior: the denoiser of p(z0), such as
    `denoiser.Gaussian(zeros, eye)`. method: one of METHODS.

    covariances: for gauss, and for it alone, those of p(z0 | x_j), [k, D, D], as `posterior_covariances` finds them;
    the priors must then have `moments()` (mean [D], covariance [D, D]), as the exact denoisers do. new_prior: the
    denoiser of q(z0); None: the prior. beta: the exponent of the likelihood, above 0; 1 is off. batch_size: the rows,
    of B k, that the posterior's denoiser is called on at once; None: 2^14.

    It takes no condition: the observations are in it. Range and formulation are the posterior's; but with geffner the
    sampler is `AnnealedLangevin`, at 200 levels evenly spaced in ln sigma: 1000 calls. It is a module, of which priors
    that are modules are a part: `.to(device)` moves all of it.
    """

    prior: Denoiser
    new_prior: Denoiser
    _posterior_precision: Tensor
    _likelihood_precision: Tensor
    _prior_precision: Tensor
    _new_precision: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        observations: Mapping[str, Tensor],
        prior: Denoiser,
        *,
        method: str = "gauss",
        covariances: Tensor | None = None,
        new_prior: Denoiser | None = None,
        beta: float = 1.0,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(denoiser)
        given = _check_observations(denoiser, observations)
        self.k = len(next(iter(given.values())))
        where = device_of(None, denoiser, None, given)
        self._keys = tuple(given)
        for key, value in given.items():
            self.register_buffer(f"_observed_{key}", value.to(where), persistent=False)
        self.prior = _check_prior("prior", prior)
        self.new_prior = prior if new_prior is None else _check_prior("new_prior", new_prior)
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        self.method = method
        self.beta = check_positive("beta", beta)
        self._rows = _ROWS if batch_size is None else check_count("batch_size", batch_size)
        if method != "gauss" and covariances is not None:
            raise InputError(f"covariances are given, and method {method!r} has no use for them; leave them out")
        precisions = _precisions_of(covariances, self.k, prior, self.new_prior) if method == "gauss" else None
        for name, precision in (precisions._asdict() if precisions is not None else {}).items():
            self.register_buffer(f"_{name}_precision", precision.to(where), persistent=False)

    @property
    def known_conditions(self) -> tuple[str, ...]:
        """None at all: the observations are in it."""
        return ()

    @property
    def formulation(self) -> formulations.Formulation:
        """The posterior's; with geffner its sampler, grid and number of steps are those of annealed Langevin."""
        own: formulations.Formulation | None = getattr(self.denoiser, "formulation", None)
        if self.method == "geffner" and not self._off:
            langevin = AnnealedLangevin(precision=self.k * self.beta)
            return dataclasses.replace(own or formulations.EDM(), sampler=langevin, grid=grid.VE(), num_steps=200)
        if own is None:
            raise AttributeError("the posterior's denoiser has no formulation")
        return own

    @property
    def _off(self) -> bool:
        """Whether the target is one posterior as it was trained."""
        return self.k == 1 and self.beta == 1 and self.new_prior is self.prior

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(z; sigma) of the target, like z [B, D]; sigma [] or [B]."""
        if x.ndim != 2:
            raise InputError(f"x has shape {tuple(x.shape)}; a composition is over vectors, [B, D]")
        if self._off:
            return self._means(x, sigma)[:, 0]
        if self.method == "geffner":
            return self._added(x, sigma)
        return self._by_covariances(x, sigma) if self.method == "gauss" else self._by_jacobians(x, sigma)

    def _added(self, z: Tensor, sigma: Tensor) -> Tensor:
        """geffner: D - z = sigma^2 score."""
        added = self.beta * (self._means(z, sigma) - z[:, None]).sum(1)
        before = self.prior(z, sigma) - z
        after = before if self.new_prior is self.prior else self.new_prior(z, sigma) - z
        moved: Tensor = z + added + _column(_prior_weight(sigma), z) * (after - self.k * self.beta * before)
        return moved

    def _by_covariances(self, z: Tensor, sigma: Tensor) -> Tensor:
        """gauss. As r is the mean of the m_j, the kernel's precision I / sigma^2 drops out of the sum over them."""
        posterior, likelihood = self._posterior_precision.to(z), self._likelihood_precision.to(z)
        prior, new = self._prior_precision.to(z), self._new_precision.to(z)
        means = self._means(z, sigma)
        r = means.mean(1)
        to_prior = self.prior(z, sigma) - r
        to_new = to_prior if self.new_prior is self.prior else self.new_prior(z, sigma) - r
        kernel = _column(sigma, z) ** -2
        pull = to_new @ new + self.beta * (
            torch.einsum("bkd,kde->be", means - r[:, None], posterior) - self.k * to_prior @ prior
        )
        pull = pull + kernel * (to_new - self.k * self.beta * to_prior)
        total = new + self.beta * likelihood + kernel[..., None] * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        step: Tensor = torch.linalg.solve(total.expand(len(z), -1, -1), pull)
        return r + step

    def _by_jacobians(self, z: Tensor, sigma: Tensor) -> Tensor:
        """jac. All precisions are in units of 1 / sigma^2: (dD/dz)^-1."""
        means, jacobians = self._means_and_jacobians(z, sigma)
        m_0, j_0 = _with_jacobian(lambda y: self.prior(y, sigma), z)
        least = _FLOOR * torch.linalg.eigvalsh(j_0.detach())[:, -1]
        posterior, prior = _inverse(jacobians, least[:, None]), _inverse(j_0, least)
        r = means.mean(1)
        to_prior = _times(prior, m_0 - r)
        if self.new_prior is self.prior:
            new, to_new = prior, to_prior
        else:
            m_q, j_q = _with_jacobian(lambda y: self.new_prior(y, sigma), z)
            new = _inverse(j_q, least)
            to_new = _times(new, m_q - r)
        pull = to_new + self.beta * (_times(posterior, means - r[:, None]).sum(1) - self.k * to_prior)
        likelihood = _positive_part(posterior.sum(1) - self.k * prior)
        step: Tensor = torch.linalg.solve(new + self.beta * likelihood, pull)
        return r + step

    def _means(self, z: Tensor, sigma: Tensor) -> Tensor:
        """E[z0 | z, x_j], [B, k, D]."""
        parts = [self._posterior(part)(part.z) for part in self._parts(z, sigma)]
        return torch.cat(parts).reshape(len(z), self.k, z.shape[1])

    def _means_and_jacobians(self, z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """E[z0 | z, x_j], [B, k, D], and its Jacobians in z, [B, k, D, D]."""
        pairs = [_with_jacobian(self._posterior(part), part.z) for part in self._parts(z, sigma)]
        shape = (len(z), self.k, z.shape[1])
        means, jacobians = (torch.cat(each) for each in zip(*pairs, strict=True))
        return means.reshape(shape), jacobians.reshape(*shape, z.shape[1])

    def _parts(self, z: Tensor, sigma: Tensor) -> Iterator[_Part]:
        """The B k rows that the posterior's denoiser is asked, at most `batch_size` at a time."""
        observations = {key: getattr(self, f"_observed_{key}").to(z.device) for key in self._keys}
        rows = torch.arange(len(z) * self.k, device=z.device)
        for part in torch.split(rows, self._rows):
            of, observed = part // self.k, part % self.k
            levels = sigma if sigma.ndim == 0 else sigma[of]
            yield _Part(z[of], levels, {key: value[observed] for key, value in observations.items()})

    def _posterior(self, part: _Part) -> Callable[[Tensor], Tensor]:
        """The posterior's denoiser at a part's levels and observations, as a function of z."""
        return lambda z: check_denoised(self.denoiser(z, part.sigma, **part.condition), z)


class _Part(NamedTuple):
    """Rows of a call: z [R, D], sigma [] or [R], conditions [R, *]."""

    z: Tensor
    sigma: Tensor
    condition: dict[str, Tensor]


def posterior_covariances(
    denoiser: Denoiser,
    observations: Mapping[str, Tensor],
    dim: int,
    *,
    n: int = 1000,
    sampler: str | Sampler = "dpmpp_3m",
    num_steps: int = 48,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """The covariances of p(z0 | x_j), float64 [k, D, D], from n samples of each: what `Composition` takes for gauss.

    denoiser, observations: as of `Composition`. dim: D. sampler, num_steps, batch_size, progress: as of
    `edmund.sample`, which draws all k n samples, of seeds 0 .. k n - 1.

    A composition asks for good ones: 10 % too much or too little in all of them is 20 % in its variances at k = 10,
    and 50 % or more at k = 100. So the solver's steps are many and fine, and the n latents of each observation have
    the mean 0 and the covariance 1 exactly: for a Gaussian, whose draws are linear in them, so are the covariances
    exact. What spread others have averages out over observations.
    """
    given = _check_observations(denoiser, observations)
    check_count("dim", dim)
    check_count("n", n, least=dim + 3)  # the inverses of fewer have no mean
    k = len(next(iter(given.values())))
    latents = noise.normal(noise.keys(0, torch.arange(k * n)), (dim,), _LATENTS).reshape(k, n, dim)
    latents = latents - latents.mean(1, keepdim=True)
    root = torch.linalg.cholesky(latents.mT @ latents / n)
    latents = torch.linalg.solve_triangular(root, latents.mT, upper=False).mT
    drawn = sample(
        denoiser,
        (k * n, dim),
        latents=latents.reshape(k * n, dim),
        condition={key: value.repeat_interleave(n, 0) for key, value in given.items()},
        sampler=sampler,
        num_steps=num_steps,
        batch_size=batch_size,
        progress=progress,
    )
    assert isinstance(drawn, Tensor)
    groups = drawn.reshape(k, n, dim)
    offsets = groups - groups.mean(1, keepdim=True)
    return offsets.mT @ offsets / n


class _Precisions(NamedTuple):
    """Of the Gaussians behind gauss: C_j^-1 [k, D, D], sum_j (C_j^-1 - C_0^-1) projected, C_0^-1 and C_q^-1, each
    [D, D].
    """

    posterior: Tensor
    likelihood: Tensor
    prior: Tensor
    new: Tensor


def _precisions_of(covariances: Tensor | None, k: int, prior: Denoiser, new_prior: Denoiser) -> _Precisions:
    if covariances is None:
        raise InputError(
            f"covariances is None, and method 'gauss' needs those of the {k} posteriors, [k, D, D]: "
            f"posterior_covariances estimates them (method 'jac' needs none)"
        )
    of_prior, of_new = _covariance("prior", prior), _covariance("new_prior", new_prior)
    dim = len(of_prior)
    shape = tuple(covariances.shape) if isinstance(covariances, Tensor) else type(covariances).__name__
    if shape != (k, dim, dim):
        raise InputError(f"covariances is {shape}; it must be a tensor [k, D, D] = {[k, dim, dim]}")
    if of_new.shape != of_prior.shape:
        raise InputError(f"new_prior is over {len(of_new)} numbers and prior over {dim}; they must be of the same z")
    posterior = _inverted("covariances", covariances.detach().to(torch.float64).cpu())
    before, after = _inverted("the prior's covariance", of_prior), _inverted("the new prior's covariance", of_new)
    return _Precisions(posterior, _positive_part(posterior.sum(0) - k * before), before, after)


def _covariance(argument: str, prior: Denoiser) -> Tensor:
    """The covariance that a prior's denoiser says, float64 [D, D] on the CPU."""
    moments = getattr(prior, "moments", None)
    if not callable(moments):
        raise InputError(
            f"{argument} is a {type(prior).__name__} without moments() -> (mean [D], covariance [D, D]), which method "
            f"'gauss' needs: use an exact denoiser such as denoiser.Gaussian, or method 'jac'"
        )
    covariance: Tensor = moments()[1]
    return covariance.detach().to(torch.float64).cpu()


def _inverted(argument: str, covariances: Tensor) -> Tensor:
    """The inverses of covariances [..., D, D]; InputError unless these are symmetric and positive definite."""
    symmetric = torch.allclose(covariances, covariances.mT, rtol=1e-6, atol=1e-12)
    least = torch.linalg.eigvalsh(covariances).min().item() if bool(torch.isfinite(covariances).all()) else float("nan")
    if not symmetric or not least > 0:
        raise InputError(
            f"{argument}: not symmetric and positive definite (the least eigenvalue is {least:.3g}); the covariance "
            f"of more samples than dimensions is"
        )
    inverse: Tensor = torch.linalg.inv((covariances + covariances.mT) / 2)
    return inverse


def _check_observations(denoiser: Denoiser, observations: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The observations with k rows each; InputError unless they are conditions of the denoiser."""
    if not isinstance(observations, Mapping) or not observations:
        raise InputError(f"observations is {observations!r}; it must be a mapping such as {{'x': tensor [k, *]}}")
    known = condition_names(denoiser)
    for key, value in observations.items():
        if known is not None and key not in known:
            raise unknown("observations", key, known)
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) == 0:
            told = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise InputError(f"observations {key!r} is {told}; it must be a tensor [k, *] of k >= 1 observations")
    return expand_condition(observations, max(len(value) for value in observations.values()))


def _check_prior(argument: str, prior: Denoiser) -> Denoiser:
    if isinstance(prior, type) or not callable(prior):
        raise InputError(f"{argument} is {prior!r}; it must be a denoiser, a callable (z, sigma) -> E[z0 | z]")
    return prior


def _prior_weight(sigma: Tensor) -> Tensor:
    """w(sigma) of geffner, from 1 at sigma = 0 to 0 at the end of VP's schedule and beyond."""
    return (1 - process.VP().t(sigma)).clamp_min(0)


def _column(sigma: Tensor, z: Tensor) -> Tensor:
    """sigma [] or [B] as [1, 1] or [B, 1], like z."""
    return sigma.to(z).reshape(-1, 1)


def _with_jacobian(function: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """f(z) [B, D] of a function of rows, and the symmetric part of its Jacobian [B, D, D]."""
    # A transform, not autograd.grad: it works under no_grad, and outer derivatives go through it.
    value, pull_back = cast(tuple[Tensor, Callable[[Tensor], tuple[Tensor]]], torch.func.vjp(function, z))
    units = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    rows = torch.stack([pull_back(unit.expand_as(z))[0] for unit in units], dim=1)
    return value, (rows + rows.mT) / 2


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Matrix times vector, [..., D, D] and [..., D]."""
    return (matrices @ vectors[..., None])[..., 0]


def _inverse(matrices: Tensor, least: Tensor) -> Tensor:
    """The inverses of symmetric matrices [..., D, D] with their eigenvalues raised to at least `least` [...]."""
    inverse: Tensor = torch.linalg.inv(_raised(matrices, least))
    return inverse


def _positive_part(matrices: Tensor) -> Tensor:
    """Symmetric matrices [..., D, D] projected on the positive semi-definite ones."""
    return _raised(matrices, matrices.new_zeros(()))


def _raised(matrices: Tensor, least: Tensor) -> Tensor:
    """Symmetric matrices [..., D, D] with their eigenvalues raised to at least `least` [...], which is held fixed where
    derivatives are taken.

    The derivative of a function f of a matrix, here max(., least), is V (K * (V^T dA V)) V^T with K the divided
    differences of f between the eigenvalues (Daleckii & Krein 1965). That of torch's eigh is not finite where two
    eigenvalues coincide, as they do of an isotropic prior.
    """
    fixed = matrices.detach()
    values, vectors = torch.linalg.eigh(fixed)
    above = (values - least.detach()[..., None]).clamp_min(0)
    raised: Tensor = matrices + vectors @ (vectors.mT * (above + least.detach()[..., None] - values)[..., None])
    if not torch.is_grad_enabled():
        return raised
    kept = above > 0
    both, one = kept[..., :, None] & kept[..., None, :], kept[..., :, None] ^ kept[..., None, :]
    gaps = torch.where(one, values[..., :, None] - values[..., None, :], 1.0)
    slopes = torch.where(one, (above[..., :, None] - above[..., None, :]) / gaps, both.to(values.dtype))
    # Zero in value; its derivative is what K differs from 1 by, as `matrices` has all of it.
    change = vectors.mT @ (matrices - fixed) @ vectors
    turned: Tensor = raised + vectors @ ((slopes - 1) * change) @ vectors.mT
    return turned
