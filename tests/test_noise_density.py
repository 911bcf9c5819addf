"""Noise densities: quantiles against scipy's distributions and closed forms, stratified and plain draws."""

from __future__ import annotations

import math

import pytest
import torch

from edmund import noise_density, process
from edmund.errors import InputError

stats = pytest.importorskip("scipy.stats")
F64 = torch.float64
DENSITIES = {
    "log_normal": noise_density.LogNormal(),
    "log_normal-wide": noise_density.LogNormal(0.5, 2.0),
    "log_uniform": noise_density.LogUniform(),
    "vp_uniform": noise_density.VPUniform(),
    "iddpm": noise_density.IDDPM(),
    "logit_normal": noise_density.LogitNormal(-0.3, 0.8),
    "cosine_uniform": noise_density.CosineUniform(),
}
CUMULATIVE = {
    "log_normal": stats.lognorm(1.2, scale=math.exp(-1.2)).cdf,
    "log_normal-wide": stats.lognorm(2.0, scale=math.exp(0.5)).cdf,
    "log_uniform": stats.loguniform(0.02, 100.0).cdf,
    # t(sigma) is uniform on [1e-5, 1], with Table 1's t(sigma).
    "vp_uniform": lambda x: (
        (((0.1**2 + 2 * 19.9 * torch.log1p(torch.as_tensor(x) ** 2)).sqrt().numpy() - 0.1) / 19.9 - 1e-5) / (1 - 1e-5)
    ),
    "logit_normal": lambda x: stats.norm(-0.3, 0.8).cdf(torch.logit(torch.as_tensor(x) / (1 + torch.as_tensor(x)))),
    "cosine_uniform": lambda x: 2 / math.pi * torch.atan(torch.as_tensor(x)).numpy(),
}
every = pytest.mark.parametrize("name", DENSITIES)
continuous = pytest.mark.parametrize("name", CUMULATIVE)


@continuous
def test_quantile_inverts_the_distribution_function(name):
    u = torch.cat([torch.linspace(0.001, 0.999, 333, dtype=F64), torch.tensor([1e-4, 1 - 1e-4], dtype=F64)])
    sigma = DENSITIES[name].quantile(u)
    assert sigma.dtype == F64
    torch.testing.assert_close(torch.as_tensor(CUMULATIVE[name](sigma.numpy()), dtype=F64), u, rtol=1e-10, atol=1e-11)


@every
def test_support(name):
    density = DENSITIES[name]
    low, high = density.support
    sigma = density.quantile(torch.tensor([2.0**-54, 1 - 2.0**-53], dtype=F64))
    assert low <= sigma[0] * (1 + 1e-9) and sigma[1] <= high * (1 + 1e-9)
    if name in ("log_uniform", "vp_uniform", "iddpm"):
        assert sigma.tolist() == pytest.approx([low, high], rel=1e-6)
    else:
        assert (low, high) == (0.0, math.inf)


def test_iddpm_gives_each_level_the_same_share():
    levels = process.iddpm_levels()[:-1]
    u = (torch.arange(5000, dtype=F64) + 0.5) / 5000
    sigma = noise_density.IDDPM().quantile(u)
    values, counts = torch.unique(sigma, return_counts=True)
    assert torch.equal(values, levels.flip(0)) and (counts == 5).all()
    assert noise_density.IDDPM().support == (levels[-1].item(), levels[0].item())


def part_of(name, sigma, n):
    """Which n-th part of the density each sigma lies in."""
    if name == "iddpm":
        index = process.nearest_level(sigma, process.iddpm_levels())
        return (999 - index) * n // 1000
    return (torch.as_tensor(CUMULATIVE[name](sigma.numpy())) * n).long()


@every
@pytest.mark.parametrize("n", [1, 7, 64, 250])
def test_stratified_puts_one_in_each_part(name, n):
    sigma = DENSITIES[name].sample(n, torch.Generator().manual_seed(3))
    assert (sigma.diff() >= 0).all()
    if name == "iddpm" and 1000 % n:
        assert (sigma.unique().numel()) == n  # parts that cut a level in two are not told apart by the level
    else:
        assert part_of(name, sigma, n).tolist() == list(range(n))


@continuous
@pytest.mark.parametrize("stratified", [False, True])
def test_law_of_the_draws(name, stratified):
    sigma = DENSITIES[name].sample(4000, torch.Generator().manual_seed(11), stratified=stratified)
    result = stats.kstest(sigma.numpy(), CUMULATIVE[name])
    if stratified:
        assert result.statistic <= 1 / 4000 + 1e-9  # what independent draws reach only in the limit
    else:
        assert result.pvalue > 1e-3
        assert result.statistic > 1 / 4000  # and independent they are


def test_draws_follow_the_generator_and_nothing_else():
    density = noise_density.LogNormal()
    first = density.sample(10, torch.Generator().manual_seed(5))
    torch.manual_seed(123)
    assert torch.equal(first, density.sample(10, torch.Generator().manual_seed(5)))
    assert not torch.equal(first, density.sample(10, torch.Generator().manual_seed(6)))


def test_a_density_of_ones_own():
    class Uniform(noise_density.NoiseDensity):
        def quantile(self, u):
            return 1 + u

    sigma = Uniform().sample(100, torch.Generator().manual_seed(0))
    assert ((sigma - 1) * 100).long().tolist() == list(range(100))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: noise_density.LogNormal(P_std=0.0), ["P_std", "0.0"]),
        (lambda: noise_density.LogNormal(P_std=math.nan), ["P_std", "nan"]),
        (lambda: noise_density.LogitNormal(std=-1.0), ["std", "-1.0"]),
        (lambda: noise_density.LogUniform(2.0, 1.0), ["sigma_min", "2.0", "sigma_max", "1.0"]),
        (lambda: noise_density.LogUniform(0.0, 1.0), ["sigma_min", "0.0"]),
        (lambda: noise_density.VPUniform(0.0), ["epsilon_t", "0.0"]),
        (lambda: noise_density.VPUniform(1e-5, 40.0, -0.01), ["epsilon_t", "1e-05", "beta_min"]),
        (lambda: noise_density.LogNormal().sample(0), ["n is 0"]),
    ],
)
def test_errors(build, words):
    with pytest.raises(InputError) as error:
        build()
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_names():
    assert set(noise_density.named()) == {name.split("-")[0] for name in DENSITIES}
