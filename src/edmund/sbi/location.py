r"""The linear Gaussian posterior that a conditional network starts from.

Preconditioning wants data of unit variance about 0, and what a posterior's network sees is not theta under the prior
but theta under the posterior. Regression of z on the standardised observation s tells where that is, and how wide:

    z = W s + b + r,    r ~ (0, S),    S = L L^T

The model works on w = L^-1 z, of which L^-1 (W s + b) is the location and r's whitened rest has unit variance: for a
linear Gaussian simulator nothing is left to learn, and for any other the noise levels that training visits are those of
its posterior's scale and not of its prior's. L is the same for all observations, so that posteriors of several can be
composed in one space; and diagonal where the prior is not Gaussian in z, so that its parameters, which are independent
there, are so in w too and its diffusion has a closed form.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

_RIDGES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties that are tried, as shares of the number of simulations."""
_MOST_FEATURES = 1024
"""Numbers of an observation up to which z is regressed on them."""
_LEAST = 1e-12
"""Least variance of the residuals in any direction, against the greatest."""


class Linear(NamedTuple):
    """z = weight s + bias + r: weight [D, F], bias [D], cholesky [D, D] of r's covariance; all float64."""

    weight: Tensor
    bias: Tensor
    cholesky: Tensor


def regress(
    train: Iterable[tuple[Tensor, Tensor]], validation: Iterable[tuple[Tensor, Tensor]], *, diagonal: bool = False
) -> Linear:
    """Least squares of z [n, D] on s [n, *], by one pass over batches (z, s) of each set.

    The ridge penalty is the one with the least squared error on the validation set, of `_RIDGES` or infinite (no
    dependence at all); the covariance is that of the training residuals, over their degrees of freedom. Observations of
    more than 1024 numbers are not regressed on. diagonal: of the covariance the variances alone are kept.
    """
    fitted, held_out = _Sums.of(train), _Sums.of(validation)
    best, error = fitted.constant(), float("inf")
    # Residuals are weighed by the variance of each z, so that a wide one does not decide for all.
    if fitted.features <= _MOST_FEATURES:
        for ridge in (None, *_RIDGES):
            weight = best if ridge is None else fitted.solve(ridge)
            found = held_out.error(weight, fitted.variances)
            if found < error:
                best, error = weight, found
    covariance = fitted.residual_covariance(best)
    if diagonal:
        covariance = covariance.diagonal().diag()
    values, vectors = torch.linalg.eigh(covariance)
    covariance = (vectors * values.clamp(min=_LEAST * float(values.max()))) @ vectors.mT
    return Linear(best[:-1].mT.contiguous(), best[-1].contiguous(), torch.linalg.cholesky(covariance))


class _Sums(NamedTuple):
    """Second moments of (s, 1) [F + 1] and z [D] over n rows."""

    n: int
    ss: Tensor
    sz: Tensor
    zz: Tensor

    @classmethod
    def of(cls, batches: Iterable[tuple[Tensor, Tensor]]) -> _Sums:
        n = 0
        total: list[Tensor] | None = None
        for z, s in batches:
            rows = s.flatten(1).double() if s[0].numel() <= _MOST_FEATURES else s.new_zeros(len(s), 0).double()
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
            part = [rows.mT @ rows, rows.mT @ z.double(), z.double().mT @ z.double()]
            total = part if total is None else [a + b for a, b in zip(total, part, strict=True)]
            n += len(z)
        assert total is not None
        return cls(n, *total)

    @property
    def features(self) -> int:
        return len(self.ss) - 1

    @property
    def variances(self) -> Tensor:
        """Of each z, [D]."""
        return self.zz.diagonal() / self.n - (self.sz[-1] / self.n).square()

    def constant(self) -> Tensor:
        """The regression on nothing: [F + 1, D]."""
        weight = torch.zeros_like(self.sz)
        weight[-1] = self.sz[-1] / self.n
        return weight

    def solve(self, ridge: float) -> Tensor:
        """[F + 1, D]."""
        penalty = torch.full((len(self.ss),), ridge * self.n, dtype=self.ss.dtype)
        penalty[-1] = 0
        # Least squares and not a solve: constant features make the matrix singular.
        weight: Tensor = torch.linalg.lstsq(self.ss + penalty.diag(), self.sz, driver="gelsd").solution
        return weight

    def error(self, weight: Tensor, variances: Tensor) -> float:
        return float((self._residual(weight).diagonal() / variances).sum())

    def residual_covariance(self, weight: Tensor) -> Tensor:
        used = int((weight[:-1].abs().sum(1) > 0).sum()) + 1
        residual = self._residual(weight) * (self.n / max(self.n - used, 1))
        return (residual + residual.mT) / 2

    def _residual(self, weight: Tensor) -> Tensor:
        cross = weight.mT @ self.sz
        return (self.zz - cross - cross.mT + weight.mT @ self.ss @ weight) / self.n
