r"""Wasserstein distances that need no solver: of single features, and averaged over directions.

On a line the cheapest way to carry one law to another keeps the order, so that with the quantile functions F^-1, G^-1

\[ W_p^p = \int_0^1 |F^{-1}(u) - G^{-1}(u)|^p \, du, \]

which is a finite sum for samples: both quantile functions are steps. The sliced distance (Rabin et al. 2011; Bonneel et
al. 2015) averages \(W_p^p\) over the directions of the unit sphere; it is a metric, and near 0 only for near laws. Two
sets of N samples of one law are not at 0 but about \(1/\sqrt N\) spreads apart: compare with the distance between two
halves of the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edmund.errors import InputError, check_count
from edmund.metrics.features import Data, flatten_pair

# directions at a time, so that their projections of many samples fit in memory
_BATCH = 64


def sliced_wasserstein(first: Data, second: Data, *, p: int = 2, directions: int = 1000, seed: int = 0) -> float:
    """The mean over directions of W_p^p, to the power 1/p, between sets [N, *] and [M, *]; in the data's units.

    p: 1 or 2. directions: drawn uniformly on the sphere by `seed`; the relative error of the mean is at most about
    1/sqrt(directions). N and M may differ. Of one feature there is one direction, and the distance is exact.
    """
    check_count("directions", directions)
    check_count("seed", seed, least=0)
    x, y = (rows.double() for rows in flatten_pair("first", first, "second", second))
    if x.shape[1] == 1:
        return float(_power_cost(x, y, _order(p)) ** (1 / p))
    sphere = torch.randn(directions, x.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sphere /= sphere.norm(dim=1, keepdim=True)
    costs = [_power_cost(x @ some.T, y @ some.T, _order(p)) for some in torch.split(sphere, _BATCH)]
    return float(torch.cat(costs).mean() ** (1 / p))


def marginal_wasserstein(first: Data, second: Data, *, p: int = 2) -> Tensor:
    """W_p [D] float64 of each feature of two sets [N, *] and [M, *], in its unit; p: 1 or 2. N and M may differ."""
    x, y = (rows.double() for rows in flatten_pair("first", first, "second", second))
    return _power_cost(x, y, _order(p)) ** (1 / p)


def _order(p: int) -> int:
    if isinstance(p, bool) or p not in (1, 2):
        raise InputError(f"p is {p!r}; it must be 1 or 2")
    return p


def _power_cost(x: Tensor, y: Tensor, p: int) -> Tensor:
    """W_p^p [D] between the columns of x [N, D] and y [M, D]."""
    n, m = len(x), len(y)
    # u in units of 1/(n m): x's quantile function steps at multiples of m, y's at those of n; integers, so no rounding
    steps = torch.unique(torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]))
    left = torch.cat([torch.zeros(1, dtype=torch.int64), steps[:-1]])
    gap = x.sort(0).values[left // m] - y.sort(0).values[left // n]
    cost: Tensor = ((steps - left).double() / (n * m)) @ gap.abs() ** p
    return cost
