"""Averages tracked in training and stored, and those made of them afterwards."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from training_toys import model, train, weights

from edmund import formulation
from edmund.errors import InputError
from edmund.model import Model
from edmund.networks import MLP
from edmund.training import ema, reconstruct
from edmund.training.snapshots import Snapshots

TRACKED: dict[str, Any] = {"ema_widths": (0.05, 0.1), "ema_snapshot_interval": 96}


def stored(directory: Path, seen: int, width: float) -> dict[str, Tensor]:
    return load_file(directory / f"ema/{seen:08d}/ema_{width}.safetensors")


def snapshots(directory: Path) -> dict[str, bytes]:
    files = sorted((directory / "ema").rglob("*"))
    return {str(path.relative_to(directory)): path.read_bytes() for path in files if path.is_file()}


def parameters(made: Model) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in made.denoiser.named_parameters()}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return sum((a[name].double() - b[name].double()).square().sum().item() for name in a) ** 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twice the same run: `pair` tracks two widths, `others` three more, and keeps the weights after every step."""
    folder = tmp_path_factory.mktemp("snapshots")
    train(folder / "pair", **TRACKED)
    every = {"checkpoint_interval": 32, "keep_checkpoints": 20}
    train(folder / "others", ema_widths=(0.04, 0.07, 0.14), ema_snapshot_interval=320, **every)
    return folder


def path_of(folder: Path) -> list[dict[str, Tensor]]:
    """The weights after each of the 20 steps."""
    names = parameters(model()).keys()
    files = [folder / f"others/checkpoints/{seen:08d}/network.safetensors" for seen in range(32, 641, 32)]
    return [{name: value for name, value in load_file(file).items() if name in names} for file in files]


def test_tracked_averages_weigh_the_weights_of_every_step(folder: Path) -> None:
    # The power function's weight of a step is the integral of its profile over the samples of that step.
    edges = torch.arange(21, dtype=torch.float64) / 20
    steps = path_of(folder)
    for width in (0.04, 0.07, 0.14):
        held = (edges ** (ema.gamma(width) + 1)).diff().tolist()
        tracked = stored(folder / "others", 640, width)
        for name, value in tracked.items():
            exact = sum(weight * step[name].double() for weight, step in zip(held, steps, strict=True))
            torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)


def test_snapshots_come_at_every_interval_and_at_the_end(folder: Path) -> None:
    found = Snapshots(folder / "pair")
    assert found.profiles == [(t, w) for t in (96, 192, 288, 384, 480, 576, 640) for w in (0.05, 0.1)]
    assert found.at(None).samples_seen == 640


def test_tracking_changes_nothing_that_is_trained(folder: Path, tmp_path: Path) -> None:
    train(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "pair/model.safetensors").read_bytes()
    assert not (tmp_path / "ema").exists()


@pytest.mark.parametrize(("seen", "width"), [(640, 0.05), (640, 0.1), (288, 0.1)])
def test_a_tracked_width_comes_back(folder: Path, seen: int, width: float) -> None:
    made = reconstruct(folder / "pair", width, seen)
    tracked = stored(folder / "pair", seen, width)
    assert Snapshots(folder / "pair").profile_error(width, seen) < 1e-6
    assert not made.denoiser.training
    for name, value in parameters(made).items():
        torch.testing.assert_close(value, tracked[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("seen", "width"), [(640, 0.04), (640, 0.07), (640, 0.14)])
def test_another_width_is_the_average_that_was_tracked_elsewhere(folder: Path, seen: int, width: float) -> None:
    made = parameters(reconstruct(folder / "pair", width, seen))
    tracked = stored(folder / "others", seen, width)
    # Cauchy and Schwarz: the profiles differ by so much, both sum to 1, and the weights lie so far from a fixed point.
    error = Snapshots(folder / "pair").profile_error(width, seen)
    power = ema.gamma(width)
    norm = ((power + 1) ** 2 / (2 * power + 1) / seen) ** 0.5
    spread = sum(32 * distance(step, tracked) ** 2 for step in path_of(folder)) ** 0.5
    assert 1e-4 < error < 0.05
    assert distance(made, tracked) < error * norm * spread + 1e-5
    # And far nearer than the nearest tracked one.
    nearest = min(distance(stored(folder / "pair", 576, w), tracked) for w in (0.05, 0.1))
    assert distance(made, tracked) < 0.1 * nearest


# Going on -------------------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_tracks_the_same(folder: Path, tmp_path: Path) -> None:
    def interrupt(made: Model, samples_seen: int, directory: Path) -> None:
        if samples_seen == 224:
            os.kill(os.getpid(), signal.SIGINT)

    _, first = train(tmp_path, preview=interrupt, preview_interval=32, **TRACKED)
    assert first.samples_seen == 256
    train(tmp_path, model(seed=1), **TRACKED)
    assert snapshots(tmp_path) == snapshots(folder / "pair")
    for group in ("ema_0.05", "ema_0.1"):
        file = f"checkpoints/00000640/{group}.safetensors"
        assert (tmp_path / file).read_bytes() == (folder / "pair" / file).read_bytes()


def test_snapshots_ahead_of_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    changes = TRACKED | {"checkpoint_interval": 320}
    train(tmp_path, **changes)
    before = snapshots(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/00000640")  # as if killed after the last snapshot
    for file in ("00000384/ema_0.05.safetensors", "00000640/state.json"):
        (tmp_path / "ema" / file).write_bytes(b"")
    shutil.copytree(tmp_path / "ema/00000096", tmp_path / "ema/.incomplete-00000480")
    _, result = train(tmp_path, model(seed=1), **changes)
    assert result.trained == 320
    assert snapshots(tmp_path) == before


def test_snapshots_of_a_run_that_is_no_more_do_not_stay(tmp_path: Path) -> None:
    train(tmp_path, **TRACKED)
    shutil.rmtree(tmp_path / "checkpoints")
    train(tmp_path, seed=1, **(TRACKED | {"ema_snapshot_interval": 320}))
    assert {time for time, _ in Snapshots(tmp_path).profiles} == {320, 640}


def test_a_prolonged_run_keeps_its_snapshots(folder: Path, tmp_path: Path) -> None:
    train(tmp_path, samples=320, keep_checkpoints=1, **TRACKED)
    train(tmp_path, **(TRACKED | {"ema_snapshot_interval": 64}))  # how often they are stored may change
    times = [time for time, width in Snapshots(tmp_path).profiles if width == 0.1]
    assert times == [96, 192, 288, 320, 384, 448, 512, 576, 640]
    ours, theirs = (stored(directory, 640, 0.1) for directory in (tmp_path, folder / "pair"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("widths", [(), (0.05,), (0.05, 0.1, 0.2)])
def test_other_widths_are_another_run(folder: Path, widths: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=rf"training\.ema_widths is \[0\.05, 0\.1\] there and \{list(widths)} here"):
        train(folder / "pair", ema_widths=widths, ema_snapshot_interval=96 if widths else None)


def test_averages_that_were_not_tracked_from_the_start_are_refused(tmp_path: Path) -> None:
    train(tmp_path, samples=320)
    with pytest.raises(InputError, match=r"training\.ema_widths is \[\] there and \[0\.05, 0\.1\] here"):
        train(tmp_path, **TRACKED)


# Buffers and errors ---------------------------------------------------------------------------------------------------


class Counting(MLP):
    """A network that counts its calls in training in a buffer."""

    def __init__(self) -> None:
        super().__init__(2, channels=16, blocks=1, label_dim=3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += self.training
        return super().forward(*args, **kwargs)


def test_buffers_are_those_of_their_time(tmp_path: Path) -> None:
    train(tmp_path, Model(Counting(), formulation.EDM(sigma_data=1.0), shape=(2,)), **TRACKED)
    for seen, calls in ((None, 20), (192, 6)):
        made = reconstruct(tmp_path, 0.08, seen, network=Counting())
        assert made.network.calls == calls
    assert weights(made).keys() == stored(tmp_path, 96, 0.1).keys() | {"network.calls"}


def test_what_cannot_be_made_is_one_clear_error(folder: Path, tmp_path: Path) -> None:
    train(tmp_path / "plain")
    with pytest.raises(InputError, match=r"has no snapshots of averages.*ema_widths.*ema_snapshot_interval"):
        reconstruct(tmp_path / "plain", 0.1)
    for width in (0.0, -0.1, 0.3, float("nan")):
        with pytest.raises(InputError, match=f"sigma_rel is {width}; it must be above 0 and at most 0.2886"):
            reconstruct(folder / "pair", width)
    for seen, near in ((95, "96 and 192"), (641, "576 and 640"), (300, "288 and 384"), (0, "96 and 192")):
        message = f"samples_seen is {seen}; there are 7 snapshots from 96 to 640, the nearest at {near}$"
        with pytest.raises(InputError, match=message):
            reconstruct(folder / "pair", 0.1, seen)
    with pytest.raises(InputError, match=r"samples_seen is 96\.5; it must be an integer"):
        reconstruct(folder / "pair", 0.1, 96.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nowhere' holds no model"):
        reconstruct(tmp_path / "nowhere", 0.1)
    shutil.copytree(folder / "pair", tmp_path / "damaged")
    file = tmp_path / "damaged/ema/00000288/ema_0.1.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"snapshot .*00000288' is damaged: ema_0\.1\.safetensors was altered.*remove"):
        reconstruct(tmp_path / "damaged", 0.1)
    shutil.rmtree(file.parent)
    reconstruct(tmp_path / "damaged", 0.1)


def test_snapshots_of_another_network_are_refused(folder: Path, tmp_path: Path) -> None:
    train(tmp_path, model(channels=24))
    shutil.copytree(folder / "pair/ema", tmp_path / "ema")
    with pytest.raises(InputError, match=r"00000096' is of another network: .* has shape .* there and .* in this one"):
        reconstruct(tmp_path, 0.1)
