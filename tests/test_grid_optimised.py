"""Fitted grids: the curve is monotone and passes through the fitted levels; the fit equidistributes what local errors
leave at the end, and where it searches, finds what brute force finds."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import oracles
import pytest
import torch

import edmund
from edmund import denoiser, formulation, grid, preconditioning, process, samplers
from edmund.errors import InputError
from edmund.noise import Seeded

F64 = torch.float64
LEVELS = (80.0, 9.0, 4.0, 1.5, 1.4, 0.3, 0.05, 0.002)


def latents(seeds, dim):
    return Seeded(seeds).latents((dim,), dtype=F64, device=torch.device("cpu"))


def converged(oracle, unit, sigma_max=80.0):
    """The solution at 0 from sigma_max, by 400 Heun steps that are even in ln sigma."""
    sigmas = grid.VE()(400, 0.002, sigma_max)
    return samplers.Heun()(oracle, unit * sigma_max, sigmas, process=process.EDM())


def error(oracle, solver, sigmas, unit, truth, path=None):
    path = path or process.EDM()
    scalings = path.s(path.t(sigmas[[0, -1]]))
    ends = solver(oracle, unit * sigmas[0] * scalings[0], sigmas, process=path) / scalings[1]
    return (ends - truth).square().mean().sqrt().item()


# The curve


def test_its_own_levels_are_its_nodes():
    for given in (LEVELS, [*LEVELS, 0.0], torch.tensor(LEVELS, dtype=F64)):
        sigmas = grid.Optimised(given)(8, 0.002, 80.0)
        torch.testing.assert_close(sigmas, torch.tensor([*LEVELS, 0.0], dtype=F64), rtol=1e-14, atol=0)
        assert (sigmas[0], sigmas[-2], sigmas[-1]) == (80.0, 0.002, 0.0)
    assert grid.Optimised(LEVELS, nfe=7) == grid.Optimised([*LEVELS, 0.0])


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 9, 18, 40, 1000])
@pytest.mark.parametrize(("low", "high"), [(0.002, 80.0), (0.01, 80.0), (0.002, 3.0), (1.42, 1.45)])
def test_any_steps_in_any_part_of_the_range_fall(steps, low, high):
    sigmas = grid.Optimised(LEVELS)(steps, low, high)
    assert len(sigmas) == steps + 1 and sigmas[0] == high and sigmas[-1] == 0
    assert steps == 1 or sigmas[-2] == low
    assert (sigmas.diff() < 0).all()


def test_between_the_levels_is_the_monotone_cubic():
    """Even steps of ln sigma stay even; of levels on a smooth curve, a cubic in between is right to third order."""
    for low, high in ((0.002, 80.0), (0.03, 7.0)):
        even = grid.Optimised(grid.VE()(9, 0.002, 80.0))(30, low, high)
        torch.testing.assert_close(even, grid.VE()(30, low, high), rtol=1e-12, atol=0)
    curve = grid.Optimised(grid.EDM()(33, 0.002, 80.0))
    torch.testing.assert_close(curve(65, 0.002, 80.0)[:-1], grid.EDM()(65, 0.002, 80.0)[:-1], rtol=2e-3, atol=0)


def test_narrower_range_is_a_part_of_the_same_curve():
    """Steps are as close in the part as in the whole: nodes of the whole that lie between two of them are its nodes."""
    curve = grid.Optimised(LEVELS)
    whole = curve(50, 0.002, 80.0)
    part = curve(31, whole[40].item(), whole[10].item())
    torch.testing.assert_close(part[:-1], whole[10:41], rtol=1e-9, atol=0)


def test_a_discrete_model_gets_its_levels():
    model = preconditioning.IDDPM()
    levels = process.iddpm_levels()
    rounded = grid.Optimised(LEVELS)(12, 0.05, 80.0, model.round_sigma)
    assert all(sigma in levels for sigma in rounded) and (rounded.diff() < 0).all()


def test_it_is_written_and_read_back():
    form = dataclasses.replace(formulation.EDM(0.5), grid=grid.Optimised(LEVELS, nfe=100))
    read = formulation.from_config(json.loads(json.dumps(form.config())))
    assert read == form and read.grid.nfe == 100
    assert "optimised" not in grid.named()  # there is none without levels


# The fit


@pytest.mark.parametrize(("solver", "order"), [(samplers.Euler(), 1), (samplers.Heun(), 2)])
def test_each_step_adds_the_same(solver, order):
    """On a Gaussian of std d, z - m falls as u = sqrt(d^2 + sigma^2); so D - m = c d^2 / u, and an offset at sigma
    grows by d / u: the density is (|d^p (1/u) / dlambda^p| / u)^(1/(p+1)), and 5 % evenly besides.
    """
    d = 0.5
    fitted = grid.Optimised.fit(denoiser.Gaussian([0.0], [[d**2]]), (4, 1), sampler=solver, reference_steps=512)
    level = torch.linspace(math.log(80), math.log(0.002), 200_001, dtype=F64)
    v = level.exp() ** 2
    u = torch.sqrt(d**2 + v)
    first = v / u**3  # -d(1/u)/d ln sigma
    second = 2 * v / u**3 - 3 * v**2 / u**5
    density = ((first if order == 1 else second).abs() / u) ** (1 / (order + 1))
    density = 0.95 * density / density.mean() + 0.05
    share = torch.cat([torch.zeros(1, dtype=F64), density[1:].cumsum(0)]) / density[1:].sum()
    nodes = torch.tensor(fitted.sigmas, dtype=F64).log()
    at = share[torch.searchsorted(-level, -nodes).clamp(max=len(level) - 1)]
    torch.testing.assert_close(at, torch.linspace(0, 1, len(nodes), dtype=F64), rtol=0, atol=2e-3)
    assert fitted.nfe == 2 * (4 * 512 + 1)


@pytest.mark.parametrize("solver", [samplers.Euler(), samplers.Heun()], ids=["euler", "heun"])
@pytest.mark.parametrize("steps", [3, 4])
def test_few_steps_on_a_gaussian_are_those_of_brute_force(solver, steps):
    oracle = oracles.gaussian()
    unit = latents(range(8), 2)
    truth = converged(oracle, unit)
    fitted = grid.Optimised.fit(oracle, (8, 2), sampler=solver, num_steps=steps, seeds=range(8))
    ours = error(oracle, solver, fitted(steps, 0.002, 80.0), unit, truth)
    tried = torch.logspace(math.log10(40), math.log10(0.01), 200 if steps == 3 else 40, dtype=F64).tolist()
    best = min(
        error(oracle, solver, torch.tensor([80.0, *middle, 0.002, 0.0], dtype=F64), unit, truth)
        for middle in itertools.combinations(tried, steps - 2)
    )
    assert ours <= 1.03 * best


@pytest.mark.parametrize("make", ["euler", "heun", "dpmpp_2m", "lms"])
@pytest.mark.parametrize("steps", [6, 10])
def test_fresh_samples_gain_by_it(make, steps):
    solver = samplers.named()[make]()
    oracle = oracles.mixture()
    fresh = latents(range(200), 2)
    truth = converged(oracle, fresh)
    fitted = grid.Optimised.fit(oracle, (128, 2), sampler=solver, num_steps=steps)
    assert len(fitted.sigmas) == steps
    ours, edm = (error(oracle, solver, g(steps, 0.002, 80.0), fresh, truth) for g in (fitted, grid.EDM()))
    assert ours < 0.7 * edm
    # Used with other numbers of steps it is still a grid like those that suit this denoiser.
    ours, edm = (error(oracle, solver, g(steps + 2, 0.002, 80.0), fresh, truth) for g in (fitted, grid.EDM()))
    assert ours < edm


def test_even_without_a_search_first_order_is_near_its_best():
    oracle = oracles.mixture()
    fresh = latents(range(200), 2)
    truth = converged(oracle, fresh)
    shared = grid.Optimised.fit(oracle, (128, 2), sampler=samplers.Euler())
    for steps in (8, 18):
        searched = grid.Optimised.fit(oracle, (128, 2), sampler=samplers.Euler(), num_steps=steps)
        errors = [error(oracle, samplers.Euler(), g(steps, 0.002, 80.0), fresh, truth) for g in (shared, searched)]
        assert errors[0] < 1.15 * errors[1]
        assert errors[0] < 0.6 * error(oracle, samplers.Euler(), grid.EDM()(steps, 0.002, 80.0), fresh, truth)


def test_process_and_range_are_those_of_the_sampling():
    """Over t of a rectified flow Heun takes other steps, so its best nodes are others; sigma_max 1000 is its own."""
    oracle = oracles.mixture()
    path = process.RectifiedFlow()
    fitted = grid.Optimised.fit(
        oracle, (128, 2), sampler=samplers.Heun(), num_steps=6, process=path, sigma_min=0.01, sigma_max=1000.0
    )
    fresh = latents(range(200), 2)
    truth = converged(oracle, fresh, 1000.0)
    own = error(oracle, samplers.Heun(), fitted(6, 0.01, 1000.0), fresh, truth, path)
    assert own < 0.7 * error(oracle, samplers.Heun(), grid.UniformTime(path)(6, 0.01, 1000.0), fresh, truth, path)
    assert own < 0.7 * error(oracle, samplers.Heun(), grid.EDM()(6, 0.01, 1000.0), fresh, truth, path)


class Counting(torch.nn.Module):
    """A denoiser with a formulation, labels and dropout; counts samples, and notes whether it was in training mode."""

    def __init__(self):
        super().__init__()
        self.oracles = torch.nn.ModuleList([denoiser.Gaussian([m], [[0.25]]) for m in (-1.0, 1.0)])
        self.formulation = formulation.EDM(0.5, sigma_min=0.01, sigma_max=20.0)
        self.samples, self.training_seen, self.labels = 0, False, None

    def forward(self, x, sigma, labels):
        self.samples += len(x)
        self.training_seen |= self.training
        self.labels = labels
        first, second = (oracle(x, sigma) for oracle in self.oracles)
        return torch.where(labels[:, None] == 0, first, second)


def test_conditions_mode_count_and_determinism():
    model = Counting().train()
    arguments = {"sampler": samplers.Heun(), "num_steps": 5, "reference_steps": 32}
    arguments["condition"] = {"labels": torch.tensor([0, 1, 1, 0])}
    first = grid.Optimised.fit(model, (4, 1), **arguments)
    assert model.training and not model.training_seen
    assert first.nfe == model.samples / 4
    assert model.labels.tolist() == [0, 1, 1, 0]
    assert (first.sigmas[0], first.sigmas[-1]) == (20.0, 0.01)
    assert first.sigmas == grid.Optimised.fit(model, (4, 1), **arguments).sigmas
    own_seeds = grid.Optimised.fit(model, (4, 1), seeds=range(2**32, 2**32 + 4), **arguments)
    assert first.sigmas == own_seeds.sigmas  # the default
    assert first.sigmas != grid.Optimised.fit(model, (4, 1), seeds=range(4), **arguments).sigmas
    labels = torch.tensor([0, 1])
    drawn = edmund.sample(model, (2, 1), grid=first, sampler="heun", num_steps=5, condition={"labels": labels})
    assert drawn.shape == (2, 1)


def test_constant_data_need_no_particular_grid():
    """Every grid is exact: the levels are even in ln sigma, not a division by zero."""
    point = denoiser.Gaussian([0.7], [[0.0]])
    even = grid.VE()(65, 0.002, 80.0)
    fitted = grid.Optimised.fit(point, (2, 1), sampler=samplers.Euler())
    torch.testing.assert_close(torch.tensor([*fitted.sigmas, 0.0], dtype=F64), even, rtol=1e-9, atol=0)


def fit(**changes):
    arguments = {"denoiser": oracles.gaussian(), "shape": (2, 2), "sampler": samplers.Heun(), "num_steps": 4}
    return grid.Optimised.fit(**(arguments | changes))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: grid.Optimised([1.0]), ["sigmas", "[1.0]", "two"]),
        (lambda: grid.Optimised([1.0, 2.0]), ["sigmas", "[1.0, 2.0]"]),
        (lambda: grid.Optimised([1.0, math.nan]), ["sigmas", "nan"]),
        (lambda: grid.Optimised([]), ["sigmas", "[]"]),
        (lambda: grid.Optimised(LEVELS)(8, 0.001, 80.0), ["sigma_min", "0.001", "0.002", "80.0"]),
        (lambda: grid.Optimised(LEVELS)(8, 0.002, 81.0), ["sigma_max", "81.0", "0.002", "80.0"]),
        (lambda: fit(denoiser=None), ["denoiser", "None"]),
        (lambda: fit(denoiser=lambda x, sigma: x * math.nan), ["denoiser", "finite"]),
        (lambda: fit(shape=(2,)), ["shape", "(2,)"]),
        (lambda: fit(shape=(0, 2)), ["shape", "(0, 2)"]),
        (lambda: fit(shape=2), ["shape", "2"]),
        (lambda: fit(sampler="heun"), ["sampler", "heun"]),
        (lambda: fit(sampler=samplers.Heun), ["sampler", "Heun"]),
        (lambda: fit(sampler=samplers.Heun(samplers.Churn(10.0))), ["sampler", "noise"]),
        (lambda: fit(num_steps=1), ["num_steps", "1"]),
        (lambda: fit(num_steps=2.5), ["num_steps", "2.5"]),
        (lambda: fit(process="edm"), ["process", "edm"]),
        (lambda: fit(sigma_min=0.0), ["sigma_min", "0.0"]),
        (lambda: fit(sigma_min=2.0, sigma_max=1.0), ["sigma_min", "2.0", "1.0"]),
        (lambda: fit(seeds=range(3)), ["seeds", "3", "2"]),
        (lambda: fit(seeds=[0, -1]), ["seeds", "-1"]),
        (lambda: fit(seeds=7), ["seeds", "7"]),
        (lambda: fit(condition=[1]), ["condition", "list"]),
        (lambda: fit(condition={"labels": torch.zeros(3)}), ["labels", "(3,)"]),
        (lambda: fit(iterations=0), ["iterations", "0"]),
        (lambda: fit(reference_steps=4), ["reference_steps", "4"]),
    ],
)
def test_errors(build, words):
    with pytest.raises(InputError) as caught:
        build()
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_fit_keeps_to_the_denoisers_range():
    """A denoiser that says its range is called nowhere else; a range beyond it is refused."""
    seen = []

    class Ranged(torch.nn.Module):
        sigma_min, sigma_max = 0.01, 20.0

        def forward(self, x, sigma):
            seen.append(float(sigma.max()))
            return x / (1 + sigma**2)

    fitted = grid.Optimised.fit(Ranged(), (4, 1), sampler=samplers.Heun(), progress=False)
    assert fitted.sigmas[0] == pytest.approx(20.0) and fitted.sigmas[-1] == pytest.approx(0.01)
    assert max(seen) <= 20.0 * (1 + 1e-12) and min(seen) >= 0.01 * (1 - 1e-12)
    with pytest.raises(InputError, match="sigma_max is 500"):
        grid.Optimised.fit(Ranged(), (4, 1), sampler=samplers.Heun(), sigma_max=500.0, progress=False)
