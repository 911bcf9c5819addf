"""The samplers of the reverse SDE: their law and its order, one path at any number of steps, and their peers."""

from __future__ import annotations

import itertools
import math

import peers
import pytest
import torch
from oracles import F64, PROCESSES, gaussian, integrate, law_error, measured_order, mixture, noisy, weak_order

from edmund import denoiser, grid, noise, process, samplers
from edmund.errors import InputError
from edmund.samplers import DPMpp2S, DPMppSDE, Euler, EulerMaruyama, Heun, PredictorCorrector, SDEHeun

every_process = pytest.mark.parametrize("name", PROCESSES)


def varying(sigma):
    """A ratio that varies with sigma."""
    return 2 / (1 + sigma)


def in_a_window(sigma):
    """Noise in a part of the range only."""
    return torch.where((sigma > 0.5) & (sigma < 3.5), 1.0, 0.0)


RATIOS = {"1": 1.0, "3": 3.0, "varying": varying}
SOLVERS = {
    "euler_maruyama": EulerMaruyama(),
    "sde_heun": SDEHeun(),
    "dpmpp_sde": DPMppSDE(),
    "dpmpp_sde, eta 0.5": DPMppSDE(eta=0.5),
    "dpmpp_sde, r 0.3": DPMppSDE(r=0.3),
    "predictor_corrector": PredictorCorrector(),
}
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


# The law, exactly: on a Gaussian, by unit vectors.


@every_process
@pytest.mark.parametrize("beta", RATIOS.values(), ids=RATIOS)
def test_weak_order_of_the_family(name, beta):
    for kind in (EulerMaruyama, SDEHeun):
        solver = kind(beta)
        assert weak_order(solver, gaussian(), PROCESSES[name], (96, 192)) == pytest.approx(solver.order, abs=0.15)


@pytest.mark.parametrize("solver", [DPMppSDE(), DPMppSDE(eta=0.5), DPMppSDE(r=0.3), DPMppSDE(r=0.8)])
def test_weak_order_of_dpmpp_sde(solver):
    assert weak_order(solver, gaussian(), process.EDM()) == pytest.approx(2, abs=0.2)


class WrongJoint(DPMppSDE):
    """DPM-Solver++ SDE whose second stage takes a noise of its own: right variance, no covariance with the first."""

    def plan(self, process, sigma_from, sigma_to):
        def change(step):
            if len(step.stages) == 1:
                return step
            first, second = step.stages
            return step._replace(stages=(first, second._replace(noise=(0.0, math.hypot(*second.noise)))))

        return [change(step) for step in super().plan(process, sigma_from, sigma_to)]


def test_the_two_draws_of_dpmpp_sde_are_of_one_path():
    assert weak_order(WrongJoint(), gaussian(), process.EDM()) < 1.3


@pytest.mark.parametrize("kind", [EulerMaruyama, SDEHeun, DPMppSDE])
def test_too_much_noise_is_seen(kind):
    sigmas = grid.EDM(3.0)(97, 0.3, 10.0)[:-1]
    assert law_error(kind(), gaussian(), process.EDM(), sigmas)[1] < 0.02
    assert law_error(kind(S_noise=1.1), gaussian(), process.EDM(), sigmas)[1] > 0.05


def test_predictor_corrector_converges():
    """At the end of the range, where Langevin's bias is small; with more steps both errors fall, as 1/N or faster."""
    errors = [
        max(law_error(PredictorCorrector(), gaussian(), PROCESSES["ve"], grid.EDM(3.0)(n, 0.01, 10.0)[:-1]))
        for n in (64, 128, 256)
    ]
    assert errors[2] < 6e-3
    assert all(math.log2(a / b) > 0.8 for a, b in itertools.pairwise(errors))
    # High above the data Langevin's bias is that of the docstring, snr^2 / 2 of the std (the predictor's is less).
    snr, sigmas = 0.3, torch.linspace(110.0, 100.0, 401, dtype=F64)
    error = law_error(PredictorCorrector(snr), gaussian(), PROCESSES["ve"], sigmas)[1]
    assert error == pytest.approx(1 / math.sqrt(1 - snr**2) - 1, rel=0.05)


def weak_error_on_a_mixture(solver, path, steps):
    """The largest error of the first four moments, without Monte Carlo: start and draws are Gauss-Hermite nodes.

    Three nodes a draw have a normal's moments up to the fifth, which is more than a method of weak order 2 sees.
    """
    means, stds, weights = [-1.0, 0.8], [0.5, 0.3], [0.4, 0.6]
    oracle = denoiser.GaussianMixture([[m] for m in means], stds, weights)
    sigmas = torch.linspace(1.5, 0.75, steps + 1, dtype=F64)
    nodes, mass = (torch.as_tensor(v, dtype=F64) for v in hermite(24))
    starts = torch.cat([m + math.sqrt(s**2 + 1.5**2) * nodes for m, s in zip(means, stds, strict=True)])
    masses = torch.cat([w * mass for w in weights])
    values, share = (torch.as_tensor(v, dtype=F64) for v in hermite(3))
    total = 3**steps
    draws = [values[torch.arange(total) // 3**k % 3].repeat(len(starts))[:, None] for k in range(steps)]
    probability = torch.stack([share[torch.arange(total) // 3**k % 3] for k in range(steps)]).prod(0)

    def source(x, step, sigma_from, sigma_to, draw=0):
        return draws[step]

    scaling = path.s(path.t(sigmas))
    start = starts.repeat_interleave(total)[:, None] * scaling[0]
    end = (solver(oracle, start, sigmas, process=path, noise=source) / scaling[-1])[:, 0]
    masses = (masses[:, None] * probability).flatten()
    errors = []
    for power in (1, 2, 3, 4):
        exact = sum(
            w * (m + math.sqrt(s**2 + 0.75**2) * nodes).pow(power) @ mass
            for w, m, s in zip(weights, means, stds, strict=True)
        )
        errors.append(abs((masses @ end**power - exact).item()))
    return max(errors)


def hermite(count):
    """Nodes and weights of the unit normal."""
    numpy = pytest.importorskip("numpy")
    nodes, weights = numpy.polynomial.hermite_e.hermegauss(count)
    return nodes, weights / weights.sum()


@pytest.mark.parametrize("name", ["edm", "vp", "flow"])
@pytest.mark.parametrize("beta", [1.0, varying], ids=["1", "varying"])
def test_weak_order_where_the_drift_is_not_linear(name, beta):
    coarse, fine = (weak_error_on_a_mixture(SDEHeun(beta), PROCESSES[name], steps) for steps in (3, 6))
    assert 1.7 < math.log2(coarse / fine) < 2.6
    coarse, fine = (weak_error_on_a_mixture(EulerMaruyama(beta), PROCESSES[name], steps) for steps in (3, 6))
    assert 0.7 < math.log2(coarse / fine) < 1.5


@every_solver
@pytest.mark.parametrize("name", ["edm", "flow"])
def test_law_on_a_mixture(solver, name):
    """Kolmogorov-Smirnov of both coordinates against the exact distribution function, and the mean."""
    stats = pytest.importorskip("scipy.stats")
    oracle, n, path = mixture(), 1500, PROCESSES[name]
    source = (noise.Brownian if solver.brownian else noise.Seeded)(range(n))
    sigmas = grid.EDM()(160, 0.01, 40.0)
    scaling = path.s(path.t(sigmas[0]))
    end = solver(oracle, noisy(oracle, n, 40.0) * scaling, sigmas, process=path, noise=source)
    mean, covariance = oracle.moments()
    assert ((end.mean(0) - mean).abs() / torch.sqrt(covariance.diagonal() / n)).max() < 4.5
    for axis in (0, 1):
        parts = list(zip([0.3, 0.3, 0.4], oracle.means[:, axis].tolist(), [0.4, 0.5, 0.6], strict=True))
        result = stats.kstest(
            end[:, axis].numpy(), lambda v, parts=parts: sum(w * stats.norm(m, s).cdf(v) for w, m, s in parts)
        )
        assert result.pvalue > 1e-3


# One path, at any number of steps.


@pytest.mark.parametrize("solver", [EulerMaruyama(), EulerMaruyama(3.0), SDEHeun(), DPMppSDE(), DPMppSDE(eta=0.5)])
@pytest.mark.parametrize("name", ["edm", "vp"])
def test_brownian_noise_refines_one_path(solver, name):
    """Strong order 1: with steps of half the length the samples change half as much; with white noise they do not."""
    oracle, path, x = mixture(), PROCESSES[name], noisy(mixture(), 100, 10.0)
    assert solver.brownian

    def changes(source):
        levels = [torch.exp(torch.linspace(math.log(10.0), math.log(0.1), n + 1, dtype=F64)) for n in (32, 64, 128)]
        scaling = path.s(path.t(levels[0]))
        ends = [solver(oracle, x * scaling[0], sigmas, process=path, noise=source) / scaling[-1] for sigmas in levels]
        return [(a - b).square().mean().sqrt().item() for a, b in itertools.pairwise(ends)]

    first, second = changes(noise.Brownian(range(100)))
    assert 0.7 < math.log2(first / second) < 2.2 and second < 0.05
    first, second = changes(noise.Seeded(range(100)))
    assert second > 0.3


# What the weights are: the equations written out, the deterministic limits, the peers.


class Fixed:
    """Draws by (step, draw), made as they are asked."""

    def __init__(self):
        self.intervals = {}

    def __call__(self, x, step, sigma_from, sigma_to, draw=0):
        self.intervals[step, draw] = sigma_from, sigma_to
        return self[step, draw].expand_as(x)

    def __getitem__(self, which):
        return torch.randn(1, 2, generator=torch.Generator().manual_seed(100 * which[0] + which[1]), dtype=F64)


@every_process
@pytest.mark.parametrize("ratio", [1.0, varying, in_a_window], ids=["1", "varying", "window"])
def test_the_steps_are_those_of_the_sde(name, ratio):
    """formulas.md's SDE for any s, integrated for the scaled state in its own t."""
    path, oracle, draws = PROCESSES[name], mixture(), Fixed()
    sigmas = torch.tensor([6.0, 4.0, 2.5, 1.0, 0.4, 0.1], dtype=F64)
    t = path.t(sigmas)
    start = noisy(oracle, 4, 6.0) * path.s(t[0])

    def drift(x, t):
        s, sigma = path.s(t), path.sigma(t)
        beta = (ratio(sigma) if callable(ratio) else ratio) * path.sigma_dot(t) / sigma
        return path.s_dot(t) / s * x + (path.sigma_dot(t) / sigma + beta) * (x - s * oracle(x / s, sigma))

    def diffusion(t):
        beta = (ratio(path.sigma(t)) if callable(ratio) else ratio) * path.sigma_dot(t) / path.sigma(t)
        return path.s(t) * path.sigma(t) * torch.sqrt(2 * beta)

    euler = heun = start
    for k in range(5):
        h = t[k + 1] - t[k]
        n = torch.sqrt(-h) * draws[k, 0]
        euler = euler + h * drift(euler, t[k]) + 0.9 * diffusion(t[k]) * n
        noisy_part = 0.9 * (diffusion(t[k]) + diffusion(t[k + 1])) / 2 * n
        slope = drift(heun, t[k])
        heun = heun + h / 2 * (slope + drift(heun + h * slope + noisy_part, t[k + 1])) + noisy_part
    for solver, by_hand in ((EulerMaruyama(ratio, 0.9), euler), (SDEHeun(ratio, 0.9), heun)):
        ours = solver(oracle, start, sigmas, process=path, noise=draws)
        torch.testing.assert_close(ours, by_hand, rtol=1e-9, atol=1e-9)


@every_process
def test_without_noise_they_are_the_ode(name):
    path, oracle, sigmas = PROCESSES[name], mixture(), grid.EDM()(9, 0.02, 20.0)
    x = noisy(oracle, 4, 20.0)
    for stochastic, deterministic in (
        (EulerMaruyama(0.0), Euler()),
        (SDEHeun(0.0), Heun()),
        (DPMppSDE(eta=0.0), DPMpp2S()),
        (EulerMaruyama(torch.zeros_like), Euler()),
    ):
        for levels in (sigmas, sigmas[:-1].flip(0)):  # to sample, and to encode
            ours, ode = (integrate(solver, oracle, path, x, levels) for solver in (stochastic, deterministic))
            torch.testing.assert_close(ours, ode, rtol=1e-9, atol=1e-9)
    assert not EulerMaruyama(0.0).stochastic and not SDEHeun(0).stochastic and not DPMppSDE(eta=0.0).stochastic


@pytest.mark.parametrize("name", ["vp", "ve", "edm", "cosine", "flow"])
@pytest.mark.parametrize("solver", [EulerMaruyama(0.0), SDEHeun(0.0), DPMppSDE(eta=0.0), DPMppSDE(eta=0.0, r=0.3)])
def test_order_without_noise(solver, name):
    assert measured_order(solver, mixture(), PROCESSES[name]) == pytest.approx(solver.order, abs=0.15)


def test_noise_is_asked_only_where_there_is_some():
    draws, x = Fixed(), torch.ones(1, 2, dtype=F64)
    EulerMaruyama(in_a_window)(mixture(), x, [8.0, 3.0, 1.0, 0.4, 0.0], process=process.VP(), noise=draws)
    assert draws.intervals == {(1, 0): (3.0, 1.0), (2, 0): (1.0, 0.4)}
    draws = Fixed()
    DPMppSDE(r=0.25)(mixture(), x, [16.0, 1.0, 0.0], process=process.EDM(), noise=draws)
    assert draws.intervals == {(0, 0): (16.0, pytest.approx(8.0)), (0, 1): (pytest.approx(8.0), 1.0)}
    draws = Fixed()
    PredictorCorrector(corrector_steps=2)(mixture(), x, [4.0, 1.0, 0.0], process=process.EDM(), noise=draws)
    assert draws.intervals == {(0, 0): (4.0, 1.0), (0, 1): (1.0, 1.0), (0, 2): (1.0, 1.0)}


@pytest.mark.parametrize("name", ["ve", "vp", "odd"])
def test_predictor_corrector_is_its_two_parts(name):
    """Langevin steps with the score, after the predictor's."""
    path, oracle, draws, snr = PROCESSES[name], mixture(), Fixed(), 0.2
    sigmas = torch.tensor([6.0, 4.0, 2.5, 1.0], dtype=F64)
    scaling = path.s(path.t(sigmas))
    z = start = noisy(oracle, 4, 6.0)
    for k in range(3):
        x = EulerMaruyama()(
            oracle, z * scaling[k], sigmas[k : k + 2], process=path, noise=lambda x, *_, k=k: draws[k, 0].expand_as(x)
        )
        z, sigma = x / scaling[k + 1], sigmas[k + 1]
        for m in (1, 2):
            delta = 2 * (snr * sigma) ** 2
            z = z + delta * (oracle(z, sigma) - z) / sigma**2 + torch.sqrt(2 * delta) * draws[k, m]
    ours = PredictorCorrector(snr, 2)(oracle, start * scaling[0], sigmas, process=path, noise=draws)
    torch.testing.assert_close(ours / scaling[-1], z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("r", [0.5, 0.3])
def test_dpmpp_sde_equals_k_diffusion(eta, r):
    """With the increments of one Brownian path over the intervals that each asks for."""
    sampling = peers.k_diffusion()
    oracle, x, sigmas = mixture(), noisy(mixture(), 6, 20.0), grid.EDM()(12, 0.02, 20.0)
    source = noise.Brownian(range(6))
    theirs = sampling.sample_dpmpp_sde(
        lambda x, sigma: oracle(x, sigma), x, sigmas, eta=eta, s_noise=1.01, r=r, disable=True,
        noise_sampler=lambda a, b: source(x, 0, a.item(), b.item()),
    )  # fmt: skip
    ours = DPMppSDE(eta, 1.01, r)(oracle, x, sigmas, process=process.EDM(), noise=source)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_reverse_diffusion_equals_diffusers(monkeypatch):
    """Song's predictor for VE, and the size of his Langevin step for narrow data in many dimensions."""
    diffusers = peers.diffusers()
    from diffusers.schedulers import scheduling_sde_ve

    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=20, snr=0.16, sigma_min=0.02, sigma_max=20.0)
    scheduler.set_timesteps(20)
    scheduler.set_sigmas(20)
    sigmas = scheduler.discrete_sigmas.double().flip(0)  # falling
    scheduler.discrete_sigmas = scheduler.discrete_sigmas.double()
    oracle, draws = mixture(), Fixed()
    x = theirs = noisy(oracle, 6, sigmas[0].item())
    for k in range(19):
        monkeypatch.setattr(scheduling_sde_ve, "randn_tensor", lambda *_, k=k, **__: draws[k, 0].expand(6, 2))
        score = (oracle(theirs, sigmas[k]) - theirs) / sigmas[k] ** 2
        theirs = scheduler.step_pred(score, scheduler.timesteps[k], theirs).prev_sample
    ours = EulerMaruyama()(oracle, x, sigmas, process=process.VE(), noise=draws)
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-5, atol=1e-5)

    generator = torch.Generator().manual_seed(0)
    z, n = torch.randn(2, 8, 4000, generator=generator, dtype=F64)
    monkeypatch.setattr(scheduling_sde_ve, "randn_tensor", lambda *_, **__: n)
    theirs = scheduler.step_correct(-3.0 * z / 3.0**2, 3.0 * z).prev_sample
    ours = 3.0 * z - 2 * 0.16**2 * 3.0 * z + 2 * 0.16 * 3.0 * n
    assert (theirs - ours).abs().max() < 0.02 * (ours - 3.0 * z).abs().max()


# One step, calls, names and bad arguments.


@every_solver
def test_one_step(solver):
    """[sigma_max, 0] needs no noise: it is the denoised image, or for methods over t the ODE's Euler step."""
    oracle, sigmas = mixture(), torch.tensor([5.0, 0.0], dtype=F64)
    y = noisy(oracle, 6, 5.0)
    for name in ("edm", "flow", "vp", "ve"):
        path = PROCESSES[name]
        expected = oracle(y, sigmas[0])
        if isinstance(solver, (EulerMaruyama, SDEHeun)):
            expected = integrate(Euler(), oracle, path, y, sigmas)
        torch.testing.assert_close(integrate(solver, oracle, path, y, sigmas), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "calls"),
    [
        (EulerMaruyama(), [1, 2, 6]),
        (SDEHeun(), [1, 3, 11]),
        (DPMppSDE(), [1, 3, 11]),
        (PredictorCorrector(), [1, 3, 11]),
        (PredictorCorrector(corrector_steps=2), [1, 4, 16]),
    ],
)
def test_calls(solver, calls):
    found = []
    for steps in (1, 2, 6):
        seen, sigmas = [], grid.EDM()(steps, 0.02, 20.0)
        x = torch.ones(1, 2, dtype=F64)
        solver(mixture(), x, sigmas, process=process.VP(), noise=Fixed(), callback=seen.append)
        assert len(seen) == steps
        found.append(seen[-1].nfe)
    assert found == calls and solver.nfe_per_step == calls[1] - calls[0]


def test_names():
    makers = samplers.named()
    assert makers["euler_maruyama"](beta=2.0) == EulerMaruyama(2.0) and makers["sde_heun"]() == SDEHeun()
    assert makers["dpmpp_sde"](r=0.3) == DPMppSDE(r=0.3)
    assert makers["predictor_corrector"](snr=0.1) == PredictorCorrector(0.1)
    for solver in SOLVERS.values():
        assert solver.stochastic and solver.source
        assert solver.brownian == (not isinstance(solver, PredictorCorrector))
    assert SDEHeun(torch.ones_like).stochastic


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: EulerMaruyama(-0.1), ["beta", "-0.1"]),
        (lambda: EulerMaruyama("song"), ["beta", "'song'"]),
        (lambda: SDEHeun(math.inf), ["beta", "inf"]),
        (lambda: SDEHeun(S_noise=-1.0), ["S_noise", "-1.0"]),
        (lambda: DPMppSDE(eta=1.1), ["eta", "1.1"]),
        (lambda: DPMppSDE(S_noise=math.nan), ["S_noise", "nan"]),
        (lambda: DPMppSDE(r=1.0), ["r is 1.0"]),
        (lambda: DPMppSDE(r=0), ["r is 0"]),
        (lambda: PredictorCorrector(0.0), ["snr", "0.0"]),
        (lambda: PredictorCorrector(1.0), ["snr", "1.0"]),
        (lambda: PredictorCorrector(corrector_steps=0), ["corrector_steps", "0"]),
        (lambda: PredictorCorrector(corrector_steps=1.5), ["corrector_steps", "1.5"]),
        (lambda: go(EulerMaruyama(lambda sigma: 1.0), [2.0, 1.0]), ["beta returned 1.0"]),
        (lambda: go(SDEHeun(lambda sigma: sigma[:1]), [2.0, 1.0, 0.5]), ["beta returned (1,)"]),
        (lambda: go(SDEHeun(lambda sigma: -sigma), [2.0, 1.0]), ["beta returned [-2.0]", "negative"]),
        (lambda: go(EulerMaruyama(lambda sigma: sigma / 0), [2.0, 1.0]), ["beta returned [inf]", "finite"]),
        (lambda: go(EulerMaruyama(), [1.0, 2.0]), ["sigmas rises"]),
        (lambda: go(SDEHeun(), [1.0, 2.0]), ["sigmas rises"]),
        (lambda: go(DPMppSDE(), [1.0, 2.0]), ["sigmas rises"]),
        (lambda: go(PredictorCorrector(), [1.0, 2.0]), ["sigmas rises"]),
        (lambda: go(PredictorCorrector(), [2.0, 1.0], noise.Brownian([0])), ["1.0 to 1.0", "correctors"]),
        (lambda: go(Heun(samplers.Churn(1.0)), [2.0, 1.0], noise.Brownian([0])), ["churn"]),
    ],
)
def test_bad_arguments(build, words):
    with pytest.raises(InputError) as error:
        build()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def go(solver, sigmas, source=None):
    return solver(
        mixture(), torch.ones(1, 2, dtype=F64), sigmas, process=process.VP(), noise=source or noise.Seeded([0])
    )
