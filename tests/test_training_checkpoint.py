from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from training_toys import no_file_larger_than

from edmund.errors import InputError
from edmund.training.checkpoint import Checkpoint, CheckpointStore, check_shapes


def groups(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "network": {"a": torch.full((3, 4), value), "b.c": torch.tensor(value, dtype=torch.float64)},
        "optimizer": {"0.step": torch.tensor(7.0)},
    }


def fill(store: CheckpointStore, *counts: int) -> None:
    for count in counts:
        store.save(count, groups(float(count)), {"count": count})


def latest(store: CheckpointStore) -> Checkpoint:
    checkpoint = store.latest()
    assert checkpoint is not None
    return checkpoint


def test_a_checkpoint_comes_back_exactly(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    assert store.latest() is None
    given = groups(1 / 3)
    given["network"]["a"] = given["network"]["a"].T  # not contiguous
    state = {"scale": 0.1, "best": None, "list": [1, 2.5]}
    assert store.save(12_800, given, state) == tmp_path / "checkpoints/00012800"
    found = latest(store)
    assert (found.samples_seen, found.state, sorted(found.groups)) == (12_800, state, ["network", "optimizer"])
    for group, tensors in given.items():
        read = found.tensors(group)
        assert read.keys() == tensors.keys()
        for name, value in tensors.items():
            assert read[name].dtype == value.dtype and torch.equal(read[name], value)


def test_the_last_k_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    fill(store, 100, 200, 99_999_999, 100_000_000)
    assert store.samples() == [99_999_999, 100_000_000]
    assert latest(store).state == {"count": 100_000_000}
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["100000000", "99999999"]


def truncate(folder: Path) -> None:
    path = folder / "network.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def alter(folder: Path) -> None:
    path = folder / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def lose_a_file(folder: Path) -> None:
    (folder / "network.safetensors").unlink()


def lose_the_state(folder: Path) -> None:
    (folder / "state.json").unlink()


def cut_the_state(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text()[:-20])


def empty_the_state(folder: Path) -> None:
    (folder / "state.json").write_text("[]")


def rename(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"samples_seen": 200', '"samples_seen": 100'))


DAMAGES = {
    truncate: "network.safetensors has 1.. bytes of",
    alter: "optimizer.safetensors was altered",
    lose_a_file: "network.safetensors is missing",
    lose_the_state: "state.json cannot be read",
    cut_the_state: "state.json is not JSON",
    empty_the_state: "state.json is not a checkpoint's",
    rename: "state.json says 100 samples",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(damage, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    fill(store, 100, 200)
    damage(store.path(200))
    with pytest.warns(
        UserWarning, match=rf"damaged checkpoint .*00000200: {DAMAGES[damage]}.*going on from .*00000100"
    ):
        assert latest(store).state == {"count": 100}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.latest(quiet=True) is not None


def test_going_on_replaces_damaged_checkpoints(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    fill(store, 100, 200, 300)
    truncate(store.path(300))
    fill(store, 300)
    assert latest(store).samples_seen == 300
    truncate(store.path(300))
    fill(store, 250)  # another interval: the damaged one lies ahead
    assert store.samples() == [200, 250]


def test_only_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    fill(store, 100, 200)
    truncate(store.path(100))
    alter(store.path(200))
    with pytest.raises(
        InputError, match=r"every checkpoint in .* is damaged .*00000200: opt.*00000100: net.*remove"
    ) as error:
        store.latest()
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    fill(store, 100)
    path = store.path(100) / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(InputError, match="is of format 2; this version of edmund reads 1"):
        store.latest()


def test_leftovers_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    fill(store, 100)
    shutil.copytree(store.path(100), store.folder / ".incomplete-00000200")
    shutil.copytree(store.path(100), store.folder / ".removed-00000050")
    assert latest(store).samples_seen == 100
    fill(store, 200)
    assert sorted(os.listdir(store.folder)) == ["00000100", "00000200"]


def test_a_full_disk_is_one_clear_error_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    fill(store, 100)
    large = {"network": {"a": torch.zeros(100_000)}}
    with no_file_larger_than(50_000), pytest.raises(InputError) as error:
        store.save(200, large, {})
    assert str(error.value).startswith(f"directory: cannot write to {str(store.folder)!r}: ")
    assert "File too large" in str(error.value) and "\n" not in str(error.value)
    assert os.listdir(store.folder) == ["00000100"]
    assert latest(store).state == {"count": 100}
    store.save(200, large, {})
    assert latest(store).samples_seen == 200


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"directory: cannot write to .*file/run/checkpoints.*: Not a directory"):
        fill(CheckpointStore(tmp_path / "file/run", keep=1), 100)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"a": [3, 5], "b.c": []}, r"'a' has shape \[3, 5\] there and \[3, 4\] in this one"),
        ({"b.c": []}, r"'a' has shape None there and \[3, 4\] in this one \(None: it has none\)"),
        ({"a": [3, 4], "b.c": [], "d": [2]}, r"'d' has shape \[2\] there and None in this one"),
    ],
)
def test_a_checkpoint_of_another_network_names_the_first_parameter(saved: dict, message: str) -> None:
    with pytest.raises(InputError, match=f"of another network: {message}"):
        check_shapes(saved, groups(0.0)["network"], Path("run"))
