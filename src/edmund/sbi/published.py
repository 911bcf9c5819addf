"""Published scores of the benchmark's tasks, as data: what `edmund sbi benchmark` sets its own beside.

C2ST is comparable only for one classifier, see `metrics.c2st`: `MLP` and `RF` are two worlds. All are means over
observations of 10 000 draws against 10 000 of the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """C2ST of one method: `scores` by task, one for each of `budgets` simulations.

    observations: the mean is over the first so many. sequential: whether each observation had the budget to itself.
    """

    method: str
    source: str
    observations: int
    sequential: bool
    budgets: tuple[int, ...]
    scores: Mapping[str, tuple[float, ...]]

    def score(self, task: str, budget: int) -> float | None:
        """The C2ST of a task at a budget; None where none was published."""
        return dict(zip(self.budgets, self.scores.get(task, ()), strict=False)).get(budget)


_SBIBM = "Lueckmann et al. 2021 (arXiv 2101.04653), main_paper.csv; gaussian_mixture from its rerun"
_SIMFORMER = "the repository of Simformer (Gloeckler et al. 2024, arXiv 2404.09636)"
_GENSBI = "GenSBI (arXiv 2605.27499), the best of up to 11 configurations by the test score"
_BUDGETS = (1_000, 10_000, 100_000)
_LARGER = (10_000, 30_000, 100_000)

MLP = (
    Published(
        "NPE",
        _SBIBM,
        5,
        False,
        _BUDGETS,
        {
            "two_moons": (0.697, 0.604, 0.526),
            "gaussian_linear": (0.700, 0.549, 0.506),
            "gaussian_linear_uniform": (0.702, 0.554, 0.509),
            "gaussian_mixture": (0.722, 0.629, 0.551),
            "slcp": (0.976, 0.889, 0.838),
            "slcp_distractors": (0.983, 0.973, 0.873),
            "bernoulli_glm": (0.864, 0.681, 0.566),
            "bernoulli_glm_raw": (0.906, 0.770, 0.619),
            "sir": (0.884, 0.737, 0.571),
            "lotka_volterra": (1.000, 0.997, 0.977),
        },
    ),
    Published(
        "SNPE",
        _SBIBM,
        5,
        True,
        _BUDGETS,
        {
            "two_moons": (0.608, 0.553, 0.538),
            "gaussian_linear": (0.651, 0.544, 0.507),
            "gaussian_linear_uniform": (0.625, 0.534, 0.508),
            "gaussian_mixture": (0.673, 0.542, 0.542),
            "slcp": (0.966, 0.829, 0.656),
            "slcp_distractors": (0.980, 0.928, 0.775),
            "bernoulli_glm": (0.885, 0.620, 0.526),
            "bernoulli_glm_raw": (0.914, 0.655, 0.614),
            "sir": (0.652, 0.546, 0.545),
            "lotka_volterra": (0.992, 0.945, 0.922),
        },
    ),
    Published(
        "SNLE",
        _SBIBM,
        5,
        True,
        _BUDGETS,
        {
            "two_moons": (0.641, 0.555, 0.511),
            "gaussian_linear": (0.629, 0.549, 0.515),
            "gaussian_linear_uniform": (0.663, 0.559, 0.512),
            "gaussian_mixture": (0.716, 0.716, 0.616),
            "slcp": (0.919, 0.715, 0.581),
            "slcp_distractors": (0.995, 0.943, 0.879),
            "bernoulli_glm": (0.650, 0.557, 0.528),
            "bernoulli_glm_raw": (0.996, 0.980, 0.987),
            "sir": (0.749, 0.739, 0.662),
            "lotka_volterra": (0.915, 0.732, 0.707),
        },
    ),
    Published(
        "SNRE",
        _SBIBM,
        5,
        True,
        _BUDGETS,
        {
            "two_moons": (0.665, 0.591, 0.566),
            "gaussian_linear": (0.676, 0.534, 0.513),
            "gaussian_linear_uniform": (0.670, 0.606, 0.540),
            "gaussian_mixture": (0.676, 0.582, 0.526),
            "slcp": (0.970, 0.919, 0.712),
            "slcp_distractors": (0.983, 0.972, 0.743),
            "bernoulli_glm": (0.727, 0.590, 0.535),
            "bernoulli_glm_raw": (0.848, 0.687, 0.552),
            "sir": (0.642, 0.646, 0.537),
            "lotka_volterra": (0.976, 0.844, 0.835),
        },
    ),
)
"""By the mlp: what sbibm's own table has."""

RF = (
    Published(
        "NPSE VE",
        _SIMFORMER,
        10,
        False,
        _BUDGETS,
        {
            "two_moons": (0.570, 0.513, 0.502),
            "gaussian_linear": (0.705, 0.572, 0.507),
            "gaussian_mixture": (0.613, 0.528, 0.502),
            "slcp": (0.988, 0.831, 0.630),
        },
    ),
    Published(
        "Simformer",
        _SIMFORMER,
        10,
        False,
        _BUDGETS,
        {
            "two_moons": (0.611, 0.525, 0.506),
            "gaussian_linear": (0.732, 0.635, 0.505),
            "gaussian_mixture": (0.574, 0.515, 0.506),
            "slcp": (0.924, 0.784, 0.703),
        },
    ),
    Published(
        "GenSBI EDM",
        _GENSBI,
        10,
        False,
        _LARGER,
        {
            "two_moons": (0.554, 0.534, 0.523),
            "gaussian_linear": (0.718, 0.526, 0.523),
            "gaussian_mixture": (0.562, 0.520, 0.510),
            "slcp": (0.848, 0.741, 0.617),
            "bernoulli_glm": (0.701, 0.673, 0.575),
        },
    ),
    Published(
        "GenSBI SM",
        _GENSBI,
        10,
        False,
        _LARGER,
        {
            "two_moons": (0.522, 0.513, 0.502),
            "gaussian_linear": (0.509, 0.500, 0.501),
            "gaussian_mixture": (0.511, 0.504, 0.501),
            "slcp": (0.663, 0.568, 0.535),
            "bernoulli_glm": (0.630, 0.576, 0.560),
        },
    ),
)
"""By the random forest: diffusion methods. Simformer is its VE; SM is score matching of the joint."""

CEILING: Mapping[str, float] = {
    "two_moons": 0.513,
    "gaussian_linear": 0.504,
    "gaussian_linear_uniform": 0.503,
    "gaussian_mixture": 0.523,
    "slcp": 0.638,
    "slcp_distractors": 0.642,
    "bernoulli_glm": 0.510,
    "bernoulli_glm_raw": 0.512,
    "sir": 0.530,
    "lotka_volterra": 0.713,
}
"""By the mlp: BayesFlow's EDM trained on 32 million fresh simulations, means over 10 observations: what is in reach."""
