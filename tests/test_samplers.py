"""Samplers on exact denoisers: measured order, exact laws, encoding, churn, calls and callbacks."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from oracles import F64, PROCESSES, gaussian, gaussian_flow, integrate, measured_order, mixture, noisy

import edmund
from edmund import denoiser, formulation, grid, noise, preconditioning, process, samplers
from edmund.errors import InputError
from edmund.samplers import Churn, Euler, Heun

SOLVERS = {"euler": Euler(), "heun": Heun(), "ralston": Heun(alpha=2 / 3), "midpoint": Heun(alpha=1 / 2)}
every_process = pytest.mark.parametrize("name", PROCESSES)
every_solver = pytest.mark.parametrize("solver", SOLVERS)


def check_order(solver, oracle, path, nominal, exact=None):
    assert measured_order(solver, oracle, path, exact) == pytest.approx(nominal, abs=0.15)


@every_process
@every_solver
def test_order_on_a_gaussian(name, solver):
    nominal = 1 if solver == "euler" else 2
    if solver == "midpoint" and name in ("ve", "edm", "flow"):
        # There the ODE along an axis is that of a hyperbola, dx/dt = (t - c)/(...) x, and the midpoint rule's leading
        # error cancels: it is of order 3 on a Gaussian, and of order 2 on the mixture below.
        nominal = 3
    check_order(SOLVERS[solver], gaussian(), PROCESSES[name], nominal, exact=gaussian_flow)


@every_process
@every_solver
def test_order_on_a_mixture(name, solver):
    check_order(SOLVERS[solver], mixture(), PROCESSES[name], 1 if solver == "euler" else 2)


def with_second_stage(steps, change):
    """The steps with the second stage of each two-stage one changed."""
    return [step._replace(stages=(step.stages[0], change(step))) if len(step.stages) == 2 else step for step in steps]


@dataclasses.dataclass(frozen=True)
class WrongWeight(Heun):
    """Heun with 0.55 where 1/2 belongs: a mistake that leaves the samples looking right."""

    def plan(self, process, sigma_from, sigma_to):
        def change(step):
            first, second = step.stages
            # Of x + h (d + d') / 2 and x + h d, which are the two stages, comes x + h (0.45 d + 0.55 d').
            return second._replace(
                x=1.1 * second.x - 0.1 * first.x,
                kept=(1.1 * second.kept[0], 1.1 * second.kept[1] - 0.1 * first.kept[0]),
            )

        return with_second_stage(super().plan(process, sigma_from, sigma_to), change)


@dataclasses.dataclass(frozen=True)
class StaleLevel(Heun):
    """Heun that calls the denoiser at the first level on its second stage."""

    def plan(self, process, sigma_from, sigma_to):
        return with_second_stage(
            super().plan(process, sigma_from, sigma_to),
            lambda step: step.stages[1]._replace(sigma=step.stages[0].sigma),
        )


@pytest.mark.parametrize(("broken", "name"), [(WrongWeight(), "edm"), (WrongWeight(), "vp"), (StaleLevel(), "vp")])
def test_a_broken_sampler_fails_its_slope(broken, name):
    with pytest.raises(AssertionError):
        check_order(broken, mixture(), PROCESSES[name], 2)
    with pytest.raises(AssertionError):
        check_order(broken, gaussian(), PROCESSES[name], 2, exact=gaussian_flow)


@every_process
def test_encode_and_decode(name):
    """Rising levels run the same ODE backwards: to the exact latent of a Gaussian, and back to the data."""
    path, oracle = PROCESSES[name], gaussian()
    falling = grid.EDM(3.0)(201, 0.1, 10.0)[:-1]
    data = noisy(oracle, 20, 0.1)
    encoded = integrate(Heun(), oracle, path, data, falling.flip(0))
    assert (encoded - gaussian_flow(oracle, data, 0.1, 10.0)).abs().max() < 5e-2  # of a spread of 10
    assert (integrate(Heun(), oracle, path, encoded, falling) - data).abs().max() < 2e-3
    oracle = mixture()
    data = noisy(oracle, 20, 0.1)
    encoded = integrate(Heun(), oracle, path, data, falling.flip(0))
    assert (integrate(Heun(), oracle, path, encoded, falling) - data).abs().max() < 2e-2


# The law of the samples, exactly. On a Gaussian every fixed-step sampler is affine in the start and in the noise it
# draws, so unit vectors pushed through `latents` and `noise` give mean and covariance without Monte Carlo.

MEAN = torch.tensor([0.6, -0.4], dtype=F64)
COVARIANCE = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=F64)


def with_formulation(oracle, parts):
    oracle.formulation = parts
    if hasattr(parts.preconditioning, "round_sigma"):
        oracle.round_sigma = parts.preconditioning.round_sigma
    return oracle


def exact_law(parts, sampler, steps=256):
    """Mean and covariance of edmund.sample's output, started from the exact p(x; sigma_0)."""
    oracle = with_formulation(denoiser.Gaussian(MEAN, COVARIANCE), parts)
    start = parts.grid(steps, parts.sigma_min, parts.sigma_max, getattr(oracle, "round_sigma", None))[0].item()
    root = torch.linalg.cholesky(COVARIANCE + start**2 * torch.eye(2, dtype=F64))
    churned = getattr(sampler, "churn", None) is not None
    n = 1 + 2 + (2 * steps if churned else 0)
    latents = (MEAN / start).repeat(n, 1)
    latents[1:3] += root.T / start
    draws = torch.zeros(steps, n, 2, dtype=F64)
    if churned:
        for k in range(2 * steps):
            draws[k // 2, 3 + k, k % 2] = 1
    x = edmund.sample(
        oracle, (n, 2), sampler=sampler, num_steps=steps, latents=latents, noise=noise.Recorded(draws), progress=False
    )
    columns = x[1:] - x[0]
    return x[0], columns.T @ columns


def deviation(parts, sampler, steps=256):
    """(error of the mean, largest error of a std), both relative to the data's std in the worst direction."""
    mean, covariance = exact_law(parts, sampler, steps)
    whiten = torch.linalg.inv(torch.linalg.cholesky(COVARIANCE))
    ratios = torch.linalg.eigvalsh(whiten @ covariance @ whiten.T).sqrt()
    return (whiten @ (mean - MEAN)).norm().item(), (ratios - 1).abs().max().item()


FORMULATIONS = {name: make(0.5) if name == "EDM" else make() for name, make in formulation.named().items()}

# How far each is from the exact law at 256 steps: what was measured, rounded up by a tenth or so, as a fraction of the
# data's std. The error is that of the discretisation (next test).
TOLERANCE = {  # (mean, std) of the formulation's own sampler; of Heun's method; of that churned with S_churn = 40
    "EDM": ((1e-12, 6.5e-6), (1e-12, 2.3e-4), (1e-12, 2.1e-3)),
    "VP": ((1e-12, 1.2e-4), (2e-5, 3e-5), (1.2e-3, 1.2e-3)),
    "VE": ((1e-12, 6.5e-4), (1e-12, 2.8e-3), (1e-12, 7e-4)),
    "iDDPM": ((1e-12, 3e-5), (1e-12, 1e-4), (1e-12, 1.3e-3)),
    "Flow": ((1e-12, 2e-5), (1e-12, 1e-5), (1e-12, 1.2e-3)),
    "Cosine": ((1e-12, 2e-5), (5e-6, 1e-5), (6e-4, 6.5e-4)),
}


@pytest.mark.parametrize("name", TOLERANCE)
@pytest.mark.parametrize("kind", ["own", "heun", "churned"])
def test_law_of_every_formulation(name, kind):
    parts = FORMULATIONS[name]
    sampler = {"own": parts.sampler, "heun": Heun(), "churned": Heun(Churn(40.0))}[kind]
    mean, std = deviation(parts, sampler)
    allowed_mean, allowed_std = TOLERANCE[name][["own", "heun", "churned"].index(kind)]
    assert mean < allowed_mean
    assert std < allowed_std


@every_solver
@pytest.mark.parametrize("name", ["edm", "vp", "flow"])
def test_gradients_pass_through_a_sampler(name, solver):
    """Its Jacobian by autograd is the affine map's, which unit vectors give."""
    oracle, path, sigmas = gaussian(), PROCESSES[name], grid.EDM()(6, 0.02, 20.0)
    start = torch.tensor([[3.0, -1.0]], dtype=F64)

    def run(x):
        return SOLVERS[solver](oracle, x, sigmas, process=path)

    jacobian = torch.autograd.functional.jacobian(run, start)[0, :, 0, :]
    columns = run(start + torch.eye(2, dtype=F64)) - run(start)
    torch.testing.assert_close(jacobian, columns.T, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["VP", "VE"])
def test_deviation_of_the_law_is_discretisation(name):
    """With the same range, twice the steps halve the error of Euler, deterministic and churned at a constant rate."""
    parts = FORMULATIONS[name]
    coarse, fine = deviation(parts, Euler(), 256)[1], deviation(parts, Euler(), 512)[1]
    assert coarse / fine == pytest.approx(2, abs=0.25)


def test_churn_of_the_wrong_size_is_seen():
    """20 % too much added noise shows in the exact covariance."""
    parts = FORMULATIONS["EDM"]
    assert deviation(parts, Heun(Churn(40.0)))[1] < 2.1e-3
    assert deviation(parts, Heun(Churn(40.0, S_noise=1.2)))[1] > 0.05


@pytest.mark.parametrize("churn", [None, Churn(40.0, 0.05, 50.0)], ids=["deterministic", "churned"])
@pytest.mark.parametrize("name", FORMULATIONS)
def test_law_on_a_mixture(name, churn):
    """Within Monte-Carlo error: mean, covariance, and the distribution function of both coordinates."""
    stats = pytest.importorskip("scipy.stats")
    parts, n = FORMULATIONS[name], 3000
    oracle = with_formulation(mixture(), parts)
    start = parts.sigma_max
    x = edmund.sample(
        oracle,
        (n, 2),
        sampler=Heun(churn),
        num_steps=128,
        latents=noisy(oracle, n, start) / start,
        seeds=range(10_000, 10_000 + n),
        progress=False,
    )
    mean, covariance = oracle.moments()
    assert ((x.mean(0) - mean).abs() / torch.sqrt(covariance.diagonal() / n)).max() < 4.5
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert ((products.mean(0) - covariance).abs() / (products.std(0) / math.sqrt(n))).max() < 4.5
    for axis in (0, 1):
        parts_of = [
            (w, stats.norm(m, s).cdf)
            for w, m, s in zip([0.3, 0.3, 0.4], oracle.means[:, axis].tolist(), [0.4, 0.5, 0.6], strict=True)
        ]
        result = stats.kstest(x[:, axis].numpy(), lambda v, parts_of=parts_of: sum(w * cdf(v) for w, cdf in parts_of))
        assert result.pvalue > 1e-3


# Algorithm 2, written out.


def by_hand(oracle, x, sigmas, path, churn, draws, alpha):
    """Algorithm 2 for any process, step by step in the equations' own form."""

    def slope(x, t):
        sigma, s = path.sigma(t), path.s(t)
        sigma_dot, s_dot = path.sigma_dot(t), path.s_dot(t)
        return (sigma_dot / sigma + s_dot / s) * x - sigma_dot * s / sigma * oracle(x / s, sigma)

    steps = len(sigmas) - 1
    for i in range(steps):
        sigma = sigmas[i].item()
        gamma = min(churn.S_churn / steps, math.sqrt(2) - 1) if churn.S_min <= sigma <= churn.S_max else 0.0
        raised = sigmas[i] * (1 + gamma)
        t, t_next = path.t(raised), path.t(sigmas[i + 1])
        s_raised, s = path.s(t), path.s(path.t(sigmas[i]))
        x = s_raised / s * x + torch.sqrt(raised**2 - sigmas[i] ** 2) * s_raised * churn.S_noise * draws[i]
        h = t_next - t
        d = slope(x, t)
        if sigmas[i + 1] == 0 or alpha is None:
            x = x + h * d
        else:
            d_middle = slope(x + alpha * h * d, t + alpha * h)
            x = x + h * ((1 - 1 / (2 * alpha)) * d + 1 / (2 * alpha) * d_middle)
    return x


@pytest.mark.parametrize(("solver", "alpha"), [("euler", None), ("heun", 1.0), ("ralston", 2 / 3), ("midpoint", 0.5)])
@pytest.mark.parametrize("name", ["vp", "edm", "flow", "odd", "subvp"])
def test_churn_is_algorithm_2(name, solver, alpha):
    path, oracle = PROCESSES[name], mixture()
    churn = Churn(10.0, S_min=0.1, S_max=5.0, S_noise=1.007)
    sigmas = grid.EDM()(12, 0.02, 20.0)
    draws = torch.randn(12, 8, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    x = noisy(oracle, 8, 20.0) * path.s(path.t(sigmas[0]))
    ours = dataclasses.replace(SOLVERS[solver], churn=churn)(
        oracle, x, sigmas, process=path, noise=noise.Recorded(draws)
    )
    torch.testing.assert_close(ours, by_hand(oracle, x, sigmas, path, churn, draws, alpha), rtol=1e-9, atol=1e-10)
    # The wrong noise would be seen: the draws matter.
    other = dataclasses.replace(SOLVERS[solver], churn=churn)(
        oracle, x, sigmas, process=path, noise=noise.Recorded(draws.flip(0))
    )
    assert (ours - other).abs().max() > 0.1


class Counting:
    """A noise source that keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, x, step, sigma_from, sigma_to, draw=0):
        self.asked.append((step, sigma_from, sigma_to, draw))
        return torch.zeros_like(x)


def test_noise_is_asked_only_where_churn_acts():
    sigmas = grid.EDM()(10, 0.02, 20.0)
    source = Counting()
    Heun(Churn(5.0, S_min=0.1, S_max=5.0))(
        mixture(), torch.ones(1, 2, dtype=F64), sigmas, process=process.EDM(), noise=source
    )
    gamma = min(5.0 / 10, math.sqrt(2) - 1)
    inside = [(i, s, s * (1 + gamma), 0) for i, s in enumerate(sigmas[:-1].tolist()) if 0.1 <= s <= 5.0]
    assert 0 < len(inside) < 10
    assert source.asked == [pytest.approx(entry) for entry in inside]
    untouched = Counting()
    for churn in (None, Churn(0.0), Churn(5.0, S_min=100.0)):
        Heun(churn)(mixture(), torch.ones(1, 2, dtype=F64), sigmas, process=process.EDM(), noise=untouched)
    assert untouched.asked == []


def test_churned_levels():
    sigmas = torch.tensor([10.0, 2.0, 0.5, 0.0], dtype=F64)
    capped = Churn(100.0).raised(sigmas, None)
    torch.testing.assert_close(capped, sigmas[:-1] * math.sqrt(2), rtol=1e-15, atol=0)
    torch.testing.assert_close(Churn(0.3).raised(sigmas, None), sigmas[:-1] * 1.1, rtol=1e-15, atol=0)
    part = Churn(0.3, S_min=0.5, S_max=2.0).raised(sigmas, None)
    torch.testing.assert_close(part, torch.tensor([10.0, 2.2, 0.55], dtype=F64), rtol=1e-15, atol=0)
    # A discrete model gets levels it knows, and never less noise than the node has.
    model, levels = preconditioning.IDDPM(), process.iddpm_levels()
    nodes = grid.IDDPM()(50, 0.01, 80.0)
    raised = Churn(0.05).raised(nodes, model.round_sigma)
    assert all(level in levels for level in raised) and (raised >= nodes[:-1]).all()
    assert (raised == nodes[:-1]).any()
    raised = Churn(10.0).raised(nodes, model.round_sigma)
    wanted = nodes[:-1] * 1.2
    assert ((raised - wanted).abs() <= (levels[None] - wanted[:, None]).abs().min(1).values + 1e-12).all()


# Calls and callbacks.


@every_solver
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_calls(solver, steps):
    calls = []

    def counted(x, sigma):
        calls.append(sigma.item())
        return oracle(x, sigma)

    oracle = mixture()
    x = torch.ones(1, 2, dtype=F64)
    sigmas = grid.EDM()(steps, 0.02, 20.0)
    SOLVERS[solver](counted, x, sigmas, process=process.EDM())
    assert len(calls) == (steps if solver == "euler" else 2 * steps - 1)
    assert calls[0] == pytest.approx(20.0, rel=1e-14)
    if steps > 1:
        # Without the final 0, every step has all its stages; the other way too.
        calls.clear()
        SOLVERS[solver](counted, x, sigmas[:-1], process=process.EDM())
        assert len(calls) == (steps - 1) * (1 if solver == "euler" else 2)
        calls.clear()
        SOLVERS[solver](counted, x, sigmas[:-1].flip(0), process=process.EDM())
        assert len(calls) == (steps - 1) * (1 if solver == "euler" else 2) and calls[0] == pytest.approx(0.02)


@every_process
def test_stages_call_the_denoiser_at_their_own_levels(name):
    path, seen = PROCESSES[name], []

    def watched(x, sigma):
        seen.append(sigma.item())
        return 0.5 * x

    sigmas = torch.tensor([10.0, 2.0, 0.5, 0.0], dtype=F64)
    t = path.t(sigmas)
    for solver, alpha in (("heun", 1.0), ("midpoint", 0.5), ("ralston", 2 / 3)):
        seen.clear()
        SOLVERS[solver](watched, torch.ones(1, 2, dtype=F64), sigmas, process=path)
        middles = path.sigma(t[:-2] + alpha * t[:-1].diff()).tolist()
        assert seen == pytest.approx([10.0, middles[0], 2.0, middles[1], 0.5], rel=1e-9)


@pytest.mark.parametrize("churn", [None, Churn(10.0)], ids=["deterministic", "churned"])
@pytest.mark.parametrize("name", ["vp", "edm", "odd"])
def test_callback(name, churn):
    path, oracle = PROCESSES[name], mixture()
    sigmas = grid.EDM()(6, 0.02, 20.0)
    source = noise.Seeded(range(4))
    start = noisy(oracle, 4, 20.0) * path.s(path.t(sigmas[0]))
    seen = []

    def keep(step):
        seen.append(dataclasses.replace(step, unscaled=step.unscaled.clone(), denoised=step.denoised.clone()))

    end = Heun(churn)(oracle, start, sigmas, process=path, noise=source, callback=keep)
    assert [step.index for step in seen] == list(range(6))
    assert [step.sigma for step in seen] == pytest.approx(sigmas[:-1].tolist(), rel=1e-15)
    assert [step.t for step in seen] == pytest.approx(path.t(sigmas[:-1]).tolist(), rel=1e-12)
    assert [step.nfe for step in seen] == [2, 4, 6, 8, 10, 11]
    torch.testing.assert_close(seen[0].x, start, rtol=1e-15, atol=0)
    for k, step in enumerate(seen):
        # The state at each node is what the steps before it make of the start ...
        if k:
            # ... where gamma must be that of the full run, S_churn / 6.
            part = None if churn is None else Churn(churn.S_churn / 6 * k)
            reached = Heun(part)(oracle, start, sigmas[: k + 1], process=path, noise=source)
            torch.testing.assert_close(step.x, reached, rtol=1e-12, atol=1e-12)
        # ... and denoised is D there (at the raised level with churn).
        scaling = path.s(path.t(sigmas[k]))
        state, level = step.x / scaling, sigmas[k]
        if churn is not None:
            raised = churn.raised(sigmas, None)[k]
            state = state + torch.sqrt(raised**2 - level**2) * source(start, k, 0.0, 0.0)
            level = raised
        torch.testing.assert_close(step.denoised, oracle(state, level), rtol=1e-9, atol=1e-10)
    last = Euler(None if churn is None else Churn(churn.S_churn / 6))
    # The step before the end is Euler's, to sigma = 0.
    torch.testing.assert_close(
        end,
        last(oracle, seen[-1].x, sigmas[-2:], process=path, noise=lambda x, *_: source(x, 5, 0.0, 0.0)),
        rtol=1e-12,
        atol=1e-12,
    )


@every_solver
def test_one_step(solver):
    """[sigma_max, 0]: one Euler step, which on straight lines (EDM, flow) is the denoised image itself."""
    oracle, sigmas = mixture(), torch.tensor([5.0, 0.0], dtype=F64)
    y = noisy(oracle, 6, 5.0)
    denoised = oracle(y, sigmas[0])
    for name in ("edm", "flow", "edm-none", "flow"):
        path = PROCESSES.get(name, process.EDM())
        out = SOLVERS[solver](oracle, y * path.s(path.t(sigmas[0])), sigmas, process=path)
        torch.testing.assert_close(out, denoised, rtol=1e-12, atol=1e-12)
    # Over VE's t = sigma^2 the same Euler step goes half the way: dx/dt = (x - D) / (2 t).
    out = SOLVERS[solver](oracle, y, sigmas, process=process.VE())
    torch.testing.assert_close(out, (y + denoised) / 2, rtol=1e-12, atol=1e-12)


def test_state_and_start_are_left_alone(device, dtype):
    oracle = mixture().to(device)
    start = noisy(oracle.cpu(), 5, 20.0).to(device, dtype)
    oracle.to(device)
    kept = start.clone()
    sigmas = grid.EDM()(6, 0.02, 20.0)
    for solver in SOLVERS.values():
        out = solver(oracle, start, sigmas, process=process.EDM())
        assert out.dtype == dtype and out.device.type == device.type
        assert torch.equal(start, kept)
        exact = solver(mixture(), kept.cpu().double(), sigmas, process=process.EDM())
        tolerance = 1e-12 if dtype == F64 else 1e-4
        torch.testing.assert_close(out.cpu().double(), exact, rtol=tolerance, atol=tolerance)


def test_conditions_reach_every_call():
    seen = []

    def denoise(x, sigma, *, labels, context):
        seen.append((labels, context))
        return 0 * x

    condition = {"labels": torch.tensor([1, 2]), "context": torch.ones(2, 3)}
    Heun()(denoise, torch.ones(2, 2), [1.0, 0.5, 0.0], process=process.EDM(), condition=condition)
    assert len(seen) == 3
    assert all(labels is condition["labels"] and context is condition["context"] for labels, context in seen)


def test_a_sampler_of_ones_own_is_what_the_guide_says():
    """One class with `plan`; here exponential Euler, exact for a denoiser that is constant in sigma."""

    @dataclasses.dataclass(frozen=True)
    class Exponential(samplers.OneStepSampler):
        order = 1
        nfe_per_step = 1
        churn: Churn | None = None

        def plan(self, process, sigma_from, sigma_to):
            ratios = (sigma_to / sigma_from).tolist()
            return [
                samplers.LinearStep((samplers.Stage(sigma, ratio, (1 - ratio,)),))
                for sigma, ratio in zip(sigma_from.tolist(), ratios, strict=True)
            ]

    oracle = mixture()
    x = noisy(oracle, 5, 20.0)
    sigmas = grid.EDM()(30, 0.02, 20.0)
    # In sigma, with s = 1, it is Euler's method (DDIM).
    ours = Exponential()(oracle, x, sigmas, process=process.EDM())
    torch.testing.assert_close(ours, Euler()(oracle, x, sigmas, process=process.EDM()), rtol=1e-10, atol=1e-11)


STOCHASTIC = [
    "euler_ancestral",
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "ddpm",
    "euler_maruyama",
    "sde_heun",
    "predictor_corrector",
    "restart",
    "sa_solver",
]


def test_names():
    makers = samplers.named()
    # k-diffusion's names, and those of the methods that it has not.
    theirs = """euler heun midpoint ralston euler_ancestral dpm_2 dpm_2_ancestral lms dpmpp_2s dpmpp_2s_ancestral
        dpmpp_sde dpmpp_2m dpmpp_2m_sde dpmpp_3m dpmpp_3m_sde dpm_fast"""
    others = "ddim ddpm deis unipc adaptive euler_maruyama sde_heun predictor_corrector restart sa_solver ipndm pndm"
    assert set(makers) == {*theirs.split(), *others.split()}
    for name, make in makers.items():
        sampler = make()
        assert sampler.order >= 1 and sampler.nfe_per_step >= 1 and sampler.source
        assert sampler.stochastic == (name in STOCHASTIC)
    assert makers["midpoint"]() == Heun(alpha=0.5) and makers["ralston"]() == Heun(alpha=2 / 3)
    assert makers["heun"](churn=Churn(1.0)) == Heun(Churn(1.0)) and makers["euler"]() == Euler()


def run(solver, sigmas, **options):
    return solver(mixture(), torch.ones(1, 2, dtype=F64), sigmas, process=process.EDM(), **options)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Heun(alpha=0.0), ["alpha", "0.0"]),
        (lambda: Heun(alpha=1.5), ["alpha", "1.5"]),
        (lambda: Heun(alpha=math.nan), ["alpha", "nan"]),
        (lambda: Churn(-1.0), ["S_churn", "-1.0"]),
        (lambda: Churn(1.0, S_max=None), ["S_max", "None"]),
        (lambda: Heun(churn=40), ["churn is 40", "Churn(S_churn=40)"]),
        (lambda: Churn(math.inf), ["S_churn", "inf"]),
        (lambda: Churn(1.0, S_min=-0.1), ["S_min", "-0.1"]),
        (lambda: Churn(1.0, S_noise=math.nan), ["S_noise", "nan"]),
        (lambda: Churn(1.0, S_min=2.0, S_max=1.0), ["S_max", "1.0", "S_min", "2.0"]),
        (lambda: Churn(1.0, S_max=math.nan), ["S_max", "nan"]),
        (lambda: run(Euler(), [1.0]), ["sigmas", "(1,)"]),
        (lambda: run(Euler(), [1.0, 1.0]), ["sigmas", "[1.0, 1.0]"]),
        (lambda: run(Euler(), [3.0, 1.0, 2.0]), ["sigmas", "[3.0, 1.0, 2.0]"]),
        (lambda: run(Euler(), [1.0, -1.0]), ["sigmas", "-1.0"]),
        (lambda: run(Euler(), [math.nan, 1.0]), ["sigmas", "nan"]),
        (lambda: run(Euler(), [0.0, 1.0]), ["sigmas", "0"]),
        (lambda: run(Heun(Churn(1.0)), [1.0, 0.5]), ["noise", "None"]),
        (lambda: run(Heun(Churn(1.0)), [0.5, 1.0], noise=noise.Seeded([0])), ["sigmas", "churn"]),
    ],
)
def test_errors(build, words):
    with pytest.raises(InputError) as error:
        build()
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", samplers.named())
def test_a_grid_of_one_step_works(name):
    """[sigma_max, 0]: one denoiser call at sigma_max, whose image is the sample where the step to 0 is exact in D."""
    oracle, calls = mixture(), []

    def counted(x, sigma):
        calls.append(float(sigma.max()))
        return oracle(x, sigma)

    x = edmund.sample(counted, (3, 2), sampler=name, num_steps=1, sigma_max=5.0, progress=False)
    start = 5.0 * noise.Seeded(range(3)).latents((2,), dtype=F64, device=torch.device("cpu"))
    torch.testing.assert_close(x, oracle(start, torch.tensor(5.0)), rtol=1e-9, atol=1e-9)
    assert calls == [5.0]
