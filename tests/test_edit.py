"""edmund.edit: the law of what comes back, masks, a model's own units; every argument does what it says."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from oracles import F64, PROCESSES, gaussian, mixture
from torch import nn

import edmund
from edmund import denoiser, formulation, grid, guidance, networks, noise, preconditioning, process, transform
from edmund.edit import edit
from edmund.errors import InputError
from edmund.samplers import Adaptive, Churn, Heun, Restart

CHURNED = Heun(Churn(10.0))
SOLVERS = {
    "heun": Heun(),
    "churned": CHURNED,
    "restart": Restart(((0.05, 0.5, 3, 2),)),
    "adaptive": Adaptive(rtol=1e-6, atol=1e-6),
}


def edited(oracle, x, sigma, **options):
    return edit(oracle, x, sigma, progress=False, **options)


@pytest.mark.parametrize("name", ["vp", "edm", "flow", "cosine"])
@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_data_of_the_law_keep_the_law(name, sigma):
    """On a Gaussian an edit is affine in x and n: unit vectors give the law of what comes back."""
    oracle = gaussian()
    mean, covariance = oracle.moments()
    x = mean.repeat(5, 1)
    x[1:3] += torch.linalg.cholesky(covariance).T
    n = torch.zeros(5, 2, dtype=F64)
    n[3:] = torch.eye(2, dtype=F64)
    options = {"latents": n, "num_steps": 64, "sigma_min": 0.01, "process": PROCESSES[name]}
    out = edited(oracle, x, sigma, **options)
    columns = out[1:] - out[0]
    torch.testing.assert_close(out[0], mean, rtol=0, atol=3e-3)
    torch.testing.assert_close(columns.T @ columns, covariance, rtol=0, atol=5e-3)
    # Little of x is left where sigma is large, most of it where sigma is small: of each axis, about v / (v + sigma^2).
    left = columns[:2].square().sum() / columns.square().sum()
    assert {0.1: left > 0.97, 1.0: 0.2 < left < 0.6, 10.0: left < 0.01}[sigma]


def test_little_noise_returns_x():
    x = mixture().sample(6)
    for sigma in (1e-6, 1e-4):
        assert (edited(mixture(), x, sigma, sigma_min=sigma / 10, num_steps=3) - x).abs().max() < 6 * sigma


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_edit_is_a_sample_from_noisy_data(solver):
    """`edmund.sample` from x + sigma n, with the n of the seeds; its draws are not those of the sampler."""
    oracle, seeds, x = mixture(), [5, 3, 11, 4], mixture().sample(4)
    options = {"sampler": SOLVERS[solver], "num_steps": 9, "seeds": seeds, "process": "vp"}
    out = edited(oracle, x, 2.0, **options)
    assert out.dtype == F64 and out.shape == x.shape
    n = noise.Seeded(seeds).latents((2,), dtype=F64, device=torch.device("cpu"))
    drawn = edmund.sample(oracle, (4, 2), latents=x / 2.0 + n, sigma_max=2.0, progress=False, **options)
    torch.testing.assert_close(out, drawn, rtol=1e-12, atol=1e-12)
    given = edited(oracle, x, 2.0, latents=n, **options)
    assert torch.equal(given, out)
    assert torch.equal(edited(oracle, x, 2.0, batch_size=3, **options), out)
    assert (edited(oracle, x, 2.0, **(options | {"seeds": range(4)})) - out).abs().max() > 0.1
    source = noise.Seeded(seeds)
    assert all((source(x, step, 2.0, 1.0) - n).abs().min() > 1e-6 for step in range(20))


MASK = torch.tensor([1.0, 0.0], dtype=F64)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["edm", "vp"])
def test_what_is_kept_is_exactly_x(solver, name):
    oracle, x = mixture(), mixture().sample(5)
    options = {"sampler": SOLVERS[solver], "num_steps": 9, "process": name}
    out = edited(oracle, x, 2.0, mask=MASK, **options)
    assert torch.equal(out[:, 1], x[:, 1]) and (out[:, 0] - x[:, 0]).abs().min() > 1e-4
    each = torch.arange(10).reshape(5, 2) % 3 == 0  # bool, one a sample
    out = edited(oracle, x, 2.0, mask=each, batch_size=2, **options)
    assert torch.equal(out[~each], x[~each]) and (out - x)[each].abs().min() > 1e-5
    assert torch.equal(out, edited(oracle, x, 2.0, mask=each.double(), **options))
    # All may change: no mask. None may: x, to the last bit.
    free = edited(oracle, x, 2.0, **options)
    assert torch.equal(edited(oracle, x, 2.0, mask=torch.ones(2), **options), free)
    assert torch.equal(edited(oracle, x, 2.0, mask=torch.zeros(5, 2), **options), x)
    half = edited(oracle, x, 2.0, mask=torch.full((2,), 0.5), **options)
    assert ((half - x).abs().mean() < (free - x).abs().mean()) and (half - x).abs().min() > 0


def test_the_kept_region_stays_at_its_noisy_data():
    """At every level of the ODE it is x + sigma n, with the one n; a mask's steps and trajectory are the sampler's."""
    oracle, x = mixture(), mixture().sample(5)
    out = edited(oracle, x, 2.0, mask=MASK, num_steps=9, return_trajectory=True)
    n = noise.Seeded(range(5)).latents((2,), dtype=F64, device=torch.device("cpu"))
    expected = x[:, 1] + out.sigmas[:, None] * n[:, 1]
    torch.testing.assert_close(out.x[:, :, 1], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(out.x[-1], out.samples) and torch.equal(out.samples[:, 1], x[:, 1])
    assert len(out.sigmas) == 10 and out.sigmas[0] == pytest.approx(2.0)


def test_masked_edits_follow_their_equation():
    """The changed coordinate of a correlated Gaussian, against an independent solution of its ODE; what the other one
    implies is there in part: between nothing and the exact conditional mean.
    """
    integrate = pytest.importorskip("scipy.integrate")
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=F64)
    oracle = denoiser.Gaussian([0.0, 0.0], covariance)
    x = torch.tensor([[0.5, 1.5], [-1.0, -2.0]], dtype=F64)
    n = torch.tensor([[0.3, -0.7], [-1.1, 0.4]], dtype=F64)
    out = edited(oracle, x, 3.0, mask=MASK, latents=n, num_steps=400, sigma_min=0.005)
    for k in range(2):

        def slope(sigma, z, k=k):
            state = torch.tensor([z[0], x[k, 1] + sigma * n[k, 1]], dtype=F64)
            denoised = covariance @ torch.linalg.solve(covariance + sigma**2 * torch.eye(2, dtype=F64), state)
            return [(z[0] - denoised[0].item()) / sigma]

        start = [(x[k, 0] + 3.0 * n[k, 0]).item()]
        truth = integrate.solve_ivp(slope, (3.0, 1e-4), start, rtol=1e-9, atol=1e-9, method="LSODA").y[0, -1]
        assert out[k, 0].item() == pytest.approx(truth, abs=2e-3)
    # The mean over n, from x whose changed coordinate says nothing: affine, so n = 0 gives it.
    blank = torch.tensor([[0.0, 1.0]], dtype=F64)
    mean = edited(oracle, blank, 10.0, mask=MASK, latents=torch.zeros(1, 2, dtype=F64), num_steps=400, sigma_min=0.005)
    assert 0.3 < mean[0, 0] < 0.75  # exactly conditional: 0.8


UNITS = transform.Standardise(mean=[10.0, -3.0, 0.5], std=[4.0, 2.0, 0.1])


def make_model():
    network = networks.MLP(3, channels=16, blocks=1, label_dim=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return edmund.model.Model(network, formulation.EDM(0.5), UNITS, shape=(3,))


def test_models_edit_in_the_users_units():
    model = make_model()
    x = UNITS.inverse(torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=F64))
    mask = torch.tensor([True, False, True])
    options = {"condition": {"labels": torch.arange(6) % 4}, "num_steps": 5}
    out = edited(model, x, 1.0, mask=mask, **options)
    inner = edited(model.denoiser, UNITS.forward(x), 1.0, mask=mask, **options)
    torch.testing.assert_close(out, UNITS.inverse(inner).float())
    assert out.dtype == torch.float32 and torch.equal(out[:, 1], x[:, 1].float())
    assert torch.equal(edited(model, x, 1.0, mask=mask, dtype=F64, batch_size=4, **options)[:, 1], x[:, 1])
    path = edited(model, x, 1.0, mask=mask, return_trajectory=True, **options)
    assert torch.equal(path.samples, out)
    torch.testing.assert_close(path.x[-1], inner, rtol=1e-6, atol=1e-6)
    assert model.network.training
    # Whole numbers are data too.
    assert torch.equal(edited(model, x.round().int(), 1.0, mask=mask, **options)[:, 1], x[:, 1].round().float())


@pytest.mark.parametrize("mask", [None, torch.tensor([True, False, True])])
def test_another_denoiser_in_a_models_place(mask):
    model = make_model()
    x = UNITS.inverse(torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=F64))
    guided = guidance.ClassifierFree(model.denoiser, 3.0)
    options = {"mask": mask, "condition": {"labels": torch.arange(6) % 4}, "num_steps": 5}
    out = edited(model, x, 1.0, denoiser=guided, batch_size=4, **options)
    inner = edited(guided, UNITS.forward(x), 1.0, **options)
    torch.testing.assert_close(out, UNITS.inverse(inner).float())
    assert (UNITS.forward(out.double()) - UNITS.forward(edited(model, x, 1.0, **options).double())).abs().max() > 1e-3


def test_what_goes_to_mps_is_float32(monkeypatch):
    """MPS has no float64, so that moving it there fails; seen at the door of `edmund.sample`."""
    handed = {}

    def reached(denoiser, shape, *, condition, **options):
        handed.update(condition)
        raise StopIteration

    monkeypatch.setattr(sys.modules["edmund.edit"], "device_of", lambda *arguments: torch.device("mps"))
    monkeypatch.setattr(sys.modules["edmund.edit"], "sample", reached)
    with pytest.raises(StopIteration):
        edited(mixture(), torch.zeros(3, 2), 1.0, mask=MASK)
    assert {value.dtype for value in handed.values()} == {torch.float32} and len(handed) == 2


def test_masks_broadcast_over_channels():
    oracle = denoiser.Empirical(torch.randn(20, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=F64))
    x = oracle.dataset[:4] + 0.1
    mask = torch.zeros(1, 3, 3)
    mask[:, 1] = 1
    out = edited(oracle, x, 1.0, mask=mask, num_steps=4)
    whole = edited(oracle, x, 1.0, mask=mask.expand(4, 2, 3, 3), num_steps=4)
    assert torch.equal(out, whole)
    assert torch.equal(out[:, :, [0, 2]], x[:, :, [0, 2]]) and (out[:, :, 1] - x[:, :, 1]).abs().min() > 0


def test_discrete_models_start_from_a_level_of_theirs():
    levels, seen = process.iddpm_levels(), []

    class Discrete(nn.Module):
        round_sigma = staticmethod(preconditioning.IDDPM().round_sigma)

        def forward(self, x, sigma):
            seen.append(sigma.item())
            return 0.5 * x

    x = torch.ones(3, 2, dtype=F64)
    out = edited(Discrete(), x, 1.0, mask=MASK, num_steps=6, sigma_min=0.02, return_trajectory=True)
    assert all(sigma in levels for sigma in seen) and out.sigmas[0] in levels
    n = noise.Seeded(range(3)).latents((2,), dtype=F64, device=torch.device("cpu"))
    torch.testing.assert_close(out.x[0], x + out.sigmas[0] * n, rtol=1e-12, atol=1e-12)


def test_fixed_grids_start_from_their_own_level():
    x = mixture().sample(3)
    out = edited(mixture(), x, 2.0, grid=grid.Fixed([2.0, 1.0, 0.1]), return_trajectory=True)
    assert out.sigmas.tolist() == [2.0, 1.0, 0.1, 0.0]
    # A grid that has only some levels starts from its first below sigma, with the noise that belongs there.
    out = edited(mixture(), x, 2.0, grid=grid.IDDPM(), num_steps=5, return_trajectory=True)
    n = noise.Seeded(range(3)).latents((2,), dtype=F64, device=torch.device("cpu"))
    assert 1.9 < out.sigmas[0] < 2.0
    torch.testing.assert_close(out.x[0], x + out.sigmas[0] * n, rtol=1e-12, atol=1e-12)


def ranged(x, sigma, **condition):
    raise AssertionError("the denoiser was called")


ranged.sigma_min, ranged.sigma_max = 0.01, 40.0
X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("x", "sigma", "options", "words"),
    [
        (X, 41.0, {}, ["sigma is 41.0", "40"]),
        (X, 0.005, {}, ["sigma is 0.005", "0.01"]),
        (X, 0.0, {}, ["sigma is 0.0"]),
        (X, math.nan, {}, ["sigma is nan"]),
        (X, "1", {}, ["sigma is '1'"]),
        (X, 1.0, {"sigma_min": 2.0}, ["sigma is 1.0", "2.0"]),
        (X, 1.0, {"sigma_min": 0.001}, ["sigma_min", "0.001", "0.01"]),
        (X, 1.0, {"grid": grid.Fixed([2.0, 1.0])}, ["sigma is 1.0", "2.0"]),
        (X, 1.0, {"sigma_max": 2.0}, ["sigma_max"]),
        (X, 1.0, {"maks": torch.ones(2)}, ["'maks'", "'mask'"]),
        (X, 1.0, {"seeds": range(3)}, ["seeds", "3", "4"]),
        (X, 1.0, {"latents": torch.zeros(4, 3)}, ["latents", "(4, 3)"]),
        (X, 1.0, {"sampler": "huen"}, ["sampler", "'huen'"]),
        (X + math.nan, 1.0, {}, ["x holds 8 NaN", "8"]),
        (torch.zeros(4), 1.0, {}, ["x has shape (4,)"]),
        (torch.zeros(0, 2), 1.0, {}, ["x has shape (0, 2)"]),
        (torch.zeros(4, 2, dtype=torch.complex64), 1.0, {}, ["x is torch.complex64"]),
        ([[0.0, 1.0]], 1.0, {}, ["x is a list"]),
        (X, 1.0, {"mask": torch.ones(3)}, ["mask has shape (3,)", "(2,)", "(4, 2)"]),
        (X, 1.0, {"mask": torch.ones(3, 2)}, ["mask has shape (3, 2)", "(4, 2)"]),
        (X, 1.0, {"mask": torch.ones(())}, ["mask has shape ()"]),
        (X, 1.0, {"mask": torch.tensor([0.0, 1.5])}, ["mask goes from 0.0 to 1.5"]),
        (X, 1.0, {"mask": torch.tensor([-1.0, 1.0])}, ["mask goes from -1.0 to 1.0"]),
        (X, 1.0, {"mask": torch.tensor([math.nan, 1.0])}, ["mask", "nan"]),
        (X, 1.0, {"mask": [1, 0]}, ["mask is list"]),
        (X, 1.0, {"mask": torch.ones(2), "condition": {"labels": torch.zeros(3)}}, ["labels", "(3,)"]),
    ],
)
def test_bad_input(x, sigma, options, words):
    with pytest.raises(InputError) as error:
        edited(ranged, x, sigma, **options)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_model_is_refused():
    with pytest.raises(InputError, match="model is 3"):
        edited(3, X, 1.0)
    with pytest.raises(InputError, match=r"the model's samples have \(3,\)"):
        edited(make_model(), torch.zeros(2, 3, 3), 1.0)
    with pytest.raises(InputError, match="denoiser is given besides a GaussianMixture; it takes the place of a Model"):
        edited(mixture(), X, 1.0, denoiser=ranged)
    with pytest.raises(InputError, match="denoiser is 3; it must be a callable"):
        edited(make_model(), torch.zeros(2, 3), 1.0, denoiser=3)
    with pytest.raises(InputError, match="labels holds 7"):
        edited(make_model(), torch.zeros(2, 3), 1.0, condition={"labels": torch.tensor([0, 7])})
