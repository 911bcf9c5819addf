"""The one-step samplers: DDIM, DPM-Solver-2, DPM-Solver++(2S), DPM-Solver-fast, their ancestral forms and churn."""

from __future__ import annotations

import dataclasses
import itertools
import math

import peers
import pytest
import torch
from oracles import (
    F64,
    PROCESSES,
    gaussian,
    gaussian_flow,
    integrate,
    law_error,
    measured_order,
    mixture,
    noisy,
    weak_order,
)

from edmund import denoiser, grid, noise, process, samplers
from edmund.errors import InputError
from edmund.samplers import DDIM, DPM2, Churn, DPMFast, DPMpp2S, Euler, Heun

SOLVERS = {
    "ddim": DDIM(),
    "dpm_2": DPM2(),
    "dpmpp_2s": DPMpp2S(),
    "dpm_fast": DPMFast(),
    "dpm_fast, 0": DPMFast(remainder=0),
    "dpm_fast, 1": DPMFast(remainder=1),
}
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
ancestral_ones = pytest.mark.parametrize("kind", [DDIM, DPM2, DPMpp2S])


def no_noise(x, *_):
    return torch.zeros_like(x)


@every_solver
@pytest.mark.parametrize("name", ["vp", "ve", "edm", "cosine", "flow"])
def test_order(solver, name):
    path = PROCESSES[name]
    assert measured_order(solver, gaussian(), path, gaussian_flow) == pytest.approx(solver.order, abs=0.1)
    assert measured_order(solver, mixture(), path) == pytest.approx(solver.order, abs=0.1)


@every_solver
def test_the_process_does_not_matter(solver):
    """All act on the unscaled state over sigma."""
    oracle, x, sigmas = mixture(), noisy(mixture(), 5, 10.0), grid.EDM()(12, 0.02, 10.0)
    ends = [integrate(solver, oracle, path, x, sigmas) for path in PROCESSES.values()]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-10, atol=1e-10)


def test_ddim_is_euler_in_sigma():
    oracle, x, sigmas = mixture(), noisy(mixture(), 5, 10.0), grid.EDM()(12, 0.02, 10.0)
    ours, euler = (integrate(solver, oracle, process.EDM(), x, sigmas) for solver in (DDIM(), Euler()))
    torch.testing.assert_close(ours, euler, rtol=1e-11, atol=1e-11)


# With new noise.


@ancestral_ones
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_weak_order(kind, eta):
    """Of mean and covariance, which unit vectors pushed through the draws give exactly."""
    solver = kind(eta=eta)
    for name in ("vp", "edm"):
        assert weak_order(solver, gaussian(), PROCESSES[name]) == pytest.approx(solver.order, abs=0.1)


@ancestral_ones
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_law_is_exact_for_a_point(kind, eta):
    """Where D does not depend on x, an ancestral step has no error: std sigma' about the point, in one step too."""

    def point(x, sigma):
        return torch.full_like(x, 0.7)

    point.moments = lambda: (torch.full((2,), 0.7, dtype=F64), torch.zeros(2, 2, dtype=F64))
    for sigmas in ([10.0, 0.3], [10.0, 3.0, 2.9, 0.01]):
        assert max(law_error(kind(eta=eta), point, process.EDM(), torch.tensor(sigmas, dtype=F64))) < 1e-10


@ancestral_ones
def test_too_much_noise_is_seen(kind):
    sigmas = grid.EDM(3.0)(129, 0.3, 10.0)[:-1]
    assert law_error(kind(eta=1.0), gaussian(), process.EDM(), sigmas)[1] < 0.02
    assert law_error(kind(eta=1.0, S_noise=1.1), gaussian(), process.EDM(), sigmas)[1] > 0.03


@ancestral_ones
def test_law_on_a_mixture(kind):
    """Kolmogorov-Smirnov of both coordinates against the exact distribution function, with half of the noise."""
    stats = pytest.importorskip("scipy.stats")
    oracle, n = mixture(), 2000
    x = noisy(oracle, n, 40.0)
    end = kind(eta=0.7)(oracle, x, grid.EDM()(150, 0.01, 40.0), process=process.EDM(), noise=noise.Seeded(range(n)))
    mean, covariance = oracle.moments()
    assert ((end.mean(0) - mean).abs() / torch.sqrt(covariance.diagonal() / n)).max() < 4.5
    for axis in (0, 1):
        parts = list(zip([0.3, 0.3, 0.4], oracle.means[:, axis].tolist(), [0.4, 0.5, 0.6], strict=True))
        result = stats.kstest(
            end[:, axis].numpy(), lambda v, parts=parts: sum(w * stats.norm(m, s).cdf(v) for w, m, s in parts)
        )
        assert result.pvalue > 1e-3


@ancestral_ones
def test_noise_is_that_of_the_steps(kind):
    """One draw a step over the step's interval, none in the step to 0, and after churn's."""
    asked = []

    def watch(x, step, sigma_from, sigma_to, draw=0):
        asked.append((step, sigma_from, sigma_to, draw))
        return torch.zeros_like(x)

    x = torch.ones(1, 2, dtype=F64)
    kind(eta=0.5)(mixture(), x, [4.0, 2.0, 1.0, 0.0], process=process.VP(), noise=watch)
    assert asked == [(0, 4.0, 2.0, 0), (1, 2.0, 1.0, 0)]
    asked.clear()
    kind(Churn(0.3), eta=0.5)(mixture(), x, [4.0, 2.0, 1.0, 0.0], process=process.VP(), noise=watch)
    expected = [(0, 4.0, 4.4, 0), (0, 4.4, 2.0, 1), (1, 2.0, 2.2, 0), (1, 2.2, 1.0, 1), (2, 1.0, 1.1, 0)]
    assert [pytest.approx(entry) for entry in expected] == asked


@ancestral_ones
def test_brownian_noise_refines_one_path(kind):
    """With a Brownian source, steps of half the length change the samples ever less; with a white one they do not."""
    oracle, x = mixture(), noisy(mixture(), 200, 10.0)

    def changes(source):
        levels = [torch.exp(torch.linspace(math.log(10.0), math.log(0.1), n + 1, dtype=F64)) for n in (32, 64, 128)]
        ends = [kind(eta=1.0)(oracle, x, sigmas, process=process.EDM(), noise=source) for sigmas in levels]
        return [(a - b).square().mean().sqrt().item() for a, b in itertools.pairwise(ends)]

    first, second = changes(noise.Brownian(range(200)))
    assert math.log2(first / second) > 0.7
    first, second = changes(noise.Seeded(range(200)))
    assert second > 0.5


# Encoding, one step, and churn.


@every_solver
def test_encode_and_decode(solver):
    oracle, path = mixture(), PROCESSES["vp"]
    falling = grid.EDM(3.0)(201, 0.1, 10.0)[:-1]
    data = noisy(oracle, 20, 0.1)
    encoded = integrate(solver, oracle, path, data, falling.flip(0))
    back = integrate(solver, oracle, path, encoded, falling)
    assert (back - data).abs().max() < (0.2 if solver.order == 1 else 5e-3)
    encoded = integrate(solver, gaussian(), path, data, falling.flip(0))
    assert (encoded - gaussian_flow(gaussian(), data, 0.1, 10.0)).abs().max() < (1.0 if solver.order == 1 else 5e-2)


@pytest.mark.parametrize("solver", [*SOLVERS.values(), DDIM(eta=1.0), DPM2(eta=1.0), DPMpp2S(Churn(1.0), eta=0.5)])
def test_one_step(solver):
    """[sigma_max, 0] is the denoised image (after churn's noise, which is 0 here)."""
    oracle, sigmas = mixture(), torch.tensor([5.0, 0.0], dtype=F64)
    y = noisy(oracle, 6, 5.0)
    raised = solver.raised(sigmas, oracle)[0]
    for path in PROCESSES.values():
        start = y * path.s(path.t(sigmas[0]))
        out = solver(oracle, start, sigmas, process=path, noise=no_noise)
        torch.testing.assert_close(out / path.s(path.t(sigmas[1])), oracle(y, raised), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "calls"),
    [
        (DDIM(), [1, 2, 3, 6]),
        (DPM2(), [1, 3, 5, 11]),
        (DPMpp2S(), [1, 3, 5, 11]),
        (DPMFast(), [1, 3, 6, 15]),
        (DPMFast(remainder=1), [1, 2, 5, 14]),
        (DPMFast(remainder=0), [1, 2, 4, 13]),
    ],
)
def test_calls(solver, calls):
    found = []
    for steps in (1, 2, 3, 6):
        seen = []
        solver(mixture(), torch.ones(1, 2), grid.EDM()(steps, 0.02, 20.0), process=process.EDM(), callback=seen.append)
        assert len(seen) == steps
        found.append(seen[-1].nfe)
    assert found == calls


# S_churn = 40 in 32 steps, gamma at its cap: a library that adds churn's noise behind the network has its mean 9 % off.
# On a Gaussian even that has the exact mean; narrow components of unequal weight show it. Of 512 steps the mean is the
# exact one; with 40000 samples its error is 0.2 %. DDIM's bias is Euler's at 32 steps, and falls with their number.


def mean_with_strong_churn(run):
    """How far the mean is off, relative to itself, of run(oracle, x, sigmas, source)."""
    oracle, n = denoiser.GaussianMixture([[3.0, 1.0], [1.0, 2.0]], [0.05, 0.05], [0.8, 0.2]), 40_000
    mean = run(oracle, noisy(oracle, n, 80.0), grid.EDM()(32, 0.002, 80.0), noise.Seeded(range(n))).mean(0)
    exact = oracle.moments()[0]
    return ((mean - exact) / exact).abs().max().item()


@pytest.mark.parametrize(
    ("kind", "bound"), [(Heun, 0.01), (DPM2, 0.01), (DPMpp2S, 0.01), (DPMFast, 0.01), (DDIM, 0.03)]
)
def test_strong_churn_keeps_the_mean(kind, bound):
    def run(oracle, x, sigmas, source):
        return kind(Churn(40.0))(oracle, x, sigmas, process=process.EDM(), noise=source)

    assert mean_with_strong_churn(run) < bound


def test_churn_behind_the_network_is_seen():
    """That mistake: the image is that of the state before the noise, at the node's level."""

    def run(oracle, z, sigmas, source):
        for k, raised in enumerate(Churn(40.0).raised(sigmas, None)):
            slope = (z - oracle(z, sigmas[k])) / sigmas[k]
            z = z + torch.sqrt(raised**2 - sigmas[k] ** 2) * source(z, k, 0.0, 0.0) + (sigmas[k + 1] - raised) * slope
        return z

    assert mean_with_strong_churn(run) > 0.06


# Equality with the peers.


def start_and_levels(steps=12, n=6):
    sigmas = grid.EDM()(steps, 0.02, 20.0)
    return noisy(mixture(), n, 20.0), sigmas


def model_of(oracle):
    """As k-diffusion calls it: sigma [B]."""
    return lambda x, sigma: oracle(x, sigma)


def draws_of(steps, n=6):
    return torch.randn(steps, n, 2, generator=torch.Generator().manual_seed(3), dtype=F64)


def in_turn(draws):
    """k-diffusion's noise sampler that replays draws."""
    rest = iter(draws)
    return lambda sigma, sigma_next: next(rest)


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        (DDIM, "sample_euler_ancestral"),
        (DPM2, "sample_dpm_2_ancestral"),
        (DPMpp2S, "sample_dpmpp_2s_ancestral"),
    ],
)
@pytest.mark.parametrize(("eta", "S_noise"), [(0.0, 1.0), (0.6, 1.0), (1.0, 1.01)])
def test_ancestral_equals_k_diffusion(kind, function, eta, S_noise):
    sampling = peers.k_diffusion()
    x, sigmas = start_and_levels()
    draws = draws_of(12)
    theirs = getattr(sampling, function)(
        model_of(mixture()), x, sigmas, eta=eta, s_noise=S_noise, noise_sampler=in_turn(draws), disable=True
    )
    ours = kind(eta=eta, S_noise=S_noise)(mixture(), x, sigmas, process=process.EDM(), noise=noise.Recorded(draws))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("S_churn", [0.0, 3.0, 40.0])
def test_dpm_2_equals_k_diffusion(S_churn, monkeypatch):
    sampling = peers.k_diffusion()
    x, sigmas = start_and_levels()
    draws = draws_of(12)
    rest = iter(draws)
    monkeypatch.setattr(torch, "randn_like", lambda x: next(rest))
    theirs = sampling.sample_dpm_2(
        model_of(mixture()), x, sigmas, s_churn=S_churn, s_tmin=0.1, s_tmax=5.0, s_noise=1.01, disable=True
    )
    churn = Churn(S_churn, 0.1, 5.0, 1.01)
    ours = DPM2(churn)(mixture(), x, sigmas, process=process.EDM(), noise=noise.Recorded(draws))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("calls", [3, 4, 5, 6, 10, 11, 12])
def test_dpm_fast_equals_k_diffusion(calls):
    sampling = peers.k_diffusion()
    x = noisy(mixture(), 6, 20.0)
    sigma_max, sigma_min = 20.0, 0.02
    seen = []
    theirs = sampling.sample_dpm_fast(
        model_of(mixture()), x, torch.tensor(sigma_min, dtype=F64), torch.tensor(sigma_max, dtype=F64), calls,
        disable=True, callback=lambda record: seen.append(record["sigma"].item()),
        noise_sampler=lambda *_: torch.zeros_like(x),
    )  # fmt: skip
    levels = torch.linspace(math.log(sigma_max), math.log(sigma_min), calls // 3 + 2, dtype=F64).exp()
    assert seen == pytest.approx(levels[:-1].tolist(), rel=1e-5)
    steps = []
    ours = DPMFast(remainder=calls % 3)(mixture(), x, levels, process=process.EDM(), callback=steps.append)
    assert steps[-1].nfe == calls
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def ddpm_levels(train, timesteps):
    alpha_bar = train.alphas_cumprod.double()
    levels = torch.sqrt((1 - alpha_bar) / alpha_bar)
    return torch.cat([levels[timesteps], torch.zeros(1, dtype=F64)])


@pytest.mark.parametrize(("solver", "eta"), [("DDIM", 0.0), ("DDIM", 0.5), ("DDIM", 1.0), ("DDPM", 1.0)])
def test_ddim_equals_diffusers(solver, eta, monkeypatch):
    """On its own levels, in its own scaling (VP), from its own beta schedule; the last step is to alpha_bar = 1."""
    diffusers = peers.diffusers()
    options = {"num_train_timesteps": 1000, "clip_sample": False}
    if solver == "DDIM":
        scheduler = diffusers.DDIMScheduler(**options, set_alpha_to_one=True)
    else:
        scheduler = diffusers.DDPMScheduler(**options, variance_type="fixed_small")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(20)
    sigmas = ddpm_levels(scheduler, scheduler.timesteps)
    oracle, draws = mixture(), draws_of(20)
    x = noisy(oracle, 6, sigmas[0].item()) * torch.rsqrt(1 + sigmas[0] ** 2)
    theirs = x
    rest = iter(draws)
    where = f"diffusers.schedulers.scheduling_{solver.lower()}.randn_tensor"
    monkeypatch.setattr(where, lambda *args, **kwargs: next(rest))
    for k, t in enumerate(scheduler.timesteps):
        unscaled = theirs * torch.sqrt(1 + sigmas[k] ** 2)
        epsilon = (unscaled - oracle(unscaled, sigmas[k])) / sigmas[k]
        extra = {"eta": eta} if solver == "DDIM" else {}
        theirs = scheduler.step(epsilon, t, theirs, **extra).prev_sample
    ours = DDIM(eta=eta)(oracle, x, sigmas, process=process.VP(), noise=noise.Recorded(draws))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# Names and bad arguments.


def test_names():
    makers = samplers.named()
    assert makers["ddim"]() == DDIM() and makers["ddpm"]() == makers["euler_ancestral"]() == DDIM(eta=1.0)
    assert makers["dpm_2"]() == DPM2() and makers["dpm_2_ancestral"]() == DPM2(eta=1.0)
    assert makers["dpmpp_2s"]() == DPMpp2S() and makers["dpmpp_2s_ancestral"](S_noise=1.1) == DPMpp2S(None, 1.0, 1.1)
    assert makers["dpm_fast"](remainder=1) == DPMFast(remainder=1)
    for solver in SOLVERS.values():
        assert not solver.stochastic and dataclasses.replace(solver, churn=Churn(1.0)).stochastic
        assert not solver.brownian and solver.source
    assert DDIM(eta=0.1).stochastic and DPM2(eta=0.1).stochastic and DPMpp2S(eta=0.1).stochastic


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: DDIM(eta=-0.1), ["eta", "-0.1"]),
        (lambda: DPM2(eta=1.5), ["eta", "1.5", "[0, 1]", "EulerMaruyama"]),
        (lambda: DPMpp2S(eta=math.nan), ["eta", "nan"]),
        (lambda: DDIM(eta="1"), ["eta", "'1'"]),
        (lambda: DDIM(S_noise=-1.0), ["S_noise", "-1.0"]),
        (lambda: DPM2(S_noise=math.inf), ["S_noise", "inf"]),
        (lambda: DPMFast(remainder=3), ["remainder", "3"]),
        (lambda: DPMFast(remainder=True), ["remainder", "True"]),
    ],
)
def test_bad_arguments(build, words):
    with pytest.raises(InputError) as error:
        build()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize("solver", [DDIM(eta=0.5), DPM2(eta=0.5), DPMpp2S(eta=1.0), DPMFast(Churn(1.0))])
def test_what_adds_noise_cannot_encode(solver):
    x = torch.ones(1, 2, dtype=F64)
    with pytest.raises(InputError, match="sigmas rises"):
        solver(mixture(), x, [0.1, 1.0, 2.0], process=process.EDM(), noise=noise.Seeded([0]))
    with pytest.raises(InputError, match="noise is None"):
        solver(mixture(), x, [2.0, 1.0, 0.0], process=process.EDM())
