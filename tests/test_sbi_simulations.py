"""Simulations: every row against what was appended, wherever it came from, and one clear error for each thing wrong."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from edmund import formulation
from edmund.errors import InputError
from edmund.model import Model
from edmund.sbi import simulations as module
from edmund.sbi.simulations import SimulationData, Simulations
from edmund.training import fingerprint
from edmund.training.options import TrainingOptions
from edmund.training.trainer import Trainer

RANDOM = np.random.default_rng(0)


def rows(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def all_of(data: SimulationData) -> tuple[Tensor, Tensor]:
    theta, condition = data.__getitems__(list(range(len(data))))
    assert condition.keys() == {"observation"} and theta.dtype == condition["observation"].dtype == torch.float32
    return theta, condition["observation"]


def check_holds(simulations: Simulations, theta: Any, x: Any) -> None:
    """Row by row, in order and in a random order with repetitions."""
    data = simulations.dataset()
    theta, x = np.asarray(theta, np.float32), np.asarray(x, np.float32)
    assert (len(simulations), len(data), data.shape, data.x_shape) == (
        len(theta),
        len(theta),
        theta.shape[1:],
        x.shape[1:],
    )
    for order in (np.arange(len(theta)), np.random.default_rng(1).integers(0, len(theta), 2 * len(theta))):
        found, condition = data.__getitems__(order.tolist())
        assert np.array_equal(found, theta[order])
        assert np.array_equal(condition["observation"], x[order], equal_nan=True)
    assert np.array_equal(torch.cat(list(data.observations())), x, equal_nan=True)


def refused(match: str, call: Any) -> None:
    with pytest.raises(InputError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


# Where the rows come from


@pytest.mark.parametrize(
    "kind",
    [
        torch.from_numpy,
        np.asarray,
        np.ndarray.tolist,
        np.asfortranarray,
        lambda values: values.astype(np.float64),
        lambda values: values.astype(">f8"),
        lambda values: torch.from_numpy(values).double().requires_grad_(),
        lambda values: np.repeat(values, 2, axis=0)[::2],
    ],
)
@pytest.mark.parametrize("x", [rows(7, 3), rows(7, 1, 4, 4), rows(7, 5, 2)])
def test_arrays_of_every_kind_and_shape(kind: Any, x: Any) -> None:
    theta = rows(7, 2)
    check_holds(Simulations().append(kind(theta), kind(x)), theta, x)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.int64, np.uint64, np.float16])
def test_other_types_become_float32(dtype: Any) -> None:
    x = RANDOM.integers(0, 2, (6, 3)).astype(dtype)
    check_holds(Simulations().append(rows(6, 2), x), rows(6, 2), x)
    half = torch.randn(6, 3, dtype=torch.bfloat16)
    check_holds(Simulations().append(rows(6, 2), half), rows(6, 2), half.float())


def test_several_appends_of_several_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SMALL", 20)  # some parts are copied together, some are not
    theta, x = rows(40, 2), rows(40, 3)
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float32, "r", shape=x.shape)
    simulations = Simulations(2)
    simulations.append(theta[:2], torch.from_numpy(x[:2])).append(torch.from_numpy(theta[2:3]), x[2:3].tolist())
    simulations.append(theta[3:30], mapped[3:30])
    simulations.append(DataLoader(TensorDataset(torch.from_numpy(theta[30:]), torch.from_numpy(x[30:])), batch_size=4))
    check_holds(simulations, theta, x)
    subset = simulations.dataset(torch.tensor([35, 1, 4]))
    assert np.array_equal(all_of(subset)[1], x[[35, 1, 4]])
    assert subset[1][0].tolist() == theta[1].tolist()


def test_arrays_are_not_copied() -> None:
    x = rows(100, 4)
    data = Simulations().append(rows(100, 2), x).dataset()
    x[3] = 7
    assert data[3][1]["observation"].tolist() == [7, 7, 7, 7]


@pytest.mark.parametrize(("dtype", "fortran"), [(np.float64, False), (">f8", False), (np.float64, True)])
def test_a_memory_map_is_never_loaded_whole(tmp_path: Path, dtype: Any, fortran: bool) -> None:
    theta = rows(20000, 3)
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", dtype, (20000, 400), fortran_order=fortran)
    for start in range(0, 20000, 1000):
        x[start : start + 1000] = np.arange(start, start + 1000)[:, None]
    x.flush()
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    tracemalloc.start()
    try:
        train, held_out = Simulations(3).append(theta, mapped).split()
        for part in (train, held_out):
            for start in range(0, len(part), 500):
                found, condition = part.__getitems__(list(range(start, min(start + 500, len(part)))))
                number = condition["observation"][:, 0].long()
                assert (condition["observation"] == number[:, None]).all() and np.array_equal(found, theta[number])
        assert sum(len(each) for each in train.observations()) == 18000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 25e6 < x.nbytes / 2  # the whole is 64 MB, and 32 MB as float32


def test_zarr_is_read_once_by_slices(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    theta, x = rows(500, 2), rows(500, 3, 4).astype(np.float64)
    group = zarr.open_group(tmp_path / "sims.zarr", mode="w")
    stored_theta = group.create_array("theta", data=theta, chunks=(60, 2))
    stored_x = group.create_array("x", data=x, chunks=(70, 2, 4))
    check_holds(Simulations(2).append(stored_theta, stored_x), theta, x)
    check_holds(Simulations(2).append(theta, stored_x), theta, x)


class Store:
    """An array that gives slices only, and keeps what it was asked for."""

    def __init__(self, values: np.ndarray[Any, Any], chunks: tuple[int, ...]) -> None:
        self.values, self.chunks = values, chunks
        self.shape, self.dtype = values.shape, values.dtype
        self.asked: list[tuple[int, int]] = []

    def __getitem__(self, part: slice) -> np.ndarray[Any, Any]:
        self.asked.append((part.start, part.stop))
        return self.values[part]


def test_slices_are_whole_chunks_and_each_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 100)
    x = Store(rows(50, 5).astype(np.float64), (8, 5))
    check_holds(Simulations().append(rows(50, 2), x), rows(50, 2), x.values)
    assert x.asked == [(start, start + 16) for start in range(0, 50, 16)]


def test_large_stores_and_loaders_are_kept_in_a_mapped_file(monkeypatch: pytest.MonkeyPatch) -> None:
    theta, x = rows(40000, 3), rows(40000, 100)
    monkeypatch.setattr(module, "_IN_MEMORY", 30000)
    batches = [(theta[start : start + 1000], x[start : start + 1000]) for start in range(0, 40000, 1000)]
    tracemalloc.start()
    try:
        data = Simulations().append(batches).dataset()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 8
    check_holds(Simulations().append(batches), theta, x)
    assert np.array_equal(data.__getitems__([39999, 5])[1]["observation"], x[[39999, 5]])


def test_no_room_for_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_IN_MEMORY", 10)
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    refused("No space left on device.*set TMPDIR", lambda: Simulations().append([(rows(9, 2), rows(9, 3))]))


# Split


def test_split_is_a_partition_by_seed() -> None:
    theta = np.arange(1000, dtype=np.float32)[:, None]
    simulations = Simulations().append(theta, theta)
    train, held_out = simulations.split(0.2, seed=3)
    assert (len(train), len(held_out)) == (800, 200)
    both = torch.cat([all_of(train)[0], all_of(held_out)[0]])[:, 0]
    assert both.sort().values.tolist() == theta[:, 0].tolist()
    assert torch.equal(all_of(train)[0], all_of(simulations.split(0.2, seed=3)[0])[0])
    assert not torch.equal(all_of(train)[0], all_of(simulations.split(0.2, seed=4)[0])[0])
    # A shuffle, not a cut: the held-out mean is that of a draw without replacement, std 0.0183 in units of the range.
    assert abs(float(all_of(held_out)[0].mean()) / 1000 - 0.5) < 4 * 0.0183


def test_too_few_simulations() -> None:
    refused("there are 49 simulations of 2 parameters; training needs at least 50", few(49, 2).split)
    few(50, 2).split()
    refused("there are 79 simulations of 40 parameters; training needs at least 80", few(79, 40).split)
    refused("there are 0 simulations", Simulations(2).split)
    refused("there are no simulations", Simulations(2).dataset)
    refused("validation_fraction is 1.5", lambda: few(60, 2).split(1.5))
    refused("validation_fraction is 0.001; of 60 simulations it leaves", lambda: few(60, 2).split(0.001))


def few(count: int, dim: int) -> Simulations:
    return Simulations(dim).append(rows(count, dim), rows(count, 3))


# Training


class Regression(nn.Module):
    """A linear map of x: the least that can be trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, noisy: Tensor, noise_level: Tensor, observation: Tensor) -> Tensor:
        found: Tensor = self.linear(observation)
        return found


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_trainer_reads_them(tmp_path: Path) -> None:
    train, held_out = Simulations(2).append(rows(200, 2), rows(200, 3)).split()
    again, _ = Simulations(2).append(torch.from_numpy(rows(200, 2)), rows(200, 3).astype(np.float64)).split()
    assert fingerprint.of_data(train) == fingerprint.of_data(again)  # a run is resumed from another kind of array
    assert fingerprint.of_data(train)["sha256"] is not None
    assert fingerprint.of_data(train) != fingerprint.of_data(held_out)
    model = Model(Regression(), formulation.EDM(sigma_data=1.0), shape=(2,))
    options = TrainingOptions(samples=640, batch_size=64, validation_interval=320)
    result = Trainer(model, train, tmp_path, validation=held_out, options=options, progress=False, device="cpu").run()
    assert result.samples_seen == 640 and result.validation_loss is not None


# Bad input


def test_shapes() -> None:
    simulations = few(10, 2)
    refused("theta has 10 rows and x 9", lambda: simulations.append(rows(10, 2), rows(9, 3)))
    refused("theta has 3 parameters a row; it must have 2", lambda: simulations.append(rows(9, 3), rows(9, 3)))
    refused(r"x has rows of shape \[4\].*\[3\]", lambda: simulations.append(rows(9, 2), rows(9, 4)))
    refused(r"theta has shape \[9\].*\[9, 1\]", lambda: simulations.append(rows(9), rows(9, 3)))
    refused(r"x has shape \[9\].*\[9, 1\]", lambda: simulations.append(rows(9, 2), rows(9)))
    refused(r"theta has shape \[0, 2\]", lambda: simulations.append(rows(0, 2), rows(0, 3)))
    refused("ragged", lambda: simulations.append(rows(2, 2), [[1.0], [1.0, 2.0]]))
    refused("x holds complex64", lambda: simulations.append(rows(9, 2), rows(9, 3).astype(complex).astype("c8")))
    refused("theta holds <U1", lambda: simulations.append([["a", "b"]], rows(1, 3)))
    refused(
        "x is a masked array",
        lambda: simulations.append(rows(1, 2), np.ma.array([[1.0, 2, 3]], mask=[[False, True, False]])),
    )
    assert len(simulations) == 10


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda values: Store(values, (1, 1))])
def test_nan_and_infinities_are_counted(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 6)  # two rows at a time
    theta, x = rows(10, 2), rows(10, 3)
    x[2, 1] = x[7, 0] = x[7, 2] = np.nan
    refused("x: 3 of 30 values are NaN, in 2 of 10 rows.*nan='mask'", lambda: Simulations().append(theta, kind(x)))
    masked = Simulations(nan="mask").append(theta, kind(x))
    assert masked.missing == 3 and masked.dataset().may_be_missing == {"observation"}
    check_holds(masked, theta, x)
    x[5, 1], x[6, 1] = np.inf, -np.inf
    refused("x: 2 of 30 values are infinite, in 2 of 10", lambda: Simulations(nan="mask").append(theta, kind(x)))
    theta[1, 0], theta[9, 1], theta[8, 1] = np.nan, np.inf, np.nan
    refused("theta: 2 values are NaN and 1 infinite among 20", lambda: Simulations().append(theta, kind(x)))


def test_who_may_be_missing() -> None:
    assert few(10, 2).dataset().may_be_missing == frozenset()
    assert Simulations(nan="mask").append(rows(10, 2), rows(10, 3)).dataset().may_be_missing == frozenset()
    refused("nan is 'drop'", lambda: Simulations(nan="drop"))  # type: ignore[arg-type]


def test_beyond_float32() -> None:
    x = rows(10, 3).astype(np.float64)
    x[3, 1], x[4, 0] = 1e39, -1e300
    refused("x: 2 values are beyond float32's range", lambda: Simulations().append(rows(10, 2), x))
    refused("theta: 2 values are beyond", lambda: Simulations().append(x, rows(10, 2)))
    x[3, 1] = x[4, 0] = 3.4028234e38
    check_holds(Simulations().append(rows(10, 2), x), rows(10, 2), x)


def in_unit_square(theta: Tensor) -> Tensor:
    assert theta.isfinite().all()
    return ((theta > 0) & (theta < 1)).all(1)


def test_theta_outside_the_prior() -> None:
    theta = RANDOM.uniform(0, 1, (300, 2))
    x = rows(300, 3)
    Simulations(2, in_unit_square).append(theta, x)
    theta[7, 1], theta[20, 0] = -0.5, 1.25
    refused(
        r"theta: 2 of 300 rows are outside the prior's support \(the first: row 7, \[0\.\d+, -0.5\]\)",
        lambda: Simulations(2, in_unit_square).append(theta, x),
    )
    theta[3, 0] = np.nan  # is not asked about
    refused("theta: 1 values are NaN", lambda: Simulations(2, in_unit_square).append(theta, x))


def test_theta_that_float32_rounds_onto_a_bound_is_inside() -> None:
    theta = np.full((60, 1), 1 - 1e-12)
    assert np.float32(theta[0, 0]) == 1
    check_holds(Simulations(1, in_unit_square).append(theta, rows(60, 3)), theta, rows(60, 3))


def test_loaders() -> None:
    refused("x is None and theta is a ndarray", lambda: Simulations().append(rows(9, 2)))
    refused("x is None and theta is a int", lambda: Simulations().append(3))
    refused("there are no batches", lambda: Simulations().append([]))
    refused("batch 1 of the loader has 3 parts", lambda: Simulations().append([pair(), (*pair(), 0)]))
    refused("batch 0 of the loader has type Tensor", lambda: Simulations().append(iter([torch.zeros(3, 2)])))
    refused(
        r"batch 1 of the loader: theta has 3 rows and x 4",
        lambda: Simulations().append([pair(), (rows(3, 2), rows(4, 3))]),
    )
    refused(r"x has rows of shape \[4\]", lambda: Simulations().append([pair(), (rows(3, 2), rows(3, 4))]))
    nan = np.full((5, 3), np.nan)
    refused("x: 15 of 30 values are NaN, in 5 of 10", lambda: Simulations().append([pair(), (rows(5, 2), nan)]))
    shuffled = DataLoader(TensorDataset(torch.arange(50.0)[:, None], torch.arange(50.0)[:, None]), 7, shuffle=True)
    theta, x = all_of(Simulations().append(shuffled).dataset())
    assert torch.equal(theta, x) and theta[:, 0].sort().values.tolist() == list(range(50))


def pair() -> tuple[Any, Any]:
    return rows(5, 2), rows(5, 3)


def test_an_append_that_is_refused_adds_nothing() -> None:
    simulations = few(10, 2)
    refused("NaN", lambda: simulations.append([pair(), (rows(5, 2), np.full((5, 3), np.nan))]))
    check_holds(simulations, rows(10, 2), rows(10, 3))
    empty = Simulations()
    refused("infinite", lambda: empty.append(rows(3, 4), np.full((3, 2), np.inf)))
    assert empty.dim is None and empty.x_shape is None and len(empty) == 0
