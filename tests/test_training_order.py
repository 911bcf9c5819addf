from __future__ import annotations

from collections import Counter

import pytest
import torch

from edmund.errors import InputError
from edmund.training.order import DataOrder, Part, PartSampler, parts, seed_for


def test_every_epoch_holds_every_datum_once_and_has_an_order_of_its_own() -> None:
    order = DataOrder(17, seed=3)
    epochs = [order.indices(Part(17 * k, 17 * (k + 1))) for k in range(4)]
    assert all(sorted(epoch) == list(range(17)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert DataOrder(17, seed=4).indices(Part(0, 17)) != epochs[0]


def test_a_part_may_span_epochs() -> None:
    order = DataOrder(5, seed=0)
    one_by_one = [order.indices(Part(n, n + 1))[0] for n in range(23)]
    assert DataOrder(5, seed=0).indices(Part(3, 21)) == one_by_one[3:21]
    assert order.indices(Part(4, 4)) == []


def test_the_parts_of_all_processes_are_the_batch_in_order() -> None:
    for accumulate, world, batch_size in [(1, 1, 8), (2, 3, 64), (3, 2, 100), (1, 4, 7)]:
        found = [part for rank in range(world) for part in parts(1000, batch_size, accumulate, rank, world)]
        assert len(found) == accumulate * world
        assert [n for part in found for n in range(part.start, part.stop)] == list(range(1000, 1000 + batch_size))
        assert max(map(len, found)) - min(map(len, found)) <= 1


def test_the_sampler_goes_on_where_another_stopped() -> None:
    def items(start: int) -> list[tuple[Part, list[int]]]:
        return list(PartSampler(DataOrder(30, 1), start, 320, 32, 2, 0, 1))

    assert len(items(0)) == 20
    assert items(0)[8:] == items(128)
    assert items(320) == []


def test_two_processes_see_the_data_of_one() -> None:
    one = Counter(i for _, data in PartSampler(DataOrder(30, 1), 0, 320, 32, 1, 0, 1) for i in data)
    two = Counter(
        i for rank in (0, 1) for _, data in PartSampler(DataOrder(30, 1), 0, 320, 32, 1, rank, 2) for i in data
    )
    assert one == two


def test_seeds_differ_and_fit_a_generator() -> None:
    seeds = {
        seed_for(seed, *position) for seed in (0, 1, 12) for position in [(), (0,), (1,), (2,), (0, 1), (-1,), (12,)]
    }
    assert len(seeds) == 21
    for seed in seeds:
        torch.Generator().manual_seed(seed)


def test_no_data_is_an_error() -> None:
    with pytest.raises(InputError, match="0 samples"):
        DataOrder(0, seed=0)
