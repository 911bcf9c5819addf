"""`edmund ema` on one tiny run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import CONFIG, error_line, run

import edmund
from edmund.training import reconstruct
from edmund.training.metrics_log import read_metrics
from edmund.training.snapshots import Snapshots


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished runs `tiny`, which tracked two widths, and `plain`, which did not."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(CONFIG % "tiny")
    widths = ["--set", "training.ema_widths=[0.05, 0.1]", "--set", "training.ema_snapshot_interval=64"]
    # Validated after every step, and the delivered average is of a width that can be made too.
    each = ["--set", "training.validation_interval=64", "--set", "training.ema_power=0.08"]
    run("train", "tiny.yaml", *widths, *each, cwd=folder)
    run("train", "tiny.yaml", "--set", "output.directory=plain", "--set", "training.samples=64", cwd=folder)
    return folder


def test_a_width_becomes_a_model_to_sample(folder: Path) -> None:
    lines = run("ema", "tiny", "--width", "0.08", cwd=folder).stdout.splitlines()
    assert lines[0] == "tiny/ema/width-0.08" and lines[-1] == "next: edmund sample tiny/ema/width-0.08"
    error = Snapshots(folder / "tiny").profile_error(0.08)
    assert lines[1:-1] == [
        f"the average of relative width 0.08 at 2048 samples; its profile is met to {100 * error:.2g} %"
    ]
    made, again = edmund.load(folder / "tiny/ema/width-0.08"), reconstruct(folder / "tiny", 0.08)
    ours, theirs = made.denoiser.state_dict(), again.denoiser.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    # The run delivered the average of that width as it was tracked.
    delivered = edmund.load(folder / "tiny").denoiser.state_dict()
    off = sum((ours[name] - value).square().sum().item() for name, value in delivered.items())
    moved = sum((stored - delivered[name]).square().sum().item() for name, stored in tracked(folder).items())
    assert 0 < off < (3 * error) ** 2 * moved
    run("sample", "tiny/ema/width-0.08", "-n", 2, "--steps", 2, "--guidance", 2, cwd=folder)
    assert (folder / "tiny/ema/width-0.08/samples/samples.png").is_file()


def tracked(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "tiny/ema/00002048/ema_0.1.safetensors")


def test_a_width_at_an_earlier_time(folder: Path) -> None:
    lines = run("ema", "tiny", "--width", "0.1", "--samples", 1024, cwd=folder).stdout.splitlines()
    assert lines[0] == "tiny/ema/width-0.1-at-1024"
    run("ema", "tiny", "--width", "0.01", "--out", "narrow", cwd=folder)
    assert (folder / "narrow/model.safetensors").is_file()
    assert "not empty" in error_line("ema", "tiny", "--width", "0.1", "--out", "narrow", cwd=folder)
    lines = run("ema", "tiny", "--width", "0.01", "--out", "narrower", cwd=folder).stdout.splitlines()
    assert lines[2].startswith("the snapshots cannot make 0.01 well (profile off by more than 5 %)")


def test_the_sweep_measures_each_width_as_training_does(folder: Path) -> None:
    out = run("ema", "tiny", "--sweep", "0.04-0.15,0.01", cwd=folder).stdout
    found = json.loads((folder / "tiny/ema/sweep.json").read_text())
    widths = [row["width"] for row in found["widths"]]
    assert (len(widths), widths[0], widths[1], widths[-1]) == (11, 0.01, 0.04, 0.15)
    np.testing.assert_allclose(np.diff(np.log(widths[1:])), np.log(0.15 / 0.04) / 9, atol=0.02)
    # The delivered average is of width 0.08: its loss is the one that training measured, and near that of its like.
    last = [record["validation_loss"] for record in read_metrics(folder / "tiny") if "validation_loss" in record][-1]
    assert found["delivered_validation_loss"] == pytest.approx(last, rel=1e-5)
    losses = [row["validation_loss"] for row in found["widths"]]
    at = np.interp(0.08, widths[1:], losses[1:])
    assert abs(at - last) < 0.05 * (max(losses[1:]) - min(losses[1:]))
    met = {row["width"]: row["validation_loss"] for row in found["widths"] if row["profile_error"] <= 0.05}
    assert 0.01 not in met and len(met) == 10
    assert found["best_width"] == min(met, key=met.__getitem__)
    marked = [line.split()[0] for line in out.splitlines() if line.endswith("best")]
    assert marked == [f"{found['best_width']}"]
    assert "the snapshots cannot make 0.01 well" in out
    assert out.splitlines()[-1] == f"next: edmund ema tiny --width {found['best_width']}"
    assert Image.open(folder / "tiny/ema/sweep.png").size[0] > 400


def test_a_sweep_without_widths_has_ten(folder: Path) -> None:
    run("ema", "tiny", "--samples", 1024, "--out", "early", cwd=folder)
    found = json.loads((folder / "early/sweep.json").read_text())
    assert found["samples_seen"] == 1024
    assert [row["width"] for row in found["widths"]] == [
        0.03, 0.038, 0.0481, 0.0608, 0.077, 0.0974, 0.123, 0.156, 0.198, 0.25
    ]  # fmt: skip


def test_bad_input_is_one_line(folder: Path) -> None:
    assert "no snapshots of averages" in (line := error_line("ema", "plain", cwd=folder))
    assert "ema_widths" in line and "ema_snapshot_interval" in line
    assert "no snapshots" in error_line("ema", "plain", "--width", "0.1", cwd=folder)
    assert "'nowhere' holds no model" in error_line("ema", "nowhere", cwd=folder)
    for width in ("0", "-0.1", "0.3", "nan"):
        assert "--width: sigma_rel is" in error_line("ema", "tiny", f"--width={width}", cwd=folder)
    assert "--sweep: sigma_rel is 0.5" in error_line("ema", "tiny", "--sweep", "0.05-0.5", cwd=folder)
    assert "runs backwards" in error_line("ema", "tiny", "--sweep", "0.2-0.05", cwd=folder)
    for text in ("a lot", "0.1-", "0.1,,0.2", "0.1-0.2-0.3", ""):
        assert f"--sweep is {text!r}; it must be" in error_line("ema", "tiny", "--sweep", text, cwd=folder)
    assert "give one of them" in error_line("ema", "tiny", "--width", "0.1", "--sweep", "0.1", cwd=folder)
    assert "samples_seen is 100; there are 32 snapshots" in error_line("ema", "tiny", "--samples", "100", cwd=folder)
    assert "samples_seen is 100;" in error_line("ema", "tiny", "--width", "0.1", "--samples", "100", cwd=folder)
    assert "--device is 'cpu'" in error_line("ema", "tiny", "--width", "0.1", "--device", "cpu", cwd=folder)
    shutil.copytree(folder / "tiny", folder / "damaged")
    (folder / "damaged/ema/00001024/ema_0.1.safetensors").write_bytes(b"")
    assert "00001024' is damaged" in error_line("ema", "damaged", cwd=folder)
