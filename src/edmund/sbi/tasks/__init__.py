"""The ten benchmark tasks of simulation-based inference (sbibm; Lueckmann et al. 2021).

    task = tasks.get("two_moons")
    theta = task.prior.sample((10_000,))
    x = task.simulator(theta)
    reference = task.reference("data/sbibm", 1)        x [dim_x], samples [10000, dim_theta]
    exact = task.posterior(reference.x)                sample, log_prob, mean, covariance; None where unknown

Every task has a tractable likelihood, `log_likelihood(theta, x)`, by which the reference posteriors, the simulators
and each other can be checked; inference from simulations does not use it.
"""

from edmund.errors import unknown
from edmund.sbi.tasks._base import Task
from edmund.sbi.tasks.bernoulli_glm import BernoulliGLM, BernoulliGLMRaw
from edmund.sbi.tasks.exact import Exact
from edmund.sbi.tasks.gaussian import GaussianLinear, GaussianLinearUniform, GaussianMixture
from edmund.sbi.tasks.lotka_volterra import LotkaVolterra
from edmund.sbi.tasks.reference import Reference
from edmund.sbi.tasks.sir import SIR
from edmund.sbi.tasks.slcp import SLCP, SLCPDistractors
from edmund.sbi.tasks.two_moons import TwoMoons

_TASKS: tuple[type[Task], ...] = (
    TwoMoons,
    GaussianLinear,
    GaussianLinearUniform,
    GaussianMixture,
    SLCP,
    SLCPDistractors,
    BernoulliGLM,
    BernoulliGLMRaw,
    SIR,
    LotkaVolterra,
)
NAMES: tuple[str, ...] = tuple(task.name for task in _TASKS)
"""The names of the ten tasks, in sbibm's order of presentation."""


def get(name: str) -> Task:
    """The task of that name; InputError, with the nearest name, for another."""
    for task in _TASKS:
        if task.name == name:
            return task()
    raise unknown("task", name, NAMES)


__all__ = [
    "NAMES",
    "SIR",
    "SLCP",
    "BernoulliGLM",
    "BernoulliGLMRaw",
    "Exact",
    "GaussianLinear",
    "GaussianLinearUniform",
    "GaussianMixture",
    "LotkaVolterra",
    "Reference",
    "SLCPDistractors",
    "Task",
    "TwoMoons",
    "get",
]
