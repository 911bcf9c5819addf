r"""Denoisers: D(x; sigma) = E[y | x] for x = y + sigma n. A diffusion model is one of these.

A denoiser is any callable `denoiser(x, sigma, **condition)` with x [B, *] unscaled, sigma [] or [B], result [B, *].
`Preconditioned` makes one of a raw network, `Discrete` of one trained on discrete time steps (DDPM). `Gaussian`,
`GaussianMixture` and `Empirical` are exact: their data distribution is known, so E[y | x] is a formula. The score of
the noisy density follows from any of them, grad log p(x; sigma) = (D(x; sigma) - x) / sigma^2.
"""

from edmund.denoiser._protocol import DROPPABLE, Denoiser, condition_names, drop_condition, expand_condition
from edmund.denoiser.discrete import Discrete
from edmund.denoiser.exact import Empirical, Gaussian, GaussianMixture
from edmund.denoiser.preconditioned import Preconditioned

__all__ = [
    "DROPPABLE",
    "Denoiser",
    "Discrete",
    "Empirical",
    "Gaussian",
    "GaussianMixture",
    "Preconditioned",
    "condition_names",
    "drop_condition",
    "expand_condition",
]
