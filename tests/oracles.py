"""What the tests of samplers measure with: exact denoisers, the order of convergence, the exact law on a Gaussian."""

from __future__ import annotations

import math

import torch

from edmund import denoiser, grid, process

F64 = torch.float64
PROCESSES = {
    "vp": process.VP(),
    "ve": process.VE(),
    "edm": process.EDM(),
    "flow": process.RectifiedFlow(),
    "cosine": process.Cosine(),
    "subvp": process.SubVP(),
    "vp-none": process.VP(scaling="none"),
    "edm-vp": process.EDM("vp"),
    "edm-flow": process.EDM("flow"),
    "odd": process.Process(s=lambda t: 1 + 0.5 * torch.sin(4 * torch.pi * t), sigma=lambda t: 80 * t**3),
}


def gaussian():
    return denoiser.Gaussian([0.3, -0.2], [[1.0, 0.3], [0.3, 0.5]])


def mixture():
    return denoiser.GaussianMixture([[-1.0, 0.0], [1.0, 0.5], [0.3, -1.2]], [0.4, 0.5, 0.6], [0.3, 0.3, 0.4])


def noisy(oracle, n, sigma, seed=0):
    """n points of the exact law p(x; sigma)."""
    normals = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return oracle.sample(n, seed) + sigma * normals


def integrate(solver, oracle, path, x, sigmas):
    """The unscaled state at the last of the sigmas, from the unscaled x at the first."""
    scalings = path.s(path.t(sigmas))
    return solver(oracle, x * scalings[0], sigmas, process=path) / scalings[-1]


def gaussian_flow(oracle, x, start, end):
    """The exact solution of the probability-flow ODE: along each axis of the covariance, offsets scale as the std."""
    mean, covariance = oracle.moments()
    values, axes = torch.linalg.eigh(covariance)
    factor = torch.sqrt((values + end**2) / (values + start**2))
    return mean + ((x - mean) @ axes * factor) @ axes.T


def measured_order(solver, oracle, path, exact=None):
    """The slope of the error over the finest halvings, on positive nodes from sigma 10 to 0.3.

    Against the exact end state, or where there is none of successive halvings, whose differences fall as the error.
    """
    x = noisy(oracle, 16, 10.0)
    ends = [integrate(solver, oracle, path, x, grid.EDM(3.0)(n + 1, 0.3, 10.0)[:-1]) for n in (64, 128, 256)]
    if exact is None:
        coarse, fine = (ends[0] - ends[1]).norm(), (ends[1] - ends[2]).norm()
    else:
        truth = exact(oracle, x, 10.0, 0.3)
        coarse, fine = (ends[1] - truth).norm(), (ends[2] - truth).norm()
    return math.log2(coarse / fine)


class UnitVectors:
    """A noise source that pushes unit vectors through a sampler, to find the affine map that it is on a Gaussian.

    The first pass counts the draws (`probe`); then row 1 + dim + k of a batch carries unit vector k of all draws.
    """

    def __init__(self, dim):
        self.dim, self.draws, self.probing = dim, {}, True

    def __call__(self, x, step, sigma_from, sigma_to, draw=0):
        if self.probing:
            assert (step, draw) not in self.draws, "a draw was asked twice"
            self.draws[step, draw] = len(self.draws)
        out = torch.zeros_like(x)
        if not self.probing:
            first = 1 + self.dim + self.draws[step, draw] * self.dim
            out[first : first + self.dim] = torch.eye(self.dim, dtype=x.dtype)
        return out


def exact_law(solver, oracle, path, sigmas):
    """Mean [D] and covariance [D, D] of the unscaled end states, from the exact p(x; sigma_0) of a Gaussian.

    Independent unit normals for all draws are what a white source gives.
    """
    mean, covariance = oracle.moments()
    dim = len(mean)
    source = UnitVectors(dim)
    scale = path.s(path.t(sigmas))
    solver(oracle, mean.repeat(1, 1) * scale[0], sigmas, process=path, noise=source)
    source.probing = False
    start = mean.repeat(1 + dim + dim * len(source.draws), 1)
    start[1 : 1 + dim] += torch.linalg.cholesky(covariance + sigmas[0] ** 2 * torch.eye(dim, dtype=F64)).T
    end = solver(oracle, start * scale[0], sigmas, process=path, noise=source) / scale[-1]
    columns = end[1:] - end[0]
    return end[0], columns.T @ columns


def law_error(solver, oracle, path, sigmas):
    """(error of the mean, largest relative error of a std) of the end states against p(x; sigma_N), in its stds."""
    mean, covariance = oracle.moments()
    true = covariance + sigmas[-1] ** 2 * torch.eye(len(mean), dtype=F64)
    whiten = torch.linalg.inv(torch.linalg.cholesky(true))
    found, spread = exact_law(solver, oracle, path, sigmas)
    ratios = torch.linalg.eigvalsh(whiten @ spread @ whiten.T).sqrt()
    return (whiten @ (found - mean)).norm().item(), (ratios - 1).abs().max().item()


def weak_order(solver, oracle, path, steps=(64, 128)):
    """The slope of the law's largest error (mean or std) on positive nodes from sigma 10 to 0.3."""
    coarse, fine = (max(law_error(solver, oracle, path, grid.EDM(3.0)(n + 1, 0.3, 10.0)[:-1])) for n in steps)
    return math.log2(coarse / fine) / math.log2(steps[1] / steps[0])


def ramped(steps, sigma_min=0.3, sigma_max=10.0, rho=3.0, halvings=20):
    """Positive nodes uniform in sigma^(1/rho), but the first step halved again and again: step, step/2, ..., step/2^20,
    and once more that.

    A multistep method's first steps are of lower order than it is. Here the first is 2^-20 of the others: what it adds
    to the error, of order 2 and 2^-40 times, does not show. Each of the next is twice the one before, with as many
    levels behind it as the method asks for.
    """
    even = grid.EDM(rho)(steps + 1, sigma_min, sigma_max)[:-1]
    fractions = 2.0 ** -torch.arange(halvings, 0, -1, dtype=F64)
    first, second = even[0] ** (1 / rho), even[1] ** (1 / rho)
    return torch.cat([even[:1], (first + fractions * (second - first)) ** rho, even[1:]])


def measured_multistep_order(solver, oracle, path, exact=None, steps=(64, 128, 256)):
    """As measured_order, of a multistep method without the error of its start."""
    x = noisy(oracle, 16, 10.0)
    if exact is None:
        ends = [integrate(solver, oracle, path, x, ramped(n)) for n in steps]
        return math.log2((ends[0] - ends[1]).norm() / (ends[1] - ends[2]).norm())
    truth = exact(oracle, x, 10.0, 0.3)
    coarse, fine = ((integrate(solver, oracle, path, x, ramped(n)) - truth).norm() for n in steps[-2:])
    return math.log2(coarse / fine)
