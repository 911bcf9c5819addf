"""Processes: closed forms against automatic differentiation and independent formulas, inverses, identities."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch

from edmund import process
from edmund.errors import InputError
from edmund.process import SCALINGS, Process

F64 = torch.float64


def odd() -> Process:
    return Process(s=lambda t: 1 + 0.5 * torch.sin(4 * torch.pi * t), sigma=lambda t: 80 * t**3)


SCHEDULES = {
    "vp": process.VP,
    "subvp": process.SubVP,
    "ve": process.VE,
    "edm": process.EDM,
    "flow": process.RectifiedFlow,
    "cosine": process.Cosine,
}
READY = {f"{name}-{scaling}": kind(scaling=scaling) for name, kind in SCHEDULES.items() for scaling in SCALINGS}
OTHERS = {
    "vp-fitted": process.VP.for_range(0.02, 100.0),
    "vp-fitted-concave": process.VP.for_range(0.3, 5.0, epsilon_s=0.2),
    "odd": odd(),
    "own-bounded": Process(s=lambda t: 1 - t, sigma=lambda t: t / (1 - t), t_max=0.9999),
    "own-constant-s": Process(s=lambda t: torch.tensor(2.0), sigma=lambda t: torch.sinh(t)),
}
ALL = {**READY, **OTHERS}
every_process = pytest.mark.parametrize("name", ALL)


def times(name: str) -> torch.Tensor:
    """Times over several decades of sigma, all of them inside the process's range."""
    sigma = torch.logspace(-2, 2, 41, dtype=F64)
    return ALL[name].t(sigma)


def autograd(function, t):
    t = t.clone().requires_grad_()
    value = function(t)
    if not value.requires_grad:
        return torch.zeros_like(t)
    return torch.autograd.grad(value.sum(), t)[0]


@every_process
def test_derivatives(name):
    path, t = ALL[name], times(name)
    torch.testing.assert_close(path.sigma_dot(t), autograd(path.sigma, t), rtol=1e-11, atol=0)
    torch.testing.assert_close(path.s_dot(t), autograd(path.s, t), rtol=1e-10, atol=1e-14)
    # A second witness that knows nothing of autograd: central differences, whose error is O(h^2) + O(eps / h).
    h = 1e-5 * t
    numeric = (path.sigma(t + h) - path.sigma(t - h)) / (2 * h)
    torch.testing.assert_close(path.sigma_dot(t), numeric, rtol=1e-5, atol=0)
    numeric = (path.s(t + h) - path.s(t - h)) / (2 * h)
    torch.testing.assert_close(path.s_dot(t), numeric, rtol=1e-4, atol=1e-4)


@every_process
def test_inverse(name):
    path = ALL[name]
    sigma = torch.logspace(-2, 2, 201, dtype=F64)
    tolerance = 1e-13 if type(path) is Process else 1e-12
    torch.testing.assert_close(path.sigma(path.t(sigma)), sigma, rtol=tolerance, atol=0)
    t = path.t(sigma)
    assert (t.diff() > 0).all()
    # Back from t; where sigma(t) is steep or flat, a rounding of sigma is amplified by sigma / (t sigma').
    amplification = (sigma / (t * path.sigma_dot(t))).clamp_min(1)
    assert (((path.t(path.sigma(t)) - t) / t).abs() / amplification).max() < tolerance


@every_process
def test_starts_clean(name):
    path = ALL[name]
    zero = torch.zeros((), dtype=F64)
    if name.startswith("vp-fitted") and path.beta_min < 0:
        assert path.t(zero) == 0
    else:
        assert path.sigma(zero) == 0 and path.t(zero) == 0


@every_process
def test_identities(name):
    path, t = ALL[name], times(name)
    s, sigma = path.s(t), path.sigma(t)
    torch.testing.assert_close(path.alpha(t), s, rtol=0, atol=0)
    torch.testing.assert_close(path.std(t), s * sigma, rtol=1e-15, atol=0)
    torch.testing.assert_close(path.log_snr(t), torch.log(s**2 / (s * sigma) ** 2), rtol=1e-13, atol=1e-13)
    # dx = f x dt + g dw moves the mean by m' = f m and the variance by V' = 2 f V + g^2: to alpha_t and std_t^2.
    f, g = path.f(t), path.g(t)
    torch.testing.assert_close(f * path.alpha(t), autograd(path.alpha, t), rtol=1e-10, atol=1e-12)
    slope = autograd(lambda t: path.std(t) ** 2, t)
    scale = (2 * f * path.std(t) ** 2).abs() + g**2
    assert ((2 * f * path.std(t) ** 2 + g**2 - slope).abs() / scale).max() < 1e-11


def test_textbook_forms():
    t = torch.linspace(0.01, 0.99, 50, dtype=F64)
    integral = 19.9 * t**2 / 2 + 0.1 * t
    vp, subvp, cosine, flow = process.VP(), process.SubVP(), process.Cosine(), process.RectifiedFlow()
    beta = 0.1 + 19.9 * t
    close = {"rtol": 1e-12, "atol": 1e-14}
    # Song et al. 2021, Eq. 29-31: VP dx = -beta/2 x dt + sqrt(beta) dw; sub-VP has beta (1 - exp(-2 B)) under the root.
    torch.testing.assert_close(vp.s(t), torch.exp(-integral / 2), **close)
    torch.testing.assert_close(vp.std(t) ** 2, 1 - torch.exp(-integral), **close)
    torch.testing.assert_close(vp.f(t), -beta / 2, **close)
    torch.testing.assert_close(vp.g(t) ** 2, beta, **close)
    torch.testing.assert_close(subvp.s(t), torch.exp(-integral / 2), **close)
    torch.testing.assert_close(subvp.std(t), 1 - torch.exp(-integral), **close)
    torch.testing.assert_close(subvp.f(t), -beta / 2, **close)
    torch.testing.assert_close(subvp.g(t) ** 2, beta * (1 - torch.exp(-2 * integral)), **close)
    torch.testing.assert_close(process.VE().g(t), torch.ones_like(t), **close)
    torch.testing.assert_close(process.EDM().g(t), torch.sqrt(2 * t), **close)
    torch.testing.assert_close(flow.alpha(t), 1 - t, **close)
    torch.testing.assert_close(flow.std(t), t, **close)
    torch.testing.assert_close(cosine.alpha(t), torch.cos(math.pi / 2 * t), **close)
    torch.testing.assert_close(cosine.std(t), torch.sin(math.pi / 2 * t), **close)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scalings(scaling):
    sigma = torch.logspace(-4, 4, 81, dtype=F64)
    part = SCALINGS[scaling]
    expected = {
        "none": lambda x: 1.0,
        "vp": lambda x: 1 / math.sqrt(1 + x * x),
        "flow": lambda x: 1 / (1 + x),
        "subvp": lambda x: math.exp(-math.asinh(x / 2)),
    }[scaling]
    torch.testing.assert_close(part.value(sigma), torch.tensor([expected(x) for x in sigma.tolist()], dtype=F64))
    torch.testing.assert_close(part.slope(sigma), autograd(part.value, sigma), rtol=1e-11, atol=0)
    # Where the state's scaling comes from sigma, it is the same function of sigma on every schedule.
    for kind in SCHEDULES.values():
        path = kind(scaling=scaling)
        t = path.t(sigma[:61])
        torch.testing.assert_close(path.s(t), part.value(sigma[:61]), rtol=1e-11, atol=0)


@pytest.mark.parametrize(("low", "high", "epsilon"), [(0.002, 80.0, 1e-3), (0.02, 100.0, 1e-3), (0.3, 5.0, 0.2)])
def test_vp_for_range(low, high, epsilon):
    path = process.VP.for_range(low, high, epsilon)
    ends = path.sigma(torch.tensor([epsilon, 1.0], dtype=F64))
    torch.testing.assert_close(ends, torch.tensor([low, high], dtype=F64), rtol=1e-11, atol=0)


def test_vp_for_range_of_its_own_ends_is_itself():
    own = process.VP()
    low, high = own.sigma(torch.tensor([1e-3, 1.0], dtype=F64)).tolist()
    again = process.VP.for_range(low, high)
    assert again.beta_d == pytest.approx(own.beta_d, rel=1e-9) and again.beta_min == pytest.approx(0.1, rel=1e-6)


@every_process
def test_add_noise(name):
    path = ALL[name]
    generator = torch.Generator().manual_seed(0)
    y, n = torch.randn(2, 4, 2, 3, 3, generator=generator, dtype=F64)
    t = times(name)[[5, 15, 25, 35]]
    x = path.add_noise(y, t, n)
    for k in range(4):
        expected = path.s(t[k]).item() * (y[k] + path.sigma(t[k]).item() * n[k])
        torch.testing.assert_close(x[k], expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(path.add_noise(y, t[1], n)[3], path.add_noise(y, t[1].expand(4), n)[3], rtol=0, atol=0)
    assert path.add_noise(y.float(), t, n.float()).dtype == torch.float32


def test_user_process_agrees_with_the_closed_form():
    ours = process.Cosine()
    theirs = Process(s=lambda t: torch.cos(torch.pi / 2 * t), sigma=lambda t: torch.tan(torch.pi / 2 * t), t_max=1.0)
    t = torch.linspace(0.01, 0.95, 30, dtype=F64)
    for method in ("s", "sigma", "s_dot", "sigma_dot", "f", "g", "alpha", "std", "log_snr"):
        torch.testing.assert_close(getattr(theirs, method)(t), getattr(ours, method)(t), rtol=1e-12, atol=1e-12)


def test_odd_process():
    """The example of the reference: derivatives by hand."""
    path, t = odd(), torch.linspace(0.05, 1.3, 26, dtype=F64)
    torch.testing.assert_close(path.sigma_dot(t), 240 * t**2, rtol=1e-14, atol=0)
    torch.testing.assert_close(path.s_dot(t), 2 * math.pi * torch.cos(4 * math.pi * t), rtol=1e-13, atol=1e-13)
    sigma = torch.tensor([1e-9, 0.002, 1.0, 80.0, 1e9], dtype=F64)
    torch.testing.assert_close(path.t(sigma), (sigma / 80) ** (1 / 3), rtol=1e-14, atol=0)


def test_bisection_does_not_depend_on_its_companions():
    path = odd()
    sigma = torch.logspace(-3, 3, 13, dtype=F64)
    alone = torch.stack([path.t(value) for value in sigma])
    assert torch.allclose(path.t(sigma), alone, rtol=1e-14, atol=0)


def test_derivatives_under_no_grad_and_float32():
    with torch.no_grad():
        assert odd().sigma_dot(torch.tensor([0.5], dtype=F64)).item() == pytest.approx(60, rel=1e-14)
    for path in ALL.values():
        t = path.t(torch.tensor([0.5, 2.0], dtype=torch.float32))
        assert t.dtype == torch.float32
        for method in ("s", "sigma", "s_dot", "sigma_dot"):
            assert getattr(path, method)(t).dtype == torch.float32
        torch.testing.assert_close(path.sigma(t), torch.tensor([0.5, 2.0]), rtol=1e-4, atol=0)


def message(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_errors():
    for build, words in (
        (lambda: process.VP(scaling="vq"), ["scaling", "'vq'", "'vp'"]),
        (lambda: process.VP.for_range(2.0, 1.0), ["sigma_min", "2.0", "sigma_max", "1.0"]),
        (lambda: process.VP.for_range(-1.0, 1.0), ["sigma_min", "-1.0"]),
        (lambda: process.VP.for_range(0.1, math.inf), ["sigma_max", "inf"]),
        (lambda: process.VP.for_range(0.1, 1.0, epsilon_s=1.0), ["epsilon_s", "1.0"]),
        (lambda: process.VP.for_range(1.0, 1.01), ["epsilon_s", "0.001"]),
        (lambda: Process(s=1.0, sigma=torch.sin), ["s is 1.0"]),
        (lambda: Process(s=torch.cos, sigma="t"), ["sigma", "'t'"]),
        (lambda: Process(s=torch.cos, sigma=torch.sin, t_max=-1.0), ["t_max", "-1.0"]),
        (lambda: OTHERS["own-bounded"].t(torch.tensor(1e9, dtype=F64)), ["sigma", "1000000000.0", "t_max"]),
        (lambda: odd().t(torch.tensor(-1.0)), ["sigma", "-1.0"]),
        (lambda: odd().t(torch.tensor(math.nan)), ["sigma", "nan"]),
        (lambda: Process(torch.ones_like, torch.tanh).t(torch.tensor(2.0, dtype=F64)), ["sigma", "2.0"]),
        (lambda: Process(torch.ones_like, lambda t: 1 + t).t(torch.tensor(0.5, dtype=F64)), ["sigma", "0.5"]),
    ):
        with pytest.raises(InputError) as error:
            build()
        for word in words:
            assert re.search(re.escape(word), message(error)), (word, message(error))


def test_names():
    assert process.named() == {kind.name: kind for kind in SCHEDULES.values()}
    assert all(dataclasses.is_dataclass(kind) for kind in SCHEDULES.values())


def test_iddpm_levels_solve_their_recursion():
    levels = process.iddpm_levels(200, 0.001, 0.008)
    assert len(levels) == 201 and levels[-1] == 0 and (levels.diff() < 0).all()
    j = torch.arange(201, dtype=F64)
    alpha_bar = torch.sin(math.pi / 2 * j / (200 * 1.008)) ** 2
    # 1 + u_{j-1}^2 = (1 + u_j^2) / max(alpha_bar_{j-1} / alpha_bar_j, C_1)
    ratio = (alpha_bar[:-1] / alpha_bar[1:]).clamp_min(0.001)
    torch.testing.assert_close(1 + levels[:-1] ** 2, (1 + levels[1:] ** 2) / ratio, rtol=1e-12, atol=0)


def test_nearest_level_is_the_nearest():
    levels = process.iddpm_levels()
    generator = torch.Generator().manual_seed(1)
    sigma = torch.cat(
        [torch.exp(torch.randn(500, generator=generator, dtype=F64) * 4), levels, levels.new_tensor([0.0])]
    )
    found = process.nearest_level(sigma, levels)
    distance = (levels[None, :] - sigma[:, None]).abs()
    torch.testing.assert_close(distance.gather(1, found[:, None])[:, 0], distance.min(1).values, rtol=0, atol=0)
    assert process.nearest_level(levels, levels).tolist() == list(range(1001))
