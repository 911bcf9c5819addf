"""The tasks' exact posteriors, and sbibm's reference posteriors as draws of prior times likelihood."""

from __future__ import annotations

import math
import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from edmund.errors import InputError
from edmund.sbi import tasks

EXACT = ("gaussian_linear", "gaussian_linear_uniform", "gaussian_mixture", "two_moons")
# 5 standard errors: a chance of 6e-7 each, of some hundreds.
FAR = 5.0


@pytest.fixture(scope="module")
def sbibm(shared: Path) -> Path:
    folder = shared / "data/sbibm"
    if not folder.is_dir():
        pytest.skip(f"no reference posteriors: {folder} is absent")
    return folder


@lru_cache
def _reference(folder: Path, name: str, observation: int) -> tasks.Reference:
    return tasks.get(name).reference(folder, observation)


def _log_joint(task: tasks.Task, theta: Tensor, x: Tensor) -> Tensor:
    return task.prior.log_prob(theta).double() + task.log_likelihood(theta, x)


def _exact(name: str, x: Tensor) -> tasks.Exact:
    posterior = tasks.get(name).posterior(x)
    assert posterior is not None
    return posterior


def _off(samples: Tensor, mean: Tensor, covariance: Tensor) -> tuple[float, float]:
    """The largest deviation of the samples' means and of their covariances, each in its standard errors."""
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (samples.double() - mean).mT, upper=False)
    products = white[:, None] * white
    error = (products.var(dim=2) / len(samples)).sqrt()
    off = (products.mean(dim=2) - torch.eye(len(mean))) / error
    return float(white.mean(1).abs().max()) * math.sqrt(len(samples)), float(off.abs().max())


# --- Exact posteriors ------------------------------------------------------------------------------------------------


def test_gaussian_linear() -> None:
    x = torch.linspace(-1, 1, 10)
    posterior = _exact("gaussian_linear", x)
    torch.testing.assert_close(posterior.mean, x.double() / 2)
    torch.testing.assert_close(posterior.covariance, 0.05 * torch.eye(10, dtype=torch.float64))
    theta = posterior.sample(1000, seed=1)
    expected = stats.norm(x.double() / 2, math.sqrt(0.05)).logpdf(theta.double()).sum(1)
    np.testing.assert_allclose(posterior.log_prob(theta), expected)


@pytest.mark.parametrize("shift", [0.0, 0.7, -3.0, 6.0])
def test_truncated_normals(shift: float) -> None:
    """Also far outside the box, where Phi has no digits in the upper tail."""
    x = torch.linspace(-0.5, 0.5, 10) + shift
    posterior = _exact("gaussian_linear_uniform", x)
    scale = math.sqrt(0.1)
    law = stats.truncnorm((-1 - x.double()) / scale, (1 - x.double()) / scale, loc=x.double(), scale=scale)
    np.testing.assert_allclose(posterior.mean, law.mean(), rtol=1e-6)
    np.testing.assert_allclose(posterior.covariance.diagonal(), law.var(), rtol=1e-3)
    theta = posterior.sample(20_000, seed=1)
    np.testing.assert_allclose(posterior.log_prob(theta), law.logpdf(theta.double()).sum(1), rtol=1e-6, atol=1e-6)
    # The distribution of every dimension, made uniform.
    uniform = law.cdf(theta.double())
    assert min(stats.kstest(column, "uniform").pvalue for column in uniform.T) > 1e-5
    assert max(_off(theta, posterior.mean, posterior.covariance)) < FAR


@pytest.mark.parametrize(("name", "x"), [("gaussian_mixture", (9.7, -3.0)), ("two_moons", (-0.1, -0.9))])
def test_densities_integrate_to_one_with_their_moments(name: str, x: tuple[float, float]) -> None:
    """Where the box cuts the posterior; in two_moons one of the crescents loses more than the other."""
    posterior = _exact(name, torch.tensor(x))
    wall, cells = (10.0, (800, 800)) if name == "gaussian_mixture" else (1.0, (2000, 1731))
    # Unlike steps, so that no edge of a crescent runs along the cells' diagonals.
    theta = torch.cartesian_prod(*[wall * ((torch.arange(n, dtype=torch.float64) + 0.5) * 2 / n - 1) for n in cells])
    mass = posterior.log_prob(theta).exp() * (2 * wall) ** 2 / math.prod(cells)
    assert abs(mass.sum() - 1) < 2e-4
    mean = mass @ theta
    torch.testing.assert_close(posterior.mean, mean, rtol=0, atol=2e-3 * float(posterior.covariance.max().sqrt()))
    covariance = (mass[:, None] * (theta - mean)).mT @ (theta - mean)
    torch.testing.assert_close(posterior.covariance, covariance, rtol=0, atol=5e-3 * float(covariance.max()))
    draws = posterior.sample(50_000, seed=3)
    assert max(_off(draws, posterior.mean, posterior.covariance)) < FAR
    # The entropy, which sees the width of a crescent where moments do not.
    log_prob = posterior.log_prob(draws)
    expected = (mass * posterior.log_prob(theta).nan_to_num(neginf=0.0)).sum()
    assert abs(log_prob.mean() - expected) < FAR * log_prob.std() / math.sqrt(len(draws)) + 1e-3


@pytest.mark.parametrize("name", ["gaussian_linear_uniform", "gaussian_mixture", "two_moons"])
def test_draws_stay_in_the_prior(name: str) -> None:
    task = tasks.get(name)
    edge = task.prior.support.base_constraint.upper_bound  # type: ignore[attr-defined]
    x = edge if name != "two_moons" else torch.tensor([-1.1, 0.1])
    posterior = _exact(name, x)
    draws = posterior.sample(100_000, seed=1)
    assert draws.dtype == torch.float32
    assert task.prior.log_prob(draws).isfinite().all() and posterior.log_prob(draws).isfinite().all()
    assert (posterior.log_prob(torch.stack([edge, 1.1 * edge])) == -math.inf).all()
    assert torch.equal(draws, posterior.sample(100_000, seed=1))
    assert not torch.equal(draws, posterior.sample(100_000, seed=2))


def test_bad_input_is_refused() -> None:
    posterior = _exact("gaussian_linear", torch.zeros(1, 10))
    with pytest.raises(InputError, match="n is 0"):
        posterior.sample(0)
    with pytest.raises(InputError, match="seed is -1"):
        posterior.sample(1, seed=-1)
    with pytest.raises(InputError, match=r"theta is \[10\]; log_prob takes a tensor \[B, 10\]"):
        posterior.log_prob(torch.zeros(10))
    with pytest.raises(InputError, match=r"so far outside \[-1, 1\]"):
        _exact("gaussian_linear_uniform", torch.full((10,), 20.0))
    with pytest.raises(InputError, match="two_moons makes such an x"):
        _exact("two_moons", torch.tensor([1.0, 0.0]))


# --- Reference files -------------------------------------------------------------------------------------------------


def test_files_are_read_or_refused(tmp_path: Path) -> None:
    task = tasks.get("two_moons")
    with pytest.raises(InputError, match="no observation of two_moons is there"):
        task.reference(tmp_path, 1)
    folder = tmp_path / "two_moons" / "num_observation_3"
    folder.mkdir(parents=True)
    with pytest.raises(InputError, match="observations there: 3"):
        task.reference(tmp_path, 1)
    with pytest.raises(InputError, match="observation is 0"):
        task.reference(tmp_path, 0)
    with pytest.raises(InputError, match=r"observation\.csv is not there"):
        task.reference(tmp_path, 3)
    (folder / "observation.csv").write_text("a,b\n0.5,x\n")
    with pytest.raises(InputError, match="not a table of numbers"):
        task.reference(tmp_path, 3)
    (folder / "observation.csv").write_text("a\n0.5\n")
    with pytest.raises(InputError, match=r"holds \[1, 1\] numbers; it must hold \[n, 2\]"):
        task.reference(tmp_path, 3)


@pytest.mark.parametrize("name", tasks.NAMES)
def test_reference_is_in_the_prior(name: str, sbibm: Path) -> None:
    task = tasks.get(name)
    reference = _reference(sbibm, name, 1)
    assert reference.x.shape == (task.dim_x,) and reference.true_parameters.shape == (task.dim_theta,)
    assert reference.samples.shape == (10_000, task.dim_theta) and reference.samples.dtype == torch.float32
    log_joint = _log_joint(task, torch.cat([reference.samples, reference.true_parameters[None]]), reference.x)
    assert log_joint.isfinite().all()
    # The true parameters are no outlier among the posterior's draws.
    assert log_joint[-1] > log_joint[:-1].quantile(1e-3)


def test_reference_of_slcp_distractors(sbibm: Path, tmp_path: Path) -> None:
    task = tasks.get("slcp_distractors")
    assert isinstance(task, tasks.SLCPDistractors)
    first, again, second = (task.reference(sbibm, k) for k in (1, 1, 2))
    plain = _reference(sbibm, "slcp", 1)
    assert torch.equal(first.x, again.x) and torch.equal(first.samples, plain.samples)
    assert torch.equal(task.informative(first.x), plain.x)
    assert not torch.equal(first.x, second.x)
    # A folder that has sbibm's own observation among distractors: that is taken.
    shutil.copytree(sbibm / "slcp/num_observation_1", tmp_path / "slcp/num_observation_1")
    row = ",".join(str(value) for value in range(100))
    (tmp_path / "slcp/num_observation_1/observation_distractors.csv").write_text(f"{row}\n{row}\n")
    assert torch.equal(task.reference(tmp_path, 1).x, torch.arange(100).float())


def test_reference_of_bernoulli_glm_raw(sbibm: Path) -> None:
    raw, summary = tasks.get("bernoulli_glm_raw"), tasks.get("bernoulli_glm")
    for observation in (1, 2):
        spikes, statistics = (_reference(sbibm, task.name, observation) for task in (raw, summary))
        assert torch.equal(spikes.samples, statistics.samples)
        theta = spikes.samples[:100]
        # The same likelihood: the spikes have the observed statistics.
        torch.testing.assert_close(
            raw.log_likelihood(theta, spikes.x), summary.log_likelihood(theta, statistics.x), rtol=0, atol=2e-4
        )


# --- Reference posteriors against exact ones -------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
def test_reference_against_the_exact_posterior(name: str, sbibm: Path) -> None:
    task = tasks.get(name)
    log_reference, log_draws = [], []
    for observation in range(1, 6):
        reference = _reference(sbibm, name, observation)
        posterior = _exact(name, reference.x)
        assert max(_off(reference.samples, posterior.mean, posterior.covariance)) < FAR
        # Prior times likelihood is the posterior times one number, the evidence.
        log_prob = posterior.log_prob(reference.samples)
        evidence = _log_joint(task, reference.samples, reference.x) - log_prob
        assert evidence.max() - evidence.min() < 1e-5
        log_reference.append(log_prob)
        log_draws.append(posterior.log_prob(posterior.sample(20_000, seed=observation)))
    # The law of the log-density: it sees what moments do not, such as the width of a crescent.
    assert stats.ks_2samp(torch.cat(log_reference).numpy(), torch.cat(log_draws).numpy()).pvalue > 1e-4


def test_bernoulli_posterior_by_rejection(sbibm: Path) -> None:
    for observation in (1, 4):
        reference = _reference(sbibm, "bernoulli_glm", observation)
        posterior = _exact("bernoulli_glm", reference.x)
        draws = posterior.sample(10_000, seed=1)
        for samples in (draws, reference.samples):
            assert max(_off(samples, posterior.mean, posterior.covariance)) < FAR
        log_draws, log_reference = posterior.log_prob(draws), posterior.log_prob(reference.samples)
        assert stats.ks_2samp(log_draws.numpy(), log_reference.numpy()).pvalue > 1e-4
        # The constant: E[q / p] over the posterior p is 1 for any density q within it.
        inner = torch.distributions.MultivariateNormal(posterior.mean, 0.7 * posterior.covariance)
        ratio = (inner.log_prob(draws.double()) - log_draws).exp()
        assert abs(ratio.mean() - 1) < FAR * ratio.std() / 100


def _stein(task: tasks.Task, reference: tasks.Reference, half_width: float | None) -> Tensor:
    """The terms of Stein's identity, each by its standard deviation: [n, D (D + 1)]."""
    logarithmic = task.name in ("sir", "lotka_volterra")
    samples = reference.samples[: 4000 if logarithmic else 10_000].double()
    phi = samples.log() if logarithmic else samples

    def log_density(at: Tensor) -> Tensor:
        theta = at.exp() if logarithmic else at
        return _log_joint(task, theta, reference.x) + (at.sum(1) if logarithmic else 0)

    standard = (phi - phi.mean(0)) / phi.std(0)
    terms = []
    for i in range(task.dim_theta):
        step = torch.zeros(task.dim_theta, dtype=torch.float64)
        step[i] = 1e-5
        score = (log_density(phi + step) - log_density(phi - step)) / 2e-5
        weight = half_width**2 - phi[:, i].square() if half_width else torch.ones(len(phi))
        slope = -2 * phi[:, i] if half_width else torch.zeros(len(phi))
        terms.append(weight * score + slope)
        for j in range(task.dim_theta):
            own = weight / phi[:, i].std() if j == i else 0.0
            terms.append((weight * score + slope) * standard[:, j] + own)
    found = torch.stack(terms, dim=1)
    return found / found.std(0)


@pytest.mark.parametrize("name", ["slcp", "sir", "lotka_volterra", "bernoulli_glm", "gaussian_mixture"])
def test_reference_satisfies_stein(name: str, sbibm: Path) -> None:
    """For draws of pi, E[g d_i log pi + d_i g] = 0 for every g that vanishes at the box's walls, i any parameter.

    g = w(theta_i) times 1 or a standardised parameter, w = (theta_i - low)(high - theta_i) in a box and 1 elsewhere;
    log-normal parameters are taken by their logarithm. Over all observations where the likelihood is quick.
    """
    half_width = {"slcp": 3.0, "gaussian_mixture": 10.0}.get(name)
    observations = (1,) if name in ("sir", "lotka_volterra") else range(1, 6)
    terms = torch.cat([_stein(tasks.get(name), _reference(sbibm, name, k), half_width) for k in observations])
    assert terms.isfinite().all()
    assert terms.mean(0).abs().max() * math.sqrt(len(terms)) < FAR


def test_reference_of_slcp_has_four_even_modes(sbibm: Path) -> None:
    samples = _reference(sbibm, "slcp", 1).samples
    modes = (samples[:, 2] > 0).int() + 2 * (samples[:, 3] > 0).int()
    counts = torch.bincount(modes, minlength=4)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("observation", [1, 4])
def test_reference_of_sir_by_quadrature(observation: int, sbibm: Path) -> None:
    task, reference = tasks.get("sir"), _reference(sbibm, "sir", observation)
    phi = reference.samples.double().log()
    axes = [torch.linspace(float(c.mean() - 6 * c.std()), float(c.mean() + 6 * c.std()), 60).double() for c in phi.T]
    grid = torch.cartesian_prod(*axes)
    weights = (_log_joint(task, grid.exp(), reference.x) + grid.sum(1)).softmax(0)
    mean = weights @ grid
    covariance = (weights[:, None] * (grid - mean)).mT @ (grid - mean)
    assert max(_off(phi, mean, covariance)) < FAR


@pytest.mark.parametrize("observation", [1, 4])
def test_reference_of_lotka_volterra_by_importance(observation: int, sbibm: Path) -> None:
    task, reference = tasks.get("lotka_volterra"), _reference(sbibm, "lotka_volterra", observation)
    phi = reference.samples.double().log()
    mean, factor = phi.mean(0), torch.linalg.cholesky(1.2 * phi.mT.cov())
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(6000, 4, generator=generator, dtype=torch.float64)
    chi_square = torch.randn(6000, 8, generator=generator, dtype=torch.float64).square().sum(1)
    z = normal / (chi_square / 8).sqrt()[:, None]
    log_proposal = torch.from_numpy(stats.multivariate_t(np.zeros(4), np.eye(4), df=8).logpdf(z.numpy()))
    at = mean + z @ factor.mT
    weights = (_log_joint(task, at.exp(), reference.x) + at.sum(1) - log_proposal).softmax(0)
    effective = 1 / float(weights.square().sum())
    assert effective > 2000
    exact = weights @ at
    # Both have noise: of 10 000 draws and of the effective number.
    error = phi.std(0) * math.sqrt(1 / 10_000 + 1 / effective)
    assert ((phi.mean(0) - exact) / error).abs().max() < FAR
    spread = (weights @ (at - exact).square()).sqrt() / phi.std(0) - 1
    assert spread.abs().max() < FAR * math.sqrt((1 / 10_000 + 1 / effective) / 2) + 0.01


# --- Rejection by the simulator alone --------------------------------------------------------------------------------


def _crescents(theta: Tensor) -> Tensor:
    """|s| and q of two_moons, [n, 2]."""
    return torch.stack([theta.sum(1).abs(), theta[:, 1] - theta[:, 0]], dim=1) / math.sqrt(2)


def test_two_moons_by_rejection(sbibm: Path) -> None:
    """theta uniform about both crescents, x simulated, theta kept where x is near the observation: no likelihood."""
    task, reference = tasks.get("two_moons"), _reference(sbibm, "two_moons", 2)
    generator = torch.Generator().manual_seed(0)
    n, tolerance = 1_000_000, 0.004
    samples = _crescents(reference.samples)
    low, high = samples.amin(0) - 0.01, samples.amax(0) + 0.01
    size, q = (low + (high - low) * torch.rand(n, 2, generator=generator)).unbind(1)
    s = size * torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.stack([s - q, s + q], dim=1) / math.sqrt(2)
    kept = theta[(task.simulator(theta, generator) - reference.x).norm(dim=1) < tolerance]
    assert len(kept) > 1000
    upper = (kept.sum(1) > 0).double().mean() - (reference.samples.sum(1) > 0).double().mean()
    assert abs(upper) < FAR * 0.5 * math.sqrt(1 / len(kept) + 1 / 10_000)
    u, v = (_crescents(kept) - low).unbind(1), (samples - low).unbind(1)
    for column, expected in zip(u, v, strict=True):
        assert stats.ks_2samp(column.numpy(), expected.numpy()).pvalue > 1e-3
    # The crescent's radius, which the tolerance widens by 2 %.
    shift = torch.tensor([0.25, 0.0]) - reference.x * torch.tensor([1.0, -1.0])
    radii = [(_crescents(part) * torch.tensor([1.0, -1.0]) + shift).norm(dim=1) for part in (kept, reference.samples)]
    assert stats.ks_2samp(*(part.numpy() for part in radii)).pvalue > 1e-3


def test_gaussian_mixture_by_rejection(sbibm: Path) -> None:
    task, reference = tasks.get("gaussian_mixture"), _reference(sbibm, "gaussian_mixture", 2)
    generator = torch.Generator().manual_seed(0)
    theta = reference.x + 3.5 * (2 * torch.rand(2_000_000, 2, generator=generator) - 1)
    near = (task.simulator(theta, generator) - reference.x).norm(dim=1) < 0.05
    kept = theta[near & (theta.abs() < 10).all(1)]
    assert len(kept) > 200
    samples = reference.samples[((reference.samples - reference.x).abs() < 3.5).all(1)]
    distances = [(part - reference.x).norm(dim=1).numpy() for part in (kept, samples)]
    # The tolerance adds 0.000625 to each component's variance, 3 % to the narrow one's standard deviation.
    assert stats.ks_2samp(*distances).pvalue > 1e-3
