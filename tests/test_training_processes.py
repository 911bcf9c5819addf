"""Two processes that share a global batch learn what one process does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_toys import model, train

from edmund.training.metrics_log import read_metrics

CHANGES = {
    "samples": 32 * 100,
    "log_interval": 32,
    "checkpoint_interval": 320,
    "ema_widths": (0.05, 0.1),
    "ema_snapshot_interval": 1600,
}


def start(directory: Path, samples: int, accumulate: int = 1) -> list[subprocess.Popen[str]]:
    """The processes of a run over two, as `torchrun` and `accelerate launch` would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [sys.executable, __file__, str(directory), str(samples), str(accumulate)],
            env=os.environ
            | common
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def wait(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def losses(directory: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(directory) if "loss" in record]


def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    two = start(tmp_path / "two", CHANGES["samples"])
    train(tmp_path / "one", model(dropout=0.0), **CHANGES)
    wait(two)
    one, shared = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(shared) == 100
    assert shared[:20] == pytest.approx(one[:20], rel=1e-4)
    assert shared == pytest.approx(one, rel=1e-2)
    for file in ("model.safetensors", "ema/00001600/ema_0.05.safetensors", "ema/00003200/ema_0.1.safetensors"):
        ours, theirs = load_file(tmp_path / "one" / file), load_file(tmp_path / "two" / file)
        assert all(torch.allclose(value, theirs[name], rtol=1e-2, atol=1e-3) for name, value in ours.items())
    validation = [
        [record["validation_loss"] for record in read_metrics(tmp_path / name) if "validation_loss" in record]
        for name in ("one", "two")
    ]
    assert validation[1] == pytest.approx(validation[0], rel=1e-3)


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(tmp_path: Path) -> None:
    processes = start(tmp_path / "run", 32 * 3000, accumulate=2)
    while not read_metrics(tmp_path / "run"):
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)  # told to one of them
    wait(processes)
    stopped = max(int(folder.name) for folder in (tmp_path / "run/checkpoints").iterdir())
    assert 0 < stopped < 32 * 3000
    wait(start(tmp_path / "run", stopped + 3200, accumulate=2))
    train(tmp_path / "one", model(dropout=0.0), **(CHANGES | {"samples": stopped + 3200}))
    assert losses(tmp_path / "run")[:20] == pytest.approx(losses(tmp_path / "one")[:20], rel=1e-4)
    assert len(losses(tmp_path / "run")) == (stopped + 3200) // 32


if __name__ == "__main__":
    train(
        Path(sys.argv[1]),
        model(dropout=0.0),
        **(CHANGES | {"samples": int(sys.argv[2]), "accumulate": int(sys.argv[3])}),
    )
