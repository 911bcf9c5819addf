from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from edmund.errors import InputError
from edmund.training import ema
from edmund.training.ema import HalfLife, PowerFunction


def test_power_function_matches_the_reference(shared: Path) -> None:
    golden = json.loads((shared / "golden/ema.json").read_text())
    for sigma_rel, gamma in golden["std_to_exp"].items():
        assert ema.gamma(float(sigma_rel)) == pytest.approx(gamma, rel=1e-12)
    for case in golden["beta"]:
        beta = PowerFunction(case["std"]).beta(case["t_next"], case["t_delta"])
        assert beta == pytest.approx(case["beta"], rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 6.94, 16.97, 300.0])
def test_gamma_inverts_sigma_rel(gamma: float) -> None:
    assert ema.gamma(ema.sigma_rel(gamma)) == pytest.approx(gamma, rel=1e-9, abs=1e-9)


def weights_of_the_past(profile: ema.Profile, steps: int, batch_size: float) -> torch.Tensor:
    """How much the average after `steps` steps holds of the parameters after each: averaging unit vectors shows it."""
    average = torch.zeros(steps, dtype=torch.float64)
    for step in range(steps):
        parameters = torch.zeros(steps, dtype=torch.float64)
        parameters[step] = 1
        ema.update([average], [parameters], profile.beta((step + 1) * batch_size, batch_size))
    return average


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_power_function_weighs_the_past_by_a_power_of_time(sigma_rel: float) -> None:
    steps = 2000
    held = weights_of_the_past(PowerFunction(sigma_rel), steps, batch_size=64)
    time = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    mean = (held * time).sum()
    gamma = ema.gamma(sigma_rel)
    assert held.sum().item() == pytest.approx(1, abs=1e-12)
    assert mean.item() == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)
    assert (held * (time - mean) ** 2).sum().sqrt().item() == pytest.approx(sigma_rel, rel=1e-2)
    expected = (gamma + 1) * time**gamma / steps
    assert torch.allclose(held, expected, rtol=0.02, atol=expected.max().item() * 0.01)


def test_half_life_halves_in_a_half_life() -> None:
    held = weights_of_the_past(HalfLife(half_life=320, ramp=None), steps=200, batch_size=32)
    # 10 steps are 320 samples. The first step's weight is the exception: it holds all that came before it too.
    assert torch.allclose(held[1:-10] * 2, held[11:], rtol=1e-12)
    assert held[-1].item() == pytest.approx(1 - 2**-0.1)


def test_half_life_is_ramped_up() -> None:
    profile = HalfLife(half_life=500_000, ramp=0.05)
    assert profile.beta(128, 128) == 0  # the first step: nothing seen before it
    assert profile.beta(100_128, 128) == pytest.approx(0.5 ** (128 / 5_000))
    assert profile.beta(10_000_128, 128) == pytest.approx(0.5 ** (128 / 500_000))
    assert profile.beta(50_000_000, 128) == pytest.approx(0.5 ** (128 / 500_000))


def test_the_average_starts_as_the_first_parameters() -> None:
    for profile in (HalfLife(1000), PowerFunction(0.1)):
        average, parameters = [torch.full((3,), 7.0)], [torch.tensor([1.0, -2.0, 3.5])]
        ema.update(average, parameters, profile.beta(32, 32))
        assert torch.equal(average[0], parameters[0])


def test_the_average_of_half_precision_parameters_is_float32() -> None:
    average, parameters = [torch.ones(4)], [torch.full((4,), 1 + 2**-7, dtype=torch.bfloat16)]
    for _ in range(100):
        ema.update(average, parameters, 0.99)
    # In bfloat16, 1 + 0.01 * 2^-7 is 1: the average would never move.
    assert torch.allclose(average[0], torch.full((4,), 1 + 2**-7 * (1 - 0.99**100)), atol=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.3, float("nan")])
def test_a_width_that_no_profile_has_is_refused(sigma_rel: float) -> None:
    with pytest.raises(InputError, match="sigma_rel"):
        PowerFunction(sigma_rel)


def test_a_half_life_must_be_positive() -> None:
    with pytest.raises(InputError, match="half_life"):
        HalfLife(0)
    with pytest.raises(InputError, match="ramp"):
        HalfLife(1000, ramp=-1)
