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


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.3, float("nan"), "0.1", True, None, [0.1]])
def test_a_width_that_no_profile_has_is_refused(sigma_rel: float) -> None:
    with pytest.raises(InputError, match="sigma_rel"):
        PowerFunction(sigma_rel)


def test_a_half_life_must_be_positive() -> None:
    with pytest.raises(InputError, match="half_life"):
        HalfLife(0)
    with pytest.raises(InputError, match="ramp"):
        HalfLife(1000, ramp=-1)


def test_posthoc_weights_match_the_reference(shared: Path) -> None:
    golden = json.loads((shared / "golden/ema.json").read_text())["posthoc"]
    snapshots = list(zip(golden["in_ofs"], golden["in_std"], strict=True))
    for column, (seen, sigma_rel) in enumerate(zip(golden["out_ofs"], golden["out_std"], strict=True)):
        expected = [row[column] for row in golden["coefficients"]]
        assert ema.posthoc_weights(snapshots, seen, sigma_rel).tolist() == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("sigma_rel", [0.04, 0.05, 0.07, 0.1, 0.13, 0.16])
def test_posthoc_average_weighs_the_past_as_one_that_was_tracked(sigma_rel: float) -> None:
    steps, every = 1600, 100
    tracked: dict[tuple[float, float], torch.Tensor] = {}
    for width in (0.05, 0.1):
        average = torch.zeros(steps, dtype=torch.float64)
        for step in range(steps):
            unit = torch.zeros(steps, dtype=torch.float64)
            unit[step] = 1
            ema.update([average], [unit], PowerFunction(width).beta((step + 1) * 64, 64))
            if (step + 1) % every == 0:
                tracked[((step + 1) * 64, width)] = average.clone()
    weights = ema.posthoc_weights(list(tracked), steps * 64, sigma_rel)
    (made,) = ema.weighted_sum(([average] for average in tracked.values()), weights)
    direct = weights_of_the_past(PowerFunction(sigma_rel), steps, 64)
    assert made.sum().item() == pytest.approx(1, abs=1e-9)
    tolerance = 1e-9 if sigma_rel in (0.05, 0.1) else 0.012
    assert (made - direct).norm() < tolerance * direct.norm()


@pytest.mark.parametrize(("sigma_rel", "seen"), [(0.03, 900.0), (0.07, 1000.0), (0.1, 1000.0), (0.2, 700.0)])
def test_the_error_of_a_profile_is_the_distance_of_the_curves(sigma_rel: float, seen: float) -> None:
    snapshots = [(300.0, 0.05), (700.0, 0.1), (1000.0, 0.05), (1000.0, 0.1)]
    weights = ema.posthoc_weights(snapshots, seen, sigma_rel)
    time = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200

    def profile(t: float, width: float) -> torch.Tensor:
        power = ema.gamma(width)
        return torch.where(time < t, (power + 1) / t * (time / t) ** power, 0.0)

    made = sum(weight * profile(*snapshot) for weight, snapshot in zip(weights.tolist(), snapshots, strict=True))
    wanted = profile(seen, sigma_rel)
    distance = ((made - wanted).norm() / wanted.norm()).item()
    assert ema.posthoc_error(snapshots, weights, seen, sigma_rel) == pytest.approx(distance, rel=1e-3, abs=1e-6)


def test_stored_half_precision_is_summed_in_float32() -> None:
    stored = [[torch.full((3,), value, dtype=torch.float16), torch.ones(2)] for value in (1.0, 2.0)]
    half, single = ema.weighted_sum(stored, [1 / 3, 2 / 3])
    assert half.dtype == single.dtype == torch.float32
    torch.testing.assert_close(half, torch.full((3,), 5 / 3))
    torch.testing.assert_close(single, torch.ones(2))


@pytest.mark.parametrize(
    ("snapshots", "seen", "tells"),
    [
        ([], 1000, "^snapshots is empty"),
        ([(1000, 0.1), (1000, 0.1)], 1000, r"^snapshots contains \(1000, 0.1\) more than once"),
        ([(0, 0.1)], 0, "^snapshots is 0"),
        ([(1000, 0.1), (2000, 0.1)], 2001, "^samples_seen is 2001; the snapshots allow 1000 to 2000"),
        ([(1000, 0.1), (2000, 0.1)], 999, "^samples_seen is 999"),
        ([(1000, 0.5)], 1000, "^sigma_rel is 0.5"),
    ],
)
def test_snapshots_that_make_no_average_are_refused(
    snapshots: list[tuple[float, float]], seen: float, tells: str
) -> None:
    with pytest.raises(InputError, match=tells):
        ema.posthoc_weights(snapshots, seen, 0.1)
