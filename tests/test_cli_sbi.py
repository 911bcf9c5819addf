"""`edmund sbi` as a person uses it: a tiny linear Gaussian problem, whose posterior is known, fitted, drawn from and
checked.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from unittest import mock

import commands
import numpy as np
import pytest
import torch

from edmund.cli.sbi._files import read_simulations
from edmund.sbi import Posterior, prior_from_yaml, simulate

PRIOR = """
parameters:
  a: {type: normal, loc: 0, scale: 1}
  b: {type: uniform, low: -2, high: 2}
"""
EFFORT = ("--samples", 60_000, "--no-learn-simulator")
NOISE = 0.5


def run(*arguments: object, cwd: Path, code: int = 0) -> commands.Done:
    """`edmund sbi` with these arguments, in this process."""
    return commands.run("sbi", *arguments, cwd=cwd, code=code)


def error_line(*arguments: object, cwd: Path) -> str:
    return commands.error_line("sbi", *arguments, cwd=cwd)


def simulated(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    theta = np.column_stack([generator.normal(0, 1, n), generator.uniform(-2, 2, n)])
    return theta, theta + NOISE * generator.normal(size=theta.shape)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with simulations, a prior, observations, and the finished run `runs/sims`."""
    folder = tmp_path_factory.mktemp("sbi")
    theta, x = simulated(2000)
    np.savez(folder / "sims.npz", theta=theta, x=x)
    (folder / "prior.yaml").write_text(PRIOR)
    (folder / "one.csv").write_text("u,v\n0.4,-1\n")
    (folder / "three.csv").write_text("# no header\n0.4,-1\n-1.2,0.3\n0.5,0.5\n")
    run("fit", "sims.npz", "--prior", "prior.yaml", *EFFORT, cwd=folder)
    return folder


def table(path: Path) -> tuple[list[str], np.ndarray]:
    lines = path.read_text().splitlines()
    return lines[0].split(","), np.loadtxt(lines[1:], delimiter=",", ndmin=2)


# fit


def test_fit_writes_a_posterior_and_the_simulations_that_it_was_not_trained_on(folder):
    posterior = Posterior.load(folder / "runs/sims")
    assert posterior.prior.names == ("a", "b")
    with np.load(folder / "runs/sims/held_out.npz", allow_pickle=False) as kept, np.load(folder / "sims.npz") as all_:
        assert kept["theta"].shape == (200, 2)
        assert kept["x"].shape == (200, 2)
        # Pairs of the simulations, and the very ones that the trainer validated on.
        where = {row.tobytes(): k for k, row in enumerate(all_["theta"].astype(np.float32))}
        rows = [where[row.tobytes()] for row in kept["theta"]]
        np.testing.assert_array_equal(kept["x"], all_["x"][rows].astype(np.float32))
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    assert rows == order[:200].tolist()


def test_fit_again_trains_nothing_and_another_run_is_refused(folder):
    before = (folder / "runs/sims/model.safetensors").read_bytes()
    assert "finished already" in run("fit", "sims.npz", "--prior", "prior.yaml", *EFFORT, cwd=folder).stdout
    assert (folder / "runs/sims/model.safetensors").read_bytes() == before
    again = ("fit", "sims.npz", "--prior", "prior.yaml", *EFFORT)
    assert "seed is 0 there and 1 here" in error_line(*again, "--seed", 1, cwd=folder)
    theta, x = simulated(2000)
    np.savez(folder / "later.npz", theta=theta, x=x + 0.01)
    assert "simulations.crc32" in error_line(
        "fit", "later.npz", "--out", "runs/sims", "--prior", "prior.yaml", *EFFORT, cwd=folder
    )
    (folder / "full").mkdir()
    (folder / "full/a.txt").write_text("")
    assert "not empty" in error_line(*again, "--out", "full", cwd=folder)
    assert [path.name for path in (folder / "full").iterdir()] == ["a.txt"]


def test_fit_reads_a_folder_of_arrays_and_a_zarr_group_alike(folder):
    theta, x = simulated(100, seed=1)
    (folder / "arrays").mkdir()
    np.save(folder / "arrays/theta.npy", theta)
    np.save(folder / "arrays/x.npy", x)
    sources = ["arrays"]
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(folder / "arrays.zarr"), mode="w")
    for name, array in (("theta", theta), ("x", x)):
        group.create_array(name, shape=array.shape, chunks=(30, 2), dtype=array.dtype)[:] = array
    sources.append("arrays.zarr")
    found = []
    for k, source in enumerate(sources):
        options = ("--out", f"alike{k}", "--samples", 2000, "--no-learn-simulator")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run("fit", source, "--prior", "prior.yaml", *options, cwd=folder)
        found.append((folder / f"alike{k}/model.safetensors").read_bytes())
    assert found[0] == found[-1]


def test_fit_reads_the_folder_of_a_finished_simulate(folder):
    prior = prior_from_yaml(folder / "prior.yaml")

    def simulator(theta: torch.Tensor) -> torch.Tensor:
        x = theta + NOISE * torch.randn_like(theta)
        x[theta[:, 0] > 1.5] = torch.nan
        return x

    with pytest.warns(UserWarning, match="failed and are kept aside"):
        done = simulate(simulator, prior, 120, batch=50, directory=folder / "simulated", progress=False)
    theta, x = read_simulations("SIMS", folder / "simulated")
    np.testing.assert_array_equal(theta, done.theta)
    np.testing.assert_array_equal(x, done.x)
    (folder / "simulated/batch-000001.npz").unlink()
    line = error_line("fit", "simulated", "--prior", "prior.yaml", "--out", "never", cwd=folder)
    assert "holds 70 of 120 simulations" in line


def test_an_interrupted_fit_ends_with_the_signals_code_and_the_same_command_goes_on(folder):
    again = ("fit", "sims.npz", "--prior", "prior.yaml", "--out", "stopped", "--samples", 2000, "--no-learn-simulator")
    with mock.patch("edmund.sbi.NPSE.train", side_effect=KeyboardInterrupt("SIGTERM")):
        run(*again, cwd=folder, code=143)
    assert not (folder / "stopped/posterior.json").exists()
    run(*again, cwd=folder)
    assert (folder / "stopped/posterior.json").is_file()


def test_what_is_no_simulations_is_told_in_one_line(folder):
    theta, x = simulated(100)

    def told(name: str, *more: object, prior: str = "prior.yaml") -> str:
        line = error_line("fit", name, "--prior", prior, "--out", "never", *EFFORT, *more, cwd=folder)
        assert not (folder / "never").exists()
        return line

    assert "does not exist" in told("nowhere.npz")
    np.savez(folder / "names.npz", params=theta, x=x)
    assert "has no array theta; it has params, x" in told("names.npz")
    np.savez(folder / "objects.npz", theta=np.array([None, {}], dtype=object), x=x)
    assert "theta in 'objects.npz' cannot be read" in told("objects.npz")
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 no more")
    assert "not an .npz" in told("broken.npz")
    (folder / "pickle.npz").write_bytes(b"\x80\x04N.")
    assert "not an .npz" in told("pickle.npz")
    assert "suffix '.yaml'" in told("prior.yaml")
    (folder / "empty").mkdir()
    assert "holds no simulations" in told("empty")
    np.savez(folder / "few.npz", theta=theta[:20], x=x[:20])
    assert "there are 20 simulations" in told("few.npz")
    np.savez(folder / "outside.npz", theta=theta + 5, x=x)
    assert "outside the prior's support" in told("outside.npz")
    np.savez(folder / "nan.npz", theta=theta, x=np.where(x > 1, np.nan, x))
    assert "are NaN" in told("nan.npz")
    assert "'no.yaml' cannot be read" in told("sims.npz", prior="no.yaml")
    assert "did you mean 'flow'" in told("sims.npz", "--formulation", "flaw")
    assert "network: 'mpl'" in told("sims.npz", "--network", "mpl")
    assert "--prior" in error_line("fit", "sims.npz", cwd=folder)


# sample


def test_draws_of_one_observation(folder):
    out = run("sample", "runs/sims", "--x", "one.csv", "-n", 1000, "--plot", "one.png", cwd=folder).stdout
    names, rows = table(folder / "runs/sims/samples/one.csv")
    assert names == ["a", "b"]
    assert rows.shape == (1000, 2)
    # Of a: N(0, 1) times N(0.4; a, 0.25) is N(0.32, 0.2); the training is short.
    assert rows[:, 0].mean() == pytest.approx(0.32, abs=0.1)
    assert rows[:, 0].std() == pytest.approx(0.2**0.5, rel=0.2)
    assert np.abs(rows[:, 1]).max() < 2
    assert f"{rows[:, 0].mean():.4g}" in out
    assert (folder / "one.png").stat().st_size > 10_000
    library = Posterior.load(folder / "runs/sims").sample((1000,), x=torch.tensor([0.4, -1.0]))
    np.testing.assert_allclose(rows, library.numpy(), atol=1e-5)


def test_the_picture_has_the_parameters_names(folder):
    with mock.patch("edmund.plots.save", side_effect=lambda figure, path: path) as save:
        run("sample", "runs/sims", "--x", "one.csv", "-n", 20, "--plot", "named.png", cwd=folder)
    panels = save.call_args.args[0].axes
    assert [panel.get_xlabel() for panel in panels if panel.get_visible()] == ["", "a", "b"]
    assert [panel.get_ylabel() for panel in panels if panel.get_visible()] == ["", "b", ""]


def test_draws_of_many_observations_and_of_all_together(folder):
    run("sample", "runs/sims", "--x", "three.csv", "-n", 100, "--seed", 3, "--out", "three.csv.csv", cwd=folder)
    names, rows = table(folder / "three.csv.csv")
    assert names == ["observation", "a", "b"]
    assert rows[:, 0].tolist() == [k for k in (1, 2, 3) for _ in range(100)]
    x = torch.tensor([[0.4, -1.0], [-1.2, 0.3], [0.5, 0.5]])
    library = Posterior.load(folder / "runs/sims").sample_batched((100,), x=x, seed=3)
    np.testing.assert_allclose(rows[100:200, 1:], library[:, 1].numpy(), atol=1e-5)
    run("sample", "runs/sims", "--x", "three.csv", "-n", 100, "--seed", 3, "--out", "three.npz", cwd=folder)
    with np.load(folder / "three.npz", allow_pickle=False) as file:
        assert file["names"].tolist() == ["a", "b"]
        np.testing.assert_allclose(file["theta"], library.numpy(), atol=1e-5)
    run("sample", "runs/sims", "--x", "three.csv", "--iid", "-n", 200, "--out", "all.npz", cwd=folder)
    with np.load(folder / "all.npz", allow_pickle=False) as file:
        theta = file["theta"]
    # Precision 1 + 3 / 0.25 of a, whose mean is 4 * (0.4 - 1.2 + 0.5) / 13.
    assert theta.shape == (200, 2)
    assert theta[:, 0].mean() == pytest.approx(-0.092, abs=0.15)
    assert theta[:, 0].std() == pytest.approx(13**-0.5, rel=0.35)


def test_the_mode(folder):
    out = run("sample", "runs/sims", "--x", "one.csv", "--map", cwd=folder).stdout
    names, rows = table(folder / "runs/sims/samples/one-map.csv")
    assert names == ["a", "b"]
    assert rows.shape == (1, 2)
    assert rows[0, 0] == pytest.approx(0.32, abs=0.2)
    assert f"{rows[0, 0]:.4g}" in out


def test_an_array_of_observations_is_read_as_well(folder):
    np.save(folder / "one.npy", np.array([0.4, -1.0]))
    run("sample", "runs/sims", "--x", "one.npy", "-n", 50, "--out", "npy.csv", cwd=folder)
    run("sample", "runs/sims", "--x", "one.csv", "-n", 50, "--out", "csv.csv", cwd=folder)
    assert (folder / "npy.csv").read_text() == (folder / "csv.csv").read_text()


def test_a_far_observation_is_warned_about_in_one_line(folder):
    (folder / "far.csv").write_text("40,0\n")
    done = run("sample", "runs/sims", "--x", "far.csv", "-n", 10, cwd=folder)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("warning: x: column 0 of an observation is 40")


def test_what_is_no_observation_is_told_in_one_line(folder):
    def told(text: str, *more: object) -> str:
        (folder / "bad.csv").write_text(text)
        return error_line("sample", "runs/sims", "--x", "bad.csv", *more, cwd=folder)

    assert "x has 3 values a row; training had 2" in told("1,2,3\n")
    assert "line 3 of 'bad.csv' has 3 values; those before have 2" in told("a,b\n1,2\n1,2,3\n")
    assert "line 2 of 'bad.csv' has 'b', which is no number" in told("1,2\n1,b\n")
    assert "line 1 of 'bad.csv' has 'two', which is no number" in told("1,two\n1,2\n")
    assert "holds no observation, as its only line was taken for names" in told("a,b\n")
    assert "1 of 2 values are NaN" in told("1,\n")
    assert "-n is 0" in told("1,2\n", "-n", 0)
    assert "leave -n out" in told("1,2\n", "--map", "-n", 5)
    assert "must end in .csv or .npz" in told("1,2\n", "--out", "a.txt")
    assert "--plot draws one posterior" in told("1,2\n3,4\n", "--plot", "a.png")
    assert "is not a file" in error_line("sample", "runs/sims", "--x", "nowhere.csv", cwd=folder)
    assert "is not a folder" in error_line("sample", "runs/none", "--x", "one.csv", cwd=folder)
    assert "holds no posterior" in error_line("sample", "runs", "--x", "one.csv", cwd=folder)


# check

MODEL = """
import torch

def simulate(theta):
    return theta + 0.5 * torch.randn_like(theta)

def noisy(theta):
    return theta + torch.randn_like(theta)

def other(theta):
    return theta.repeat(1, 2)

number = 3
"""


@pytest.fixture(scope="module")
def model(folder):
    pytest.importorskip("sbi.diagnostics")
    (folder / "own_model.py").write_text(MODEL)
    yield
    sys.modules.pop("own_model", None)


@pytest.mark.usefixtures("model")
def test_a_check_on_the_held_out_simulations(folder):
    lines = run("check", "runs/sims", "--posterior-samples", 25, cwd=folder).stdout.splitlines()
    assert lines[0].startswith("200 of the 200 simulations that were held out of training. They chose when it stopped")
    assert lines[1].startswith("Posterior: Calibrated, as far as can be seen")
    assert lines[-1] == "runs/sims/check.html"
    page = (folder / "runs/sims/check.html").read_text()
    assert "No fault found in the posterior" in page and "no simulator was given" in page


@pytest.mark.usefixtures("model")
def test_a_check_with_a_simulator_tests_predictions(folder):
    options = ("--draws", 100, "--posterior-samples", 25, "--out", "pages/fresh.html")
    out = run("check", "runs/sims", "--simulator", "own_model:simulate", *options, cwd=folder).stdout
    assert out.startswith("100 fresh simulations")
    assert "Predictions: Calibrated" in out
    assert "No fault found in its predictions" in (folder / "pages/fresh.html").read_text()


@pytest.mark.usefixtures("model")
def test_the_exit_code_tells_a_posterior_that_is_not_calibrated(folder):
    """Of another simulator, twice as noisy, the posterior is too narrow."""
    theta, x = simulated(300, seed=7)
    np.savez(folder / "noisy.npz", theta=theta, x=x + 0.75**0.5 * np.random.default_rng(8).normal(size=x.shape))
    options = ("--draws", 100, "--posterior-samples", 25, "--out", "noisy.html")
    out = run("check", "runs/sims", "--simulations", "noisy.npz", *options, cwd=folder, code=3).stdout
    assert out.startswith("100 of the 300 simulations in 'noisy.npz'")
    assert "a, b are too narrow" in out
    assert "Faults found in the posterior" in (folder / "noisy.html").read_text()


@pytest.mark.usefixtures("model")
def test_what_cannot_be_checked_is_told_in_one_line(folder):
    def told(*arguments: object) -> str:
        return error_line("check", "runs/sims", *arguments, cwd=folder)

    few = ("--draws", 20, "--posterior-samples", 20)
    assert "must be module:function" in told("--simulator", "own_model")
    assert "ModuleNotFoundError" in told("--simulator", "no_model:simulate")
    assert "has no 'simulat'" in told("--simulator", "own_model:simulat")
    assert "is a int" in told("--simulator", "own_model:number")
    assert "x has 4 values a row; training had 2" in told("--simulator", "own_model:other", *few)
    assert "--draws is 5" in told("--draws", 5)
    assert "--posterior-samples is 5" in told("--posterior-samples", 5)
    assert "does not exist" in told("--simulations", "nowhere.npz")
    theta, x = simulated(30)
    np.savez(folder / "narrow.npz", theta=theta, x=x[:, :1])
    assert "x has 1 values a row; training had 2" in told("--simulations", "narrow.npz", *few)
    np.savez(folder / "single.npz", theta=theta[:5], x=x[:5])
    assert "holds 5 simulations; a check needs 20" in told("--simulations", "single.npz")
    Posterior.load(folder / "runs/sims").save(folder / "moved")
    assert "has no held_out.npz" in error_line("check", "moved", cwd=folder)
    with mock.patch.dict(sys.modules, {"sbi": None, "sbi.diagnostics": None}):
        assert "pip install 'edmund[sbi]'" in error_line("check", "runs/sims", *few, cwd=folder)
