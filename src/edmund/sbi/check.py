"""Whether a posterior can be trusted: calibration over simulations whose true parameters are known.

Of pairs (theta*, x) from the prior and the simulator, an exact posterior p(theta | x) has theta* among its draws as one
of them. The `sbi` toolkit ranks it (simulation-based calibration, and TARP for the joint law), `metrics.calibration`
tests the ranks, their folded version and the coverage of credible intervals together, and `predictive` does the same
for what the simulator makes of the draws. All tests look at averages over the prior, and none at how narrow a posterior
is: the prior itself passes them. So the spread of the posteriors beside the prior's is told as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edmund.errors import InputError, check_count
from edmund.metrics import Calibration, calibration
from edmund.metrics.calibration import JOINT
from edmund.sbi.posterior import Posterior
from edmund.sbi.predictive import Predictions, predictions
from edmund.sbi.seeding import seeded
from edmund.sbi.simulations import CONDITION, Simulations
from edmund.sbi.simulator_batch import Simulator
from edmund.training.order import seed_for

LEAST = 20
"""Fewest draws, and posterior samples, that say anything."""


@dataclass(frozen=True, eq=False)
class CheckResult:
    """What `check` found: `passed`, in words `verdict`, and the numbers behind them.

    names: of the D parameters. ranks: int64 [N, D], of the true ones among the posterior's samples. tarp: (ecp [K],
    alpha [K]), the toolkit's curve. calibration: the tests of both. spread: by parameter, the mean standard deviation
    of the posteriors over that of the true values; 1 where x says nothing. predictions: where a simulator was given.
    """

    names: tuple[str, ...]
    ranks: Tensor
    tarp: tuple[Tensor, Tensor]
    calibration: Calibration
    spread: dict[str, float]
    predictions: Predictions | None

    @property
    def passed(self) -> bool:
        """Whether no test fails."""
        return self.calibration.passed and (self.predictions is None or self.predictions.calibration.passed)

    @property
    def verdict(self) -> str:
        """The result in words, a line for the posterior and one for its predictions."""
        lines = [f"Posterior: {self.calibration.verdict}"]
        if self.predictions is not None:
            lines.append(f"Predictions: {self.predictions.calibration.verdict}")
        return "\n".join(lines)


def check(
    posterior: Any,
    theta: Any,
    x: Any,
    *,
    samples: int = 200,
    simulator: Simulator | None = None,
    names: Sequence[str] | None = None,
    level: float = 0.05,
    seed: int = 0,
    progress: bool = True,
) -> CheckResult:
    """Tests `posterior` on true parameters theta [N, D], drawn from its prior, and their simulations x [N, *].

    posterior: a `Posterior`, or another object with the toolkit's `sample_batched((n,), x=..., show_progress_bars=...)
    -> [n, N, D]`. The pairs must be none that it was trained on. samples: of the posterior for each x. simulator: theta
    [B, D] -> x [B, *]; with one, predictions are tested too (21 simulations for each x). names: of the parameters;
    None: the prior's, or theta_1 ... level: the probability that an exact posterior fails any test; its posterior and
    its predictions have half of it each.

    >>> result = check(posterior, theta, x)  # doctest: +SKIP
    >>> print(result.verdict)                # doctest: +SKIP

    Raises InputError without the toolkit (extra `sbi`), for fewer than 20 pairs or samples, for another number of
    names, for what `Simulations` and the posterior refuse, and for a simulator of another x.
    """
    try:
        from sbi.diagnostics import run_sbc, run_tarp
    except ImportError:
        raise InputError("a check needs the sbi toolkit, which is not installed: pip install 'edmund[sbi]'") from None
    check_count("samples", samples, least=LEAST)
    check_count("seed", seed, least=0)
    prior = posterior.prior if isinstance(posterior, Posterior) else None
    theta, x = _pairs(posterior, theta, x)
    if len(theta) < LEAST:
        raise InputError(f"theta has {len(theta)} draws; a check needs at least {LEAST}")
    own = names if names is not None else prior.names if prior is not None else None
    known = _names(own, theta.shape[1])
    # Streams of their own: that of the seed itself may be the one that theta or x was drawn from.
    drawing, testing, predicting = (seed_for(seed, part) >> 32 for part in range(3))
    options = {} if prior is None else {"seed": drawing}
    with seeded(drawing):
        drawn = posterior.sample_batched((samples,), x=x, show_progress_bars=progress, **options)
    if tuple(drawn.shape) != (samples, *theta.shape):
        raise InputError(
            f"posterior.sample_batched returned {list(drawn.shape)}; it must return {[samples, *theta.shape]}"
        )
    drawn = drawn.detach().cpu().float()
    # The toolkit asks for draws in each of its tests, and leaves out x with NaN: it gets the same ones, by number.
    numbers = torch.arange(len(theta), dtype=torch.float32)[:, None]
    options = {"num_posterior_samples": samples, "show_progress_bar": False}
    with seeded(testing), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few draws; the verdict says what these do not show
        ranks, _ = run_sbc(theta, numbers, _Drawn(drawn), **options)
        ecp, alpha = run_tarp(theta, numbers, _Drawn(drawn), **options)
    share = level if simulator is None else level / 2
    found = calibration(ranks, samples, tarp=(ecp, alpha), names=known, level=share)
    predicted = None
    if simulator is not None:
        predicted = predictions(simulator, theta, x, drawn, level=share, seed=predicting, progress=progress)
    spread = drawn.double().var(0).mean(0).sqrt() / theta.double().std(0)
    return CheckResult(
        known, ranks.long(), (ecp, alpha), found, dict(zip(known, spread.tolist(), strict=True)), predicted
    )


def _names(names: Sequence[str] | None, dim: int) -> tuple[str, ...]:
    """Of the parameters, before anything is drawn."""
    if names is None:
        return tuple(f"theta_{k + 1}" for k in range(dim))
    if len(names) != dim or len(set(names)) != dim or JOINT in names:
        raise InputError(f"names is {list(names)!r}; it must be {dim} different names, one a parameter of theta")
    return tuple(names)


class _Drawn:
    """A posterior's draws [n, N, D], to be had of it as the toolkit has them."""

    def __init__(self, drawn: Tensor) -> None:
        self._drawn = drawn

    def sample_batched(self, sample_shape: Any, x: Tensor, **_: Any) -> Tensor:
        return self._drawn


def _pairs(posterior: Any, theta: Any, x: Any) -> tuple[Tensor, Tensor]:
    """Both as float32, after the checks of simulations; NaN in x is the posterior's concern."""
    if isinstance(posterior, Posterior):
        simulations = Simulations(posterior.prior.dim, posterior.prior.accepts, nan="mask")
    else:
        simulations = Simulations(nan="mask")
    data = simulations.append(theta, x).dataset()
    found, condition = data.__getitems__(list(range(len(data))))
    return found, condition[CONDITION]
