"""Simulation-based inference: from a prior and a simulator to the posterior of its parameters, with diagnostics."""

from edmund.sbi.check import CheckResult, check
from edmund.sbi.check_page import report
from edmund.sbi.composition import Composition, posterior_covariances
from edmund.sbi.diffused_prior import prior_denoiser
from edmund.sbi.joint import JointEstimator
from edmund.sbi.langevin import AnnealedLangevin
from edmund.sbi.npse import NPSE
from edmund.sbi.posterior import Posterior
from edmund.sbi.priors import Prior, prior_from_yaml
from edmund.sbi.simulate import SimulationResult, simulate
from edmund.sbi.simulations import Simulations

__all__ = [
    "NPSE",
    "AnnealedLangevin",
    "CheckResult",
    "Composition",
    "JointEstimator",
    "Posterior",
    "Prior",
    "SimulationResult",
    "Simulations",
    "check",
    "posterior_covariances",
    "prior_denoiser",
    "prior_from_yaml",
    "report",
    "simulate",
]
