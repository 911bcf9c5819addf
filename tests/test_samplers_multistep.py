"""Multistep samplers: measured order with and without their own start, exact laws, equality with the peers."""

from __future__ import annotations

import dataclasses
import itertools
import math
from fractions import Fraction

import peers
import pytest
import torch
from oracles import (
    F64,
    PROCESSES,
    exact_law,
    gaussian,
    gaussian_flow,
    integrate,
    law_error,
    measured_multistep_order,
    mixture,
    noisy,
    ramped,
    weak_order,
)

import edmund
from edmund import grid, noise, process, samplers
from edmund.errors import InputError
from edmund.samplers import DEIS, IPNDM, LMS, PNDM, DPMpp2M, DPMpp3M, LinearSampler, LinearStep, SASolver, Stage, UniPC
from edmund.samplers import _exponential as exponential

EDM = process.EDM()

# Sampler: (order with a proper start, order with its own start).
ORDERS = {
    LMS(1): (1, 1),
    LMS(2): (2, 2),
    LMS(3): (3, 2),
    LMS(4): (4, 2),
    LMS(1, over="log_sigma"): (1, 1),
    LMS(2, over="log_sigma"): (2, 2),
    LMS(3, over="log_sigma"): (3, 2),
    LMS(4, over="log_sigma"): (4, 2),
    DPMpp2M(): (2, 2),
    DPMpp2M(solver_type="heun"): (2, 2),
    DPMpp3M(): (3, 2),
    DPMpp3M(curvature="half"): (2, 2),
    DEIS(1): (1, 1),
    DEIS(2): (2, 2),
    DEIS(3): (3, 2),
    DEIS(4): (4, 2),
    UniPC(1): (2, 2),
    UniPC(2): (3, 3),
    UniPC(3): (4, 3),
    UniPC(1, "bh1"): (2, 2),
    UniPC(2, "bh1"): (3, 3),
    UniPC(3, "bh1"): (4, 3),
    SASolver(1, 1, tau=0.0): (1, 1),
    SASolver(1, 2, tau=0.0): (2, 2),
    SASolver(2, 3, tau=0.0): (3, 3),
    SASolver(3, 4, tau=0.0): (4, 3),
}
# Where the leading term of the error is small, finer halvings show it.
FINER = {
    SASolver(1, 1, tau=0.0): (256, 512, 1024),
    SASolver(2, 2, tau=0.0): (512, 1024, 2048),
    SASolver(3, 3, tau=0.0): (512, 1024, 2048),
}
DETERMINISTIC = [
    *ORDERS,
    IPNDM(1),
    IPNDM(2),
    IPNDM(3),
    IPNDM(4),
    PNDM(),
    SASolver(2, 2, tau=0.0),
    SASolver(4, 4, tau=0),
]
STOCHASTIC = [DPMpp2M(1.0), DPMpp2M(0.5), DPMpp2M(1.0, solver_type="heun"), DPMpp3M(1.0), SASolver(), SASolver(2, 2)]


def named(samplers):
    return pytest.mark.parametrize("sampler", samplers, ids=repr)


def nfe(sampler, steps):
    """Calls of so many steps that end in 0."""
    return 4 * min(steps, 4) - 3 + max(steps - 4, 0) if isinstance(sampler, PNDM) else steps


class Counting:
    """A denoiser that counts, and remembers the levels it was called at."""

    def __init__(self, denoiser):
        self.denoiser, self.levels = denoiser, []

    def __call__(self, x, sigma):
        self.levels.append(sigma.item())
        return self.denoiser(x, sigma)


# Orders.


def check_order(sampler, path, nominal, steps=(64, 128, 256)):
    assert measured_multistep_order(sampler, mixture(), path, steps=steps) == pytest.approx(nominal, abs=0.2)
    found = measured_multistep_order(sampler, gaussian(), path, gaussian_flow, steps=steps)
    assert found == pytest.approx(nominal, abs=0.2)


@named(ORDERS)
def test_order(sampler):
    assert sampler.order == ORDERS[sampler][0]
    check_order(sampler, EDM, sampler.order, FINER.get(sampler, (64, 128, 256)))


@pytest.mark.slow
@named([SASolver(2, 2, tau=0.0), SASolver(3, 3, tau=0.0)])
def test_order_of_a_corrector_no_better_than_its_predictor(sampler):
    assert sampler.order == sampler.corrector_order
    check_order(sampler, EDM, sampler.order, FINER[sampler])


USUAL = ("vp", "ve", "flow", "cosine")


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in USUAL else pytest.mark.slow) for name in PROCESSES if name != "edm"],
)
def test_order_over_the_time_of_every_process(name, order):
    """VE's and the like on a mixture come near their order from below: steps twice as fine for those."""
    steps = (128, 256, 512) if name in ("ve", "edm-vp", "edm-flow") else (64, 128, 256)
    check_order(LMS(order), PROCESSES[name], order, steps)


@named(
    [
        sampler
        for sampler in DETERMINISTIC
        if not isinstance(sampler, (LMS, PNDM)) or getattr(sampler, "over", "") == "log_sigma"
    ]
)
def test_the_others_are_the_same_for_every_process(sampler):
    """So their order on one process is that on all."""
    oracle, sigmas = mixture(), grid.EDM()(12, 0.05, 10.0)
    x = noisy(oracle, 4, 10.0)
    expected = integrate(sampler, oracle, EDM, x, sigmas)
    for path in PROCESSES.values():
        torch.testing.assert_close(integrate(sampler, oracle, path, x, sigmas), expected, rtol=1e-9, atol=1e-9)


def order_with_own_start(sampler, oracle, exact=None, rho=3.0, steps=(64, 128, 256), sigma_min=0.3):
    """From sigma = 1, where the denoised image turns much in the first step; from 10 it hardly does, and the start's
    error is too small to be seen.
    """
    x = noisy(oracle, 16, 1.0)
    ends = [integrate(sampler, oracle, EDM, x, grid.EDM(rho)(n + 1, sigma_min, 1.0)[:-1]) for n in steps]
    if exact is None:
        return math.log2((ends[0] - ends[1]).norm() / (ends[1] - ends[2]).norm())
    truth = exact(oracle, x, 1.0, sigma_min)
    return math.log2((ends[1] - truth).norm() / (ends[2] - truth).norm())


@named(ORDERS)
def test_order_with_its_own_start(sampler):
    own = ORDERS[sampler][1]
    # One step of order 2 among many of order 4, of a small constant: it takes finer steps to be seen.
    steps = (128, 256, 512) if sampler.order == 4 and own == 3 else (64, 128, 256)
    assert order_with_own_start(sampler, gaussian(), gaussian_flow, steps=steps) == pytest.approx(own, abs=0.2)
    assert order_with_own_start(sampler, mixture(), steps=steps) == pytest.approx(own, abs=0.2)


@dataclasses.dataclass(frozen=True)
class StartedIPNDM(IPNDM):
    """iPNDM whose first three steps are PNDM's, of order 4."""

    def plan(self, process, sigma_from, sigma_to):
        start, own = PNDM().plan(process, sigma_from, sigma_to), super().plan(process, sigma_from, sigma_to)
        steps = list(start[:3])
        for i, step in enumerate(own[3:], 3):
            (stage,) = step.stages
            kept = [0.0] * 13
            for back, weight in enumerate(stage.kept):
                kept[back if i - back >= 3 else (i - 2) + 4 * (2 - (i - back)) + 3] = weight
            steps.append(LinearStep((stage._replace(kept=tuple(kept)),)))
        return steps


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_order_of_ipndm_and_pndm(order):
    """Equal steps in sigma make their coefficients right; the steps of other grids keep order 2, and so does iPNDM's
    start.
    """
    for oracle, exact in ((gaussian(), gaussian_flow), (mixture(), None)):
        assert order_with_own_start(StartedIPNDM(order), oracle, exact, rho=1.0) == pytest.approx(order, abs=0.2)
        assert order_with_own_start(IPNDM(order), oracle, exact, rho=1.0) == pytest.approx(min(order, 2), abs=0.2)
        assert order_with_own_start(StartedIPNDM(order), oracle, exact) == pytest.approx(min(order, 2), abs=0.2)
        assert order_with_own_start(IPNDM(order), oracle, exact) == pytest.approx(min(order, 2), abs=0.2)
        if order == 4:
            assert order_with_own_start(PNDM(), oracle, exact, rho=1.0) == pytest.approx(4, abs=0.2)
            assert order_with_own_start(PNDM(), oracle, exact) == pytest.approx(2, abs=0.2)


@dataclasses.dataclass(frozen=True)
class EqualSteps(LMS):
    """LMS that takes all its steps for equal: iPNDM in disguise."""

    def plan(self, process, sigma_from, sigma_to):
        return IPNDM(self.order).plan(process, sigma_from, sigma_to)


@dataclasses.dataclass(frozen=True)
class Uncorrected(UniPC):
    """UniPC whose corrector does nothing but call the denoiser."""

    def plan(self, process, sigma_from, sigma_to):
        steps = super().plan(process, sigma_from, sigma_to)
        return [
            step._replace(
                stages=(step.stages[0], Stage(step.stages[1].sigma, step.stages[0].x, (0.0, *step.stages[0].kept)))
            )
            if len(step.stages) == 2
            else step
            for step in steps
        ]


@dataclasses.dataclass(frozen=True)
class TooSteep(DPMpp2M):
    """DPM-Solver++(2M) with 0.6 where 1/2 belongs."""

    def plan(self, process, sigma_from, sigma_to):
        steps = []
        for step in super().plan(process, sigma_from, sigma_to):
            (stage,) = step.stages
            if len(stage.kept) == 2:
                other = 1.2 * stage.kept[1]
                stage = stage._replace(kept=(sum(stage.kept) - other, other))
            steps.append(LinearStep((stage,)))
        return steps


@named([EqualSteps(3), EqualSteps(4), Uncorrected(3), Uncorrected(2), TooSteep()])
def test_a_broken_sampler_fails_its_slope(sampler):
    with pytest.raises(AssertionError):
        check_order(sampler, EDM, sampler.order)


def test_half_the_curvature_costs_an_order():
    assert measured_multistep_order(DPMpp3M(curvature="half"), mixture(), EDM) < 2.2
    assert measured_multistep_order(DPMpp3M(), mixture(), EDM) > 2.8


@pytest.mark.parametrize(
    "sampler",
    [
        *(LMS(4), DEIS(4), UniPC(3)),
        *(
            pytest.param(sampler, marks=pytest.mark.slow)
            for sampler in (LMS(3), LMS(4, over="log_sigma"), DPMpp3M(), SASolver(3, 4, tau=0.0), PNDM())
        ),
    ],
    ids=repr,
)
def test_thousands_of_steps_lose_no_digits(sampler):
    """The error falls on to rounding, and stays there."""
    oracle, x = gaussian(), noisy(gaussian(), 8, 10.0)
    truth = gaussian_flow(oracle, x, 10.0, 0.3)
    rho = 1.0 if isinstance(sampler, PNDM) else 3.0
    errors = [
        (
            integrate(
                sampler, oracle, EDM, x, ramped(n, rho=rho) if rho == 3.0 else grid.EDM(1.0)(n + 1, 0.3, 10.0)[:-1]
            )
            - truth
        )
        .abs()
        .max()
        .item()
        for n in (250, 1000, 4000)
    ]
    for coarse, fine in itertools.pairwise(errors):
        assert fine < max(coarse / 20, 2e-13)
    assert errors[-1] < 2e-8


# The mathematics below.


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_phi_functions(k):
    """Against the series and recursion in exact fractions."""
    for x in (-40.0, -7.5, -2.0, -1.96875, -0.3125, -(2.0**-30), 0.0, 2.0**-17, 0.75, 1.96875, 2.0, 9.0):
        exact, term = Fraction(0), Fraction(1, math.factorial(k))
        for n in range(1, 200):
            exact += term
            term *= Fraction(x) / (n + k)
        assert exponential.phi(k, x) == pytest.approx(float(exact), rel=5e-14)


def test_weights_integrate_polynomials():
    """Of any polynomial through the nodes, against quadrature; the classical coefficients for equal steps."""
    from numpy.polynomial.legendre import leggauss

    points, quadrature = leggauss(60)
    theta = (torch.as_tensor(points) + 1) / 2
    for nodes in ([0.0], [0.0, -0.3], [0.0, -2.0, -2.1], [1.0, 0.0, -0.5, -3.0], [0.0, -1e-3, -2.5e-3, -4e-3]):
        for z in (1e-8, 0.1, 3.0, 30.0, -0.1, -2.0):
            for power in range(len(nodes)):
                kernel = z * torch.exp(-z * (1 - theta)) * theta**power
                exact = (kernel * torch.as_tensor(quadrature)).sum().item() / 2
                weights = exponential.exponential_weights(z, nodes)
                found = sum(w * node**power for w, node in zip(weights, nodes, strict=True))
                scale = max(abs(w * node**power) for w, node in zip(weights, nodes, strict=True))
                assert found == pytest.approx(exact, rel=1e-11, abs=1e-12 * scale)
    assert exponential.adams_weights([0, -1, -2, -3]) == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24], rel=1e-14)
    assert exponential.adams_weights([0, -1, -2]) == pytest.approx([23 / 12, -16 / 12, 5 / 12], rel=1e-14)


# Grids of few steps, encoding, calls.


@named([*DETERMINISTIC, *STOCHASTIC])
@pytest.mark.parametrize("name", ["edm", "vp", "flow"])
def test_few_steps(sampler, name):
    """N steps are N calls, one at each level but 0, and each image is an image of the last: one step denoises."""
    path, oracle = PROCESSES[name], gaussian()
    for steps in range(1, 7):
        sigmas = grid.EDM()(steps, 0.1, 3.0)
        counting, x = Counting(oracle), noisy(oracle, 5, 3.0)
        scaled = x * path.s(path.t(sigmas))[0]
        end = sampler(counting, scaled, sigmas, process=path, noise=noise.Seeded(range(5)))
        assert len(counting.levels) == nfe(sampler, steps)
        if not isinstance(sampler, PNDM):
            assert counting.levels == pytest.approx(sigmas[:-1].tolist(), rel=1e-15)
        assert end.isfinite().all()
        assert (end - oracle.moments()[0]).abs().max() < 12
        if steps == 1 and (name == "edm" or not (isinstance(sampler, LMS) and sampler.over == "t")):
            torch.testing.assert_close(end, oracle(x, sigmas[0]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("sampler", "name"),
    [
        *((sampler, "edm") for sampler in DETERMINISTIC),
        (LMS(2), "vp"),
        (LMS(4), "vp"),
        (LMS(4), "flow"),
        (PNDM(), "vp"),
    ],
    ids=repr,
)
def test_encode_and_decode(sampler, name):
    """Rising levels run the same ODE backwards."""
    path, oracle = PROCESSES[name], gaussian()
    falling = grid.EDM(3.0)(201, 0.1, 10.0)[:-1]
    data = noisy(oracle, 8, 0.1)
    encoded = integrate(sampler, oracle, path, data, falling.flip(0))
    size = 2.0 if sampler.order == 1 else 5e-2
    assert (encoded - gaussian_flow(oracle, data, 0.1, 10.0)).abs().max() < size  # of a spread of 10
    assert (integrate(sampler, oracle, path, encoded, falling) - data).abs().max() < size / 10


@named([LMS(4), LMS(over="log_sigma"), DPMpp3M(), DEIS(4), UniPC(3), SASolver(3, 4, tau=0.0)])
def test_order_of_encoding(sampler):
    """On rising levels too; from sigma 0.3, a start that shows."""
    oracle, data = gaussian(), noisy(gaussian(), 16, 0.3)
    truth = gaussian_flow(oracle, data, 0.3, 1.0)
    errors = []
    for n in (64, 128):
        nodes = (0.3 + 1.0 - ramped(n, 0.3, 1.0, rho=1.0)).clone()
        nodes[0] = 0.3
        errors.append((integrate(sampler, oracle, EDM, data, nodes) - truth).norm())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(sampler.order, abs=0.3)


@named([*DETERMINISTIC, *STOCHASTIC])
def test_the_state_keeps_its_dtype(sampler):
    oracle, sigmas = gaussian(), grid.EDM()(12, 0.05, 10.0)
    x = noisy(oracle, 4, 10.0)
    double = sampler(oracle, x, sigmas, process=EDM, noise=noise.Seeded(range(4)))
    single = sampler(oracle, x.float(), sigmas, process=EDM, noise=noise.Seeded(range(4)))
    assert single.dtype == torch.float32
    assert (single - double).abs().max() < (1e-3 if getattr(sampler, "over", "") == "log_sigma" else 1e-4)


# Noise.


@named(STOCHASTIC)
def test_noise_is_drawn_once_a_step_but_for_the_last(sampler):
    assert sampler.stochastic
    assert sampler.brownian
    sigmas = grid.EDM()(7, 0.05, 10.0)
    plan = sampler.plan(EDM, sigmas[:-1], sigmas[1:])
    draws = [step.draws for step in plan]
    assert draws == [((a, b),) for a, b in zip(sigmas[:-2].tolist(), sigmas[1:-1].tolist(), strict=True)] + [()]


@pytest.mark.parametrize(
    ("sampler", "with_noise"),
    [
        (DPMpp2M(), DPMpp2M(1e-14)),
        (DPMpp3M(), DPMpp3M(1e-14)),
        (SASolver(tau=0.0), SASolver(tau=1e-7)),
        (SASolver(tau=0.0), SASolver(tau=1.0, S_min=20.0)),
        (SASolver(tau=1.0, S_min=0.01, S_max=11.0), SASolver(tau=1.0)),
    ],
)
def test_no_noise_is_the_deterministic_limit(sampler, with_noise):
    oracle, sigmas = mixture(), grid.EDM()(9, 0.05, 10.0)
    x = noisy(oracle, 4, 10.0)
    ends = [s(oracle, x, sigmas, process=EDM, noise=noise.Seeded(range(4))) for s in (sampler, with_noise)]
    assert (ends[0] - ends[1]).abs().max() < 1e-5


def test_noise_acts_within_its_interval():
    sigmas = grid.EDM()(9, 0.05, 10.0)
    plan = SASolver(S_min=0.5, S_max=5.0).plan(EDM, sigmas[:-1], sigmas[1:])
    assert [bool(step.draws) for step in plan] == [0.5 <= sigma <= 5.0 for sigma in sigmas[:-1].tolist()]


@named(
    [DPMpp2M(1.0), DPMpp2M(0.3), DPMpp2M(1.0, solver_type="heun"), DPMpp3M(1.0), SASolver(), SASolver(2, 2, tau=0.5)]
)
def test_law_on_a_gaussian(sampler):
    """Mean and covariance exactly, at two numbers of steps, and 20 % more noise shows."""
    oracle, sigmas = gaussian(), grid.EDM()(128, 0.02, 20.0)
    mean, std = law_error(sampler, oracle, EDM, sigmas)
    assert mean < 1e-10
    assert std < 4e-3
    assert law_error(sampler, oracle, PROCESSES["vp"], sigmas)[1] == pytest.approx(std, rel=1e-6)
    if isinstance(sampler, (DPMpp2M, DPMpp3M)):
        assert law_error(dataclasses.replace(sampler, S_noise=1.2), oracle, EDM, sigmas)[1] > 10 * std


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        (DPMpp2M(1.0), (64, 128)),
        (DPMpp2M(0.5), (64, 128)),
        (DPMpp2M(1.0, solver_type="heun"), (64, 128)),
        (DPMpp3M(1.0, curvature="half"), (64, 128)),
        (SASolver(1, 2), (64, 128)),
        (SASolver(1, 1), (256, 512)),
        pytest.param(SASolver(2, 2), (256, 512), marks=pytest.mark.slow),
        pytest.param(DPMpp3M(1.0), (512, 1024), marks=pytest.mark.slow),
        pytest.param(SASolver(), (512, 1024), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_weak_order(sampler, steps):
    """Those whose error in the mean is of higher order come near order 2 from above, in many steps."""
    assert weak_order(sampler, gaussian(), EDM, steps) == pytest.approx(sampler.order, abs=0.2)


@named([DPMpp3M(1.0), SASolver()])
def test_weak_order_is_no_less(sampler):
    assert weak_order(sampler, gaussian(), EDM, (64, 128)) > sampler.order - 0.2


@named([DPMpp2M(1.0), DPMpp3M(1.0), SASolver()])
def test_law_on_a_mixture(sampler):
    """At many steps: mean, covariance, and the distribution function of both coordinates."""
    stats = pytest.importorskip("scipy.stats")
    oracle, n = mixture(), 4000
    sigmas = grid.EDM()(160, 0.01, 20.0)
    x = sampler(oracle, noisy(oracle, n, 20.0), sigmas, process=EDM, noise=noise.Seeded(range(n)))
    mean, covariance = oracle.moments()
    assert ((x.mean(0) - mean).abs() / torch.sqrt(covariance.diagonal() / n)).max() < 4.5
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert ((products.mean(0) - covariance).abs() / (products.std(0) / math.sqrt(n))).max() < 4.5
    for axis in (0, 1):
        normals = [
            (w, stats.norm(m, s).cdf)
            for w, m, s in zip([0.3, 0.3, 0.4], oracle.means[:, axis].tolist(), [0.4, 0.5, 0.6], strict=True)
        ]
        result = stats.kstest(x[:, axis].numpy(), lambda v, parts=normals: sum(w * cdf(v) for w, cdf in parts))
        assert result.pvalue > 1e-3


def test_exact_law_needs_no_more_than_its_draws():
    """The unit vectors of the tests above are those of the draws: one a step but for the last."""
    mean, covariance = exact_law(DPMpp2M(1.0), gaussian(), EDM, grid.EDM()(3, 0.1, 10.0))
    assert mean.shape == (2,)
    assert torch.linalg.eigvalsh(covariance).min() > 0


# The peers.

LEVELS = {
    "to 0": grid.EDM()(18, 0.02, 20.0),
    "positive": grid.EDM()(18, 0.02, 20.0)[:-1],
    "two": grid.EDM()(2, 0.02, 20.0),
    "three": grid.EDM()(3, 0.02, 20.0),
}
every_level = pytest.mark.parametrize("levels", LEVELS)


def recorded(steps, samples):
    return torch.randn(steps, samples, 2, generator=torch.Generator().manual_seed(5), dtype=F64)


def both(sampler, theirs, sigmas):
    """The end states of a sampler and of a k-diffusion function, from the same start and with the same noise."""
    oracle = mixture()
    x, draws = noisy(oracle, 8, sigmas[0].item()), recorded(len(sigmas) - 1, 8)
    stream = iter(draws)
    ours = sampler(oracle, x, sigmas, process=EDM, noise=noise.Recorded(draws))
    end = theirs(lambda x, sigma, **_: oracle(x, sigma[0]), x, sigmas, lambda *_: next(stream))
    return ours, end


@every_level
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_equals_k_diffusion(levels, order):
    k = peers.k_diffusion()
    ours, theirs = both(
        LMS(order),
        lambda model, x, sigmas, _: k.sample_lms(model, x, sigmas, order=order, disable=True),
        LEVELS[levels],
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@every_level
def test_dpmpp_2m_equals_k_diffusion(levels):
    k = peers.k_diffusion()
    ours, theirs = both(
        DPMpp2M(), lambda model, x, sigmas, _: k.sample_dpmpp_2m(model, x, sigmas, disable=True), LEVELS[levels]
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@every_level
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize(("eta", "S_noise"), [(0.0, 1.0), (1.0, 1.0), (0.4, 1.1)])
def test_dpmpp_2m_sde_equals_k_diffusion(levels, solver_type, eta, S_noise):
    k = peers.k_diffusion()
    arguments = {"eta": eta, "s_noise": S_noise, "solver_type": solver_type, "disable": True}
    ours, theirs = both(
        DPMpp2M(eta, S_noise, solver_type),
        lambda model, x, sigmas, draw: k.sample_dpmpp_2m_sde(model, x, sigmas, noise_sampler=draw, **arguments),
        LEVELS[levels],
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@every_level
@pytest.mark.parametrize(("eta", "S_noise"), [(0.0, 1.0), (1.0, 1.0), (0.4, 1.1)])
def test_dpmpp_3m_with_half_the_curvature_equals_k_diffusion(levels, eta, S_noise):
    k = peers.k_diffusion()
    ours, theirs = both(
        DPMpp3M(eta, S_noise, curvature="half"),
        lambda model, x, sigmas, draw: k.sample_dpmpp_3m_sde(
            model, x, sigmas, eta=eta, s_noise=S_noise, noise_sampler=draw, disable=True
        ),
        LEVELS[levels],
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def scheduled(scheduler, sigmas, generator=None):
    """The end state of a diffusers scheduler on our levels; in its variance-preserving state, and with images."""
    oracle, steps = mixture(), len(sigmas) - 1
    scheduler.set_timesteps(steps)
    scheduler.sigmas = sigmas.clone()
    scheduler.timesteps = torch.arange(steps).flip(0)
    scheduler._step_index = 0
    alpha = 1 / torch.sqrt(1 + sigmas**2)
    x = noisy(oracle, 8, sigmas[0].item()) * alpha[0]
    more = {} if generator is None else {"generator": generator}
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(oracle(x / alpha[i], sigmas[i]), t, x, return_dict=False, **more)[0]
    return x / alpha[-1]


def ours(sampler, sigmas, draws=None):
    oracle = mixture()
    source = None if draws is None else noise.Recorded(draws)
    return sampler(oracle, noisy(oracle, 8, sigmas[0].item()), sigmas, process=EDM, noise=source)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_equals_diffusers(order):
    diffusers = peers.diffusers()
    scheduler = diffusers.DEISMultistepScheduler(solver_order=order, prediction_type="sample", lower_order_final=False)
    sigmas = LEVELS["positive"]  # theirs knows no step to 0
    torch.testing.assert_close(ours(DEIS(order), sigmas), scheduled(scheduler, sigmas), rtol=1e-9, atol=1e-9)


@every_level
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_equals_diffusers(levels, order, variant):
    diffusers = peers.diffusers()
    sigmas = LEVELS[levels]
    if sigmas[-1] == 0 and variant == "bh1":
        pytest.skip("diffusers' last step to 0 with bh1 is infinity times 0")
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order, solver_type=variant, prediction_type="sample", lower_order_final=bool(sigmas[-1] == 0)
    )
    torch.testing.assert_close(ours(UniPC(order, variant), sigmas), scheduled(scheduler, sigmas), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("orders", [(1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 4), (4, 4)])
def test_sa_solver_equals_diffusers(orders, tau):
    diffusers = peers.diffusers()
    sigmas = LEVELS["positive"]
    scheduler = diffusers.SASolverScheduler(
        predictor_order=orders[0],
        corrector_order=orders[1],
        prediction_type="sample",
        tau_func=lambda t: torch.tensor(tau, dtype=F64),
        lower_order_final=False,
    )
    generator = torch.Generator().manual_seed(5)
    draws = torch.stack([torch.randn(8, 2, generator=generator, dtype=F64) for _ in sigmas[:-1]])
    theirs = scheduled(scheduler, sigmas, torch.Generator().manual_seed(5))
    torch.testing.assert_close(ours(SASolver(*orders, tau), sigmas, draws), theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 12])
def test_ipndm_equals_diffusers(steps):
    """On levels of our own, in its variance-preserving state; it asks for v = alpha eps - std y."""
    diffusers = peers.diffusers()
    oracle, sigmas = mixture(), grid.EDM()(steps, 0.02, 20.0)
    alpha = 1 / torch.sqrt(1 + sigmas**2)
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(steps)
    scheduler.alphas, scheduler.betas = alpha, sigmas * alpha
    scheduler._step_index = 0
    x = noisy(oracle, 8, 20.0) * alpha[0]
    for i in range(steps):
        y = oracle(x / alpha[i], sigmas[i])
        eps = (x - alpha[i] * y) / (alpha[i] * sigmas[i])
        x = scheduler.step(alpha[i] * eps - sigmas[i] * alpha[i] * y, i, x, return_dict=False)[0]
    torch.testing.assert_close(ours(IPNDM(), sigmas), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [4, 5, 10, 20])
def test_pndm_equals_diffusers(steps):
    """On its own levels, with the middles of its integer time steps."""
    diffusers = peers.diffusers()
    oracle = mixture()
    scheduler = diffusers.PNDMScheduler(set_alpha_to_one=True)
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64), 0)
    scheduler.set_timesteps(steps)
    table = torch.cat([torch.zeros(1, dtype=F64), torch.sqrt(1 / scheduler.alphas_cumprod - 1)])

    def sigma(t):
        """Time step k is t = k + 1; linear between them, and 0 at 0."""
        below = t.floor().long().clamp(0, 999)
        return table[below] + (t - below) * (table[below + 1] - table[below])

    path = process.Process(s=torch.ones_like, sigma=sigma, t_max=1000.0)
    sigmas = torch.cat([table[1 + torch.arange(steps).flip(0) * (1000 // steps)], torch.zeros(1, dtype=F64)])
    start = noisy(oracle, 8, sigmas[0].item())
    x = start * scheduler.alphas_cumprod[scheduler.timesteps[0]].sqrt()
    for t in scheduler.timesteps:
        alpha, level = scheduler.alphas_cumprod[t].sqrt(), table[t + 1]
        eps = (x / alpha - oracle(x / alpha, level)) / level
        x = scheduler.step(eps, t, x, return_dict=False)[0]
    torch.testing.assert_close(PNDM()(oracle, start, sigmas, process=path), x, rtol=1e-8, atol=1e-8)


# Bad input.


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LMS(0), "order is 0; it must be an integer from 1 to 4"),
        (lambda: LMS(5), "order is 5"),
        (lambda: LMS(2.0), "order is 2.0"),
        (lambda: LMS(True), "order is True"),
        (lambda: LMS(over="sigma"), "over: 'sigma' is not known"),
        (lambda: DPMpp2M(-0.1), "eta is -0.1; it must be a finite number, not negative"),
        (lambda: DPMpp2M(math.inf), "eta is inf"),
        (lambda: DPMpp2M(1.0, S_noise=-1.0), "S_noise is -1.0"),
        (lambda: DPMpp2M(solver_type="huen"), "did you mean 'heun'"),
        (lambda: DPMpp3M(math.nan), "eta is nan"),
        (lambda: DPMpp3M(curvature="full"), "curvature: 'full' is not known"),
        (lambda: DEIS(5), "order is 5; it must be an integer from 1 to 4"),
        (lambda: UniPC(4), "predictor_order is 4; it must be an integer from 1 to 3"),
        (lambda: UniPC(variant="bh3"), "variant: 'bh3' is not known"),
        (lambda: IPNDM("4"), "max_order is '4'"),
        (lambda: SASolver(0), "predictor_order is 0; it must be an integer from 1 to 4"),
        (lambda: SASolver(corrector_order=5), "corrector_order is 5"),
        (lambda: SASolver(tau=-1.0), "tau is -1.0"),
        (
            lambda: SASolver(S_min=2.0, S_max=1.0),
            "S_max is 1.0, S_min is 2.0; S_max must be a number that is not below S_min",
        ),
    ],
)
def test_bad_arguments(make, says):
    with pytest.raises(InputError, match=says.replace(".", r"\.").replace("(", r"\(")) as error:
        make()
    assert "\n" not in str(error.value)


@named(STOCHASTIC)
def test_noise_on_rising_levels_is_refused(sampler):
    x = torch.zeros(1, 2, dtype=F64)
    with pytest.raises(InputError, match="encode with a deterministic sampler"):
        sampler(gaussian(), x, [0.1, 1.0, 2.0], process=EDM, noise=noise.Seeded([0]))


def test_all_are_linear():
    assert all(isinstance(sampler, LinearSampler) for sampler in (*DETERMINISTIC, *STOCHASTIC))


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "sa_solver"])
def test_a_callback_is_told_the_image_that_the_step_began_with(name):
    """A predictor-corrector's is that of the call that corrected the step before: at this level, of the prediction."""
    calls, told = [], []
    oracle = mixture()

    def counted(x, sigma):
        calls.append((float(sigma), oracle(x, sigma)))
        return calls[-1][1]

    edmund.sample(counted, (2, 2), sampler=name, num_steps=6, sigma_max=5.0, progress=False, callback=told.append)
    for step in told:
        first = next(image for sigma, image in calls if sigma == pytest.approx(step.sigma, rel=1e-12))
        assert torch.equal(step.denoised, first)


def test_dpmpp_3m_sde_is_k_diffusions():
    """Of order 2 in law with either curvature, so the name gives what it gives there."""
    sde = samplers.named()["dpmpp_3m_sde"]()
    assert sde == DPMpp3M(eta=1.0, curvature="half") and sde.order == 2
    assert weak_order(sde, gaussian(), EDM, (128, 256)) == pytest.approx(2, abs=0.2)
