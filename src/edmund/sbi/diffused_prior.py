r"""Priors diffused: E[z0 | z] for z = z0 + sigma n of a prior's density in a model's unbounded space.

Compositions of posteriors need it of the prior that the model was trained under, and of the one to be put in its place.
Three cases:

- The law is Gaussian there, as that of every prior whose parts have an exact normaliser is in its `transform`, and that
  of another of the same kind (log-normal for log-normal, normal for normal): `denoiser.Gaussian`.
- Its parameters are independent there, as of a beta for a uniform, or a uniform on a part of the range: `Separable`.
- Neither: there is no formula. A Gaussian, or a mixture, with the moments of draws is a choice that the user makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from edmund.denoiser import Denoiser, Gaussian
from edmund.errors import InputError
from edmund.sbi.priors import Prior

_DRAWS = 4096
# Log-densities are compared to this, relative to 1 + |ln q|: what rounding in the bijectors may do, and no more.
_TOLERANCE = 1e-6
# Cells of a parameter's range, and the most of them; the log-density is straight in a cell to _STRAIGHT nats.
_CELLS, _MOST_CELLS, _STRAIGHT = 128, 4096, 0.01
# The range ends where the density falls below exp(-_DEPTH) of its peak.
_DEPTH = 40.0
# A range ends this share of its width inside its last number: whether that is inside is a matter of rounding.
_INWARD = 1e-9
# Nodes of Gauss and Legendre in a cell.
_NODES = 4
# Numbers that are held at once for the integrals of a batch.
_ELEMENTS = 1 << 22
# What a user can do about a prior without a formula.
_INSTEAD = (
    "if it is to replace the training's, take a law of the same kind; or give edmund.sbi.Composition a denoiser in its "
    "place, such as denoiser.Gaussian(mean, covariance) of its draws in the model's space, an approximation"
)


def prior_denoiser(prior: Prior, space: Prior | None = None) -> Denoiser:
    """The exact denoiser of a prior in the unbounded space of another one's transform (None: its own).

    space: the prior that the model was trained under; the other must not be outside its support.

    Raises InputError where the prior is outside the support of `space`, of another number of parameters, or neither
    Gaussian nor of independent parameters in that space.
    """
    space = prior if space is None else space
    if prior.dim != space.dim:
        raise InputError(f"prior has {prior.dim} parameters and the model's {space.dim}; they must be the same ones")
    if prior is space and prior.gaussian:
        return Gaussian(torch.zeros(prior.dim), torch.eye(prior.dim))
    theta = prior.sample(_DRAWS)
    outside = int((~space.contains(theta)).sum())
    if outside:
        raise InputError(
            f"prior: {outside} of {_DRAWS} draws are outside the support of the prior that the model was trained "
            f"under, where it knows nothing; take one with the same support or a smaller one"
        )
    draws = space.to_model(theta.double())

    def log_density(z: Tensor) -> Tensor:
        at = space.transform.inverse(z)
        # Far out theta rounds onto a limit of its range, which the transform does not take: a draw stands in there.
        rounded = space.box.rounds_onto(at) | ~space.box.contains(at)
        within = torch.where(rounded, theta[:1].double(), at)
        values = prior.log_prob(at) - space.transform.log_abs_det(within)
        return torch.where(rounded.any(1), -torch.inf, values)

    found = _gaussian(log_density, draws)
    if found is not None:
        return found
    return Separable(_independent(log_density, draws), draws.amin(0), draws.amax(0))


def _gaussian(log_density: Callable[[Tensor], Tensor], draws: Tensor) -> Gaussian | None:
    """The Gaussian that the law is; None if it is none: a quadratic log-density on the draws and five stds away."""
    n, dim = draws.shape
    rows, columns = torch.triu_indices(dim, dim)
    centre, scale = draws.mean(0), draws.std(0)
    u = (draws - centre) / scale
    terms = torch.cat([u[:, rows] * u[:, columns], u, torch.ones(n, 1, dtype=u.dtype)], dim=1)
    if len(terms) < 2 * terms.shape[1]:
        return None
    values = log_density(draws)
    fitted = torch.linalg.lstsq(terms, values[:, None], driver="gelsd").solution[:, 0]
    half = torch.zeros(dim, dim, dtype=u.dtype)
    half[rows, columns] = fitted[: len(rows)]
    precision = -(half + half.T)
    if not _close(terms @ fitted, values) or not bool((torch.linalg.eigvalsh(precision) > 0).all()):
        return None
    covariance = torch.linalg.inv(precision)
    law = Gaussian(centre + scale * (covariance @ fitted[len(rows) : -1]), scale[:, None] * covariance * scale)
    mean, spread = law.moments()
    ends = torch.cat([mean + 5 * torch.linalg.cholesky(spread).T, mean - 5 * torch.linalg.cholesky(spread).T])
    level = law.log_prob(ends) - law.log_prob(draws[:1]) + values[:1]
    return law if _close(level, log_density(ends)) else None


def _close(first: Tensor, second: Tensor) -> bool:
    return bool(((first - second).abs() <= _TOLERANCE * (1 + second.abs())).all()) and bool(second.isfinite().all())


def _independent(log_density: Callable[[Tensor], Tensor], draws: Tensor) -> Callable[[Tensor], Tensor]:
    """The log-densities of the parameters [N, D], of z [N, D], each but for a constant; InputError where they are not
    independent.
    """
    values = log_density(draws)
    centre = draws[values.argmax()]
    dim = draws.shape[1]

    def each(z: Tensor) -> Tensor:
        parts = []
        for i in range(dim):
            at = centre.repeat(len(z), 1)
            at[:, i] = z[:, i]
            parts.append(log_density(at))
        return torch.stack(parts, dim=1)

    some = draws[:256]
    added = each(some).sum(1) - (dim - 1) * values.max()
    if not _close(added, values[:256]):
        worst = (added - values[:256]).abs().max().item()
        # The centre with one number of a draw may be outside: in the space of a correlated normal, boxes slant.
        found = (
            f"ln q differs from a sum by {worst:.3g}"
            if math.isfinite(worst)
            else "its support there is no box, whatever it is in the user's units"
        )
        raise InputError(
            f"prior: its parameters are neither independent in the model's space ({found}) nor Gaussian, so it cannot "
            f"be diffused exactly; {_INSTEAD}"
        )
    return each


class Separable(nn.Module):
    """The denoiser of z0 [D] with independent numbers, each of a density that is known but for a factor.

    log_density: z [N, D] -> [N, D], -inf outside the support, which is an interval. low, high: a range [D] that holds
    about all of each number's mass, inside its support; tails reach up to its width beyond both ends.

    Each range is cut into cells in which ln q is straight to 0.01 nats. With noise of a cell's width h and more, the
    integrals over q(z0) N(z; z0, sigma^2) are sums over Gauss-Legendre nodes; with less they are those of an
    exponential in each cell, in closed form: with its slope s and m = z + s sigma^2,

        integral of exp(s z0) N(z; z0, sigma^2) over [a, b] ~ Phi((b - m) / sigma) - Phi((a - m) / sigma)

    So D never leaves the support, however narrow, at any sigma.
    """

    _edges: Tensor
    _log_edges: Tensor
    _nodes: Tensor
    _log_nodes: Tensor

    def __init__(self, log_density: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> None:
        super().__init__()
        first, last = _ends(log_density, low.double(), high.double())
        cells = _CELLS
        while True:
            shares = torch.arange(2 * cells + 1, dtype=torch.float64) / (2 * cells)
            points = torch.lerp(first, last, shares[:, None])  # edges and middles of cells
            points[-1] = last
            values = log_density(points).T
            bent = (values[:, 1::2] - (values[:, :-1:2] + values[:, 2::2]) / 2).abs()
            if not bool(values.isfinite().all()):
                raise InputError("prior: its density is 0 or infinite within its support; it must be neither")
            shown = values[:, 1::2] > values.amax(1, keepdim=True) - 10
            if not bool((bent[shown] > _STRAIGHT).any()):
                break
            if cells >= _MOST_CELLS:
                raise InputError(
                    f"prior: its density is too rough: ln q bends by {bent[shown].max().item():.3g} within 1/{cells} "
                    f"of its range to be diffused exactly; {_INSTEAD}"
                )
            cells *= 2
        nodes, weights = (torch.from_numpy(each) for each in np.polynomial.legendre.leggauss(_NODES))
        edges = points[::2].T
        inner = (edges[:, :-1, None] + (edges[:, 1:] - edges[:, :-1])[..., None] * (nodes + 1) / 2).flatten(1)
        self.dim = len(first)
        self.register_buffer("_edges", edges.contiguous())
        self.register_buffer("_log_edges", values[:, ::2] - values.amax(1, keepdim=True))
        self.register_buffer("_nodes", inner)
        self.register_buffer(
            "_log_nodes",
            log_density(inner.T.contiguous()).T - values.amax(1, keepdim=True) + weights.log().repeat(cells),
        )

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[z0 | z], [B, D]; sigma [] or [B]. Computed in float64 where the device has it."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise InputError(f"x has shape {tuple(x.shape)}; this distribution is over vectors, [B, {self.dim}]")
        work = torch.float32 if x.device.type == "mps" else torch.float64
        z, level = x.to(work), sigma.to(x.device, work).reshape(-1, 1)
        rows = max(1, _ELEMENTS // self._nodes.numel())
        levels = torch.split(level.expand(len(z), 1), rows)
        parts = [self._mean(part, noise) for part, noise in zip(torch.split(z, rows), levels, strict=True)]
        return torch.cat(parts).to(x.dtype)

    def _mean(self, z: Tensor, sigma: Tensor) -> Tensor:
        width = (self._edges[:, 1] - self._edges[:, 0]).to(z.dtype)
        # Each way is asked only for levels at which it is good: derivatives of the other would be NaN.
        wide, narrow = torch.maximum(sigma, width), torch.minimum(sigma, width)
        return torch.where(sigma >= width, self._by_nodes(z, wide), self._by_cells(z, narrow))

    def _by_nodes(self, z: Tensor, sigma: Tensor) -> Tensor:
        nodes = self._nodes.to(z.dtype)
        logits = self._log_nodes.to(z.dtype) - 0.5 * ((z[..., None] - nodes) / sigma[..., None]) ** 2
        mean: Tensor = (torch.softmax(logits, dim=2) * nodes).sum(2)
        return mean

    def _by_cells(self, z: Tensor, sigma: Tensor) -> Tensor:
        edges, log_edges = self._edges.to(z.dtype), self._log_edges.to(z.dtype)
        start, end = edges[:, :-1], edges[:, 1:]
        slope = log_edges.diff(dim=1) / (end - start)
        z, sigma = z[..., None], sigma[..., None]
        middle = z + slope * sigma**2
        a, b = (start - middle) / sigma, (end - middle) / sigma
        # Phi(b) - Phi(a) from the tail that both are in, or nearer to.
        flip = a + b > 0
        lower, upper = torch.where(flip, -b, a), torch.where(flip, -a, b)
        top = torch.special.log_ndtr(upper)
        log_mass = top + torch.log(-torch.expm1(torch.special.log_ndtr(lower) - top))
        # The mean within a cell, m + sigma (phi(a) - phi(b)) / (Phi(b) - Phi(a)).
        ratio = torch.exp(-0.5 * a**2 - log_mass) - torch.exp(-0.5 * b**2 - log_mass)
        means = middle + sigma * ratio / (2 * torch.pi) ** 0.5
        logits = log_edges[:, :-1] + slope * (z - start) + 0.5 * (slope * sigma) ** 2 + log_mass
        mean: Tensor = (torch.softmax(logits, dim=2) * means).sum(2)
        return mean

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean [D] and covariance [D, D], diagonal."""
        shares = torch.softmax(self._log_nodes, dim=1)
        mean = (shares * self._nodes).sum(1)
        return mean, torch.diag((shares * (self._nodes - mean[:, None]) ** 2).sum(1))


def _ends(log_density: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The ends [D] of each number's range: of its support, or where its density has fallen to nothing."""
    wide = high - low
    points = torch.lerp(low - wide, high + wide, torch.linspace(0, 1, 3001, dtype=torch.float64)[:, None])
    values = log_density(points)
    kept = values > values.amax(0) - _DEPTH
    first, last = kept.int().argmax(0), len(points) - 1 - kept.flip(0).int().argmax(0)
    inside, outside = (values > -torch.inf).int(), []
    if bool((inside.diff(dim=0).abs().sum(0) > 2).any()):
        raise InputError("prior: its support has gaps in the model's space; it must be an interval in each parameter")
    for index, step in ((first, -1), (last, 1)):
        good = points.gather(0, index[None])[0]
        bad = points.gather(0, (index + step).clamp(0, len(points) - 1)[None])[0]
        # Between a point inside the range and its neighbour, up to the last number inside.
        for _ in range(60):
            middle = (good + bad) / 2
            deep = log_density(middle[None])[0] > values.amax(0) - _DEPTH
            good, bad = torch.where(deep, middle, good), torch.where(deep, bad, middle)
        outside.append(good)
    inward = _INWARD * (outside[1] - outside[0])
    return outside[0] + inward, outside[1] - inward
