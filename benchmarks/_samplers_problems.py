"""The three problems of benchmarks/samplers.py: denoiser, latents, where the ODE takes them, samples of the law."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from edmund import denoiser, grid
from edmund.cli.demo import demo_config
from edmund.cli.train import fit
from edmund.model import load
from edmund.noise import Seeded
from edmund.process import Process
from edmund.samplers import Sampler

F64 = torch.float64
LATENT_SEED, FIT_SEED, OTHER_SEED = 0, 2**32, 2**34
PROJECTIONS = 128
DIGITS = Path(__file__).parents[1] / "runs" / "benchmark-digits"
"""Where the digits' model is kept; git ignores it."""


@dataclass
class Problem:
    """A problem whose exact answers are known: end is where the probability-flow ODE takes the latents, exact [M, D]
    are draws of the law itself (at least as many as latents).
    """

    name: str
    title: str
    denoise: Callable[..., Tensor] = field(repr=False)
    latents: Tensor = field(repr=False)
    exact: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)
    covariance: Tensor = field(repr=False)
    labels: Tensor | None = field(repr=False, default=None)
    sigma_end: float = 1e-4
    reference_steps: int = 400
    end: Tensor = field(init=False, repr=False)
    floor: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.end = converged(self.call, self.latents, self.sigma_end, self.reference_steps)
        generator = torch.Generator().manual_seed(3)
        dim = self.exact.shape[1]
        directions = torch.randn(dim, PROJECTIONS, generator=generator, dtype=F64)
        self._directions = directions / directions.norm(dim=0)
        n = len(self.latents)
        quantiles = (torch.arange(n, dtype=F64) + 0.5) / n
        self._sorted = torch.quantile(self.exact @ self._directions, quantiles, dim=0)
        # What as many samples of the law itself score: the least that chance leaves.
        own = [self.law_errors(self.exact[start : start + n]) for start in range(0, len(self.exact) - n + 1, n)]
        self.floor = {key: sum(errors[key] for errors in own) / len(own) for key in own[0]}
        self.floor["end"] = self.law_errors(self.end)["sliced_wasserstein"]

    def call(self, z: Tensor, sigma: Tensor) -> Tensor:
        """E[y | z] of a batch of as many samples as latents."""
        return self.denoise(z, sigma) if self.labels is None else self.denoise(z, sigma, labels=self.labels)

    def law_errors(self, samples: Tensor) -> dict[str, float]:
        """Sliced 2-Wasserstein distance to the law; errors of mean and covariance, relative to the law's size."""
        flat = samples.flatten(1)
        projected = (flat @ self._directions).sort(dim=0).values
        distance = (projected - self._sorted).square().mean().sqrt().item()
        scale = self.covariance.diagonal().sum().sqrt()
        mean = ((flat.mean(0) - self.mean).norm() / scale).item()
        covariance = ((torch.cov(flat.T) - self.covariance).norm() / self.covariance.norm()).item()
        return {"sliced_wasserstein": distance, "mean": mean, "covariance": covariance}

    def ode_errors(self, samples: Tensor) -> dict[str, float]:
        """Distance to the converged solution from the same latents: root mean square over samples and elements, and the
        median over samples of theirs, which the few that end in another component do not move.
        """
        each = (samples - self.end).flatten(1).square().mean(1)
        return {"rms": each.mean().sqrt().item(), "median": each.sqrt().median().item()}


class Isotropic(nn.Module):
    """`denoiser.GaussianMixture` of isotropic components of equal weight by two matrix products: 30 times as fast in
    64-D, and the same to rounding (which is checked).
    """

    def __init__(self, exact: denoiser.GaussianMixture, stds: Tensor) -> None:
        super().__init__()
        self.means, self.variances = exact.means, stds**2
        self.squares = exact.means.square().sum(1)
        for level in (0.01, 1.0, 50.0):
            z = exact.sample(8, 2) * (1 + level)
            sigma = torch.tensor(level, dtype=F64)
            torch.testing.assert_close(self(z, sigma), exact(z, sigma), rtol=1e-9, atol=1e-9)

    def forward(self, z: Tensor, sigma: Tensor) -> Tensor:
        """E[y | z], [B, D]; sigma [] or [B]."""
        noisy = self.variances + sigma.reshape(-1, 1) ** 2
        squares = z.square().sum(1, keepdim=True) - 2 * z @ self.means.T + self.squares
        share = torch.softmax(-0.5 * (squares / noisy + z.shape[1] * noisy.log()), 1)
        kept = share * self.variances / noisy
        return kept.sum(1, keepdim=True) * z + (share - kept) @ self.means


def converged(call: Callable[[Tensor, Tensor], Tensor], latents: Tensor, sigma_end: float, steps: int) -> Tensor:
    """The solution of dz/d ln sigma = z - D(z; sigma) from 80 to sigma_end by the classical Runge-Kutta method, then
    the denoised image, its limit.
    """
    start, end = math.log(80.0), math.log(sigma_end)
    h = (end - start) / steps
    z = latents * 80.0

    def slope(state: Tensor, log_sigma: float) -> Tensor:
        return state - call(state, torch.tensor(math.exp(log_sigma), dtype=F64))

    for index in range(steps):
        at = start + index * h
        k_1 = slope(z, at)
        k_2 = slope(z + h / 2 * k_1, at + h / 2)
        k_3 = slope(z + h / 2 * k_2, at + h / 2)
        k_4 = slope(z + h * k_3, at + h)
        z = z + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
    return call(z, torch.tensor(sigma_end, dtype=F64))


def latents(n: int, *item: int, seed: int = LATENT_SEED) -> Tensor:
    """Unit normals [n, *item] of the seeds from `seed` on."""
    return Seeded(range(seed, seed + n)).latents(item, dtype=F64, device=torch.device("cpu"))


def mixture(dim: int, components: int, seed: int, n: int) -> Problem:
    """Components of equal weight: means from N(0, 0.7^2 I), centred, isotropic stds uniform in (0.05, 0.3)."""
    generator = torch.Generator().manual_seed(seed)
    means = 0.7 * torch.randn(components, dim, generator=generator, dtype=F64)
    stds = 0.05 + 0.25 * torch.rand(components, generator=generator, dtype=F64)
    exact = denoiser.GaussianMixture(means - means.mean(0), stds)
    mean, covariance = exact.moments()
    return Problem(
        name=f"{dim}-D",
        title=f"mixture of {components} in {dim}-D (seed {seed})",
        denoise=Isotropic(exact, stds),
        latents=latents(n, dim),
        exact=exact.sample(16 * n, seed=1),
        mean=mean,
        covariance=covariance,
    )


def digits(n: int) -> Problem:
    """The demo's EDM model of the digits, trained with seed 0 where it is not there yet (about two minutes). Its law is
    that of the converged solution: of 4 n other latents.
    """
    if not (DIGITS / "model.safetensors").is_file():
        print(f"training the digits' model into {DIGITS}", flush=True)
        fit(demo_config("EDM", 0), DIGITS)
    model = load(DIGITS).denoiser.eval()
    labels = torch.arange(n) % 10

    def call(z: Tensor, sigma: Tensor) -> Tensor:
        return model(z, sigma, labels=labels)

    drawn = [converged(call, latents(n, 1, 8, 8, seed=OTHER_SEED + k * n), 0.002, 32) for k in range(4)]
    exact = torch.cat(drawn).flatten(1)
    return Problem(
        name="digits",
        title="the digits' network (seed 0)",
        denoise=model,
        latents=latents(n, 1, 8, 8),
        exact=exact,
        mean=exact.mean(0),
        covariance=torch.cov(exact.T),
        labels=labels,
        sigma_end=0.002,
        reference_steps=128,
    )


def fitted(
    problem: Problem, sampler: Sampler, path: Process, num_steps: int, n: int, iterations: int
) -> grid.Optimised:
    """A grid of num_steps steps for the sampler, fitted on n other latents."""
    condition = None if problem.labels is None else {"labels": torch.arange(n) % 10}
    return grid.Optimised.fit(
        problem.denoise,
        (n, *problem.latents.shape[1:]),
        sampler=sampler,
        process=path,
        num_steps=num_steps,
        sigma_min=0.002,
        sigma_max=80.0,
        seeds=range(FIT_SEED, FIT_SEED + n),
        condition=condition,
        iterations=iterations,
        progress=False,
    )
