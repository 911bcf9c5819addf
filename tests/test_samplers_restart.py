"""Restart: exact laws, the contraction of a wrong start in closed form, how its steps and draws are numbered."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from oracles import F64, PROCESSES, UnitVectors, exact_law, gaussian, integrate, law_error, mixture, noisy

import edmund
from edmund import grid, noise, preconditioning, process
from edmund.errors import InputError
from edmund.samplers import Churn, Euler, Heun, Restart

SIGMAS = grid.EDM()(24, 0.02, 20.0)
TWO = ((0.5, 3.0, 6, 3), (0.05, 0.4, 5, 2))
every_process = pytest.mark.parametrize("name", ["vp", "edm", "flow", "odd"])


def near(sigmas, low):
    """The node that an interval from `low` returns to."""
    return sigmas[(sigmas[:-1].log() - math.log(low)).abs().argmin()].item()


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
@pytest.mark.parametrize("inner", [Heun(), Heun(Churn(5.0))], ids=["deterministic", "churned"])
def test_exact_law_on_a_gaussian(name, inner):
    """Within discretisation, which falls at the inner sampler's rate."""
    path, oracle = PROCESSES[name], gaussian()
    errors = []
    for factor in (1, 2):
        fine = tuple((low, high, factor * steps, repeats) for low, high, steps, repeats in TWO)
        sigmas = grid.EDM()(48 * factor, 0.02, 20.0)
        errors.append(max(law_error(Restart(fine, inner), oracle, path, sigmas)))
    assert errors[0] < 0.03
    if inner == Heun():
        assert errors[1] < errors[0] / 2.5
    else:
        assert errors[1] < errors[0]


def test_too_much_noise_is_seen():
    class Louder(Restart):
        def __call__(self, denoiser, x, sigmas, *, noise, **options):
            return super().__call__(denoiser, x, sigmas, noise=lambda *draw: 1.2 * noise(*draw), **options)

    path, oracle, sigmas = process.EDM(), gaussian(), grid.EDM()(96, 0.02, 20.0)
    fine = ((0.5, 3.0, 12, 3),)
    assert (
        law_error(Restart(fine), oracle, path, sigmas)[1]
        < 0.01
        < 0.03
        < law_error(Louder(fine), oracle, path, sigmas)[1]
    )


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_restart_contracts_the_error_of_a_wrong_start(repeats):
    """Of Gaussian data, by sqrt((v + low^2) / (v + high^2)) a repeat along each axis, for the mean; squared, for the
    variance.
    """
    path, oracle, sigmas = process.EDM(), gaussian(), grid.EDM()(192, 0.02, 20.0)
    solver = Restart(((0.5, 3.0, 64, repeats),))
    mean, covariance = oracle.moments()
    values, axes = torch.linalg.eigh(covariance)
    low = near(sigmas, 0.5)
    factor = torch.sqrt((values + low**2) / (values + 3.0**2)) ** repeats

    def end(solver, offset, spread):
        """Mean and covariance of the end states from a start with the wrong mean and `spread` times the std."""
        source = UnitVectors(2)
        solver(oracle, mean[None], sigmas, process=path, noise=source)
        source.probing = False
        start = (mean + offset).repeat(3 + 2 * len(source.draws), 1)
        start[1:3] += spread * torch.linalg.cholesky(covariance + sigmas[0] ** 2 * torch.eye(2, dtype=F64)).T
        x = solver(oracle, start, sigmas, process=path, noise=source)
        columns = (x[1:] - x[0]) @ axes
        return x[0] @ axes, columns.T @ columns

    offset = torch.tensor([30.0, -20.0], dtype=F64)
    plain, wrong = end(Heun(), 0, 1.0), end(Heun(), offset, 1.5)
    right, mended = end(solver, 0, 1.0), end(solver, offset, 1.5)
    before, after = wrong[0] - plain[0], mended[0] - right[0]
    torch.testing.assert_close(after, factor * before, rtol=2e-3, atol=1e-9)
    before, after = (wrong[1] - plain[1]).diagonal(), (mended[1] - right[1]).diagonal()
    torch.testing.assert_close(after, factor**2 * before, rtol=4e-3, atol=1e-9)
    assert before.min() > 0.3  # a quarter of the variance and more was wrong


def test_restarts_mend_a_coarse_sampler():
    """Euler's error on a coarse grid shrinks by restarts at the noise where it is made."""
    path, oracle, sigmas = process.EDM(), gaussian(), grid.EDM()(20, 0.02, 20.0)
    plain = max(law_error(Euler(), oracle, path, sigmas))
    assert max(law_error(Restart(((0.1, 2.0, 20, 2),), Euler()), oracle, path, sigmas)) < 0.6 * plain


def parts_of(sigmas, intervals):
    """The levels gone through, part by part, written out."""
    parts, start = [], 0
    for low, high, steps, repeats in sorted(intervals, reverse=True):
        node = int((sigmas[:-1].log() - math.log(low)).abs().argmin())
        parts.append((None, sigmas[start : node + 1]))
        again = torch.linspace(high ** (1 / 7), sigmas[node] ** (1 / 7), steps + 1, dtype=F64) ** 7
        again[0], again[-1] = high, sigmas[node]
        parts += [(sigmas[node].item(), again)] * repeats
        start = node
    return [*parts, (None, sigmas[start:])]


@every_process
@pytest.mark.parametrize("intervals", [TWO, TWO[::-1], TWO[:1]], ids=["two", "reversed", "one"])
def test_restarts_are_what_they_say(name, intervals):
    path, oracle, source = PROCESSES[name], mixture(), noise.Seeded(range(8))
    x = noisy(oracle, 8, 20.0)
    steps = []
    end = integrate(
        lambda *args, **options: Restart(intervals)(*args, noise=source, callback=steps.append, **options),
        oracle,
        path,
        x,
        SIGMAS,
    )
    expected, first, visited = x, 0, []
    for added_from, levels in parts_of(SIGMAS, intervals):
        if added_from is not None:
            expected = expected + torch.sqrt(levels[0] ** 2 - added_from**2) * source(x, first, 0.0, 0.0)
        expected = integrate(Heun(), oracle, path, expected, levels)
        first += len(levels) - 1
        visited.append(levels[:-1])
    torch.testing.assert_close(end, expected, rtol=1e-9, atol=1e-9)
    visited = torch.cat(visited)
    torch.testing.assert_close(Restart(intervals).visited(SIGMAS), visited, rtol=1e-13, atol=0)
    # The steps are numbered through, each from where the last has gone, and calls add up.
    assert [step.index for step in steps] == list(range(len(visited)))
    assert [step.sigma for step in steps] == pytest.approx(visited.tolist(), rel=1e-13)
    assert [step.nfe for step in steps] == [*range(2, 2 * len(visited), 2), 2 * len(visited) - 1]
    for step in steps:
        torch.testing.assert_close(
            step.denoised, oracle(step.unscaled, torch.tensor(step.sigma, dtype=F64)), rtol=1e-9, atol=1e-9
        )


def test_no_draw_is_asked_twice():
    """Unit vectors assert it; with churn every step draws, and restarts besides."""
    source = UnitVectors(2)
    solver = Restart(TWO, Heun(Churn(5.0)))
    solver(gaussian(), torch.zeros(1, 2, dtype=F64), SIGMAS, process=process.EDM(), noise=source)
    visited = len(solver.visited(SIGMAS))
    assert len(source.draws) == visited + sum(repeats for *_, repeats in TWO)
    assert {step for step, _ in source.draws} == set(range(visited))


def test_samples_with_seeds_trajectories_and_recorded_noise():
    oracle, solver = mixture(), Restart(TWO)
    options = {"sampler": solver, "num_steps": 24, "sigma_min": 0.02, "sigma_max": 20.0, "progress": False}
    drawn = edmund.sample(oracle, (7, 2), return_trajectory=True, **options)
    assert torch.equal(drawn.samples, edmund.sample(oracle, (7, 2), batch_size=3, **options))
    assert torch.equal(drawn.samples[2:4], edmund.sample(oracle, (2, 2), seeds=[2, 3], **options))
    visited = solver.visited(SIGMAS)
    torch.testing.assert_close(drawn.sigmas[:-1], visited, rtol=1e-12, atol=0)
    assert len(drawn.x) == len(visited) + 1 and len(drawn.denoised) == len(visited)
    for k in (0, 13, 30):
        torch.testing.assert_close(drawn.denoised[k], oracle(drawn.x[k], drawn.sigmas[k]), rtol=1e-9, atol=1e-9)
    # A restart's noise is the first draw of the step after it: one recorded draw a step is enough.
    source = noise.Seeded(range(7))
    recorded = torch.stack([source(drawn.samples, k, 0.0, 0.0) for k in range(len(visited))])
    assert torch.equal(drawn.samples, edmund.sample(oracle, (7, 2), noise=noise.Recorded(recorded), **options))


def test_a_default_restart_fits_every_grid():
    oracle, path, x = mixture(), process.EDM(), torch.ones(2, 2, dtype=F64)
    edm = grid.EDM()(18, 0.002, 80.0)
    assert Restart().visited(edm).tolist() == pytest.approx(Restart(((0.06, 0.3, 2, 2),)).visited(edm).tolist())
    assert len(Restart().visited(edm)) == 18 + 4
    for sigmas in ([80.0, 0.0], [80.0, 1.0, 0.0], [10.0, 1.0, 0.3], [0.2, 0.05, 0.0]):
        levels = torch.tensor(sigmas, dtype=F64)
        assert torch.equal(Restart().visited(levels), levels[:-1])
        assert torch.equal(Restart()(oracle, x, levels, process=path), Heun()(oracle, x, levels, process=path))
    # A grid that ends on the way: the restart is the last thing done.
    levels = grid.EDM()(18, 0.06, 80.0)[:-1]
    assert len(Restart().visited(levels)) == 17 + 4
    assert exact_law(Restart(), gaussian(), path, levels)[1].isfinite().all()


def test_discrete_models_are_called_at_their_levels():
    levels, seen = process.iddpm_levels(), []

    def discrete(x, sigma):
        seen.append(sigma.item())
        return 0.5 * x

    discrete.round_sigma = preconditioning.IDDPM().round_sigma
    edmund.sample(discrete, (2, 2), sampler=Restart(TWO), num_steps=12, sigma_min=0.02, sigma_max=20, progress=False)
    assert all(sigma in levels for sigma in seen) and len(seen) > 24
    few = Restart(((0.02, 0.05, 40, 1),))
    with pytest.raises(InputError, match="fewer levels"):
        edmund.sample(discrete, (2, 2), sampler=few, num_steps=12, sigma_min=0.02, sigma_max=20, progress=False)


@pytest.mark.parametrize(
    ("intervals", "words"),
    [
        ("0.1", ["intervals", "'0.1'"]),
        (3, ["intervals", "3"]),
        ([(0.1, 0.3)], ["intervals", "(0.1, 0.3)"]),
        ([(0.3, 0.1, 2, 2)], ["0.3", "0.1", "below"]),
        ([(0.0, 0.1, 2, 2)], ["sigma_low", "0.0"]),
        ([(0.1, math.inf, 2, 2)], ["sigma_high", "inf"]),
        ([(0.1, 0.3, 0, 2)], ["num_steps", "0"]),
        ([(0.1, 0.3, 2.5, 2)], ["num_steps", "2.5"]),
        ([(0.1, 0.3, 2, 0)], ["repeats", "0"]),
    ],
)
def test_bad_intervals(intervals, words):
    with pytest.raises(InputError) as error:
        Restart(intervals)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_what_cannot_be_done_is_refused():
    oracle, path, x, source = mixture(), process.EDM(), torch.ones(2, 2, dtype=F64), noise.Seeded(range(2))
    for interval in ((0.01, 0.3, 2, 2), (0.1, 30.0, 2, 2), (15.0, 15.1, 2, 1)):
        with pytest.raises(InputError) as error:
            Restart((interval,))(oracle, x, SIGMAS, process=path, noise=source)
        assert str(interval) in str(error.value) and "0.02" in str(error.value) and "20" in str(error.value)
    with pytest.raises(InputError, match="sigmas rises"):
        Restart()(oracle, x, SIGMAS[:-1].flip(0), process=path, noise=source)
    with pytest.raises(InputError, match="noise is None"):
        Restart(TWO)(oracle, x, SIGMAS, process=path)
    for wrong in ("heun", Heun):
        with pytest.raises(InputError, match="sampler is"):
            Restart(sampler=wrong)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Restart().intervals = None
    assert Restart([[0.1, 0.3, 2, 2]]) == Restart(((0.1, 0.3, 2, 2),))
