"""Priors diffused in a model's space against quadrature, and posteriors under another prior than was trained with."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import distributions as td

import edmund
from edmund import denoiser
from edmund.errors import InputError
from edmund.sbi.composition import Composition
from edmund.sbi.diffused_prior import Separable, prior_denoiser
from edmund.sbi.priors import Prior

F64 = torch.float64
SPACE = Prior.of([td.Uniform(0.0, 1.0), td.LogNormal(-0.9, 0.5)])
KINDS = {
    "part": [td.Uniform(0.2, 0.5), td.LogNormal(-0.9, 0.5)],
    "shapes": [td.Beta(2.0, 5.0), td.Gamma(3.0, 4.0)],
    "modes": [
        td.Beta(1.5, 1.0),
        td.TransformedDistribution(
            td.MixtureSameFamily(td.Categorical(torch.tensor([0.3, 0.7])), td.Normal(torch.tensor([-2.0, 0.0]), 0.3)),
            td.ExpTransform(),
        ),
    ],
}


def log_density(prior, space, z):
    at = space.transform.inverse(z)
    rounded = ((at <= 0) | (at[:, :1] >= 1)) & torch.ones_like(at, dtype=torch.bool)  # far out, onto a limit
    values = prior.log_prob(at) - space.transform.log_abs_det(torch.where(rounded, 0.5, at))
    return torch.where(rounded.any(1), -torch.inf, values)


def by_quadrature(prior, space, z, sigma, span=9.0):
    """E[z0 | z] of each number, over fine grids about the prior's range and about z."""
    out = []
    inside = space.to_model(prior.sample(1).double())
    for i in range(z.shape[1]):
        of_row = []
        for value in z[:, i]:
            fine = torch.linspace(value - span * sigma, value + span * sigma, 10001, dtype=F64).clamp(-17, 8)
            u = torch.cat([torch.linspace(-17, 8, 20001, dtype=F64), fine]).unique()
            middle = (u[1:] + u[:-1]) / 2
            at = inside.repeat(len(middle), 1)
            at[:, i] = middle
            log_weight = log_density(prior, space, at) - 0.5 * ((value - middle) / sigma) ** 2 + u.diff().log()
            of_row.append((torch.softmax(log_weight, 0) * middle).sum())
        out.append(torch.stack(of_row))
    return torch.stack(out, dim=1)


def test_a_prior_in_its_own_space_is_standard_normal():
    found = prior_denoiser(SPACE)
    z, sigma = torch.randn(5, 2, dtype=F64), torch.tensor(0.7, dtype=F64)
    torch.testing.assert_close(found(z, sigma), z / 1.49)


def test_priors_of_the_same_kind_are_gaussian():
    found = prior_denoiser(Prior.of([td.Uniform(0.0, 1.0), td.LogNormal(-1.2, 0.3)]), SPACE)
    assert isinstance(found, denoiser.Gaussian)
    mean, covariance = found.moments()
    torch.testing.assert_close(mean, torch.tensor([0.0, -0.6], dtype=F64), rtol=0, atol=1e-5)
    torch.testing.assert_close(covariance, torch.diag(torch.tensor([1.0, 0.36], dtype=F64)), rtol=0, atol=1e-5)

    centre = torch.tensor([1.0, -2.0, 0.5])
    first = torch.tensor([[2.0, 0.5, 0.1], [0.5, 1.0, -0.3], [0.1, -0.3, 0.7]])
    second = torch.tensor([[1.0, 0.2, 0.0], [0.2, 0.5, 0.3], [0.0, 0.3, 0.6]])
    space = Prior.of(td.MultivariateNormal(centre, first))
    found = prior_denoiser(Prior.of(td.MultivariateNormal(centre + 0.5, second)), space)
    inverse = torch.linalg.inv(torch.linalg.cholesky(first.double()))
    mean, covariance = found.moments()
    torch.testing.assert_close(mean, inverse @ torch.full((3,), 0.5, dtype=F64), rtol=0, atol=1e-5)
    torch.testing.assert_close(covariance, inverse @ second.double() @ inverse.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_independent_parameters_are_diffused_exactly(kind):
    prior = Prior.of(KINDS[kind])
    found = prior_denoiser(prior, SPACE)
    assert isinstance(found, Separable)
    mean, covariance = found.moments()
    draws = SPACE.to_model(prior.sample(20_000, seed=5).double())
    assert ((mean - draws.mean(0)) / draws.std(0)).abs().max() < 0.03
    assert (covariance.diag().sqrt() / draws.std(0) - 1).abs().max() < 0.03
    for sigma in (0.003, 0.02, 0.1, 0.5, 3.0, 80.0, 1000.0):
        near = draws[:4] + 1.5 * sigma * torch.tensor([[1.0, -1.0], [0.3, 0.5], [-1.0, 0.7], [0.0, 0.0]])
        level = torch.tensor(sigma, dtype=F64)
        error = (found(near, level) - by_quadrature(prior, SPACE, near, sigma)).abs().max().item()
        assert error < 0.005 * min(sigma, 1)
        # A level for each sample, and the derivative that covariances are made of.
        torch.testing.assert_close(found(near, level.expand(4)), found(near, level))
        step = 1e-5 * sigma
        slope = (found(near + step, level) - found(near - step, level)) / (2 * step)
        moved = near.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(found(moved, level).sum(), moved)
        torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-6)


def test_uniform_priors_are_diffused_in_the_compact_space():
    prior = Prior.of([td.Uniform(0.0, 1.0), td.LogNormal(-0.9, 0.5)])
    space = replace(prior, transform=prior.compact)
    found = prior_denoiser(prior, space)
    assert isinstance(found, Separable)
    draws = space.to_model(prior.sample(4, seed=5).double())
    for sigma in (0.01, 0.3, 2.0):
        near = draws + sigma * torch.tensor([[1.0, -1.0], [0.3, 0.5], [-1.0, 0.7], [0.0, 0.0]])
        error = found(near, torch.tensor(sigma, dtype=F64)) - by_quadrature(prior, space, near, sigma)
        assert error.abs().max().item() < 0.005 * min(sigma, 1)


def test_a_narrower_range_is_never_left():
    prior = Prior.of([td.Uniform(0.2, 0.5), td.LogNormal(-0.9, 0.5)])
    found = prior_denoiser(prior, SPACE)
    low, high = SPACE.to_model(torch.tensor([[0.2, 0.1], [0.5, 0.1]], dtype=F64))[:, 0].tolist()
    for sigma in (0.002, 0.05, 1.0, 80.0):
        z = torch.linspace(-6, 6, 101, dtype=F64)[:, None].expand(-1, 2) * max(1, sigma)
        image = found(z, torch.tensor(sigma, dtype=F64))[:, 0]
        assert bool(((image >= low - 1e-9) & (image <= high + 1e-9)).all()) and bool((image.diff() >= -1e-9).all())
    single = found(torch.zeros(3, 2), torch.tensor(0.3))
    assert single.dtype == torch.float32


class Own(td.Independent):
    """A box that is not known to be one, and so is standardised by its draws."""

    def log_prob(self, value):
        return super().log_prob(value)


@pytest.mark.parametrize(("low", "high"), [(0.4, 0.6), (0.25, 0.75), (0.1, 0.3), (0.0, 0.7)])
def test_an_end_of_the_range_is_inside_however_it_rounds(low, high):
    """Batches of other sizes round otherwise, and the last number inside was outside of some."""

    def box(low, high):
        return Prior.of(Own(td.Uniform(torch.full((2,), low), torch.full((2,), high)), 1))

    space, prior = box(0.0, 1.0), box(low, high)
    found = prior_denoiser(prior, space)
    assert isinstance(found, Separable)
    draws = space.to_model(prior.sample(4096, seed=5).double())
    mean, _ = found.moments()
    assert ((mean - draws.mean(0)) / draws.std(0)).abs().max() < 0.08


class OfNormal:
    """The exact denoiser of p(z0 | x) for z0 ~ N(0, 1) and x ~ N(z0, variance)."""

    def __init__(self, variance):
        self.variance, self.posterior = variance, variance / (1 + variance)

    def __call__(self, z, sigma, x):
        mean = x / (1 + self.variance)
        return mean + self.posterior / (self.posterior + sigma**2) * (z - mean)


@pytest.mark.parametrize("method", ["gauss", "jac"])
@pytest.mark.parametrize("law", [td.Beta(2.0, 5.0), td.Uniform(0.3, 0.6)])
def test_posteriors_under_another_prior(method, law):
    """In the space where a uniform prior on [0, 1] is N(0, 1), and its posterior is Gaussian."""
    space, other = Prior.of([td.Uniform(0.0, 1.0)]), Prior.of([law])
    oracle, x = OfNormal(0.5), torch.tensor([[1.2]], dtype=F64)
    made = Composition(
        oracle,
        {"x": x},
        prior_denoiser(space),
        method=method,
        covariances=torch.full((1, 1, 1), oracle.posterior, dtype=F64) if method == "gauss" else None,
        new_prior=prior_denoiser(other, space),
    )
    found = edmund.sample(made, (600, 1), num_steps=40, progress=False)[:, 0].sort().values
    z = torch.linspace(-6, 6, 20001, dtype=F64)
    weights = torch.softmax(log_density(other, space, z[:, None]) - (x[0] - z) ** 2, 0)
    reached = torch.cumsum(weights, 0)[torch.searchsorted(z, found).clamp_max(20000)]
    distance = (reached - (torch.arange(600, dtype=F64) + 0.5) / 600).abs().max().item()
    assert distance < 1.63 / math.sqrt(600) + 0.01
    theta = space.to_user(found[:, None])
    assert bool(((theta > law.support.lower_bound - 1e-3) & (theta < law.support.upper_bound + 1e-3)).all())


def test_bad_input():
    with pytest.raises(InputError, match="of 4096 draws are outside the support"):
        prior_denoiser(Prior.of([td.Uniform(0.0, 1.5), td.LogNormal(-0.9, 0.5)]), SPACE)
    with pytest.raises(InputError, match="1 parameters and the model's 2"):
        prior_denoiser(Prior.of([td.Uniform(0.0, 1.0)]), SPACE)
    square = Prior.of([td.Uniform(-9.0, 9.0), td.Uniform(-9.0, 9.0)])
    slanting = Prior.of(td.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]])))
    with pytest.raises(
        InputError, match=r"neither independent in .* \(ln q differs .*; or give edmund.sbi.Composition"
    ):
        prior_denoiser(slanting, square)
    with pytest.raises(
        InputError, match=r"\(its support there is no box, .*; or give edmund.sbi.Composition"
    ) as caught:
        prior_denoiser(Prior.of(td.Independent(td.Uniform(-torch.ones(2), torch.ones(2)), 1)), slanting)
    assert "inf" not in str(caught.value).split()

    def gap(z):
        return torch.where((z.abs() > 0.5) & (z.abs() < 1), 0.0, -torch.inf)

    with pytest.raises(InputError, match="gaps"):
        Separable(gap, torch.tensor([-1.0]), torch.tensor([1.0]))
    with pytest.raises(InputError, match="too rough"):
        Separable(lambda z: 3 * torch.sin(9000 * z) - z**2, torch.tensor([-1.0]), torch.tensor([1.0]))
    with pytest.raises(InputError, match="over vectors"):
        prior_denoiser(Prior.of(KINDS["shapes"]), SPACE)(torch.zeros(3, 4), torch.tensor(1.0))
