from __future__ import annotations

import math

import pytest
import torch

from edmund.training.gradients import clip, guard
from edmund.training.running import Running

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")


def test_finite_gradients_are_left_alone_and_measured() -> None:
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    norm, finite = guard(gradients)
    assert norm.item() == 5 and bool(finite)
    assert gradients[0].tolist() == [3, 0] and gradients[1].tolist() == [[4]]


def test_gradients_that_are_not_finite_are_replaced() -> None:
    gradients = [torch.tensor([1.0, NAN]), torch.tensor([INF, -INF, -2.0])]
    norm, finite = guard(gradients)
    assert not bool(finite) and not math.isfinite(norm.item())
    assert gradients[0].tolist() == [1, 0]
    assert gradients[1].tolist() == [1e5, -1e5, -2]


@pytest.mark.parametrize("limit", [0.5, 5.0, 100.0])
def test_clipping_keeps_the_direction_and_bounds_the_norm(limit: float) -> None:
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    clip(gradients, *guard(gradients), limit)
    scale = min(limit / 5, 1)
    assert gradients[0].tolist() == pytest.approx([3 * scale, 0])
    assert gradients[1].item() == pytest.approx(4 * scale)


def test_replaced_gradients_are_clipped_by_their_new_norm() -> None:
    gradients = [torch.tensor([INF, 0.0])]
    clip(gradients, *guard(gradients), 2.0)
    assert gradients[0].tolist() == pytest.approx([2, 0])


def test_gradients_of_zero_are_not_divided_by() -> None:
    gradients = [torch.zeros(3)]
    clip(gradients, *guard(gradients), 1.0)
    assert gradients[0].tolist() == [0, 0, 0]


def steps(running: Running, *given: tuple[float, float]) -> None:
    for loss, norm in given:
        running.add_step(torch.tensor(loss), torch.tensor(norm), torch.isfinite(torch.tensor(norm)))


def test_the_means_leave_out_what_is_not_finite() -> None:
    running = Running(CPU, lambda tensor: tensor)
    steps(running, (1.0, 2.0), (NAN, NAN), (3.0, INF), (2.0, 4.0))
    reading = running.read()
    assert (reading.steps, reading.loss, reading.grad_norm, reading.nonfinite, reading.consecutive) == (4, 2, 3, 2, 0)


def test_bad_steps_in_a_row_are_counted_across_intervals() -> None:
    running = Running(CPU, lambda tensor: tensor)
    steps(running, (1.0, 1.0), (NAN, NAN), (NAN, NAN))
    running.reset()
    steps(running, (NAN, NAN))
    reading = running.read()
    assert (reading.loss, reading.grad_norm, reading.nonfinite, reading.consecutive) == (None, None, 1, 3)
    steps(running, (1.0, 1.0))
    assert running.read().consecutive == 0


def test_the_sums_survive_a_round_trip_exactly() -> None:
    running, copy = Running(CPU, lambda tensor: tensor), Running(CPU, lambda tensor: tensor)
    steps(running, (0.1, 0.3), (1 / 3, NAN))
    copy.load_state(running.state())
    for each in (running, copy):
        steps(each, (0.7, 0.2))
    assert copy.read() == running.read()


def test_data_that_are_not_finite_are_noticed() -> None:
    running = Running(CPU, lambda tensor: tensor)
    running.add_data(torch.ones(3))
    assert not running.read().bad_data
    running.add_data(torch.tensor([1.0, NAN]))
    running.add_data(torch.ones(3))
    assert running.read().bad_data
