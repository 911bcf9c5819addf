"""Adaptive: its error against its tolerance, every sample by itself, calls and callbacks."""

from __future__ import annotations

import dataclasses
import itertools
import math

import peers
import pytest
import torch
from oracles import F64, PROCESSES, gaussian, gaussian_flow, integrate, mixture, noisy
from torch import nn

import edmund
from edmund import grid, noise, preconditioning, process
from edmund.denoiser import Empirical
from edmund.errors import InputError
from edmund.samplers import Adaptive, Heun, Restart

SIGMAS = grid.EDM()(18, 0.002, 80.0)
every_process = pytest.mark.parametrize("name", PROCESSES)


@every_process
def test_exact_flow_of_a_gaussian(name):
    """To 1e-8 at a tolerance of 1e-10, down and up, in every process; the result does not depend on the process."""
    oracle, solver, path = gaussian(), Adaptive(1e-10, 1e-10), PROCESSES[name]
    x = noisy(oracle, 16, 80.0)
    down = integrate(solver, oracle, path, x, SIGMAS[:-1])
    truth = gaussian_flow(oracle, x, 80.0, 0.002)
    torch.testing.assert_close(down, truth, rtol=0, atol=1e-8)
    up = integrate(solver, oracle, path, truth, SIGMAS[:-1].flip(0))
    torch.testing.assert_close(up, x, rtol=1e-8, atol=0)
    # Then the step to 0, which is the denoiser.
    end = integrate(solver, oracle, path, x, SIGMAS)
    torch.testing.assert_close(end, oracle(truth, SIGMAS[-2]), rtol=0, atol=1e-8)


@pytest.mark.parametrize("oracle", [gaussian(), mixture()], ids=["gaussian", "mixture"])
def test_error_is_in_proportion_to_the_tolerance(oracle):
    x = noisy(oracle, 32, 80.0)
    truth = Adaptive(1e-12, 1e-12)(oracle, x, SIGMAS, process=process.EDM())
    tolerances, errors, calls = [10.0**-k for k in range(4, 10)], [], []
    for tolerance in tolerances:
        steps = []
        end = Adaptive(tolerance, tolerance)(oracle, x, SIGMAS, process=process.EDM(), callback=steps.append)
        errors.append((end - truth).square().mean().sqrt().item())
        calls.append(steps[-1].nfe)
    assert all(error < 10 * tolerance for error, tolerance in zip(errors, tolerances, strict=True)), errors
    slope = math.log(errors[0] / errors[-1]) / math.log(tolerances[0] / tolerances[-1])
    assert 0.9 < slope < 1.25, errors
    assert all(fine > coarse for coarse, fine in itertools.pairwise(calls))
    # Order 5: a step is as the fifth root of the tolerance.
    assert math.log(calls[-1] / calls[-2]) / math.log(10) == pytest.approx(1 / 5, abs=0.06)


def test_the_default_costs_less_than_heun_for_more():
    oracle, steps = mixture(), []
    x = noisy(oracle, 64, 80.0)
    truth = Adaptive(1e-10, 1e-10)(oracle, x, SIGMAS, process=process.EDM())
    default = Adaptive()(oracle, x, SIGMAS, process=process.EDM(), callback=steps.append)
    heun = Heun()(oracle, x, grid.EDM()((steps[-1].nfe + 1) // 2, 0.002, 80.0), process=process.EDM())
    assert steps[-1].nfe < 100
    assert (default - truth).norm() < (heun - truth).norm()


def test_agrees_with_k_diffusions_adaptive_solver():
    sampling, oracle = peers.k_diffusion(), mixture()
    x = noisy(oracle, 8, 80.0)
    ours = Adaptive(1e-7, 1e-7)(oracle, x, SIGMAS[:-1], process=process.EDM())
    theirs = sampling.sample_dpm_adaptive(
        lambda x, sigma: oracle(x, sigma), x, 0.002, 80.0, rtol=1e-5, atol=1e-5, disable=True
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


ORACLES = {"mixture": (mixture, (2,)), "empirical": (lambda: Empirical(torch.eye(5, dtype=F64)[:, None]), (1, 5))}


@pytest.mark.parametrize("name", ORACLES)
def test_a_sample_does_not_depend_on_its_batch(name):
    make, item = ORACLES[name]
    options = {"sampler": Adaptive(1e-5, 1e-5), "num_steps": 5, "progress": False}
    together = edmund.sample(make(), (41, *item), return_trajectory=True, **options)
    for size in (1, 2, 5, 7):
        parts = edmund.sample(make(), (41, *item), batch_size=size, return_trajectory=True, **options)
        assert torch.equal(parts.samples, together.samples)
        assert torch.equal(parts.x, together.x)
    alone = edmund.sample(make(), (1, *item), seeds=[17], **options)
    assert torch.equal(alone[0], together.samples[17])


def test_conditions_follow_their_samples():
    """Samples of different difficulty arrive at different times; each keeps its own condition."""
    seen = []

    def told(x, sigma, *, std, mean):
        assert sigma.ndim == 0 or len(sigma) == len(x) == len(std)
        seen.append(len(x))
        sigma = sigma.reshape(-1, 1)
        return mean + std**2 / (std**2 + sigma**2) * (x - mean)

    std, mean = torch.tensor([[1e-3], [0.1], [1.0], [100.0], [5.0]], dtype=F64), torch.tensor([[0.5, -2.0]], dtype=F64)
    x = 50 * torch.ones(5, 2, dtype=F64)
    path, levels = process.VP(), torch.tensor([50.0, 0.01], dtype=F64)
    options = {"process": path, "condition": {"std": std, "mean": mean.expand(5, 2)}}
    scale = path.s(path.t(levels))
    end = Adaptive(1e-9, 1e-9)(told, x * scale[0], levels, **options) / scale[1]
    exact = mean + (x - mean) * torch.sqrt((std**2 + 0.01**2) / (std**2 + 50.0**2))
    torch.testing.assert_close(end, exact, rtol=0, atol=1e-7)
    assert set(seen) == {1, 2, 3, 4, 5}
    one = edmund.sample(
        told, (5, 2), sampler=Adaptive(), num_steps=3, progress=False, condition={"std": std, "mean": mean}
    )
    torch.testing.assert_close(one.mean(1)[0], mean.mean(), rtol=0, atol=0.05)


@every_process
def test_callback(name):
    """Every node in order, at the state of the exact flow; the denoised image only for who reads it."""
    oracle, path, calls, steps = gaussian(), PROCESSES[name], [], []

    def counted(x, sigma):
        calls.append(len(x))
        return oracle(x, sigma)

    x = noisy(oracle, 4, 80.0)
    solver = Adaptive(1e-9, 1e-9)
    times = path.t(SIGMAS)
    end = solver(counted, x * path.s(times[0]), SIGMAS, process=path, callback=steps.append)
    assert [step.index for step in steps] == list(range(18))
    assert [step.sigma for step in steps] == SIGMAS[:-1].tolist() == solver.visited(SIGMAS).tolist()
    assert [step.t for step in steps] == pytest.approx(times[:-1].tolist(), rel=1e-12)
    assert steps[-1].nfe == len(calls) and {step.nfe for step in steps[:-1]} == {len(calls) - 1}
    for step in steps:
        truth = gaussian_flow(oracle, x, 80.0, step.sigma)
        torch.testing.assert_close(step.unscaled, truth, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(
            step.x, truth * path.s(path.t(torch.tensor(step.sigma, dtype=F64))), rtol=1e-7, atol=1e-7
        )
    made = len(calls)
    for step in steps:
        expected = oracle(step.unscaled, torch.tensor(step.sigma, dtype=F64))
        torch.testing.assert_close(step.denoised, expected, rtol=1e-12, atol=1e-12)
        assert step.denoised is step.denoised
    assert len(calls) == made + 17
    copied = dataclasses.replace(steps[3], unscaled=steps[3].unscaled.clone())
    assert copied.index == 3 and copied.denoised is steps[3].denoised
    # Told or not, the way is the same, and nothing more is called.
    calls.clear()
    assert torch.equal(solver(counted, x * path.s(times[0]), SIGMAS, process=path), end)
    assert len(calls) == steps[-1].nfe


@pytest.mark.parametrize("sigmas", [[80.0, 0.0], [80.0, 1.0], [80.0, 1.0, 0.0], [1.0, 80.0]], ids=str)
def test_few_levels(sigmas):
    oracle, path, levels, steps = gaussian(), process.VP(), torch.tensor(sigmas, dtype=F64), []
    x = noisy(oracle, 3, sigmas[0])
    solver = Adaptive(1e-9, 1e-9)
    end = integrate(lambda *args, **options: solver(*args, callback=steps.append, **options), oracle, path, x, levels)
    last = [sigma for sigma in sigmas if sigma > 0][-1]
    expected = gaussian_flow(oracle, x, sigmas[0], last)
    if sigmas[-1] == 0:
        expected = oracle(expected, torch.tensor(last, dtype=F64))
    torch.testing.assert_close(end, expected, rtol=1e-7, atol=1e-7)
    assert [step.sigma for step in steps] == sigmas[:-1]
    if sigmas == [80.0, 0.0]:
        assert steps[0].nfe == 1


def test_in_single_precision_and_inside_restart():
    oracle = mixture()
    options = {"num_steps": 9, "progress": False}
    double = edmund.sample(oracle, (20, 2), sampler="adaptive", **options)
    single = edmund.sample(oracle, (20, 2), sampler="adaptive", dtype=torch.float32, **options)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, double.float(), rtol=0, atol=2e-3)
    counts, steps = [], []

    def counted(x, sigma):
        counts.append(1)
        return oracle(x, sigma)

    solver = Restart(((0.1, 1.0, 2, 2),), Adaptive())
    edmund.sample(counted, (4, 2), sampler=solver, callback=steps.append, **options)
    assert [step.index for step in steps] == list(range(9 + 4))
    assert steps[-1].nfe == len(counts)


def test_gradients_pass_through():
    oracle, x = gaussian(), torch.tensor([[3.0, -1.0]], dtype=F64)
    run = lambda x: Adaptive(1e-9, 1e-9)(oracle, x, SIGMAS[:-1], process=process.EDM())  # noqa: E731
    jacobian = torch.autograd.functional.jacobian(run, x)[0, :, 0, :]
    exact = gaussian_flow(oracle, torch.eye(2, dtype=F64), 80.0, 0.002)
    exact = exact - gaussian_flow(oracle, torch.zeros(1, 2, dtype=F64), 80.0, 0.002)
    torch.testing.assert_close(jacobian, exact.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("argument", ["rtol", "atol"])
@pytest.mark.parametrize("value", [0.0, -1e-3, math.nan, math.inf, "1e-3", None, True])
def test_bad_tolerances(argument, value):
    with pytest.raises(InputError) as error:
        Adaptive(**{argument: value})
    assert argument in str(error.value) and repr(value) in str(error.value)


def test_what_cannot_be_done_is_refused():
    x, path = torch.ones(2, 2, dtype=F64), process.EDM()

    class Discrete(nn.Module):
        round_sigma = staticmethod(preconditioning.IDDPM().round_sigma)

        def forward(self, x, sigma):
            return 0.5 * x

    with pytest.raises(InputError, match="round_sigma"):
        Adaptive()(Discrete(), x, SIGMAS, process=path)
    with pytest.raises(InputError, match="rtol is"):  # a field that is not finite
        Adaptive()(lambda x, sigma: x / (sigma[:, None] > 1), x, SIGMAS[:-1], process=path)
    with pytest.raises(InputError, match="returned"):
        Adaptive()(lambda x, sigma: x[:, :1], x, SIGMAS, process=path)
    for size in (2, 3):  # sigma [B] along the last axis
        with pytest.raises((InputError, RuntimeError)):
            Adaptive()(lambda x, sigma: x / (1 + sigma**2), torch.ones(size, 2, dtype=F64), SIGMAS, process=path)
    with pytest.raises(InputError, match=r"sigma of shape \(2,\)"):
        Adaptive()(lambda x, sigma: x / (1 + sigma**2), x, SIGMAS, process=path)
    for bad in (math.nan, math.inf):  # as many samples as numbers in the last axis, where more is checked
        with pytest.raises(InputError, match=r"the denoiser returned NaN or infinite values at sigma = 80"):
            Adaptive()(lambda x, sigma: x * bad, x, SIGMAS, process=path)  # noqa: B023
    source = noise.Seeded(range(2))
    assert torch.equal(
        Adaptive()(gaussian(), x, SIGMAS, process=path, noise=source), Adaptive()(gaussian(), x, SIGMAS, process=path)
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        Adaptive().rtol = 1.0
