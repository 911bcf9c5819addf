r"""Maximum mean discrepancy: how far apart two laws are in the mean of every smooth function at once.

With a Gaussian kernel \(k(x, y) = \exp(-\|x - y\|^2 / 2 h^2)\) of bandwidth h,

\[ \mathrm{MMD}^2 = \mathrm{E}\,k(x, x') + \mathrm{E}\,k(y, y') - 2\,\mathrm{E}\,k(x, y) \]

is 0 only for equal laws (Gretton et al. 2012, JMLR 13, lemma 6). The unbiased estimate leaves out the pairs of a sample
with itself and falls below 0 about half the time when the laws are equal; the biased one keeps them and is never below
0. The bandwidth sets the scale that is looked at; as in the benchmark sbibm (Lueckmann et al. 2021, arXiv 2101.04653)
it is the median distance within the reference, which is too wide to see detail of multimodal posteriors: read it beside
`c2st`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from edmund.errors import InputError, check_count, check_positive
from edmund.metrics.features import Data, flatten, flatten_pair


def mmd(
    reference: Data, samples: Data, *, bandwidth: float | None = None, biased: bool = False, chunk: int = 256
) -> float:
    """MMD squared, without unit, between `reference` [N, *] and `samples` [M, *] on their raw values.

    bandwidth: h, in the data's units; None: `median_distance(reference)`. biased: equations 5 (True) and 3 (False) of
    Gretton et al. Time is O((N + M)^2 D); memory beside the sets O(chunk max(N, M)). Errors: fewer than two samples in
    a set, a median distance of 0, what `flatten_pair` checks.
    """
    check_count("chunk", chunk)
    x, y = (rows.double() for rows in flatten_pair("reference", reference, "samples", samples, least=2))
    if bandwidth is None:
        bandwidth = median_distance(x, chunk=chunk)
        if bandwidth == 0:
            raise InputError(
                "reference has a median distance of 0: more than half of its pairs are equal; give a bandwidth"
            )
    check_positive("bandwidth", bandwidth)
    n, m = len(x), len(y)
    within_x, within_y = (
        2 * sum((_kernel(block, bandwidth) for block in _pair_distances(rows, chunk)), start=0.0) for rows in (x, y)
    )
    between = sum((_kernel(_distances(block, y), bandwidth) for block in torch.split(x, chunk)), start=0.0)
    if biased:
        return (within_x + n) / n**2 + (within_y + m) / m**2 - 2 * between / (n * m)
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)


def median_distance(data: Data, *, chunk: int = 256) -> float:
    """The median Euclidean distance, in the data's units, between two different samples of a set [N, *].

    Of the N (N - 1)/2 distances the lower median if their number is even. Exact, in two passes: the first counts the
    distances by their leading bits, the second collects those that share the median's. Memory beside the set is
    O(chunk N), unless a large part of all distances is equal.
    """
    check_count("chunk", chunk)
    rows = flatten("data", data, least=2).double()
    counts = torch.zeros(1 << _KEY_BITS, dtype=torch.int64)
    for distances in _pair_distances(rows, chunk):
        counts += torch.bincount(_key(distances), minlength=len(counts))
    rank = (len(rows) * (len(rows) - 1) // 2 - 1) // 2
    up_to = counts.cumsum(0)
    key = int(torch.searchsorted(up_to, rank, right=True))
    near = torch.cat([distances[_key(distances) == key] for distances in _pair_distances(rows, chunk)])
    return float(near.sort().values[rank - int(up_to[key] - counts[key])])


# The sign, 11 bits of exponent and 8 of mantissa: bins 0.4 % wide, on any scale. A positive float64 and its bits, read
# as an integer, have the same order.
_KEY_BITS = 20


def _key(distances: Tensor) -> Tensor:
    return distances.view(torch.int64) >> (64 - _KEY_BITS)


def _kernel(distances: Tensor, bandwidth: float) -> float:
    return float((distances / bandwidth).square_().mul_(-0.5).exp_().sum())


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # from differences: by inner products, sets far from the origin would lose their digits
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _pair_distances(rows: Tensor, chunk: int) -> Iterator[Tensor]:
    """The distances of all pairs of different rows, each once, flat."""
    for start in range(0, len(rows), chunk):
        distances = _distances(rows[start : start + chunk], rows[start:])
        upper = torch.ones_like(distances, dtype=torch.bool).triu_(1)
        yield distances[upper]
