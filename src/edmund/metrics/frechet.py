r"""Frechet distance: how far apart two sets are in mean and covariance.

Two Gaussians with the sets' means \(m\) and covariances \(C\) are apart, in squared Wasserstein-2 distance, by

\[ d^2 = \|m_1 - m_2\|^2 + \operatorname{tr} C_1 + \operatorname{tr} C_2
        - 2 \operatorname{tr} \bigl(C_1^{1/2} C_2 C_1^{1/2}\bigr)^{1/2} \]

(Dowson & Landau 1982; FID, arXiv 1706.08500, is this on Inception features, and like FID the number is \(d^2\), in
squared units of the data). Only symmetric eigen-decompositions are taken, in float64, so singular covariances (a pixel
that is always black) need no jitter.

The estimate is biased upwards by the sets' sizes: two random halves of the 1797 digits are about 19 apart. It sees two
moments only: a Gaussian a class, unrounded, comes nearer to the digits than any network. It is read beside the other
measures, never alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edmund.metrics.features import Data, flatten, flatten_pair


def frechet_distance(first: Data, second: Data) -> float:
    """Frechet distance (squared, in squared units of the data) between two sets [N, *] and [M, *] on their raw values.

    Errors: fewer than two samples in a set, values that are not finite, samples of different shapes.
    """
    a, b = (rows.double() for rows in flatten_pair("first", first, "second", second, least=2))
    if max(len(a), len(b)) >= a.shape[1]:
        return frechet_of_moments(*moments(a), *moments(b))
    # Fewer samples than features: with C = A^T A, the trace of the root is the nuclear norm of A B^T, [N, M] in place
    # of [D, D].
    mean_a, mean_b = a.mean(0), b.mean(0)
    a, b = (a - mean_a) / (len(a) - 1) ** 0.5, (b - mean_b) / (len(b) - 1) ** 0.5
    cross = torch.linalg.svdvals(a @ b.T).sum()
    return float((mean_a - mean_b).square().sum() + a.square().sum() + b.square().sum() - 2 * cross)


def moments(data: Data) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] of a set [N, *], float64."""
    rows = flatten("data", data, least=2).double()
    mean = rows.mean(0)
    centred = rows - mean
    return mean, centred.T @ centred / (len(rows) - 1)


def frechet_of_moments(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> float:
    """Frechet distance (squared) between two Gaussians given by mean [D] and covariance [D, D]."""
    values, vectors = torch.linalg.eigh(covariance_1.double())
    root = vectors * nonnegative(values).sqrt() @ vectors.T
    inner = root @ covariance_2.double() @ root
    cross = nonnegative(torch.linalg.eigvalsh((inner + inner.T) / 2)).sqrt().sum()
    trace = covariance_1.double().trace() + covariance_2.double().trace()
    return float((mean_1.double() - mean_2.double()).square().sum() + trace - 2 * cross)


def nonnegative(values: Tensor) -> Tensor:
    """Eigenvalues of a matrix that is positive semi-definite but for rounding: those below 0 are 0."""
    return values.clamp(min=0)
