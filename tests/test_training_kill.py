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

CHANGES = {"samples": 32 * 200, "checkpoint_interval": 64, "accumulate": 2, "patience": 10_000, "log_interval": 128}
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


def kill_until_finished(directory: Path, kills: int, seed: int) -> None:
    """Starts the run and kills it after a random time, `kills` times, then lets it finish. Prints how often a kill
    struck.

    The process has imported everything and computed nothing, so a fork starts as a fresh process would, but at once.
    """
    importlib.import_module("accelerate")  # the trainer imports it when it starts
    random.seed(seed)
    struck = 0
    for _ in range(kills):
        child = attempt(directory)
        time.sleep(random.uniform(0.1, 0.8))
        os.kill(child, signal.SIGKILL)
        struck += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    _, status = os.waitpid(attempt(directory), 0)
    assert status == 0
    print(struck)


def files(directory: Path) -> dict[str, bytes]:
    """Every file of the run's folder but the metrics and state.json, which hold times and partial sums of times."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "metrics.jsonl"
    }


def test_a_killed_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    def run(name: str, kills: int) -> int:
        command = [sys.executable, __file__, str(tmp_path / name), str(kills)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    run("whole", 0)
    struck = run("killed", 6)
    assert struck >= 3, f"only {struck} of 6 kills came before the run had ended"
    whole, killed = files(tmp_path / "whole"), files(tmp_path / "killed")
    assert {"model.safetensors", "checkpoints/00006400/optimizer.safetensors"} <= whole.keys()
    assert whole.keys() == killed.keys()
    for name, content in whole.items():
        assert killed[name] == content, name
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


if __name__ == "__main__":
    kill_until_finished(Path(sys.argv[1]), int(sys.argv[2]), seed=int(time.time()))
else:
    pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
