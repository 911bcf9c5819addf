r"""Predictions of a posterior against what the simulator does: data simulated from its draws, and from the truth.

An observation x comes with the true theta* that it was simulated from. Let x' be simulated from theta* once more, and
x_1, ..., x_L from draws of p(theta | x). Given x, theta* is itself a draw of the exact posterior, so that x' and all
x_l are then draws of one law, and the rank of each number of x' among those of x_1 .. x_L is uniform on 0 .. L: what
simulation-based calibration is for parameters, for predictions (the observation itself, which the posterior has seen,
lies too near the middle). Equal numbers, of counts for instance, are ranked in a random order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edmund.errors import InputError
from edmund.metrics import Calibration, calibration
from edmund.progress import track
from edmund.sbi.simulator_batch import Job, Simulator
from edmund.training.order import seed_for

PREDICTED = 20
"""L, the fewest that can be told apart by `calibration`: the number of draws of theta* is what its power comes from."""
_MOST_COLUMNS = 16
"""Numbers of x that are looked at; of more, these are spread evenly over it."""
_BATCH = 1000
_LEAST = 20


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the simulator makes of a posterior's draws, of C of the numbers of x, for M observations.

    observed: [M, C]. repeated: [M, C], simulated from the true parameters once more. predicted: [L, M, C]. ranks: int64
    [M, C], of repeated among predicted. calibration: what these say. names: of the C numbers, x_1 for the first. total:
    how many numbers x has. failed: observations left out because a simulation failed or gave NaN.
    """

    names: tuple[str, ...]
    observed: Tensor
    repeated: Tensor
    predicted: Tensor
    ranks: Tensor
    calibration: Calibration
    total: int
    failed: int


def predictions(
    simulator: Simulator, theta: Tensor, x: Tensor, drawn: Tensor, *, level: float, seed: int, progress: bool
) -> Predictions:
    """Simulates from the true theta [N, D] of observations x [N, *] and from `drawn` [S >= L, N, D], L for each.

    simulator: theta [B, D] -> x [B, *], as `simulate` takes it. level: see `calibration`. Raises InputError for a
    simulator that returns other shapes than x has, and where it fails for too many.
    """
    total = math.prod(x.shape[1:])
    columns = torch.arange(total) if total <= _MOST_COLUMNS else torch.linspace(0, total - 1, _MOST_COLUMNS).long()
    count = len(theta)
    rows = torch.cat([theta[None], drawn[:PREDICTED]]).reshape(-1, theta.shape[1])
    values = torch.full((len(rows), len(columns)), torch.nan)
    message = ""
    with track(len(rows), "simulating predictions", progress) as bar:
        for number, start in enumerate(range(0, len(rows), _BATCH)):
            chunk = rows[start : start + _BATCH]
            batch = Job(simulator, chunk, start, seed_for(seed, number), number).run()
            if isinstance(batch, InputError):
                raise batch
            if batch.x is not None:
                if batch.x.shape[1:] != x.shape[1:]:
                    raise InputError(
                        f"simulator returned rows of shape {batch.x.shape[1:]}; x has {tuple(x.shape[1:])}: it must be "
                        "the simulator that made it"
                    )
                values[torch.from_numpy(batch.rows)] = torch.from_numpy(batch.x).flatten(1)[:, columns]
            message = message or next((told for _, told, _ in batch.failures), "")
            bar.advance(len(chunk))
    values = values.reshape(-1, count, len(columns))
    kept = values.isfinite().all(2).all(0)
    if int(kept.sum()) < _LEAST:
        raise InputError(
            f"simulator: only {int(kept.sum())} of {count} observations have predictions without a failure, of which "
            f"the first was {message!r}; a check needs at least {_LEAST}"
        )
    repeated, predicted = values[0, kept], values[1:, kept]
    names = tuple(f"x_{int(column) + 1}" for column in columns)
    ranks = _ranks(repeated, predicted, seed)
    return Predictions(
        names=names,
        observed=x[kept].flatten(1)[:, columns],
        repeated=repeated,
        predicted=predicted,
        ranks=ranks,
        calibration=calibration(ranks, len(predicted), names=names, level=level),
        total=total,
        failed=count - int(kept.sum()),
    )


def _ranks(repeated: Tensor, predicted: Tensor, seed: int) -> Tensor:
    """int64 [M, C], with the places among equal numbers drawn."""
    below, equal = ((predicted < repeated).sum(0), (predicted == repeated).sum(0))
    places = np.random.default_rng(seed).integers(0, equal.numpy(), endpoint=True)
    return below + torch.from_numpy(places)
