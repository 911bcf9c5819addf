"""Exact denoisers against closed forms, brute force, automatic differentiation and their own limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from edmund import denoiser
from edmund.denoiser import Empirical, Gaussian, GaussianMixture
from edmund.errors import InputError

F64 = torch.float64
SIGMAS = (1e-3, 0.1, 1.0, 30.0)
every_sigma = pytest.mark.parametrize("sigma", SIGMAS)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def level(sigma):
    return torch.tensor(sigma, dtype=F64)


def covariances(count, dim, seed=1):
    root = randn(count, dim, dim, seed=seed)
    return root @ root.mT / dim + 0.05 * torch.eye(dim, dtype=F64)


MEANS, WEIGHTS = 2 * randn(4, 3), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
STDS = torch.tensor([0.1, 0.5, 1.0, 0.02], dtype=F64)
COVARIANCES = covariances(4, 3)


def isotropic():
    return GaussianMixture(MEANS, STDS, WEIGHTS)


def full():
    return GaussianMixture(MEANS, weights=WEIGHTS, covariances=COVARIANCES)


def torch_mixture(sigma, matrices):
    noisy = matrices + sigma**2 * torch.eye(3, dtype=F64)
    return MixtureSameFamily(Categorical(WEIGHTS), MultivariateNormal(MEANS, noisy))


@every_sigma
def test_gaussian_is_the_closed_form(sigma, device):
    mean, covariance = randn(3), covariances(1, 3)[0]
    x = 3 * randn(40, 3)
    expected = mean + (x - mean) @ torch.linalg.inv(covariance + sigma**2 * torch.eye(3, dtype=F64)) @ covariance
    ours = Gaussian(mean, covariance).to(device)(x.to(device), level(sigma)).cpu()
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-11)


@every_sigma
def test_degenerate_gaussian(sigma):
    """Data on a line: the covariance has a null direction, where D is the mean whatever x."""
    direction = torch.tensor([3.0, 4.0], dtype=F64) / 5
    gaussian = Gaussian([1.0, 2.0], torch.outer(direction, direction))
    x = randn(20, 2)
    along = (x - gaussian.means[0]) @ direction
    expected = gaussian.means[0] + (along / (1 + sigma**2))[:, None] * direction
    torch.testing.assert_close(gaussian(x, level(sigma)), expected, rtol=1e-10, atol=1e-9)


@every_sigma
@pytest.mark.parametrize("kind", ["isotropic", "full"])
def test_mixture_log_prob(sigma, kind):
    ours = isotropic() if kind == "isotropic" else full()
    matrices = torch.diag_embed((STDS**2)[:, None].expand(4, 3)) if kind == "isotropic" else COVARIANCES
    x = MEANS[torch.arange(40) % 4] + 0.3 * randn(40, 3)
    theirs = torch_mixture(sigma, matrices).log_prob(x)
    torch.testing.assert_close(ours.log_prob(x, sigma), theirs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.log_prob(x), torch_mixture(0.0, matrices).log_prob(x), rtol=1e-9, atol=1e-9)


@every_sigma
@pytest.mark.parametrize("kind", ["isotropic", "full"])
def test_mixture_obeys_tweedie(sigma, kind):
    """D = x + sigma^2 grad log p(x; sigma), with the gradient by autograd of the density."""
    ours = isotropic() if kind == "isotropic" else full()
    x = (MEANS[torch.arange(40) % 4] + max(sigma, 0.1) * randn(40, 3)).requires_grad_()
    (gradient,) = torch.autograd.grad(ours.log_prob(x, sigma).sum(), x)
    denoised = ours(x, level(sigma))
    torch.testing.assert_close(denoised, x + sigma**2 * gradient, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(ours.score(x, level(sigma)), gradient, rtol=1e-6, atol=1e-6)


@every_sigma
def test_isotropic_and_full_agree(sigma):
    same = GaussianMixture(MEANS, weights=WEIGHTS, covariances=torch.diag_embed((STDS**2)[:, None].expand(4, 3)))
    x = randn(50, 3)
    torch.testing.assert_close(same(x, level(sigma)), isotropic()(x, level(sigma)), rtol=1e-10, atol=1e-11)
    assert torch.equal(same.moments()[0], isotropic().moments()[0])
    torch.testing.assert_close(same.moments()[1], isotropic().moments()[1], rtol=1e-12, atol=1e-13)


def test_mixture_by_integration():
    """In one dimension, E[y | x] by quadrature of its definition."""
    mixture = GaussianMixture([[-1.0], [0.5]], [0.1, 0.3], [0.25, 0.75])
    y = torch.linspace(-3, 3, 60_001, dtype=F64)
    prior = torch.exp(mixture.log_prob(y[:, None]))
    for sigma in (0.2, 1.0, 5.0):
        x = torch.linspace(-2, 2, 9, dtype=F64)
        joint = prior * torch.exp(-((x[:, None] - y) ** 2) / (2 * sigma**2))
        expected = torch.trapezoid(joint * y, y) / torch.trapezoid(joint, y)
        torch.testing.assert_close(mixture(x[:, None], level(sigma))[:, 0], expected, rtol=1e-9, atol=1e-9)


def test_equal_weights_are_the_default():
    assert torch.equal(GaussianMixture(MEANS, STDS).weights, torch.full((4,), 0.25, dtype=F64))


@pytest.mark.parametrize("kind", ["isotropic", "full"])
def test_mixture_samples_follow_the_law(kind):
    ours = isotropic() if kind == "isotropic" else full()
    x = ours.sample(20_000, seed=3)
    mean, covariance = ours.moments()
    error = torch.sqrt(covariance.diagonal() / 20_000)
    assert ((x.mean(0) - mean).abs() / error).max() < 4
    spread = x - mean
    products = spread[:, :, None] * spread[:, None, :]
    error = products.std(0) / math.sqrt(20_000)
    assert ((products.mean(0) - covariance).abs() / error).max() < 4
    # Beyond two moments: the share of each component, told by which is likeliest where they are far apart.
    apart = GaussianMixture([[0.0], [100.0], [200.0]], [1.0, 1.0, 1.0], [0.2, 0.5, 0.3])
    shares = torch.bincount((apart.sample(20_000)[:, 0] / 100).round().long()) / 20_000
    assert (shares - torch.tensor([0.2, 0.5, 0.3])).abs().max() < 4 * math.sqrt(0.25 / 20_000)
    assert torch.equal(ours.sample(20_000, seed=3), x) and not torch.equal(ours.sample(20_000, seed=4), x)
    assert torch.equal(ours.sample(10, seed=3), x[:10])


def test_moments_by_hand():
    mixture = GaussianMixture([[0.0, 0.0], [2.0, 0.0]], [1.0, 2.0], [0.5, 0.5])
    mean, covariance = mixture.moments()
    assert mean.tolist() == [1.0, 0.0]
    torch.testing.assert_close(covariance, torch.tensor([[3.5, 0.0], [0.0, 2.5]], dtype=F64))
    gaussian = Gaussian([1.0, 2.0], COVARIANCES[0, :2, :2])
    torch.testing.assert_close(gaussian.moments()[0], torch.tensor([1.0, 2.0], dtype=F64))
    torch.testing.assert_close(gaussian.moments()[1], COVARIANCES[0, :2, :2])


@every_sigma
@pytest.mark.parametrize("shape", [(5,), (1, 4, 4), (1,)])
def test_empirical_against_brute_force(sigma, shape, device):
    data, x = randn(30, *shape), randn(7, *shape, seed=2)
    expected = torch.empty_like(x)
    for b in range(7):
        distance = ((x[b] - data) ** 2).flatten(1).sum(1) / (2 * sigma**2)
        posterior = torch.exp(-(distance - distance.min()))
        expected[b] = (posterior.reshape(-1, *(1,) * len(shape)) * data).sum(0) / posterior.sum()
    ours = Empirical(data).to(device)(x.to(device), level(sigma)).cpu()
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-8)


def test_empirical_limits():
    data, x = randn(30, 4), randn(7, 4, seed=2)
    exact = Empirical(data)
    nearest = data[torch.cdist(x, data).argmin(1)]
    torch.testing.assert_close(exact(x, torch.tensor(1e-4)), nearest, rtol=0, atol=1e-12)
    torch.testing.assert_close(exact(x, torch.tensor(1e6)), data.mean(0).expand(7, 4), rtol=0, atol=1e-9)
    assert torch.equal(Empirical(data[:1])(x, torch.tensor(0.3)), data[:1].expand(7, 4))


def test_empirical_is_the_mixture_of_points():
    data, x = randn(12, 3), randn(9, 3, seed=5)
    points = GaussianMixture(data, torch.zeros(12))
    sigma = torch.tensor([0.05, 0.3, 3.0], dtype=F64).repeat(3)
    torch.testing.assert_close(Empirical(data)(x, sigma), points(x, sigma), rtol=1e-9, atol=1e-10)
    gradient_of = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(points.log_prob(gradient_of, sigma).sum(), gradient_of)
    torch.testing.assert_close(Empirical(data).score(x, sigma), gradient, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "make", [isotropic, full, lambda: Gaussian(MEANS[0], COVARIANCES[0]), lambda: Empirical(MEANS)]
)
def test_one_sigma_a_sample(make):
    exact, x = make(), randn(6, 3)
    sigma = torch.tensor([0.01, 0.1, 0.5, 1.0, 10.0, 100.0], dtype=F64)
    many = exact(x, sigma)
    for k in range(6):
        torch.testing.assert_close(many[k : k + 1], exact(x[k : k + 1], sigma[k]), rtol=1e-12, atol=1e-13)
    assert exact(x.float(), sigma).dtype == torch.float32
    torch.testing.assert_close(exact(x.float(), sigma).double(), many, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 8, 31, 64])
@pytest.mark.parametrize("kind", ["isotropic", "full", "gaussian", "empirical"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_sample_does_not_depend_on_its_batch(dim, kind, dtype):
    """To the last bit: matrix products choose their order of summation by the number of rows."""
    exact = {
        "isotropic": lambda: GaussianMixture(randn(3, dim), [0.1, 0.5, 1.0]),
        "full": lambda: GaussianMixture(randn(3, dim), covariances=covariances(3, dim)),
        "gaussian": lambda: Gaussian(randn(dim), covariances(1, dim)[0]),
        "empirical": lambda: Empirical(randn(50, dim)),
    }[kind]()
    x, sigma = randn(75, dim, seed=9).to(dtype), torch.tensor(0.7, dtype=F64)
    together = exact(x, sigma)
    for size in (1, 2, 3, 7, 16, 33, 64):
        parts = torch.cat([exact(part, sigma) for part in x.split(size)])
        assert torch.equal(parts, together), size
    order = torch.randperm(75, generator=torch.Generator().manual_seed(0))
    assert torch.equal(exact(x[order], sigma), together[order])


def test_denoisers_satisfy_the_protocol():
    assert isinstance(isotropic(), denoiser.Denoiser)
    assert isinstance(lambda x, sigma: x, denoiser.Denoiser)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: GaussianMixture([1.0, 2.0], [1.0]), ["means", "(2,)"]),
        (lambda: GaussianMixture(MEANS), ["stds", "covariances"]),
        (lambda: GaussianMixture(MEANS, STDS, covariances=COVARIANCES), ["stds", "covariances"]),
        (lambda: GaussianMixture(MEANS, [1.0, 2.0]), ["stds", "[1.0, 2.0]", "[4]"]),
        (lambda: GaussianMixture(MEANS, [1.0, 2.0, 3.0, -1.0]), ["stds", "-1.0"]),
        (lambda: GaussianMixture(MEANS, [1.0, 2.0, 3.0, math.nan]), ["stds", "nan"]),
        (lambda: GaussianMixture(MEANS * math.inf, STDS), ["means"]),
        (lambda: GaussianMixture(MEANS, STDS, [0.5, 0.5, 0.5, 0.5]), ["weights", "sum to 1"]),
        (lambda: GaussianMixture(MEANS, STDS, [1.0, 0.0, 0.5, -0.5]), ["weights", "-0.5"]),
        (lambda: GaussianMixture(MEANS, STDS, [1.0]), ["weights", "[4]"]),
        (lambda: GaussianMixture(MEANS, covariances=COVARIANCES[:2]), ["covariances", "(2, 3, 3)"]),
        (lambda: GaussianMixture(MEANS, covariances=-COVARIANCES), ["covariances", "negative eigenvalue"]),
        (lambda: Gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), ["covariances", "symmetric", "0.5"]),
        (lambda: Gaussian([0.0, 0.0], [[1.0]]), ["mean", "(2,)", "(1, 1)"]),
        (lambda: Gaussian([math.nan], [[1.0]]), ["mean", "nan"]),
        (lambda: Empirical(torch.zeros(0, 3)), ["dataset", "(0, 3)"]),
        (lambda: Empirical(torch.zeros(3)), ["dataset", "(3,)"]),
        (lambda: Empirical(torch.zeros(3, 2, dtype=torch.uint8)), ["dataset", "uint8"]),
        (lambda: Empirical(torch.full((3, 2), math.nan)), ["dataset", "NaN"]),
        (lambda: isotropic()(torch.zeros(2, 4), torch.tensor(1.0)), ["x has shape (2, 4)", "[B, 3]"]),
        (lambda: isotropic()(torch.zeros(3), torch.tensor(1.0)), ["x has shape (3,)"]),
        (lambda: Empirical(torch.zeros(3, 2))(torch.zeros(2, 4), torch.tensor(1.0)), ["x has shape (2, 4)", "(2,)"]),
    ],
)
def test_errors(build, words):
    with pytest.raises(InputError) as error:
        build()
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)
