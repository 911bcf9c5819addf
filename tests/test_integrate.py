"""The integrator against closed forms: its order, its tolerances, its continuous extension; every sample alone."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from edmund.errors import InputError
from edmund.integrate import _A, _C, _ERROR, _step, integrate

F64 = torch.float64
RATES = torch.tensor([0.3, -1.0, 2.0, -20.0, 0.0], dtype=F64)


def oscillator(t, y, rows):
    """y'' = -y, with a forcing that makes it depend on t: y_1 = sin t + t."""
    return torch.stack([y[:, 1] + 1, -(y[:, 0] - t)], dim=1)


def exact(t):
    return torch.stack([torch.sin(t) + t, torch.cos(t)], dim=-1)


def logistic(t, y, rows):
    return RATES.to(y)[rows][:, None] * y * (1 - y)


def logistic_at(t, y0):
    grown = y0 * torch.exp(RATES[:, None] * t)
    return grown / (1 - y0 + grown)


def slope_of(errors):
    return [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]


def test_stages_satisfy_the_conditions_of_their_order():
    for c, row in zip(_C, _A, strict=True):
        assert math.isclose(sum(row), c, abs_tol=1e-14)
    assert math.isclose(sum(_ERROR), 0, abs_tol=1e-15)
    for power in range(1, 5):  # quadrature: order 5 by the last row, order 4 by the difference
        assert math.isclose(sum(b * c**power for b, c in zip(_A[-1], _C, strict=False)), 1 / (power + 1), rel_tol=1e-13)
    for power in range(1, 4):
        assert math.isclose(sum(e * c**power for e, c in zip(_ERROR, _C, strict=True)), 0, abs_tol=1e-15)


def test_fixed_steps_converge_at_order_five():
    errors, estimates = [], []
    for n in (8, 16, 32, 64):
        t, y = torch.zeros(1, dtype=F64), exact(torch.zeros(1, dtype=F64))
        h = torch.full((1,), 2.0 / n, dtype=F64)
        for _ in range(n):
            y, _, estimate = _step(oscillator, t, h, y, oscillator(t, y, None), torch.arange(1), 1e-300, 1.0)
            t = t + h
        errors.append((y - exact(t)).abs().max().item())
        estimates.append(estimate.abs().max().item())
    assert all(abs(order - 5) < 0.2 for order in slope_of(errors)), slope_of(errors)
    assert all(abs(order - 5) < 0.3 for order in slope_of(estimates)), slope_of(estimates)  # local: one above order 4


@pytest.mark.parametrize("ends", [(0.0, 10.0), (10.0, 0.0), (-3.0, 4.0)])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-7, 1e-10])
def test_the_error_follows_the_tolerance(ends, tolerance, device):
    start, end = (torch.tensor([value], dtype=F64) for value in ends)
    done = integrate(oscillator, exact(start).to(device), *ends, rtol=tolerance, atol=tolerance)
    assert (done.y.cpu() - exact(end)).abs().max() < 60 * tolerance
    assert done.calls.item() < 8 * tolerance**-0.2 * abs(ends[1] - ends[0])
    assert done.at.shape == (0, 1, 2)


@pytest.mark.parametrize("ends", [(0.0, 6.0), (6.0, 0.0)])
def test_solution_between_the_steps(ends, device):
    times = torch.cat([torch.linspace(*ends, 97, dtype=F64), torch.tensor([3.3, 1.1], dtype=F64)])
    start = torch.tensor([ends[0]] * 3, dtype=F64)
    worst = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        done = integrate(oscillator, exact(start).to(device), *ends, rtol=tolerance, atol=tolerance, times=times)
        difference = done.at.cpu() - exact(times)[:, None]
        worst.append(difference.abs().max().item())
        assert worst[-1] < 60 * tolerance
        torch.testing.assert_close(done.at[96], done.y, rtol=1e-13, atol=1e-13)
    assert worst[2] < 1e-3 * worst[0]


def test_continuous_extension_is_of_order_four(monkeypatch):
    """One step of h: the error within it falls as h^5."""
    from edmund import integrate as module

    monkeypatch.setattr(module, "_first_step", lambda *arguments: torch.full((1,), 1e9, dtype=F64))
    errors = []
    for h in (0.8, 0.4, 0.2, 0.1):
        times = h * torch.linspace(0.05, 0.95, 19, dtype=F64)
        begin = exact(torch.zeros(1, dtype=F64))
        at = integrate(oscillator, begin, 0.0, h, rtol=1e9, atol=1e9, times=times).at
        errors.append((at[:, 0] - exact(times)).abs().max().item())
    assert all(abs(order - 5) < 0.3 for order in slope_of(errors)), slope_of(errors)


def test_every_sample_steps_for_itself(device):
    y0 = torch.tensor([[0.1, 0.2], [0.5, 0.3], [0.01, 0.9], [0.6, 0.7], [0.4, 0.4]], dtype=F64)
    options = {"rtol": 1e-8, "atol": 1e-8, "times": torch.tensor([0.7, 2.0], dtype=F64)}
    together = integrate(logistic, y0.to(device), 0.0, 3.0, **options)
    torch.testing.assert_close(together.y.cpu(), logistic_at(3.0, y0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(together.at[1].cpu(), logistic_at(2.0, y0), rtol=1e-6, atol=1e-6)
    assert len(together.calls.unique()) == 5 and together.calls[3] > 2 * together.calls[0]
    for k in range(5):
        alone = integrate(
            lambda t, y, rows, k=k: logistic(t, y, rows + k), y0[k : k + 1].to(device), 0.0, 3.0, **options
        )
        assert torch.equal(alone.y[0], together.y[k]) and torch.equal(alone.at[:, 0], together.at[:, k])
        assert alone.calls[0] == together.calls[k]


def test_counts_calls_and_arrivals():
    seen, arrivals = torch.zeros(5, dtype=torch.int64), []

    def counted(t, y, rows):
        seen[rows] += 1
        assert t.shape == (len(rows),) and t.dtype == F64 and len(y) == len(rows)
        return logistic(t, y, rows)

    done = integrate(
        counted, torch.full((5, 2), 0.3, dtype=F64), 0.0, 3.0, rtol=1e-6, atol=1e-6, arrived=arrivals.append
    )
    assert torch.equal(done.calls, seen) and sum(arrivals) == 5 and len(arrivals) > 1


def test_float32_states_stay_so():
    done = integrate(logistic, torch.full((5, 2), 0.3), 0.0, 3.0, rtol=1e-5, atol=1e-5)
    assert done.y.dtype == torch.float32
    torch.testing.assert_close(
        done.y, logistic_at(3.0, torch.full((5, 2), 0.3, dtype=F64)).float(), rtol=1e-4, atol=1e-4
    )


def test_norm_decides_what_counts():
    """Only the first of two uncoupled components is looked at: fewer calls than when both are."""

    def two(t, y, rows):
        return torch.stack([-y[:, 0], torch.cos(40 * t)], dim=1)

    y0 = torch.ones(1, 2, dtype=F64)
    both = integrate(two, y0, 0.0, 3.0, rtol=1e-8, atol=1e-8)
    first = integrate(two, y0, 0.0, 3.0, rtol=1e-8, atol=1e-8, norm=lambda scaled: scaled[:, 0].abs())
    assert 3 * first.calls < both.calls and abs(first.y[0, 0] - math.exp(-3)) < 1e-7


def test_still_equations_arrive():
    y0 = torch.zeros(2, 3, dtype=F64)
    done = integrate(lambda t, y, rows: torch.zeros_like(y), y0, 0.0, 1.0, rtol=1e-6, atol=1e-6)
    assert torch.equal(done.y, y0) and done.calls.max() < 40


def run(f=oscillator, t0=0.0, t1=1.0, **options):
    given = {"rtol": 1e-6, "atol": 1e-6} | options
    return integrate(f, torch.ones(2, 2, dtype=F64), t0, t1, **given)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rtol": 0.0}, "rtol is 0.0"),
        ({"atol": -1.0}, "atol is -1.0"),
        ({"atol": math.nan}, "atol is nan"),
        ({"t1": 0.0}, "t0 and t1 are both 0.0"),
        ({"t1": math.inf}, "t1 is inf"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"times": torch.tensor([0.5, 1.5])}, "times is"),
        ({"times": torch.tensor([math.nan])}, "times is"),
        ({"times": torch.tensor(0.5)}, "times is"),
        ({"max_steps": 2, "rtol": 1e-12, "atol": 1e-12}, "max_steps is 2, and 2 of 2 samples have not arrived"),
        ({"f": lambda t, y, rows: y / 0}, "the step fell below rounding"),
        ({"f": lambda t, y, rows: y * math.nan}, "the step fell below rounding at t = 0,"),
        ({"f": lambda t, y, rows: 1 / (0.5 - t)[:, None] ** 2 + 0 * y}, "the step fell below rounding at t = 0.5"),
        ({"f": lambda t, y, rows: y**2, "t1": 3.0}, "the step fell below rounding at t = 1,"),
    ],
)
def test_bad_input_is_told(options, said):
    with pytest.raises(InputError) as error:
        run(**options)
    assert said in str(error.value) and "\n" not in str(error.value)
