from __future__ import annotations

import pytest
import torch
from training_toys import Toy, model

from edmund import noise, noise_density
from edmund.errors import InputError
from edmund.training.batches import Batch, batches, read
from edmund.training.objective import Objective, clean, drop, levels, normals, seeded_dropout
from edmund.training.order import DataOrder, Part, PartSampler, parts
from edmund.transform import Identity, Standardise

CPU = torch.device("cpu")


def keys(start: int, stop: int) -> torch.Tensor:
    return noise.keys(7, torch.arange(start, stop))


def test_there_is_one_level_in_every_stratum() -> None:
    density = noise_density.LogNormal(-1.2, 1.2)
    sigma = levels(density, keys(640, 704), torch.arange(64), 64)
    u = torch.special.ndtr((sigma.log() + 1.2) / 1.2)
    assert torch.equal((u * 64).floor(), torch.arange(64, dtype=torch.float64))


def test_the_levels_follow_the_density() -> None:
    density = noise_density.LogNormal(-0.4, 1.0)
    every = torch.cat([levels(density, keys(32 * k, 32 * k + 32), torch.arange(32), 32) for k in range(2000)]).log()
    assert every.mean().item() == pytest.approx(-0.4, abs=2e-3)
    assert every.std().item() == pytest.approx(1.0, abs=2e-3)


def test_the_last_level_is_finite_where_the_density_reaches_infinity() -> None:
    # (i + v) / count of the last of very many strata rounds to 1, where the density is infinite.
    density = noise_density.CosineUniform()
    assert torch.isfinite(levels(density, keys(0, 1), torch.tensor([10**16 - 1]), 10**16)).all()


def test_a_sample_gets_the_same_noise_and_level_in_any_part() -> None:
    density, x = noise_density.LogNormal(), torch.zeros(24, 2, 3)
    whole = normals(keys(96, 120), x), levels(density, keys(96, 120), torch.arange(24), 24)
    for part in parts(96, 24, 5):
        rows = slice(part.start - 96, part.stop - 96)
        sample_keys = keys(part.start, part.stop)
        assert torch.equal(normals(sample_keys, x[rows]), whole[0][rows])
        assert torch.equal(levels(density, sample_keys, torch.arange(24)[rows], 24), whole[1][rows])


def test_dropped_labels_are_none_for_the_asked_share() -> None:
    labels = torch.randint(0, 10, (20_000,), generator=torch.Generator().manual_seed(0))
    out = drop({"labels": labels}, keys(0, 20_000), 0.1)
    dropped = out["labels"] == -1
    assert set(out) == {"labels"}
    assert dropped.double().mean().item() == pytest.approx(0.1, abs=4 * (0.09 / 20_000) ** 0.5)
    assert torch.equal(out["labels"][~dropped], labels[~dropped])


def test_vector_labels_are_dropped_to_a_zero_row_together_with_context_and_image() -> None:
    given = {"labels": torch.ones(500, 4), "context": torch.ones(500, 2), "augment_labels": torch.ones(500, 9)}
    out = drop(given, keys(0, 500), 0.5)
    dropped = out["condition_dropped"]
    assert 200 < dropped.sum().item() < 300
    assert torch.equal(out["labels"], (~dropped).float()[:, None].expand(500, 4))
    assert torch.equal(out["context"], given["context"]) and torch.equal(out["augment_labels"], given["augment_labels"])


def test_nothing_is_dropped_without_probability_or_condition() -> None:
    labels = torch.arange(5)
    assert drop({"labels": labels}, keys(0, 5), 0.0) == {"labels": labels}
    assert drop({}, keys(0, 5), 0.5) == {}
    assert (drop({"labels": labels}, keys(0, 5), 1.0)["labels"] == -1).all()


def test_parts_add_up_to_the_batch() -> None:
    made = model(dropout=0.0)
    objective = Objective(made.denoiser, made.formulation, "fp32").double()
    toy, order = Toy(), DataOrder(100, 0)

    def gradients(accumulate: int) -> list[torch.Tensor]:
        objective.zero_grad()
        for part in parts(64, 48, accumulate):
            y, condition = read(toy, order.indices(part))
            x = clean(Batch(part, y, condition), Identity(), torch.float64)
            sample_keys = keys(part.start, part.stop)
            index = torch.arange(part.start, part.stop)
            sigma = levels(made.formulation.noise_density, sample_keys, index - 64, 48)
            objective(x, sigma, normals(sample_keys, x), condition, 1 / 48).backward()
        return [p.grad.clone() for p in objective.parameters() if p.grad is not None]

    whole = gradients(1)
    for accumulate in (2, 5, 48):
        for ours, theirs in zip(gradients(accumulate), whole, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)  # the network embeds the noise level in float32


def test_dropout_is_a_function_of_the_position_and_leaves_the_global_stream() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)

    def draw(seed: int, start: int) -> torch.Tensor:
        with seeded_dropout(CPU, seed, Part(start, start + 1)):
            return torch.rand(4)

    draws = [draw(0, 0), draw(0, 32), draw(1, 0)]
    assert torch.equal(draw(0, 32), draws[1])
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.rand(3), expected)


def test_clean_data_are_in_the_models_units() -> None:
    batch = Batch(Part(0, 2), torch.tensor([[0, 128], [255, 64]], dtype=torch.uint8), {})
    x = clean(batch, Standardise(128.0, 64.0), torch.float32)
    assert torch.equal(x, torch.tensor([[-2.0, 0.0], [127 / 64, -1.0]]))


class RandomToy(Toy):
    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        y, condition = super().__getitems__(indices)
        return y + torch.randn(y.shape), condition


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_arrive_in_order_and_random_augmentation_is_a_function_of_the_position(workers: int) -> None:
    def stream(start: int, workers: int) -> list[Batch]:
        sampler = PartSampler(DataOrder(100, 5), start, 160, 32, 2, 0, 1)
        return list(batches(RandomToy(), sampler, seed=5, workers=workers, device=CPU))

    state = torch.get_rng_state()
    whole, rest = stream(0, 0), stream(96, workers)
    assert torch.equal(torch.get_rng_state(), state)
    assert [batch.part for batch in rest] == [batch.part for batch in whole[6:]]
    for ours, theirs in zip(rest, whole[6:], strict=True):
        assert torch.equal(ours.y, theirs.y)
        assert torch.equal(ours.condition["labels"], theirs.condition["labels"])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_data_that_are_not_finite_are_named(workers: int, value: float) -> None:
    toy = Toy()
    toy.y[41, 1] = value
    sampler = PartSampler(DataOrder(100, 0), 0, 128, 32, 1, 0, 1)
    with pytest.raises(InputError) as error:
        list(batches(toy, sampler, seed=0, workers=workers, device=CPU))
    assert str(error.value) == f"data: sample 41 holds {value}; every value must be finite"


def test_large_values_are_finite() -> None:
    toy = Toy()
    toy.y[:, 0] = 3e38  # their sum is not
    y, _ = read(toy, [1, 2, 3])
    assert y[:, 0].tolist() == pytest.approx([3e38] * 3)
