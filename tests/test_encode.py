"""Encoding: the closed form of Gaussian data, and round trips; arcs that keep norms and laws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import edmund
from edmund import formulation, guidance, preconditioning, process, samplers, transform
from edmund.denoiser import Gaussian, GaussianMixture
from edmund.encode import encode, interpolate
from edmund.errors import InputError
from edmund.integrate import integrate
from edmund.model import Model

F64 = torch.float64
LOW, HIGH = 0.002, 80.0


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mixture(dim=2):
    root = randn(3, dim, dim, seed=1)
    covariances = root @ root.mT / dim + 0.05 * torch.eye(dim, dtype=F64)
    return GaussianMixture(randn(3, dim), weights=[0.2, 0.3, 0.5], covariances=covariances)


def encoded(oracle, x, **options):
    return encode(oracle, x, progress=False, **options)


def decoded(oracle, latents, **condition):
    """The converged result of `edmund.sample`: the ODE down to sigma_min, then one step to 0."""

    def slope(log_sigma, z, rows):
        return z - oracle(z, log_sigma.exp(), **{key: value[rows] for key, value in condition.items()})

    low, high = math.log(LOW), math.log(HIGH)
    return oracle(integrate(slope, HIGH * latents, high, low, rtol=1e-10, atol=1e-10).y, torch.tensor(LOW), **condition)


def test_gaussian_is_the_closed_form(device):
    """Each axis of z - m grows as sqrt(c + sigma^2)."""
    mean, variances = torch.tensor([0.5, -1.0, 0.0], dtype=F64), torch.tensor([0.2, 1.0, 3.0], dtype=F64)
    oracle = Gaussian(mean, torch.diag(variances)).to(device)
    x = mean + variances.sqrt() * randn(9, 3)
    found = encoded(oracle, x.to(device), rtol=1e-10, atol=1e-10)
    assert found.dtype == F64 and found.device.type == "cpu"
    start = (x - mean) * (variances + LOW**2) / variances  # what D at sigma_min brings to x
    expected = (mean + start * ((variances + HIGH**2) / (variances + LOW**2)).sqrt()) / HIGH
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_round_trip():
    oracle = mixture()
    x = oracle.sample(20)
    tight = encoded(oracle, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(decoded(oracle, tight), x, rtol=0, atol=1e-8)
    torch.testing.assert_close(decoded(oracle, encoded(oracle, x)), x, rtol=0, atol=2e-4)
    back = encoded(oracle, decoded(oracle, randn(20, 2, seed=4)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(back, randn(20, 2, seed=4), rtol=0, atol=1e-8)


def test_sample_returns_the_data():
    """Heun's error falls fourfold as its steps double: what is left after extrapolation is the round trip's."""
    oracle = mixture()
    x = oracle.sample(20)
    latents = encoded(oracle, x)
    coarse, fine = (
        edmund.sample(oracle, (20, 2), latents=latents, sampler="heun", grid="edm", num_steps=n, progress=False)
        for n in (200, 400)
    )
    assert (fine - x).abs().max() < 2e-2
    torch.testing.assert_close(fine + (fine - coarse) / 3, x, rtol=0, atol=2e-3)


def test_the_last_step_is_undone():
    """At a large sigma_min: x comes back to the fourth power of sigma_min, not to its square."""
    oracle, x = mixture(), mixture().sample(10)
    errors = []
    for low in (0.02, 0.04):
        latents = encoded(oracle, x, sigma_min=low, rtol=1e-10, atol=1e-10)

        def slope(log_sigma, z, rows):
            return z - oracle(z, log_sigma.exp())

        z = integrate(slope, HIGH * latents, math.log(HIGH), math.log(low), rtol=1e-10, atol=1e-10).y
        errors.append((oracle(z, torch.tensor(low)) - x).norm().item())
    assert errors[0] < 1e-3 and abs(math.log2(errors[1] / errors[0]) - 4) < 0.5


def test_which_last_steps_are_undone():
    """What the module says of samplers that end otherwise than by denoising."""
    oracle = GaussianMixture([[1.0, 1.0], [-1.0, 1.0], [0.0, -1.0]], stds=[0.1, 0.2, 0.3])
    x = oracle.sample(20)
    latents = encoded(oracle, x, sigma_min=0.02, rtol=1e-9, atol=1e-9)

    def error(sampler, process):
        back = edmund.sample(oracle, (20, 2), latents=latents, sampler=sampler, process=process, sigma_min=0.02,
                             grid="edm", num_steps=400, progress=False)  # fmt: skip
        return (back - x).square().mean().sqrt().item()

    assert error(samplers.Adaptive(1e-9, 1e-9), "vp") < 6e-5 and error("unipc", "vp") < 6e-5
    assert max(error("heun", name) for name in ("edm", "flow")) < 1.5e-4
    assert min(error("heun", "vp"), error("heun", "ve"), error("lms", "edm"), error("lms", "vp")) > 5e-4


def test_latents_of_data_are_unit_normals():
    latents = encoded(mixture(), mixture().sample(2000), rtol=1e-4, atol=1e-4)
    assert latents.mean(0).abs().max() < 0.08
    assert (torch.cov(latents.T) - torch.eye(2, dtype=F64)).abs().max() < 0.12
    assert abs(latents.pow(4).mean() - 3) < 0.5


def test_conditions_and_batches():
    oracle, shift = mixture(), randn(7, 2, seed=6)

    def moved(x, sigma, shift):
        return oracle(x - shift, sigma) + shift

    x = oracle.sample(7) + shift
    latents = encoded(moved, x, condition={"shift": shift})
    torch.testing.assert_close(decoded(moved, latents, shift=shift), x, rtol=0, atol=2e-4)
    for size in (1, 3):
        parts = encoded(moved, x, condition={"shift": shift}, batch_size=size)
        torch.testing.assert_close(parts, latents, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["EDM", "VP", "Flow"])
def test_fixed_steps(name):
    oracle = mixture()
    x = oracle.sample(8)
    exact = encoded(oracle, x, rtol=1e-10, atol=1e-10)
    path = formulation.named()[name]().process
    errors = [
        (encoded(oracle, x, sampler="heun", grid="edm", process=path, num_steps=n) - exact).norm() for n in (65, 129)
    ]
    assert errors[1] < 0.02 and 3 < errors[0] / errors[1] < 6


class Known(nn.Module):
    """The raw network that makes an EDM-preconditioned denoiser an exact one."""

    def __init__(self, oracle):
        super().__init__()
        self.oracle = oracle
        self.at = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x, c_noise):
        sigma, c = (4 * c_noise.double()).exp(), preconditioning.EDM(0.5)
        level = sigma[:, None]
        x = x / c.c_in(level)
        return (self.oracle(x, sigma) - c.c_skip(level) * x) / c.c_out(level)


def test_models_are_in_the_users_units():
    model = Model(Known(mixture()), formulation.EDM(0.5), transform.Bounded(0.0, 10.0), shape=(2,))
    y = model.transform.inverse(mixture().sample(12))
    latents = encoded(model, y)
    # c_noise is float32, so the network's sigma is off by 1e-7 or so.
    torch.testing.assert_close(latents, encoded(mixture(), model.transform.forward(y)), rtol=0, atol=1e-4)
    back = model.sample(12, latents=latents, num_steps=300, progress=False, dtype=F64)
    torch.testing.assert_close(back, y, rtol=0, atol=2e-2)


def test_another_denoiser_in_a_models_place():
    units = transform.Bounded(0.0, 10.0)
    model = Model(Known(mixture()), formulation.EDM(0.5), units, shape=(2,))
    guided = guidance.Autoguidance(mixture(), mixture(), 2.0)
    y = units.inverse(mixture().sample(5))
    latents = encoded(model, y, denoiser=guided)
    torch.testing.assert_close(latents, encoded(guided, units.forward(y)), rtol=0, atol=1e-9)
    far = Gaussian([3.0, 0.0], torch.eye(2))
    assert (encoded(model, y, denoiser=far) - latents).abs().max() > 0.1
    with pytest.raises(InputError, match="denoiser is 'guided'; it must be a callable"):
        encoded(model, y, denoiser="guided")


def two(x, sigma):
    return x / (1 + sigma.reshape(-1, 1) ** 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"oracle": "model"}, "model is 'model'"),
        ({"denoiser": two}, "denoiser is given besides a function"),
        ({"sampler": "adaptive", "num_steps": 9, "rtol": 1e-3}, "the sampler has tolerances of its own"),
        ({"x": randn(3, 2) / 0}, "x holds 6 NaN or infinite values"),
        ({"x": randn(4)}, "x has shape (4,)"),
        ({"sampler": samplers.Heun(samplers.Churn(10.0))}, "which draws noise; encoding follows"),
        ({"num_steps": 1}, "num_steps is 1"),
        ({"num_steps": 8, "atol": 1e-3}, "atol is 0.001, but"),
        ({"process": process.EDM()}, "steps to a tolerance are the same"),
        ({"condition": {"labels": torch.zeros(2)}}, "condition 'labels' is of shape (2,)"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"sigma_max": -1.0}, "sigma_max is -1.0"),
        ({"oracle": lambda x, sigma: x * math.inf}, "returned NaN or infinite values"),
        ({"oracle": lambda x, sigma: x / (1 + sigma**2)}, "does not take a sigma of shape [3]"),
    ],
)
def test_bad_input_is_told(options, said):
    given = {"oracle": two, "x": randn(3, 2)} | options
    with pytest.raises(InputError) as error:
        encoded(given.pop("oracle"), given.pop("x"), **given)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_arcs_keep_norm_and_turn_evenly():
    a, b = randn(5, 2, 3), randn(5, 2, 3, seed=1)
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).reshape(-1, 1, 1)
    arc = interpolate(a, b, torch.linspace(0, 1, 9))
    assert arc.shape == (9, 5, 2, 3) and arc.dtype == F64
    torch.testing.assert_close(arc[0], a)
    torch.testing.assert_close(arc[-1], b)
    flat = arc.flatten(2)
    torch.testing.assert_close(flat.norm(dim=2), a.flatten(1).norm(dim=1).expand(9, 5))
    steps = torch.cosine_similarity(flat[1:], flat[:-1], dim=2).acos()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-6, atol=1e-6)
    whole = torch.cosine_similarity(flat[0], flat[-1], dim=1).acos()
    torch.testing.assert_close(steps.sum(0), whole)
    assert torch.equal(interpolate(a, b, 0.5), interpolate(a, b, [0.25, 0.5])[1])
    torch.testing.assert_close(
        interpolate(a, b, 0.5),
        (a + b) * ((a).flatten(1).norm(dim=1) / (a + b).flatten(1).norm(dim=1)).reshape(-1, 1, 1),
    )


def test_norms_change_evenly():
    a, b = torch.tensor([[2.0, 0.0]], dtype=F64), torch.tensor([[0.0, 4.0]], dtype=F64)
    half = math.sqrt(0.5)
    torch.testing.assert_close(interpolate(a, b, 0.5), torch.tensor([[3 * half, 3 * half]], dtype=F64))


@pytest.mark.parametrize("turn", [0.0, 1e-12, 1e-8, 1e-4, 3.1, math.pi - 1e-6])
def test_nearly_parallel_and_nearly_opposite(turn):
    a = torch.tensor([[3.0, 0.0]], dtype=F64)
    b = 3 * torch.tensor([[math.cos(turn), math.sin(turn)]], dtype=F64)
    w = torch.tensor([0.0, 0.3, 1.0], dtype=F64)
    expected = 3 * torch.stack([torch.cos(w * turn), torch.sin(w * turn)], dim=1)[:, None]
    torch.testing.assert_close(interpolate(a, b, w), expected, rtol=0, atol=1e-9)


def test_parallel_vectors_of_different_length():
    a = randn(1, 4)
    torch.testing.assert_close(interpolate(a, 3 * a, 0.5), 2 * a)


def test_arcs_between_unit_normals_keep_their_law():
    dim, n = 200, 4000
    a, b = randn(n, dim, seed=2), randn(n, dim, seed=3)
    middle, chord = interpolate(a, b, 0.5), (a + b) / 2
    assert abs(middle.norm(dim=1).mean() / math.sqrt(dim) - 1) < 5e-3
    assert chord.norm(dim=1).mean() / math.sqrt(dim) < 0.72
    assert abs(middle.mean()) < 5e-3 and abs(middle.var() - 1) < 1e-2 and abs(middle.pow(4).mean() - 3) < 0.1


@pytest.mark.parametrize(
    ("a", "b", "fractions", "said"),
    [
        (randn(2, 3), -2 * randn(2, 3), 0.5, "a[0] and b point in opposite directions"),
        (randn(2, 3), randn(2, 4), 0.5, "a has shape (2, 3) and b (2, 4)"),
        (torch.zeros(2, 3), torch.ones(2, 3), 0.5, "a[0] is zero"),
        (randn(2, 3) / 0, randn(2, 3), 0.5, "a holds NaN or infinite"),
        (randn(2), randn(2), 0.5, "a is torch.float64 of shape (2,)"),
        (torch.ones(2, 3, dtype=torch.int64), randn(2, 3), 0.5, "a is torch.int64"),
        ([1.0], randn(2, 3), 0.5, "a is [1.0]"),
        (randn(2, 3), randn(2, 3, seed=1), "half", "fractions is 'half'"),
        (randn(2, 3), randn(2, 3, seed=1), math.nan, "fractions is nan"),
        (randn(2, 3), randn(2, 3, seed=1), torch.zeros(2, 2), "fractions is"),
    ],
)
def test_bad_arcs_are_told(a, b, fractions, said):
    with pytest.raises(InputError) as error:
        interpolate(a, b, fractions)
    assert said in str(error.value)
