"""Composed posteriors against closed forms and numerically normalised truths."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import F64, UnitVectors

import edmund
from edmund import denoiser, formulation, grid, likelihood, noise, process, samplers
from edmund.errors import InputError
from edmund.sbi.composition import METHODS, Composition, _raised, posterior_covariances
from edmund.sbi.langevin import AnnealedLangevin

NOISE = torch.tensor([[0.5, 0.3], [0.3, 0.8]], dtype=F64)
EYE = torch.eye(2, dtype=F64)


def normal_prior(dim=2):
    return denoiser.Gaussian(torch.zeros(dim), torch.eye(dim))


class OfNormal:
    """The exact denoiser of p(z0 | x) for z0 ~ N(0, I) and x ~ N(z0, S): N(gain x, covariance)."""

    def __init__(self, noise=NOISE):
        self.precision = torch.linalg.inv(noise)
        self.covariance = torch.linalg.inv(torch.eye(len(noise), dtype=F64) + self.precision)
        self.gain = self.covariance @ self.precision

    def __call__(self, z, sigma, x):
        mean = (x @ self.gain.T).to(z.dtype)
        noisy = self.covariance + torch.as_tensor(sigma, dtype=F64).reshape(-1, 1, 1) ** 2 * torch.eye(z.shape[1])
        return mean + ((self.covariance @ torch.linalg.inv(noisy)).to(z.dtype) @ (z - mean)[..., None])[..., 0]

    def target(self, x, beta=1.0, mean=None, covariance=None):
        """The exact denoiser of q(z0) prod_j p(x_j | z0)^beta, with q = N(mean, covariance)."""
        dim = len(self.covariance)
        before = torch.linalg.inv(torch.eye(dim, dtype=F64) if covariance is None else covariance)
        total = torch.linalg.inv(before + beta * len(x) * self.precision)
        shift = beta * self.precision @ x.sum(0) + (0 if mean is None else before @ mean)
        return denoiser.Gaussian(total @ shift, (total + total.T) / 2)


class OfMixture:
    """The exact denoiser of p(z0 | x) for z0 ~ N(0, I) and x ~ sum_c w_c N(z0 + a_c, s_c^2 I)."""

    def __init__(self, weights, shifts, stds):
        self.weights, self.shifts = torch.tensor(weights, dtype=F64), torch.tensor(shifts, dtype=F64)
        self.variances = torch.tensor(stds, dtype=F64) ** 2

    def _components(self, x):
        offsets = x[:, None] - self.shifts[:, None]
        log_weights = torch.log(self.weights) - 0.5 * (
            (offsets**2).sum(-1) / (1 + self.variances) + x.shape[1] * torch.log(1 + self.variances)
        )
        return offsets / (1 + self.variances)[:, None], self.variances / (1 + self.variances), log_weights

    def __call__(self, z, sigma, x):
        means, variances, log_weights = self._components(x)
        noisy = variances + torch.as_tensor(sigma, dtype=F64).reshape(-1, 1) ** 2
        offsets = z[:, None] - means
        log_joint = log_weights - 0.5 * ((offsets**2).sum(-1) / noisy + z.shape[1] * torch.log(noisy))
        return (torch.softmax(log_joint, 1)[..., None] * (means + (variances / noisy)[..., None] * offsets)).sum(1)

    def posteriors(self, x):
        """Each p(z0 | x_j) as an exact denoiser."""
        means, variances, log_weights = self._components(x)
        return [
            denoiser.GaussianMixture(m, variances.sqrt(), w / w.sum())
            for m, w in zip(means, log_weights.exp(), strict=True)
        ]

    def covariances(self, x):
        return torch.stack([each.moments()[1] for each in self.posteriors(x)])

    def draw(self, z0, k, seed):
        generator = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.weights, k, replacement=True, generator=generator)
        normals = torch.randn(k, len(z0), generator=generator, dtype=F64)
        return z0 + self.shifts[which, None] + self.variances[which, None].sqrt() * normals

    def log_target(self, z, x):
        """ln of p(z0)^(1 - k) prod_j p(z0 | x_j), unnormalised."""
        prior = normal_prior(z.shape[1])
        return sum(each.log_prob(z) for each in self.posteriors(x)) + (1 - len(x)) * prior.log_prob(z)


def observations(k=10, seed=1, dim=2):
    return 1 + torch.randn(k, dim, generator=torch.Generator().manual_seed(seed), dtype=F64)


def composed(method, oracle, x, prior=None, **options):
    if method == "gauss" and "covariances" not in options:
        exact = oracle.covariances(x) if isinstance(oracle, OfMixture) else oracle.covariance.expand(len(x), -1, -1)
        options["covariances"] = exact
    return Composition(oracle, {"x": x}, prior or normal_prior(x.shape[1]), method=method, **options)


def points(true, sigma, n=64):
    return true.sample(n, 3) + sigma * torch.randn(n, true.dim, generator=torch.Generator().manual_seed(4), dtype=F64)


@pytest.mark.parametrize("sigma", [1e-3, 0.1, 1.0, 10.0, 80.0])
@pytest.mark.parametrize("method", ["gauss", "jac"])
def test_exact_on_gaussians_at_every_level(method, sigma):
    oracle, x = OfNormal(), observations()
    true, made = oracle.target(x), composed(method, oracle, x)
    z, level = points(true, sigma), torch.tensor(sigma, dtype=F64)
    torch.testing.assert_close(made(z, level), true(z, level), rtol=1e-11, atol=1e-11)
    levels = level * torch.linspace(0.5, 2, len(z), dtype=F64)
    torch.testing.assert_close(made(z, levels), true(z, levels), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", ["gauss", "jac"])
@pytest.mark.parametrize("beta", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("replaced", [False, True])
def test_tempering_and_another_prior_are_exact_on_gaussians(method, beta, k, replaced):
    oracle, x = OfNormal(), observations(k)
    law = {"mean": torch.tensor([0.5, -1.0], dtype=F64), "covariance": torch.tensor([[0.4, 0.1], [0.1, 2.0]])}
    law = {key: value.to(F64) for key, value in law.items()} if replaced else {}
    true = oracle.target(x, beta, **law)
    new_prior = denoiser.Gaussian(**law) if replaced else None
    made = composed(method, oracle, x, beta=beta, new_prior=new_prior)
    for sigma in (0.01, 0.7, 30.0):
        z, level = points(true, sigma), torch.tensor(sigma, dtype=F64)
        torch.testing.assert_close(made(z, level), true(z, level), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["gauss", "jac"])
@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "euler_maruyama"])
def test_samplers_draw_what_they_draw_from_the_exact_posterior(method, sampler):
    oracle, x = OfNormal(), observations()
    settings = {"sampler": sampler, "num_steps": 24, "progress": False}
    found = edmund.sample(composed(method, oracle, x), (50, 2), **settings)
    torch.testing.assert_close(found, edmund.sample(oracle.target(x), (50, 2), **settings), rtol=0, atol=1e-9)


def exact_law(solver, made, sigmas, dim):
    """Mean and covariance of the end states from N(0, sigma_0^2 I), by unit vectors (made is affine)."""
    source = UnitVectors(dim)
    solver(made, torch.zeros(1, dim, dtype=F64), sigmas, process=process.EDM(), noise=source)
    source.probing = False
    start = torch.zeros(1 + dim + dim * len(source.draws), dim, dtype=F64)
    start[1 : 1 + dim] = sigmas[0] * torch.eye(dim, dtype=F64)
    end = solver(made, start, sigmas, process=process.EDM(), noise=source)
    return end[0], (end[1:] - end[0]).T @ (end[1:] - end[0])


def law_errors(found, true):
    """(largest error of a mean in stds, largest relative error of a variance)."""
    (mean, covariance), (exact_mean, exact) = found, true.moments()
    whiten = torch.linalg.inv(torch.linalg.cholesky(exact))
    ratios = torch.linalg.eigvalsh(whiten @ covariance @ whiten.T)
    return (whiten @ (mean - exact_mean)).norm().item(), (ratios - 1).abs().max().item()


@pytest.mark.parametrize("method", ["gauss", "jac"])
def test_the_law_of_ten_observations(method):
    oracle, x = OfNormal(), observations()
    made = composed(method, oracle, x)
    mean, variance = law_errors(exact_law(samplers.Heun(), made, grid.EDM()(128, 0.002, 80.0), 2), oracle.target(x))
    assert mean < 0.02 and variance < 0.01


def test_geffner_adds_scores():
    oracle, x = OfNormal(), observations(4)
    law = {"mean": torch.tensor([0.5, -1.0], dtype=F64), "covariance": 0.5 * EYE}
    after = denoiser.Gaussian(**law)
    made = composed("geffner", oracle, x, new_prior=after, beta=0.7)
    z, sigma = torch.randn(5, 2, dtype=F64), torch.tensor(0.9, dtype=F64)
    weight = 1 - process.VP().t(sigma)
    scores = sum(denoiser.Gaussian(oracle.gain @ each, oracle.covariance).score(z, sigma) for each in x)
    priors = after.score(z, sigma) - 2.8 * normal_prior().score(z, sigma)
    torch.testing.assert_close((made(z, sigma) - z) / sigma**2, 0.7 * scores + weight * priors)
    beyond = torch.tensor(500.0, dtype=F64)  # no prior there, instead of more and more against it
    added = 0.7 * sum(denoiser.Gaussian(oracle.gain @ each, oracle.covariance)(z, beyond) - z for each in x)
    torch.testing.assert_close(made(z, beyond), z + added)


def test_geffner_ends_in_the_target_as_the_langevin_steps_grow():
    oracle, x = OfNormal(0.3 * EYE), observations(10)
    made, true = composed("geffner", oracle, x), oracle.target(x)
    solver = AnnealedLangevin(precision=10)
    coarse, fine = (law_errors(exact_law(solver, made, grid.VE()(steps, 0.01, 20.0), 2), true) for steps in (40, 80))
    assert fine[0] < min(0.1, coarse[0])
    assert 0.4 < fine[1] / coarse[1] < 0.6 and fine[1] < 0.07
    # Without them it goes wrong by far.
    assert law_errors(exact_law(samplers.Heun(), made, grid.EDM()(80, 0.01, 20.0), 2), true)[1] > 0.9


def test_sample_uses_langevin_steps_for_geffner():
    oracle, x = OfNormal(0.3 * EYE), observations(10)
    made, true = composed("geffner", oracle, x), oracle.target(x)
    assert made.formulation.sampler == AnnealedLangevin(precision=10.0)
    found = edmund.sample(made, (1000, 2), sigma_min=0.01, num_steps=80, progress=False)
    mean, covariance = true.moments()
    assert ((found.mean(0) - mean) / covariance.diag().sqrt()).abs().max() < 0.15
    assert (torch.cov(found.T).diag() / covariance.diag() - 1).abs().max() < 0.15


@pytest.mark.parametrize("spread", [0.2, 1.0])
def test_annealed_langevin_reaches_the_law_of_the_last_level(spread):
    true = denoiser.Gaussian([0.3, -0.2], (spread**2 * EYE).tolist())
    end = denoiser.Gaussian([0.3, -0.2], ((spread**2 + 0.02**2) * EYE).tolist())
    coarse, fine = (
        law_errors(exact_law(AnnealedLangevin(), true, grid.VE()(steps, 0.02, 5.0), 2), end) for steps in (30, 60)
    )
    assert fine[0] < 0.01 and fine[1] < 0.05
    assert 0.4 < fine[1] / coarse[1] < 0.6


def grid_truth(oracle, x, points=4001):
    """Nodes and normalised weights of a 1D target."""
    z = torch.linspace(-5, 5, points, dtype=F64)
    return z, torch.softmax(oracle.log_target(z[:, None], x), 0)


def distance(samples, z, weights):
    """Kolmogorov's distance of samples [n] from weights on nodes z."""
    ordered = samples.sort().values
    law = torch.cumsum(weights, 0)[torch.searchsorted(z, ordered).clamp_max(len(z) - 1)]
    steps = torch.arange(len(ordered), dtype=F64) / len(ordered)
    return torch.maximum((law - steps).abs(), (law - steps - 1 / len(ordered)).abs()).max().item()


SKEWED = OfMixture([0.7, 0.3], [0.0, 1.5], [0.5, 0.5])


@pytest.mark.parametrize("k", [2, 5])
def test_posteriors_of_two_modes_against_the_normalised_truth(k):
    x = SKEWED.draw(torch.tensor([0.4], dtype=F64), k, seed=2)
    truth = grid_truth(SKEWED, x)
    plain = Composition(SKEWED, {"x": x}, normal_prior(1), method="geffner")
    wrong = distance(
        edmund.sample(plain, (500, 1), sampler="heun", num_steps=40, grid="edm", progress=False)[:, 0], *truth
    )
    for method in ("gauss", "jac"):
        found = edmund.sample(composed(method, SKEWED, x), (500, 1), sampler="heun", num_steps=40, progress=False)
        assert distance(found[:, 0], *truth) < min(0.2, wrong)
    # Langevin steps make the approximation at the levels above matter less: what is left is that of 500 samples.
    for method in ("gauss", "jac"):
        settings = {"sampler": AnnealedLangevin(), "grid": "ve", "num_steps": 60, "sigma_min": 0.01, "progress": False}
        found = edmund.sample(composed(method, SKEWED, x), (500, 1), **settings)
        assert distance(found[:, 0], *truth) < 1.95 / math.sqrt(500) + 0.02


def test_mixed_scales_in_two_dimensions_against_the_normalised_truth():
    oracle = OfMixture([0.5, 0.5], [0.0, 0.0], [1.0, 0.3])
    x = oracle.draw(torch.tensor([0.4, -0.6], dtype=F64), 6, seed=5)
    axis = torch.linspace(-3, 3, 301, dtype=F64)
    z = torch.cartesian_prod(axis, axis)
    weights = torch.softmax(oracle.log_target(z, x), 0)
    mean = weights @ z
    std = (weights @ (z - mean) ** 2).sqrt()
    found = edmund.sample(
        composed("gauss", oracle, x),
        (1500, 2),
        sampler=AnnealedLangevin(),
        grid="ve",
        num_steps=60,
        sigma_min=0.01,
        progress=False,
    )
    assert ((found.mean(0) - mean) / std).abs().max() < 0.12
    assert (found.std(0) / std - 1).abs().max() < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_one_observation_gives_the_denoiser_itself(method):
    x = torch.tensor([[0.8]], dtype=F64)
    z, sigma = torch.randn(7, 1, dtype=F64), torch.tensor(0.6, dtype=F64)
    assert torch.equal(composed(method, SKEWED, x)(z, sigma), SKEWED(z, sigma, x.expand(7, -1)))


@pytest.mark.parametrize("method", METHODS)
def test_batches_of_rows_do_not_matter(method):
    x = SKEWED.draw(torch.tensor([0.4], dtype=F64), 6, seed=2)
    z, sigma = torch.randn(9, 1, dtype=F64), torch.linspace(0.1, 2, 9, dtype=F64)
    calls = []

    def counted(z, sigma, x):
        calls.append(len(z))
        return SKEWED(z, sigma, x)

    options = {"covariances": SKEWED.covariances(x)} if method == "gauss" else {}
    whole, parts = (
        Composition(counted, {"x": x}, normal_prior(1), method=method, batch_size=size, **options)(z, sigma)
        for size in (None, 7)
    )
    torch.testing.assert_close(whole, parts)
    assert calls == [54] + [7] * 7 + [5]


def test_between_modes_the_step_is_that_of_the_plain_sum():
    # x = +-z0 + noise of equal shares has p(z0 | x) at +-0.8 x; at 0 its kernel is wider than the prior's.
    def double(z, sigma, x):
        signed = denoiser.GaussianMixture([[-1.6], [1.6]], [0.4, 0.4], [0.5, 0.5])
        return signed(z, sigma) + 0 * x

    x = torch.ones(4, 1, dtype=F64)
    z, sigma = torch.tensor([[0.05]], dtype=F64), torch.tensor(0.8, dtype=F64)
    made = Composition(double, {"x": x}, normal_prior(1), method="jac")
    alone, before = double(z, sigma, x[:1]), normal_prior(1)(z, sigma)
    torch.testing.assert_close(made(z, sigma), before + 4 * (alone - before))
    wide = Composition(double, {"x": x}, normal_prior(1), covariances=torch.full((4, 1, 1), 2.7, dtype=F64))
    torch.testing.assert_close(wide(z, sigma), before + 4 * (alone - before))


def test_a_jacobian_that_is_no_covariance_gives_a_finite_result():
    def rotating(z, sigma, x):
        return z @ torch.tensor([[-0.2, 1.0], [-1.0, 0.3]], dtype=z.dtype) + x

    x = observations(5)
    made = Composition(rotating, {"x": x}, normal_prior(), method="jac")
    out = made(torch.randn(20, 2, dtype=F64), torch.tensor(5.0, dtype=F64))
    assert bool(torch.isfinite(out).all()) and out.abs().max() < 50


@pytest.mark.parametrize("method", ["gauss", "jac"])
def test_the_density_of_a_composition(method):
    oracle, x = OfNormal(), observations(6)
    made, true = composed(method, oracle, x), oracle.target(x)
    at = true.sample(4, 1)
    found = likelihood.log_prob(made, at, progress=False)
    torch.testing.assert_close(found, true.log_prob(at, 0.002), rtol=0, atol=1e-4)


def test_the_derivative_of_the_projection():
    """Of eigenvalues all above, all below and on both sides, and where they coincide."""
    turned = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=F64))[0]
    for values in ([3.0, 2.0, 1.5], [0.2, -1.0, 0.1], [2.0, -1.0, 0.3], [2.0, 2.0, 2.0], [2.0, 2.0, -1.0]):
        matrix = (turned * torch.tensor(values, dtype=F64)) @ turned.T
        direction = torch.tensor([[0.3, -0.4, 0.2], [-0.4, 0.1, 0.5], [0.2, 0.5, -0.7]], dtype=F64)
        least = torch.tensor(1.0, dtype=F64)
        change = torch.zeros((), dtype=F64, requires_grad=True)
        torch.autograd.gradcheck(lambda h, m=matrix, d=direction, low=least: _raised(m + h * d, low), (change,))
    torch.testing.assert_close(torch.linalg.eigvalsh(_raised(matrix, least)), torch.tensor([1.0, 2.0, 2.0], dtype=F64))


@pytest.mark.parametrize("method", METHODS)
def test_single_precision(method):
    oracle, x = OfNormal(), observations(6)
    made = composed(method, oracle, x)
    z, sigma = torch.randn(8, 2), torch.tensor(0.7)
    found = made(z, sigma)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.to(F64), made(z.to(F64), sigma.to(F64)), rtol=1e-4, atol=1e-4)


def test_covariances_of_samples():
    oracle, x = OfNormal(), observations(3)
    found = posterior_covariances(oracle, {"x": x}, 2)
    assert found.shape == (3, 2, 2)
    stds = found.diagonal(dim1=1, dim2=2).sqrt() / oracle.covariance.diag().sqrt()
    assert (stds - 1).abs().max() < 0.005  # of a Gaussian they are exact but for the solver
    torch.testing.assert_close(posterior_covariances(oracle, {"x": x}, 2, batch_size=999), found)
    # The law that it leads to.
    many = observations(10)
    made = composed("gauss", oracle, many, covariances=posterior_covariances(oracle, {"x": many}, 2))
    solver, sigmas = samplers.DPMpp3M(), grid.EDM()(48, 0.002, 80.0)
    mean, variance = law_errors(exact_law(solver, made, sigmas, 2), oracle.target(many))
    assert mean < 0.1 and variance < 0.1
    few = posterior_covariances(oracle, {"x": x[:1]}, 2, n=8)
    torch.testing.assert_close(few[0].inverse(), torch.linalg.inv(oracle.covariance), rtol=0.02, atol=0.02)


def test_what_it_says_of_itself():
    class Trained(OfNormal):
        formulation = formulation.VP()
        sigma_min, sigma_max = 0.02, 100.0

    x = observations(3)
    made = composed("gauss", Trained(), x)
    assert made.formulation is Trained.formulation and (made.sigma_min, made.sigma_max) == (0.02, 100.0)
    assert made.known_conditions == () and made.k == 3
    assert composed("geffner", Trained(), x[:1]).formulation is Trained.formulation
    other = composed("geffner", Trained(), x).formulation
    assert other.process == Trained.formulation.process and other.sampler == AnnealedLangevin(precision=3.0)
    assert not hasattr(composed("gauss", OfNormal(), x), "formulation")


def test_bad_input():
    oracle, x, prior = OfNormal(), observations(3), normal_prior()
    covariances = oracle.covariance.expand(3, -1, -1)

    def refused(match, given=None, before=prior, **options):
        with pytest.raises(InputError, match=match):
            Composition(oracle, {"x": x} if given is None else given, before, **options)

    refused("k >= 1", {"x": x[:0]}, method="jac")
    refused("mapping", x, method="jac")
    refused("did you mean 'x'", {"xs": x}, method="jac")
    refused("prior is None", before=None, method="jac")
    refused("did you mean 'gauss'", method="gaus")
    refused("did you mean 'geffner'", method="Gefner")
    for beta in (0, -1.0, math.inf, True):
        refused("beta is", method="jac", beta=beta)
    refused("batch_size is 0", method="jac", batch_size=0)
    refused("posterior_covariances", method="gauss")
    refused("no use for them", method="jac", covariances=covariances)
    refused(r"covariances is \(2, 2, 2\)", covariances=covariances[:2])
    refused("positive definite", covariances=-covariances)
    refused("positive definite", covariances=covariances * math.nan)
    refused("moments", before=lambda z, sigma: z, covariances=covariances)
    refused("same z", covariances=covariances, new_prior=normal_prior(3))
    with pytest.raises(InputError, match="over vectors"):
        composed("jac", oracle, x)(torch.zeros(2, 3, 4), torch.tensor(1.0))
    with pytest.raises(InputError, match="n is 4"):
        posterior_covariances(oracle, {"x": x}, 2, n=4)
    with pytest.raises(InputError, match="step_size is"):
        AnnealedLangevin(step_size=1.5)
    with pytest.raises(InputError, match="precision is 0"):
        AnnealedLangevin(precision=0)
    with pytest.raises(InputError, match="langevin_steps is 0"):
        AnnealedLangevin(langevin_steps=0)
    with pytest.raises(InputError, match="draws noise"):
        AnnealedLangevin()(prior, torch.zeros(1, 2), [2.0, 1.0, 0.0], process=process.EDM(), noise=None)
    with pytest.raises(InputError, match="rises"):
        AnnealedLangevin()(prior, torch.zeros(1, 2), [1.0, 2.0], process=process.EDM(), noise=noise.Seeded([0]))
