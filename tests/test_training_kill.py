"""A run that is killed at random moments, each time with SIGKILL, and started again, ends as an undisturbed one: bit
for bit.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_training_trainer import lines
from training_toys import train

from edmund.training.metrics_log import read_metrics

CHANGES = {
    "samples": 32 * 200,
    "checkpoint_interval": 64,
    "accumulate": 2,
    "patience": 10_000,
    "log_interval": 128,
    "ema_widths": (0.1,),
    "ema_snapshot_interval": 32 * 10,
}
"""200 steps with a checkpoint every second one, so that many kills strike while one is written."""


def attempt(directory: Path) -> int:
    """Runs the training in a forked child; the child's process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(directory, **CHANGES)
            status = 0
        finally:
            os._exit(status)
    return child


def kill_until_finished(directory: Path, kills: int) -> int:
    """Starts the run and kills it after a random time, `kills` times, then lets it finish. How often a kill struck.

    The process has imported everything and computed nothing, so a fork starts as a fresh process would, but at once.
    """
    struck = 0
    for _ in range(kills):
        child = attempt(directory)
        time.sleep(random.uniform(0.1, 0.8))
        os.kill(child, signal.SIGKILL)
        struck += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    _, status = os.waitpid(attempt(directory), 0)
    assert status == 0
    return struck


def files(directory: Path) -> dict[str, bytes]:
    """Every file of the run's folder but the metrics, which hold times."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        # TensorBoard, where it is installed, names a file after the process that wrote it.
        if path.is_file() and path.name != "metrics.jsonl" and path.parent.name != "tensorboard"
    }


def test_a_killed_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path), "5"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    struck = int(done.stdout)
    assert struck >= 3, f"only {struck} of 5 kills came before the run had ended"
    whole, killed = files(tmp_path / "whole"), files(tmp_path / "killed")
    assert {"model.safetensors", "checkpoints/00006400/optimizer.safetensors"} <= whole.keys()
    assert {f"ema/{seen:08d}/ema_0.1.safetensors" for seen in range(320, 6401, 320)} <= whole.keys()
    assert whole.keys() == killed.keys()
    for name, content in whole.items():
        assert killed[name] == content, name
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_reaches_every_process_and_ends_them_cleanly(tmp_path: Path) -> None:
    code = "import pathlib, sys, training_toys as t; t.train(pathlib.Path(sys.argv[1]), samples=10**8, workers=2)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not read_metrics(tmp_path):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert any((tmp_path / "checkpoints").iterdir())


if __name__ == "__main__":
    importlib.import_module("accelerate")  # the trainer imports it when it starts
    kill_until_finished(Path(sys.argv[1]) / "whole", 0)
    print(kill_until_finished(Path(sys.argv[1]) / "killed", int(sys.argv[2])))
