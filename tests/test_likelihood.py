"""Log-densities against closed forms: exact denoisers, transforms, dequantised images; probes that are unbiased."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions, nn

from edmund import formulation, guidance, networks, preconditioning, process, samplers, transform
from edmund.denoiser import Gaussian, GaussianMixture, Preconditioned
from edmund.errors import InputError
from edmund.likelihood import BitsPerDim, LogProb, bits_per_dim, log_prob
from edmund.model import Model

F64 = torch.float64
LOW = 0.002  # EDM's sigma_min


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mixture(dim, seed=0):
    root = randn(3, dim, dim, seed=seed + 1)
    covariances = root @ root.mT / dim + 0.05 * torch.eye(dim, dtype=F64)
    return GaussianMixture(randn(3, dim, seed=seed), weights=[0.2, 0.3, 0.5], covariances=covariances)


def gaussian(dim, seed=3):
    root = randn(dim, dim, seed=seed)
    return Gaussian(randn(dim, seed=seed + 1), root @ root.mT / dim + 0.1 * torch.eye(dim, dtype=F64))


def noisy(oracle, n, sigma=LOW):
    return oracle.sample(n) + sigma * randn(n, oracle.dim, seed=9)


def plain(oracle):
    """The same denoiser, saying nothing of its moments."""
    return lambda x, sigma: oracle(x, sigma)


def shifted(oracle):
    """Data moved by a condition: its moments are each sample's own."""
    return lambda x, sigma, shift: oracle(x - shift, sigma) + shift


def as_images(oracle, *item):
    return lambda x, sigma: oracle(x.flatten(1), sigma).reshape(-1, *item)


def density(oracle, x, **options):
    return log_prob(oracle, x, progress=False, **options)


def filled(network):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.7 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.mark.parametrize("dim", [1, 2, 7, 64])
@pytest.mark.parametrize("make", [mixture, gaussian])
@pytest.mark.parametrize("told", ["moments told", "moments found"])
def test_exact_denoisers(dim, make, told, device):
    oracle = make(dim).to(device)
    x = noisy(make(dim), 2 if dim == 64 else 12).to(device)
    found = density(oracle if told == "moments told" else plain(oracle), x, device=device)
    assert found.dtype == F64 and found.device.type == "cpu"
    assert ((found - oracle.log_prob(x, LOW).cpu()) / dim).abs().max() < 5e-5


def test_other_ranges():
    oracle = mixture(2)
    for low, high in ((0.01, 40.0), (0.3, 300.0)):
        x = noisy(oracle, 10, low)
        found = density(oracle, x, sigma_min=low, sigma_max=high)
        torch.testing.assert_close(found, oracle.log_prob(x, low), rtol=0, atol=1e-4)


def test_a_gaussian_is_found_exactly_at_a_low_sigma_max():
    oracle = gaussian(3)
    x = noisy(oracle, 10)
    found = density(plain(oracle), x, sigma_max=2.0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, density(oracle, x, sigma_max=2.0, rtol=1e-9, atol=1e-9), rtol=0, atol=1e-8)
    torch.testing.assert_close(found, oracle.log_prob(x, LOW), rtol=0, atol=1e-7)


def test_the_tolerance_is_kept():
    oracle = mixture(2)
    x = noisy(oracle, 20)
    errors, calls = [], []
    for tolerance in (1e-4, 1e-6, 1e-8):
        found = density(oracle, x, rtol=tolerance, atol=tolerance, sigma_max=1000.0, return_error=True)
        errors.append((found.value - oracle.log_prob(x, LOW)).abs().max().item())
        calls.append(found.nfe.double().mean().item())
    assert errors[0] < 5e-3 and errors[1] < 5e-5 and errors[2] < 5e-7
    assert calls[0] < calls[1] < calls[2] < 700


def test_conditions_have_their_own_moments():
    oracle, shift = mixture(2), 3 * randn(12, 2, seed=5)
    x = noisy(oracle, 12) + shift
    found = density(shifted(oracle), x, condition={"shift": shift})
    torch.testing.assert_close(found, oracle.log_prob(x - shift, LOW), rtol=0, atol=4e-5)
    near = noisy(oracle, 12) + shift[:1]
    common = density(shifted(oracle), near, condition={"shift": shift[:1]})
    torch.testing.assert_close(common, oracle.log_prob(near - shift[:1], LOW), rtol=0, atol=4e-5)
    probed = density(shifted(oracle), x, condition={"shift": shift}, n_probes=8, return_error=True)
    assert ((probed.value - found) / probed.error).abs().max() < 6  # Student's t with 7 degrees of freedom
    assert probed.error.min() > 0.01


def test_batches_do_not_matter():
    oracle, shift = mixture(2), randn(6, 2, seed=5)
    x = noisy(oracle, 6) + shift
    for options in ({"rtol": 1e-4, "atol": 1e-4}, {"n_probes": 4, "rtol": 1e-3, "atol": 1e-3}):
        together = density(shifted(oracle), x, condition={"shift": shift}, **options)
        for size in (1, 5):
            parts = density(shifted(oracle), x, condition={"shift": shift}, batch_size=size, **options)
            torch.testing.assert_close(parts, together, rtol=0, atol=1e-11)
    seeded = density(oracle, x, n_probes=4, rtol=1e-3, atol=1e-3, seeds=range(20, 26))
    turned = density(oracle, x.flip(0), n_probes=4, rtol=1e-3, atol=1e-3, seeds=range(25, 19, -1))
    torch.testing.assert_close(turned.flip(0), seeded, rtol=0, atol=1e-11)


def lattice(reach, count):
    axis = torch.linspace(-reach, reach, count, dtype=F64)
    return torch.cartesian_prod(axis, axis), (2 * reach / (count - 1)) ** 2


def test_integrates_to_one():
    x, cell = lattice(5.1, 35)
    total = (density(mixture(2), x, rtol=1e-4, atol=1e-4).exp() * cell).sum()
    assert abs(total - 1) < 5e-4


def test_any_network_integrates_to_one():
    """Whatever the flow, it moves mass and loses none: a wrong divergence would show. The base is normalised too."""
    network = filled(networks.MLP(2, channels=16, blocks=1)).double()
    model = Preconditioned(network, preconditioning.EDM(0.5), formulation=formulation.EDM(0.5))
    x, cell = lattice(6.0, 31)
    density_there = density(model, x, sigma_min=0.3, rtol=1e-4, atol=1e-4).exp()
    assert abs((density_there * cell).sum() - 1) < 2e-3
    assert density_there.max() > 3 * density_there.mean()
    assert model.training  # put back


def test_probes_are_unbiased_and_their_errors_calibrated():
    oracle, n = gaussian(8), 250
    x = noisy(oracle, 1).expand(n, 8)
    exact = oracle.log_prob(x[:1], LOW)
    found = density(oracle, x, n_probes=16, seeds=range(100, 100 + n), rtol=1e-4, atol=1e-4, return_error=True)
    assert isinstance(found, LogProb) and found.error.min() > 0
    scores = (found.value - exact) / found.error
    # Student's t with 15 degrees of freedom: std 1.07.
    assert 0.95 < scores.std() < 1.2
    assert abs((found.value - exact).mean()) < 3 * found.value.std() / math.sqrt(n)
    assert abs(found.value.std() / found.error.square().mean().sqrt() - 1) < 0.13


@pytest.mark.parametrize("n_probes", [2, 30])
def test_probes_are_exact_on_isotropic_data(n_probes):
    oracle = Gaussian([1.0, -2.0, 0.5], 0.4 * torch.eye(3, dtype=F64))
    x = noisy(oracle, 5)
    found = density(plain(oracle), x, n_probes=n_probes, return_error=True)
    torch.testing.assert_close(found.value, oracle.log_prob(x, LOW), rtol=0, atol=3e-5)
    assert found.error.max() < 1e-10


def test_images_and_vectors_agree():
    oracle = gaussian(8)
    x = noisy(oracle, 4)
    images = density(as_images(oracle, 2, 2, 2), x.reshape(4, 2, 2, 2))
    torch.testing.assert_close(images, oracle.log_prob(x, LOW), rtol=0, atol=1e-4)
    probes = {"n_probes": 6, "seeds": range(4)}
    one = density(as_images(oracle, 2, 2, 2), x.reshape(4, 2, 2, 2), **probes, return_error=True)
    other = density(plain(oracle), x, **probes, return_error=True)
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["EDM", "VP", "Flow", "Cosine"])
@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_fixed_steps_of_every_process(name, sampler, order):
    oracle = mixture(2)
    x = noisy(oracle, 4, 0.05)
    options = {"sigma_min": 0.05, "sigma_max": 80.0, "sampler": sampler, "grid": "edm"}
    path = formulation.named()[name]().process
    exact = density(oracle, x, sigma_min=0.05, rtol=1e-9, atol=1e-9)
    errors = [
        (density(oracle, x, process=path, num_steps=n, **options) - exact).square().mean().sqrt() for n in (129, 257)
    ]
    slope = math.log2(errors[0] / errors[1])
    assert abs(slope - order) < 0.2, (errors, slope)
    if order == 2:
        assert errors[1] < 1e-2


def test_every_sampler_follows_the_density_or_says_why_not():
    oracle = mixture(2)
    x = noisy(oracle, 4)
    for name, make in samplers.named().items():
        if make().stochastic:
            with pytest.raises(InputError, match="which draws noise; a likelihood follows"):
                density(oracle, x, sampler=name)
        else:
            error = (density(oracle, x, sampler=name, num_steps=65) - oracle.log_prob(x, LOW)).abs().max()
            assert error < (0.06 if make().order > 1 else 0.9), (name, error)


def test_fixed_steps_count_their_calls():
    oracle = mixture(2)
    found = density(oracle, noisy(oracle, 3), num_steps=10, return_error=True)
    assert found.nfe.tolist() == [9] * 3  # of the default sampler, one a step, none to 0


class Of:
    """A denoiser that carries a formulation's process, grid and range."""

    def __init__(self, oracle, name):
        self.oracle, self.formulation = oracle, formulation.named()[name]()

    def __call__(self, x, sigma):
        return self.oracle(x, sigma)


@pytest.mark.parametrize("name", ["VP", "Flow", "Cosine"])
@pytest.mark.parametrize(
    ("sampler", "at_20", "at_60"),
    [(None, 0.5, 0.1), ("heun", 0.15, 0.02), ("euler", 0.7, 0.25), ("dpm_2", 0.5, 0.1), ("lms", 0.5, 0.1)],
)
def test_fixed_steps_on_a_formulations_own_grid(name, sampler, at_20, at_60):
    """Levels uniform in t have one step of a factor 50 in sigma, over which ln sigma is no straight line."""
    denoiser, oracle = Of(mixture(2), name), mixture(2)
    low = denoiser.formulation.sigma_min
    x = noisy(oracle, 4, low)
    for n, bound in ((20, at_20), (60, at_60)):
        error = (density(denoiser, x, sampler=sampler, num_steps=n) - oracle.log_prob(x, low)).abs().max()
        assert error < bound, (n, error)
    probed = density(denoiser, x, sampler="heun", num_steps=60, n_probes=8, return_error=True)
    assert ((probed.value - oracle.log_prob(x, low)) / probed.error).abs().max() < 6


@pytest.mark.parametrize("std", [1.0, 0.6])
@pytest.mark.parametrize("name", ["VP", "Flow", "Cosine"])
def test_fixed_steps_of_gaussian_data(name, std):
    oracle = Gaussian([0.0, 0.0], std**2 * torch.eye(2, dtype=F64))
    denoiser = Of(oracle, name)
    low = denoiser.formulation.sigma_min
    x = noisy(oracle, 6, low)
    error = (density(denoiser, x, sampler="heun", num_steps=20) - oracle.log_prob(x, low)).abs().max()
    assert error < 0.05, error


def test_bases():
    oracle = gaussian(2)
    x = noisy(oracle, 6)
    truth = oracle.log_prob(x, LOW)
    mean, covariance = oracle.moments()
    law = distributions.MultivariateNormal(mean, covariance + 80.0**2 * torch.eye(2, dtype=F64))
    for base in (law, law.log_prob, "moments"):
        torch.testing.assert_close(density(oracle, x, base=base), truth, rtol=0, atol=2e-5)
    off = density(oracle, x, base="normal") - truth
    wide = distributions.Independent(distributions.Normal(torch.zeros(2, dtype=F64), 80.0), 1)
    torch.testing.assert_close(density(oracle, x, base=wide) - truth, off, rtol=0, atol=1e-12)
    assert 1e-4 < off.abs().max() < 5 * mean.norm() / 80


class Known(nn.Module):
    """The raw network that makes an EDM-preconditioned denoiser the exact one of Gaussian data."""

    def __init__(self, oracle):
        super().__init__()
        self.oracle = oracle
        self.at = nn.Parameter(torch.zeros((), dtype=F64))  # networks run in their parameters' dtype

    def forward(self, x, c_noise):
        sigma, c = (4 * c_noise.double()).exp(), preconditioning.EDM(0.5)
        level = sigma[:, None]
        x = x / c.c_in(level)
        return (self.oracle(x, sigma) - c.c_skip(level) * x) / c.c_out(level)


MEAN, STD = torch.tensor([0.3, -0.4], dtype=F64), torch.tensor([0.5, 0.7], dtype=F64)


def model_in(units):
    oracle = Gaussian(MEAN, torch.diag(STD**2))
    return Model(Known(oracle), formulation.EDM(0.5), units, shape=(2,))


INNER = distributions.Normal(MEAN, (STD**2 + LOW**2).sqrt())


@pytest.mark.parametrize(
    ("units", "law", "name"),
    [
        (transform.Identity(), INNER, "identity"),
        (
            transform.Standardise([10.0, -5.0], [3.0, 0.1]),
            distributions.TransformedDistribution(
                INNER,
                distributions.AffineTransform(
                    torch.tensor([10.0, -5.0], dtype=F64), torch.tensor([3.0, 0.1], dtype=F64)
                ),
            ),
            "standardise",
        ),
        (
            transform.Bounded(2.0, 5.0),
            distributions.TransformedDistribution(
                INNER, [distributions.SigmoidTransform(), distributions.AffineTransform(2.0, 3.0)]
            ),
            "bounded",
        ),
        (
            transform.Log1p(),
            distributions.TransformedDistribution(
                INNER, [distributions.ExpTransform(), distributions.AffineTransform(-1.0, 1.0)]
            ),
            "log1p",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_models_are_in_the_users_units(units, law, name):
    y = units.inverse(MEAN + STD * randn(6, 2, seed=2))
    expected = law.log_prob(y).sum(1)
    torch.testing.assert_close(density(model_in(units), y), expected, rtol=0, atol=1e-4)
    probed = density(model_in(units), y.float(), n_probes=40, return_error=True)
    assert ((probed.value - expected) / probed.error).abs().max() < 4


def test_another_denoiser_in_a_models_place():
    """The model's units and transform, the other's density: of a guided Gaussian, a Gaussian moved on."""
    units = transform.Standardise([10.0, -5.0], [3.0, 0.1])
    one, weaker, moved = (Gaussian([mean, 0.0], 0.5 * torch.eye(2)) for mean in (1.0, 0.5, 2.0))
    guided, x = guidance.Autoguidance(one, weaker, 3.0), noisy(one, 6)
    y = units.inverse(x)
    expected = moved.log_prob(x, LOW) + units.log_abs_det(y)
    found = density(model_in(units), y, denoiser=guided)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    whole = torch.tensor([[3, 5], [0, 7]])
    plain = model_in(transform.MinMax(0.0, 7.0))
    bits = bits_per_dim(plain, whole, levels=8, denoiser=guided, progress=False)
    torch.testing.assert_close(bits, bits_per_dim(guided, whole, levels=8, progress=False))
    assert (bits - bits_per_dim(plain, whole, levels=8, progress=False)).abs().min() > 0.1
    with pytest.raises(InputError, match="denoiser is 3; it must be a callable"):
        density(model_in(units), y, denoiser=3)


def test_networks_in_float32_and_discrete_ones():
    network = filled(networks.MLP(3, channels=16, blocks=1, label_dim=4))
    model = Preconditioned(network, preconditioning.EDM(0.5), formulation=formulation.EDM(0.5)).eval()
    x, told = 0.5 * randn(4, 3), {"labels": torch.tensor([0, 1, 2, 3])}
    found = density(model, x, condition=told)
    twice = Preconditioned(network.double(), preconditioning.EDM(0.5), formulation=formulation.EDM(0.5)).eval()
    torch.testing.assert_close(found, density(twice, x, condition=told), rtol=0, atol=3e-4)
    assert all(parameter.grad is None for parameter in network.parameters())
    steps = Preconditioned(network, preconditioning.IDDPM(), formulation=formulation.IDDPM()).eval()
    coarse, fine = (density(steps, x, condition=told, num_steps=n, sampler="heun", base="normal") for n in (50, 200))
    torch.testing.assert_close(coarse, fine, rtol=0, atol=0.3)


def expected_bits(image, mean, variance, levels):
    """E over the dequantisation of -log2 of a Gaussian density in units of levels, a pixel's share."""
    half = (levels - 1) / 2
    mean, variance = (mean + 1) * half, variance * half**2
    square = ((image.double() - mean) ** 2 + 1 / 12) / variance
    return (0.5 * square + 0.5 * torch.log(2 * math.pi * variance)).mean() / math.log(2)


@pytest.mark.parametrize("levels", [16, 256])
def test_bits_per_dim(levels):
    mean = torch.tensor([-0.3, 0.1, 0.4, 0.0], dtype=F64)
    variance = torch.tensor([0.3, 0.1, 0.2, 0.05], dtype=F64)
    oracle, n = Gaussian(mean, torch.diag(variance)), 400
    image = ((torch.tensor([-0.5, 0.2, 0.6, 0.1]) + 1) / 2 * (levels - 1)).round().to(torch.uint8)
    images = image.reshape(1, 1, 2, 2).expand(n, -1, -1, -1)
    options = {"rtol": 1e-4, "atol": 1e-4, "progress": False, "levels": levels}
    bits = bits_per_dim(as_images(oracle, 1, 2, 2), images, **options)
    spread = bits.std() / math.sqrt(n)
    assert abs(bits.mean() - expected_bits(image, mean, variance + LOW**2, levels)) < 3 * spread + 3e-4
    # The jitter of the log-density is that of u uniform in [-1/2, 1/2), to first order along its gradient.
    half = (levels - 1) / 2
    gradient = (image / half - 1 - mean) / variance / half
    assert abs(bits.std() * 4 * math.log(2) / (gradient.norm() / math.sqrt(12)) - 1) < 0.15

    other = Model(Known(oracle), formulation.EDM(0.5), transform.MinMax(0.0, levels - 1.0), shape=(4,))
    flat = bits_per_dim(other, image.expand(4, -1), **options, seeds=[0, 1, 2, 3], return_error=True)
    assert isinstance(flat, BitsPerDim) and flat.error.max() == 0
    probed = bits_per_dim(other, image.expand(4, -1), **options, n_probes=40, return_error=True)
    assert ((probed.value - flat.value) / probed.error).abs().max() < 4 and probed.error.max() < 0.2
    torch.testing.assert_close(flat.value, bits[:4], rtol=0, atol=3e-4)


def test_dequantisation_and_probes_are_independent_of_latents():
    """The same seeds that drew samples must not choose probes that know them."""
    from edmund import noise
    from edmund.likelihood import _keys, _probes, _uniform

    keys = _keys(4000, None)
    latents = noise.Seeded(range(4000)).latents((3,), dtype=F64, device=torch.device("cpu"))
    u, probes = _uniform(keys, 3), _probes(keys, 3, (1, 3))
    assert abs(u.mean()) < 0.01 and abs(u.var() - 1 / 12) < 0.003 and u.abs().max() <= 0.5
    torch.testing.assert_close(probes.square().sum((2, 3)), torch.full((4000, 3), 3.0, dtype=F64))
    assert abs(probes.mean()) < 0.03 and abs(probes.square().mean((0, 1)) - 1).max() < 0.04
    columns = torch.cat([latents, u, probes.flatten(1)], dim=1).T
    off = torch.corrcoef(columns) - torch.eye(len(columns), dtype=F64)
    assert off.abs().max() < 4.5 / math.sqrt(4000)


def ask(oracle=None, x=None, **options):
    return density(mixture(2) if oracle is None else oracle, randn(3, 2) if x is None else x, **options)


def ranged(x, sigma):
    return x / (1 + sigma.reshape(-1, 1) ** 2)


ranged.sigma_min, ranged.sigma_max = 0.01, 50.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"oracle": 3}, "model is 3"),
        ({"denoiser": ranged}, "denoiser is given besides a GaussianMixture; it takes the place of a Model's own"),
        ({"x": [1.0]}, "x is a list"),
        ({"x": randn(3)}, "x has shape (3,)"),
        ({"x": randn(3, 2) / 0}, "x holds 6 NaN or infinite values among 6"),
        ({"x": randn(3, 5)}, "x has shape (3, 5)"),
        ({"x": randn(0, 2)}, "x has shape (0, 2)"),
        ({"x": torch.ones(3, 2, dtype=torch.bool)}, "x is torch.bool"),
        ({"condition": {"shift": randn(2, 2)}}, "condition 'shift' is of shape (2, 2)"),
        ({"base": "gauss"}, "base: 'gauss' is not known"),
        ({"base": 3}, "base is 3"),
        ({"base": distributions.Normal}, "base is <class"),
        ({"base": distributions.Normal(0.0, 80.0)}, "base gave (3, 2)"),
        ({"n_probes": 1}, "n_probes is 1; it must be an integer of at least 2"),
        ({"n_probes": True}, "n_probes is True"),
        ({"seeds": [1, 2, 3]}, "seeds is [1, 2, 3], but the exact divergence draws nothing"),
        ({"n_probes": 2, "seeds": [1]}, "seeds has 1 entries"),
        ({"n_probes": 2, "seeds": [1, 2, -3]}, "seeds holds -3"),
        ({"sampler": samplers.Heun(samplers.Churn(10.0))}, "which draws noise; a likelihood follows"),
        ({"sampler": "nothing"}, "sampler: 'nothing' is not known"),
        ({"num_steps": 1}, "num_steps is 1"),
        ({"num_steps": 10, "rtol": 1e-3}, "rtol is 0.001, but sampler, num_steps or grid"),
        ({"grid": "edm", "atol": 1e-3}, "atol is 0.001, but sampler, num_steps or grid"),
        ({"sampler": "adaptive", "rtol": 1e-3}, "rtol is 0.001, but the sampler has tolerances of its own"),
        ({"sampler": samplers.Adaptive(), "num_steps": 5, "atol": 1e-3}, "give samplers.Adaptive(rtol=..., atol=...)"),
        ({"process": process.EDM()}, "steps to a tolerance are the same for every process"),
        ({"rtol": 0.0}, "rtol is 0.0"),
        ({"sigma_min": 0.0}, "sigma_min is 0.0"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_m"),
        ({"oracle": ranged, "sigma_max": 80.0}, "sigma_max is 80.0, outside the range"),
        ({"oracle": ranged, "sigma_min": 0.001}, "sigma_min is 0.001, outside the range"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"oracle": lambda x, sigma: x[:, :1]}, "the denoiser returned (3, 1)"),
        ({"oracle": lambda x, sigma: x.detach()}, "has no gradient in x"),
        ({"oracle": lambda x, sigma: x / (1 + sigma**2)}, "does not take a sigma of shape [3]"),
        ({"oracle": lambda x, sigma: x / (1 + sigma**2), "x": randn(2, 2)}, "does not take a sigma of shape [2]"),
        ({"oracle": lambda x, sigma: 1.5 * x, "num_steps": 4}, "no Gaussian has its moments"),
        ({"oracle": lambda x, sigma: x * math.nan}, "the denoiser returned NaN"),
    ],
)
def test_bad_input_is_told(options, said):
    with pytest.raises(InputError) as error:
        ask(**options)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_bad_input_to_models():
    for y, said in (
        (randn(3, 2, 2), "the model's samples have (2,)"),
        (torch.tensor([[3.0, 6.0]]), "on or outside the bounds"),
    ):
        with pytest.raises(InputError) as error:
            density(model_in(transform.Bounded(2.0, 5.0)), y)
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("images", "options", "said"),
    [
        (torch.full((2, 1, 2, 2), 256), {}, "images holds 256; with levels = 256"),
        (torch.full((2, 1, 2, 2), 0.5), {}, "images holds 0.5"),
        (torch.full((2, 1, 2, 2), math.nan), {}, "images holds nan"),
        (torch.full((2, 1, 2, 2), -1), {}, "images holds -1"),
        ([1], {}, "images is a list"),
        (torch.zeros(2, 1, 2, 2), {"levels": 1}, "levels is 1"),
        (torch.zeros(2, 1, 2, 2), {"seeds": [1]}, "seeds has 1 entries"),
        (torch.zeros(2, 1, 2, 2), {"probes": 3}, "'probes' is not known; did you mean 'n_probes'"),
    ],
)
def test_bad_images_are_told(images, options, said):
    with pytest.raises(InputError) as error:
        bits_per_dim(as_images(gaussian(4), 1, 2, 2), images, progress=False, **options)
    assert said in str(error.value) and "\n" not in str(error.value)
