"""Simulations: the same whoever runs them and however often they are interrupted; failures counted and never lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
import torch.distributions as D
from scipy.stats import kstest
from torch import Tensor

import edmund.progress
from edmund.errors import InputError
from edmund.sbi.priors import Prior
from edmund.sbi.simulate import SimulationResult, simulate

PRIOR = D.Independent(D.Uniform(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 2.0])), 1)


def noisy(theta: Tensor) -> Tensor:
    """Draws from every global stream: x = (theta + N(0, 1), U(0, 1) of NumPy, U(0, 1) of Python)."""
    others = np.random.rand(len(theta))  # noqa: NPY002
    last = [random.random() for _ in theta]
    return torch.cat(
        [theta + torch.randn(len(theta), 2), torch.tensor(others)[:, None], torch.tensor(last)[:, None]], 1
    )


def fragile(theta: Tensor) -> Tensor:
    """Raises where theta_0 is above 0.5, as a whole; gives NaN below -0.5 and infinity for theta_1 above 1.9."""
    if (theta[:, 0] > 0.5).any():
        raise ValueError(f"no solution at\n{float(theta[0, 0]):.3f}")
    x = theta[:, None, :].expand(-1, 3, -1).clone()
    x[:, 1, 0] = torch.where(theta[:, 0] < -0.5, torch.nan, x[:, 1, 0])
    x[:, 2, 1] = torch.where(theta[:, 1] > 1.9, torch.inf, x[:, 2, 1])
    return x


def same(first: SimulationResult, second: SimulationResult) -> bool:
    return (
        torch.equal(first.theta, second.theta)
        and torch.equal(first.x, second.x)
        and torch.equal(first.rows, second.rows)
        and [(f.row, f.message) for f in first.failures] == [(f.row, f.message) for f in second.failures]
        and all(
            torch.equal(f.theta, g.theta) and (f.x is None) == (g.x is None)
            for f, g in zip(first.failures, second.failures, strict=True)
        )
    )


def test_simulations_are_of_the_prior_and_the_simulator() -> None:
    result = simulate(noisy, PRIOR, 4000, seed=3)
    assert result.theta.shape == (4000, 2) and result.x.shape == (4000, 4)
    assert result.theta.dtype == result.x.dtype == torch.float32
    assert torch.equal(result.theta, Prior.of(PRIOR).sample(4000, seed=3))
    assert torch.equal(result.rows, torch.arange(4000)) and result.failures == ()
    assert result.summary == "4000 simulations, none failed"
    noise = (result.x[:, :2] - result.theta).flatten()
    assert kstest(noise.numpy(), "norm").pvalue > 1e-3
    for column in (2, 3):  # the batches' streams are not one and the same
        assert kstest(result.x[:, column].numpy(), "uniform").pvalue > 1e-3
        assert len(result.x[:, column].unique()) > 3990
    assert not same(result, simulate(noisy, PRIOR, 4000, seed=4))


@pytest.mark.filterwarnings("ignore:simulate")
@pytest.mark.parametrize("simulator", [noisy, fragile])
@pytest.mark.parametrize("backend", ["threading", "multiprocessing", pytest.param("loky", marks=pytest.mark.slow)])
def test_the_number_and_the_kind_of_workers_change_nothing(backend: str, simulator: Callable[[Tensor], Tensor]) -> None:
    alone = simulate(simulator, PRIOR, 60, batch=7, seed=1, workers=1)
    with joblib.parallel_config(backend=backend):
        assert same(alone, simulate(simulator, PRIOR, 60, batch=7, seed=1, workers=2))
    with joblib.parallel_config(backend=backend, n_jobs=2):
        assert same(alone, simulate(simulator, PRIOR, 60, batch=7, seed=1))


@pytest.mark.slow
def test_a_simulator_that_cannot_be_sent() -> None:
    lock = threading.Lock()

    def locked(theta: Tensor) -> Tensor:
        with lock:
            return theta

    with pytest.raises(InputError, match=r"sent to the workers \(TypeError: cannot pickle '_thread.lock'"):
        simulate(locked, PRIOR, 20, workers=2)
    assert len(simulate(locked, PRIOR, 20).x) == 20


def test_a_simulator_may_fill_one_array_again_and_again() -> None:
    buffer = np.zeros((10, 2), np.float32)

    def reusing(theta: Tensor) -> np.ndarray:
        buffer[:] = theta
        view = buffer.view()
        view.flags.writeable = False
        return view

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = simulate(reusing, PRIOR, 50, batch=10)
    assert torch.equal(result.x, result.theta)


def test_the_users_streams_are_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    with pytest.warns(UserWarning, match="failed"):
        simulate(lambda theta: noisy(fragile(theta)[:, 0]), PRIOR, 40)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def test_failures_are_kept_aside_and_reported() -> None:
    theta = Prior.of(PRIOR).sample(300, seed=0)
    raised, nan, infinite = theta[:, 0] > 0.5, theta[:, 0] < -0.5, theta[:, 1] > 1.9
    bad = raised | nan | infinite
    assert raised.any() and nan.any() and (infinite & ~raised & ~nan).any() and not bad.all()
    with pytest.warns(UserWarning, match=rf"simulate: 300 simulations, {int(bad.sum())} failed") as caught:
        result = simulate(fragile, PRIOR, 300, batch=20)
    assert caught[0].filename == __file__
    # Every draw is in one of the two, in its place.
    assert torch.equal(result.rows, (~bad).nonzero().flatten())
    assert torch.equal(result.theta, theta[~bad])
    assert torch.equal(result.x, theta[~bad][:, None, :].expand(-1, 3, -1))
    assert [failure.row for failure in result.failures] == bad.nonzero().flatten().tolist()
    for failure in result.failures:
        assert torch.equal(failure.theta, theta[failure.row])
        if raised[failure.row]:
            assert failure.message == f"ValueError: no solution at {float(failure.theta[0]):.3f}" and failure.x is None
        else:
            count = int(nan[failure.row]) + int(infinite[failure.row])
            assert failure.message == f"not finite: {count} of 6 values are NaN or infinite"
            assert failure.x is not None and failure.x.isfinite().sum() == 6 - count
    summary = result.summary
    assert f"{int(raised.sum())} ValueError: no solution at" in summary and "\n" not in summary
    assert f"{int((bad & ~raised).sum())} not finite: " in summary


def test_float32_overflow_is_a_failure() -> None:
    theta = Prior.of(PRIOR).sample(50)
    with pytest.warns(UserWarning, match="not finite"):
        result = simulate(lambda t: np.where(t.numpy()[:, :1] > 0, 1e39, 1.0), PRIOR, 50)
    assert torch.equal(result.theta, theta[theta[:, 0] <= 0])


@pytest.mark.filterwarnings("ignore:simulate")
def test_progress(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edmund.progress, "LINE_INTERVAL", 0.0)
    result = simulate(fragile, PRIOR, 60, batch=20, directory=tmp_path)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"simulate: {done} of 60" for done in (20, 40, 60)]
    assert lines[-1].endswith(f", failed {len(result.failures)}")
    (tmp_path / "batch-000001.npz").unlink()
    simulate(fragile, PRIOR, 60, batch=20, directory=tmp_path)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("simulate: 60 of 60, ")
    simulate(noisy, PRIOR, 60, progress=False)
    assert capfd.readouterr() == ("", "")


def test_all_failed(tmp_path: Path) -> None:
    def broken(theta: Tensor) -> Tensor:
        raise RuntimeError("no licence")

    with pytest.raises(InputError, match=r"^simulator: all 30 simulations failed; the first: RuntimeError: no l"):
        simulate(broken, PRIOR, 30)
    with pytest.raises(InputError, match=r"delete '.*' to simulate again"):
        simulate(broken, PRIOR, 30, directory=tmp_path)


@pytest.mark.parametrize("simulator", [noisy, fragile])
@pytest.mark.filterwarnings("ignore:simulate")
def test_resumed_is_uninterrupted(
    simulator: Callable[[Tensor], Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = simulate(simulator, PRIOR, 100, batch=9, seed=2)
    calls = 0

    def interrupted(theta: Tensor) -> Tensor:
        nonlocal calls
        calls += len(theta) > 1
        if calls == 5:
            raise KeyboardInterrupt
        return simulator(theta)

    folder = tmp_path / "runs" / "simulations"
    with pytest.raises(KeyboardInterrupt):
        simulate(interrupted, PRIOR, 100, batch=9, seed=2, directory=folder)
    assert "simulate: interrupted; 36 of 100 simulations are in" in capsys.readouterr().err
    assert len(list(folder.glob("batch-*.npz"))) == 4
    rows = []

    def counted(theta: Tensor) -> Tensor:
        rows.append(len(theta))
        return simulator(theta)

    resumed = simulate(counted, PRIOR, 100, batch=9, seed=2, directory=folder)
    assert same(resumed, whole)
    assert [size for size in rows if size > 1] == [9] * 7  # and the last has one row
    rows.clear()
    assert same(simulate(counted, PRIOR, 100, batch=9, seed=2, directory=folder), whole) and rows == []


def test_the_folder_is_plain_arrays(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="failed and are kept aside"):
        result = simulate(fragile, PRIOR, 60, batch=20, directory=tmp_path)
    names = ["batch-000000.npz", "batch-000001.npz", "batch-000002.npz", "manifest.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    files = [np.load(tmp_path / name, allow_pickle=False) for name in names[:3]]
    assert np.array_equal(np.concatenate([file["x"] for file in files]), result.x.numpy())
    assert np.array_equal(np.concatenate([file["theta"] for file in files]), result.theta.numpy())
    failed = np.concatenate([file["failed_theta"] for file in files])
    assert np.array_equal(failed, torch.stack([failure.theta for failure in result.failures]).numpy())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"n": 21}, "n is 20 there and 21 here"),
        ({"batch": 4}, "batch is 5 there and 4 here"),
        ({"prior": [D.Uniform(0.0, 1.0)] * 2}, "the prior's draws under seed 0 differ .* it is another prior, or"),
        ({"prior": [D.Uniform(0.0, 1.0)] * 2, "seed": 1}, "seed is 0 there and 1 here"),
    ],
)
def test_another_call_into_the_folder(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"prior": PRIOR, "n": 20, "batch": 5, "seed": 0}
    simulate(noisy, **call, directory=tmp_path)
    with pytest.raises(InputError, match=f"directory: .* holds another run: {message}"):
        simulate(noisy, **(call | other), directory=tmp_path)


def test_a_prior_with_a_generator_of_its_own_cannot_be_resumed(tmp_path: Path) -> None:
    class Own:
        generator = torch.Generator()

        def sample(self, shape: torch.Size) -> Tensor:
            return torch.randn(*shape, 2, generator=self.generator)

        def log_prob(self, theta: Tensor) -> Tensor:
            return -0.5 * theta.square().sum(-1)

    prior = Own()
    simulate(noisy, prior, 20, directory=tmp_path)
    with pytest.raises(InputError, match="draws from a generator of its own, which cannot be resumed"):
        simulate(noisy, prior, 20, directory=tmp_path)


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="directory: cannot write to"):
        simulate(noisy, PRIOR, 20, directory=tmp_path / "file")
    with pytest.raises(InputError, match="holds other files and no simulations"):
        simulate(noisy, PRIOR, 20, directory=tmp_path)
    simulate(noisy, PRIOR, 20, batch=5, directory=tmp_path / "run")
    damaged = tmp_path / "run" / "batch-000002.npz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(InputError, match=r"batch-000002.npz' is damaged .*; delete it") as caught:
        simulate(noisy, PRIOR, 20, batch=5, directory=tmp_path / "run")
    assert "\n" not in str(caught.value)
    damaged.unlink()
    assert same(simulate(noisy, PRIOR, 20, batch=5, directory=tmp_path / "run"), simulate(noisy, PRIOR, 20, batch=5))


def changing(theta: Tensor) -> Tensor:
    return torch.zeros(len(theta), 8 if len(theta) > 3 else 9)


@pytest.mark.parametrize(
    ("simulator", "arguments", "message"),
    [
        (3, {}, "simulator is 3; it must be a function"),
        (noisy, {"n": 0}, "n is 0"),
        (noisy, {"n": 1e3}, "n is 1000.0; it must be an integer"),
        (noisy, {"batch": 0}, "batch is 0"),
        (noisy, {"workers": 0}, "workers is 0"),
        (noisy, {"workers": -2}, "workers is -2"),
        (noisy, {"seed": -1}, "seed is -1"),
        (noisy, {"prior": 3}, "prior is 3"),
        (lambda theta: [0.0] * len(theta), {}, "simulator returned list; it must return a tensor or an array"),
        (lambda theta: (theta, theta), {}, "simulator returned tuple"),
        (lambda theta: None, {}, "simulator returned NoneType"),
        (
            lambda theta: theta[:-1],
            {},
            r"Tensor of shape \(9, 2\) for theta of shape \(10, 2\); .* must return 10 rows",
        ),
        (lambda theta: theta.sum(), {}, r"Tensor of shape \(\) for theta"),
        (
            lambda theta: theta[0, 0] * torch.arange(10.0),  # of the first theta, as long as the batch by chance
            {},
            r"Tensor of shape \(10,\) for theta of shape \(1, 2\); it takes many theta, a row each, and must return 1 ",
        ),
        (lambda theta: theta[:, :0], {}, r"Tensor of shape \(10, 0\) for theta .* at least one number"),
        (lambda theta: theta + 0j, {}, "dtype torch.complex64; it must be of real numbers"),
        (lambda theta: np.array(["a"] * len(theta)), {}, "ndarray of dtype <U1"),
        (changing, {"n": 23}, r"rows of shape \(8,\) and of shape \(9,\); all must have one shape"),
    ],
)
def test_what_cannot_be_used(simulator: Any, arguments: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"prior": PRIOR, "n": 20, "batch": 10} | arguments
    with pytest.raises(InputError, match=message) as caught:
        simulate(simulator, **call)
    assert "\n" not in str(caught.value)


def test_rows_of_a_retried_batch_have_one_shape() -> None:
    def uneven(theta: Tensor) -> Tensor:
        if len(theta) > 1:
            raise ValueError("one at a time")
        return torch.zeros(1, 2 if theta[0, 0] > 0 else 3)

    with pytest.raises(InputError, match="all must have one shape"):
        simulate(uneven, PRIOR, 20, batch=10)


@pytest.mark.parametrize(
    ("convert", "shape"),
    [
        (lambda x: x.double().numpy(), (20, 4)),
        (lambda x: (x > 0).int(), (20, 4)),
        (lambda x: x.requires_grad_(), (20, 4)),
        (lambda x: x[:, 0], (20, 1)),
        (lambda x: x.view(-1, 1, 2, 2), (20, 1, 2, 2)),
    ],
)
def test_kinds_of_arrays(convert: Callable[[Tensor], Any], shape: tuple[int, ...]) -> None:
    plain = simulate(noisy, PRIOR, 20).x
    found = simulate(lambda theta: convert(noisy(theta)), PRIOR, 20).x
    assert found.dtype == torch.float32 and not found.requires_grad and found.shape == shape
    expected = torch.as_tensor(convert(plain)).detach().float()
    torch.testing.assert_close(found, expected.reshape(shape))


def test_a_simulator_may_write_on_its_argument() -> None:
    def careless(theta: Tensor) -> Tensor:
        theta *= 0
        return theta + 1

    assert torch.equal(simulate(careless, PRIOR, 20).theta, Prior.of(PRIOR).sample(20))


@pytest.mark.slow
def test_ctrl_c_with_workers(tmp_path: Path) -> None:
    """A real SIGINT to a real process with two workers; then the same call, here and alone."""
    code = f"""
    import sys, time
    import torch, torch.distributions as D
    from edmund.sbi.simulate import simulate
    def slow(theta):
        time.sleep(0.2)
        return theta + torch.randn(len(theta), 2)
    prior = D.Independent(D.Uniform(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 2.0])), 1)
    simulate(slow, prior, 500, batch=5, workers=2, directory={str(tmp_path / "run")!r})
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "run").glob("batch-*.npz"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and "simulate: interrupted; " in err
    kept = len(list((tmp_path / "run").glob("batch-*.npz")))
    assert 3 <= kept < 100

    def quick(theta: Tensor) -> Tensor:
        return theta + torch.randn(len(theta), 2)

    resumed = simulate(quick, PRIOR, 500, batch=5, directory=tmp_path / "run")
    assert same(resumed, simulate(quick, PRIOR, 500, batch=5))


def test_nan_that_means_missing_is_kept() -> None:
    def simulator(theta: torch.Tensor) -> torch.Tensor:
        x = theta.repeat(1, 3)
        x[theta[:, 0] > 0, 1] = torch.nan
        x[theta[:, 0] > 1] = torch.nan
        x[theta[:, 0] < -1, 2] = torch.inf
        return x

    with pytest.warns(UserWarning, match="failed"):
        done = simulate(simulator, D.Normal(0.0, 1.0), 500, nan="mask", progress=False)
    assert (done.theta[:, 0].abs() <= 1).all()
    assert torch.equal(done.x[:, 1].isnan(), done.theta[:, 0] > 0)
    kinds = {failure.message for failure in done.failures}
    assert kinds == {"not finite: 3 of 3 values are NaN", "not finite: 1 of 3 values are infinite"}
    with pytest.raises(InputError, match="nan is 'keep'"):
        simulate(simulator, D.Normal(0.0, 1.0), 500, nan="keep")  # type: ignore[arg-type]
