r"""Exact denoisers: their data distribution is known, so E[y | x] is a formula.

They are the oracles of the tests and benchmarks, and how one learns what a diffusion model does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from edmund import noise
from edmund.errors import InputError


class _Exact(nn.Module):
    """What the exact denoisers share: the score, and batches of any shape seen as vectors."""

    dim: int

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """grad log p(x; sigma) = (D(x; sigma) - x) / sigma^2, like x (Tweedie's formula)."""
        score: Tensor = (self(x, sigma) - x) / _level(sigma, x) ** 2
        return score

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise InputError(f"x has shape {tuple(x.shape)}; this distribution is over vectors, [B, {self.dim}]")


def _level(sigma: Tensor | float, x: Tensor) -> Tensor:
    """sigma [] or [B] as it broadcasts against x, in x's dtype."""
    return torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, *(1,) * (x.ndim - 1))


def _rotated(x: Tensor, matrices: Tensor) -> Tensor:
    """x [B, K, D] times matrices [K, D, E]: [B, K, E].

    Summed here and not by a matrix product: BLAS picks its order of summation by the number of rows and a row's place
    among them, and a sample must not depend on its batch.
    """
    return (x[..., None] * matrices).sum(-2)


def _by_rows(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`product` of x [B, D], a matrix product of one row at a time, for the same reason where the matrix is large. Each
    row in memory of its own, as the order depends on the place in memory as well.
    """
    return torch.cat([product(row.clone()) for row in torch.split(x, 1)])


def _float64(argument: str, value: Tensor | Sequence[float]) -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float64)
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{argument} is {tensor.tolist()}; it must be finite")
    return tensor


def _eigen(argument: str, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [..., D] and eigenvectors [..., D, D] of symmetric, positive semi-definite matrices."""
    if not torch.allclose(covariance, covariance.mT, rtol=1e-9, atol=1e-12):
        raise InputError(f"{argument} is not symmetric: {covariance.tolist()}")
    values, vectors = torch.linalg.eigh(covariance)
    if bool((values < -1e-9 * values.abs().max()).any()):
        raise InputError(f"{argument} has a negative eigenvalue {values.min().item()}; a covariance has none")
    return values.clamp_min(0), vectors  # the clamp removes rounding only: larger negatives were refused


class GaussianMixture(_Exact):
    """The exact denoiser of data from a mixture of Gaussians.

    means: [K, D]. stds: [K] (isotropic components), or covariances: [K, D, D]. weights: [K], positive, summing to 1;
    None: equal. With component posteriors r_k(x) = p(k | x; sigma): D = sum_k r_k (m_k + C_k (C_k + sigma^2 I)^-1 (x -
    m_k)).
    """

    means: Tensor
    weights: Tensor
    _variances: Tensor
    _axes: Tensor | None

    def __init__(
        self,
        means: Tensor | Sequence[Sequence[float]],
        stds: Tensor | Sequence[float] | None = None,
        weights: Tensor | Sequence[float] | None = None,
        *,
        covariances: Tensor | None = None,
    ) -> None:
        super().__init__()
        centres = _float64("means", means)  # type: ignore[arg-type]
        if centres.ndim != 2 or centres.numel() == 0:
            raise InputError(f"means has shape {tuple(centres.shape)}; it must be [K, D]")
        count, self.dim = centres.shape
        if (stds is None) == (covariances is None):
            raise InputError("stds and covariances: give one of the two")
        axes = None
        if covariances is not None:
            matrices = _float64("covariances", covariances)
            if matrices.shape != (count, self.dim, self.dim):
                raise InputError(
                    f"covariances has shape {tuple(matrices.shape)}; it must be [K, D, D] = "
                    f"{[count, self.dim, self.dim]}"
                )
            variances, axes = _eigen("covariances", matrices)
        else:
            assert stds is not None
            spreads = _float64("stds", stds)
            if spreads.shape != (count,) or bool((spreads < 0).any()):
                raise InputError(f"stds is {spreads.tolist()}; it must be [K] = [{count}] numbers, none negative")
            variances = (spreads**2)[:, None].expand(count, self.dim)
        shares = (
            torch.full((count,), 1 / count, dtype=torch.float64) if weights is None else _float64("weights", weights)
        )
        if shares.shape != (count,) or bool((shares <= 0).any()) or abs(shares.sum().item() - 1) > 1e-9:
            raise InputError(f"weights is {shares.tolist()}; it must be [K] = [{count}] positive numbers that sum to 1")
        self.register_buffer("means", centres)
        self.register_buffer("weights", shares)
        self.register_buffer("_variances", variances.contiguous())
        self.register_buffer("_axes", axes)

    def _components(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets in each component's axes [B, K, D], its noisy variances [B or 1, K, D], log of weight x density [B,
        K].
        """
        self._check(x)
        offsets = x[:, None, :] - self.means.to(x.dtype)
        if self._axes is not None:
            axes = self._axes.to(x.dtype)
            offsets = _rotated(offsets, axes)
        variances = self._variances.to(x.dtype) + _level(sigma, x)[..., None] ** 2
        log_density = -0.5 * (offsets**2 / variances + torch.log(2 * math.pi * variances)).sum(-1)
        return offsets, variances, log_density + torch.log(self.weights.to(x.dtype))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[y | x], [B, D]; sigma [] or [B]."""
        offsets, variances, log_joint = self._components(x, sigma)
        shrunk = self._variances.to(x.dtype) / variances * offsets
        if self._axes is not None:
            axes = self._axes.to(x.dtype)
            shrunk = _rotated(shrunk, axes.mT)
        return (torch.softmax(log_joint, dim=1)[..., None] * (self.means.to(x.dtype) + shrunk)).sum(1)

    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """log p(x; sigma), [B]: the density of the data (sigma 0) or of noisy data, in nats."""
        return torch.logsumexp(self._components(x, sigma)[2], dim=1)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n draws of the data, float64 [n, D]; a function of seed."""
        sample_keys = noise.keys(seed, torch.arange(n, device=self.means.device))
        steps = torch.cumsum(self.weights, 0)[:-1].contiguous()
        component = torch.searchsorted(steps, noise.uniform(sample_keys, 0))
        offsets = self._variances[component].sqrt() * noise.normal(sample_keys, (self.dim,), 1)
        if self._axes is not None:
            offsets = torch.einsum("be,bde->bd", offsets, self._axes[component])
        return self.means[component] + offsets

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean [D] and covariance [D, D] of the data."""
        mean = self.weights @ self.means
        spread = self.means - mean
        axes = (
            torch.eye(self.dim, dtype=torch.float64, device=mean.device).expand(len(self.means), -1, -1)
            if self._axes is None
            else self._axes
        )
        within = torch.einsum("k,kde,ke,kfe->df", self.weights, axes, self._variances, axes)
        return mean, within + torch.einsum("k,kd,ke->de", self.weights, spread, spread)


class Gaussian(GaussianMixture):
    """The exact denoiser of Gaussian data: D = mean + C (C + sigma^2 I)^-1 (x - mean), affine in x.

    mean: [D]. covariance: [D, D], positive semi-definite.
    """

    def __init__(self, mean: Tensor | Sequence[float], covariance: Tensor | Sequence[Sequence[float]]) -> None:
        centre, matrix = _float64("mean", mean), _float64("covariance", covariance)  # type: ignore[arg-type]
        if centre.ndim != 1 or matrix.shape != (len(centre), len(centre)):
            raise InputError(
                f"mean has shape {tuple(centre.shape)} and covariance {tuple(matrix.shape)}; they must be [D] "
                f"and [D, D]"
            )
        super().__init__(centre[None], covariances=matrix[None])


class Empirical(_Exact):
    """The exact denoiser of a finite data set: D = sum_i softmax_i(-||x - y_i||^2 / (2 sigma^2)) y_i (Karras et al.
    2022, Eq. 57).

    dataset: [N, *], kept in its own floating dtype. What a network with unlimited capacity would learn: it reproduces
    the data.
    """

    dataset: Tensor

    def __init__(self, dataset: Tensor) -> None:
        super().__init__()
        if dataset.ndim < 2 or len(dataset) == 0 or not dataset.is_floating_point():
            raise InputError(
                f"dataset is {dataset.dtype} of shape {tuple(dataset.shape)}; it must be floating point of "
                f"shape [N, *] with N >= 1"
            )
        if not bool(torch.isfinite(dataset).all()):
            raise InputError("dataset holds NaN or infinite values")
        self.register_buffer("dataset", dataset)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[y | x], like x [B, *]; sigma [] or [B], above 0. Memory is O(B N)."""
        if x.shape[1:] != self.dataset.shape[1:]:
            raise InputError(
                f"x has shape {tuple(x.shape)}; the data set's samples have {tuple(self.dataset.shape[1:])}"
            )
        points = self.dataset.flatten(1).to(x.dtype)
        flat = x.flatten(1)
        # The term ||x||^2 is the same for all points and drops out of the softmax.
        products = _by_rows(lambda row: row @ points.T, flat)
        logits = (products - 0.5 * (points**2).sum(1)) / _level(sigma, flat) ** 2
        return _by_rows(lambda row: row @ points, torch.softmax(logits, dim=1)).reshape(x.shape)
