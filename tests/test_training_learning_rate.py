from __future__ import annotations

import math

import pytest

from edmund.training.learning_rate import learning_rate


def rate(samples_seen: float, schedule: str, *, ramp: float = 0, reference: float = 1000, end: float = 10_000) -> float:
    return learning_rate(samples_seen, lr=0.01, schedule=schedule, ramp_samples=ramp, reference=reference, end=end)


def test_the_ramp_is_linear_and_then_constant() -> None:
    found = [rate(t, "constant", ramp=400) for t in (0, 100, 200, 400, 9_000)]
    assert found == pytest.approx([0, 0.0025, 0.005, 0.01, 0.01])


def test_cosine_falls_from_the_end_of_the_ramp_to_the_end_of_the_run() -> None:
    found = [rate(t, "cosine", ramp=2_000) for t in (1_000, 2_000, 4_000, 6_000, 8_000, 10_000, 10_500)]
    quarter = math.cos(math.pi / 4)
    assert found == pytest.approx([0.005, 0.01, 0.005 * (1 + quarter), 0.005, 0.005 * (1 - quarter), 0, 0], abs=1e-15)


def test_inverse_square_root_is_flat_up_to_its_reference() -> None:
    found = [rate(t, "inverse_sqrt", ramp=500) for t in (250, 500, 1_000, 4_000, 100_000)]
    assert found == pytest.approx([0.005, 0.01, 0.01, 0.005, 0.001])


def test_no_ramp_starts_at_the_full_rate() -> None:
    assert rate(0, "constant") == 0.01
