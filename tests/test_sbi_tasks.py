"""The ten tasks: their doors, and each simulator and likelihood against the law that defines it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import solve_ivp
from torch import Tensor

from edmund.errors import InputError
from edmund.sbi import tasks

N = 20_000
DIMENSIONS = {
    "two_moons": (2, 2),
    "gaussian_linear": (10, 10),
    "gaussian_linear_uniform": (10, 10),
    "gaussian_mixture": (2, 2),
    "slcp": (5, 8),
    "slcp_distractors": (5, 100),
    "bernoulli_glm": (10, 10),
    "bernoulli_glm_raw": (10, 100),
    "sir": (2, 10),
    "lotka_volterra": (4, 20),
}
WITH_POSTERIOR = {
    "two_moons", "gaussian_linear", "gaussian_linear_uniform", "gaussian_mixture", "bernoulli_glm", "bernoulli_glm_raw"
}  # fmt: skip

IMPOSSIBLE = {"sir": (-1.0, 0.5, 1001.0), "lotka_volterra": (0.0, -1.0), "bernoulli_glm_raw": (0.5, 2.0)}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _prior_draws(task: tasks.Task, n: int, seed: int = 0) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return task.prior.sample((n,))


def _is_normal(z: Tensor) -> bool:
    return bool(stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3)


def test_the_ten_are_found_by_name() -> None:
    assert set(tasks.NAMES) == set(DIMENSIONS) and len(tasks.NAMES) == 10
    with pytest.raises(InputError, match="did you mean 'two_moons'"):
        tasks.get("two_moon")


@pytest.mark.parametrize("name", tasks.NAMES)
def test_shapes_types_and_streams(name: str) -> None:
    task = tasks.get(name)
    assert (task.dim_theta, task.dim_x) == DIMENSIONS[name]
    assert task.prior.event_shape == (task.dim_theta,) and task.prior.batch_shape == ()
    theta = _prior_draws(task, 50)
    assert theta.dtype == torch.float32
    state = torch.get_rng_state()
    first, again, other = (task.simulator(theta, generator=_generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (50, task.dim_x) and first.dtype == torch.float32 and first.isfinite().all()
    torch.manual_seed(1)
    assert torch.equal(task.simulator(theta), first)
    assert task.simulator(theta[:0]).shape == (0, task.dim_x)
    assert (task.posterior(first[0]) is not None) == (name in WITH_POSTERIOR)


@pytest.mark.parametrize("name", tasks.NAMES)
def test_bad_input_is_refused(name: str) -> None:
    task = tasks.get(name)
    theta = _prior_draws(task, 3)
    x = task.simulator(theta)[0]
    with pytest.raises(InputError, match=rf"theta has the shape \[{task.dim_theta}\]"):
        task.simulator(theta[0])
    with pytest.raises(InputError, match=r"theta is torch\.int64"):
        task.simulator(theta.long())
    with pytest.raises(InputError, match="theta is ndarray"):
        task.simulator(theta.numpy())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not defined for 1 of its 3 rows"):
        task.simulator(torch.cat([theta[:2], torch.full_like(theta[:1], math.nan)]))
    with pytest.raises(InputError, match=rf"x has the shape \[{task.dim_x + 1}\]"):
        task.posterior(torch.zeros(task.dim_x + 1))
    for bad in (math.nan, math.inf, *IMPOSSIBLE.get(name, ())):
        with pytest.raises(InputError, match=f"x: 1 of its {task.dim_x} numbers are not "):
            task.log_likelihood(theta, torch.cat([x[:-1], torch.tensor([bad])]))


@pytest.mark.parametrize("name", ["sir", "lotka_volterra"])
def test_rates_are_positive(name: str) -> None:
    task = tasks.get(name)
    with pytest.raises(InputError, match=r"not defined for 2 of its 3 rows, .*positive"):
        task.simulator(torch.tensor([[1.0], [0.0], [-1.0]]).repeat(1, task.dim_theta))


@pytest.mark.parametrize("name", ["gaussian_linear", "gaussian_linear_uniform"])
def test_gaussian_noise(name: str) -> None:
    task = tasks.get(name)
    theta = _prior_draws(task, N)
    assert theta.var(0).sub(0.1 if name == "gaussian_linear" else 1 / 3).abs().max() < 0.015
    x = task.simulator(theta, _generator())
    assert _is_normal((x - theta) / math.sqrt(0.1))
    assert torch.corrcoef((x - theta).T).fill_diagonal_(0).abs().max() < 0.04
    expected = stats.norm(theta[:5].double(), math.sqrt(0.1)).logpdf(x[0].double()).sum(1)
    np.testing.assert_allclose(task.log_likelihood(theta[:5], x[0]), expected)


def test_gaussian_mixture_shares_its_component() -> None:
    task = tasks.get("gaussian_mixture")
    theta = _prior_draws(task, N)
    assert theta.abs().max() > 9.9
    x = task.simulator(theta, _generator())
    noise = (x - theta).double()

    def distribution(values: np.ndarray) -> np.ndarray:
        return 0.5 * stats.norm.cdf(values) + 0.5 * stats.norm.cdf(values / 0.1)

    for column in noise.T:
        assert stats.kstest(column.numpy(), distribution).pvalue > 1e-3
    # E[z1^2 z2^2] of one component for both dimensions; 0.255 were they apart.
    assert abs((noise[:, 0] * noise[:, 1]).square().mean() - 0.5 * (1 + 1e-4)) < 0.06
    at = theta[:5].double() - x[0].double()
    expected = 0.5 * np.exp(stats.norm.logpdf(at).sum(1)) + 0.5 * np.exp(stats.norm(0, 0.1).logpdf(at).sum(1))
    np.testing.assert_allclose(task.log_likelihood(theta[:5], x[0]), np.log(expected))


def test_two_moons_by_radius_and_angle() -> None:
    task = tasks.get("two_moons")
    theta = _prior_draws(task, N)
    x = task.simulator(theta, _generator()).double()
    first, second = theta.double().unbind(1)
    u = x[:, 0] - 0.25 + (first + second).abs() / math.sqrt(2)
    v = x[:, 1] - (second - first) / math.sqrt(2)
    assert _is_normal((torch.hypot(u, v) - 0.1) / 0.01)
    assert stats.kstest(torch.atan2(v, u).numpy(), stats.uniform(-math.pi / 2, math.pi).cdf).pvalue > 1e-3


def test_two_moons_likelihood() -> None:
    task = tasks.get("two_moons")
    # x enters by its distance from theta's image, so that it is a density of x where its integral over one sheet of
    # theta, s > 0 (without the box), is 1.
    x = torch.tensor([-0.3, 0.2], dtype=torch.float64)
    step = 0.001
    s = torch.arange(0.4, 0.8, step, dtype=torch.float64) + step / 2
    s, q = torch.cartesian_prod(s, s - 0.4).unbind(1)
    theta = torch.stack([s - q, s + q], 1) / math.sqrt(2)
    assert abs(task.log_likelihood(theta, x).exp().sum() * step**2 - 1) < 2e-3
    # Its value at one point, from the density of the radius and the angle.
    s, q = 0.6, -0.2
    theta = torch.tensor([[s - q, s + q]], dtype=torch.float64) / math.sqrt(2)
    image = torch.tensor([0.25 - s, q], dtype=torch.float64)
    noise = 0.11 * torch.tensor([math.cos(0.4), math.sin(0.4)], dtype=torch.float64)
    expected = stats.norm(0.1, 0.01).logpdf(0.11) - math.log(math.pi * 0.11)
    assert abs(task.log_likelihood(theta, image + noise).item() - expected) < 1e-9
    assert task.log_likelihood(theta, image - torch.tensor([0.01, 0.0])).item() == -math.inf


def _slcp_covariance(theta: np.ndarray) -> np.ndarray:
    s1, s2, rho = theta[2] ** 2, theta[3] ** 2, math.tanh(theta[4])
    return np.array([[s1**2, rho * s1 * s2], [rho * s1 * s2, s2**2]]) + 1e-6 * np.eye(2)


def test_slcp_whitened_by_its_covariance() -> None:
    task = tasks.get("slcp")
    theta = _prior_draws(task, 2000)
    x = task.simulator(theta, _generator())
    white = []
    for row, draws in zip(theta.double().numpy(), x.double().numpy().reshape(-1, 4, 2), strict=True):
        white.append(np.linalg.solve(np.linalg.cholesky(_slcp_covariance(row)), (draws - row[:2]).T).T.reshape(-1))
    z = torch.from_numpy(np.array(white))
    assert _is_normal(z)
    assert torch.corrcoef(z.T).fill_diagonal_(0).abs().max() < 0.1
    expected = [
        stats.multivariate_normal(row[:2], _slcp_covariance(row)).logpdf(x[0].double().numpy().reshape(4, 2)).sum()
        for row in theta[:20].double().numpy()
    ]
    np.testing.assert_allclose(task.log_likelihood(theta[:20], x[0]), expected, rtol=1e-6)


def test_slcp_distractors() -> None:
    task, plain = tasks.get("slcp_distractors"), tasks.get("slcp")
    assert isinstance(task, tasks.SLCPDistractors)
    theta = torch.tensor([[0.5, -1.0, 1.2, -0.7, 0.3]]).expand(N, 5)
    x = task.simulator(theta, _generator())
    # Where sbibm's observation_distractors.csv has slcp's eight numbers.
    places = [22, 33, 23, 67, 42, 21, 16, 90]
    assert torch.equal(task.informative(x), x[:, places])
    assert torch.equal(task.informative(x), plain.simulator(theta, _generator()))
    assert torch.equal(task.log_likelihood(theta[:2], x[0]), plain.log_likelihood(theta[:2], x[0, places]))
    # A number of a multivariate t is a t: location and scale from the seed 42, drawn here again.
    rng = np.random.RandomState(42)
    location = 15 * rng.normal(size=(20, 92))
    scale = []
    for _ in range(20):
        lower = np.tril(rng.normal(size=(92, 92)))
        scale.append(3 * np.linalg.norm(lower + np.diag(np.exp(rng.normal(size=92))), axis=1))
    order = rng.permutation(100)
    for place in np.flatnonzero(order >= 8)[::9]:
        k = order[place] - 8
        laws = [stats.t(2, loc=location[c, k], scale=scale[c][k]) for c in range(20)]
        pvalue = stats.kstest(x[:, place].numpy(), lambda v, laws=laws: np.mean([law.cdf(v) for law in laws], 0)).pvalue
        assert pvalue > 1e-3


def test_bernoulli_statistics_and_rates() -> None:
    summary, raw = tasks.get("bernoulli_glm"), tasks.get("bernoulli_glm_raw")
    theta = _prior_draws(summary, 500)
    y, x = raw.simulator(theta, _generator()), summary.simulator(theta, _generator())
    assert set(y.unique().tolist()) == {0.0, 1.0}
    stimulus = torch.from_numpy(np.random.RandomState(42).randn(100).astype(np.float32))
    triggered = torch.nn.functional.conv1d(y[:, None], stimulus[None, None], padding=8)[:, 0, -9:]
    torch.testing.assert_close(x, torch.cat([y.sum(1, keepdim=True), triggered], 1), rtol=1e-5, atol=2e-5)
    # The rate of each step, at one theta, from the filter's definition.
    filter_ = theta[0, 1:].double()
    logits = theta[0, 0].double() + torch.tensor(
        [sum(filter_[lag] * stimulus[t - lag] for lag in range(9) if t >= lag) for t in range(100)]
    )
    spikes = raw.simulator(theta[:1].expand(N, 10), _generator())
    z = (spikes.double().mean(0) - logits.sigmoid()) / (logits.sigmoid() * (1 - logits.sigmoid()) / N).sqrt()
    assert z.abs().max() < 4.5
    likelihood = stats.bernoulli(logits.sigmoid().numpy()).logpmf(y[0].numpy()).sum()
    assert abs(raw.log_likelihood(theta[:1], y[0]).item() - likelihood) < 1e-6
    assert abs(summary.log_likelihood(theta[:1], x[0]).item() - likelihood) < 1e-4


def test_bernoulli_prior_smooths_second_differences() -> None:
    theta = torch.randn(3, 10, dtype=torch.float64, generator=_generator())
    h = theta[:, 1:]
    once = h - torch.nn.functional.pad(h, (1, 0))[:, :-1]
    twice = once - torch.nn.functional.pad(once, (1, 0))[:, :-1]
    smooth = twice + h * (torch.arange(9) / 9).sqrt()
    quadratic = 0.5 * theta[:, 0].square() + smooth.square().sum(1)
    log_prob = tasks.get("bernoulli_glm").prior.log_prob(theta.float())
    torch.testing.assert_close((log_prob + quadratic / 2).diff().double(), torch.zeros(2).double(), rtol=0, atol=1e-3)


def _logarithms(theta: Tensor) -> np.ndarray:
    alpha, beta, gamma, delta = theta.double().tolist()

    def slope(_: float, log: np.ndarray) -> list[float]:
        return [alpha - beta * math.exp(log[1]), -gamma + delta * math.exp(log[0])]

    times = 2.1 * np.arange(10)
    solved = solve_ivp(slope, (0, 19), np.log([30.0, 1.0]), t_eval=times, rtol=1e-10, atol=1e-10, method="DOP853")
    return solved.y.reshape(-1)


def _infected(theta: Tensor) -> np.ndarray:
    beta, gamma = theta.double().tolist()

    def slope(_: float, y: np.ndarray) -> list[float]:
        return [-beta * y[0] * y[1], beta * y[0] * y[1] - gamma * y[1]]

    times = 17.0 * np.arange(10)
    solved = solve_ivp(slope, (0, 160), [1 - 1e-6, 1e-6], t_eval=times, rtol=1e-10, atol=1e-14, method="DOP853")
    return solved.y[1]


def test_lotka_volterra_against_a_tight_solver() -> None:
    task = tasks.get("lotka_volterra")
    assert isinstance(task, tasks.LotkaVolterra)
    theta = _prior_draws(task, 40)
    exact = np.array([_logarithms(row) for row in theta])
    found = task.log_populations(theta).numpy()
    errors = np.abs(found - np.clip(exact, math.log(1e-10), math.log(1e4))).max(1)
    assert np.median(errors) < 2e-6 and errors.max() < 2e-4
    x = task.simulator(theta[:1].expand(N, 4), _generator()).double()
    assert _is_normal((x.log() - torch.from_numpy(found[0])) / 0.1)
    np.testing.assert_allclose(
        task.log_likelihood(theta[:1], x[0]), stats.lognorm(0.1, scale=np.exp(found[0])).logpdf(x[0]).sum()
    )


def test_sir_against_a_tight_solver() -> None:
    task = tasks.get("sir")
    assert isinstance(task, tasks.SIR)
    theta = _prior_draws(task, 40)
    exact = np.array([_infected(row) for row in theta])
    assert np.abs(task.infected(theta).numpy() - exact).max() < 4e-5
    x = task.simulator(theta[:1].expand(N, 2), _generator()).double()
    mean, variance = 1000 * exact[0], 1000 * exact[0] * (1 - exact[0])
    assert (np.abs(x.mean(0).numpy() - mean) <= 4.5 * np.sqrt(variance / N) + 0.04).all()
    seen = mean > 1
    assert np.abs(x.var(0).numpy()[seen] / variance[seen] - 1).max() < 0.05
    expected = stats.binom(1000, task.infected(theta[:1]).numpy()).logpmf(x[0]).sum()
    np.testing.assert_allclose(task.log_likelihood(theta[:1], x[0]), expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["sir", "lotka_volterra"])
def test_no_simulation_fails_where_the_prior_reaches(name: str) -> None:
    task = tasks.get(name)
    theta = _prior_draws(task, 4000, seed=1)
    # Out to 4.5 standard deviations of every parameter, in both directions.
    location, scale = task.prior.base_dist.loc, task.prior.base_dist.scale  # type: ignore[attr-defined]
    signs = torch.cartesian_prod(*[torch.tensor([-4.5, 4.5])] * task.dim_theta)
    corners = torch.exp(location + signs * scale)
    assert task.simulator(torch.cat([theta, corners]), _generator()).isfinite().all()
