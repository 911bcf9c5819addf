"""The benchmark: its scores on posteriors that are known, its file through kills and changed options, its tables."""

from __future__ import annotations

import bz2
import contextlib
import csv
import dataclasses
import functools
import io
import math
import shutil
import sys
from unittest import mock

import numpy as np
import pytest
import torch

from edmund.cli import main
from edmund.errors import InputError
from edmund.metrics import c2st, mmd
from edmund.sbi import NPSE, Posterior, benchmark, benchmark_rows, published, tasks
from edmund.sbi.benchmark import exact_scores
from edmund.sbi.benchmark_rows import COLUMNS, Row
from edmund.sbi.benchmark_summary import compare, summary

DRAWS = 100
TINY = {"samples": 1000, "learn_simulator": False}
OPTIONS = {"classifiers": ("rf",), "samples": DRAWS, "progress": False}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Three observations of two_moons in sbibm's layout, with draws of its exact posterior."""
    task, root = tasks.get("two_moons"), tmp_path_factory.mktemp("reference")
    for number in (1, 2, 3):
        folder = root / f"two_moons/num_observation_{number}"
        folder.mkdir(parents=True)
        theta = torch.tensor([[0.1 * number, -0.2]])
        x = task.simulator(theta, torch.Generator().manual_seed(number))
        draws = task.posterior(x[0]).sample(DRAWS, seed=number)
        for name, rows in {"observation.csv": x, "true_parameters.csv": theta}.items():
            np.savetxt(folder / name, rows.numpy(), delimiter=",", header="a,b", comments="")
        table = io.StringIO()
        np.savetxt(table, draws.numpy(), delimiter=",", header="a,b", comments="")
        (folder / "reference_posterior_samples.csv.bz2").write_bytes(bz2.compress(table.getvalue().encode()))
    return root


EXACT = {"exact_mean_error": 0.1, "exact_covariance_error": 0.2, "exact_log_prob_error": 0.3}


def cheap(patch):
    """The costly scores are made up; what is tested of them uses the real ones."""
    patch.setattr(benchmark, "c2st", lambda first, second, name, **_: float((first - second).std().sigmoid()))
    patch.setattr(benchmark, "exact_scores", lambda *_: EXACT)


@pytest.fixture
def real(monkeypatch):
    """The real scores back."""
    monkeypatch.setattr(benchmark, "c2st", c2st)
    monkeypatch.setattr(benchmark, "exact_scores", exact_scores)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Every training is a short one, the costly scores are made up; the calls of training."""
    calls = []
    train = NPSE.train
    cheap(monkeypatch)

    def counted(self, **options):
        calls.append(options)
        return train(self, **TINY, **options)

    monkeypatch.setattr(NPSE, "train", counted)
    return calls


@pytest.fixture(scope="module")
def finished(reference, tmp_path_factory):
    """The file of a finished run over observations 1 and 2, and its rows."""
    out = tmp_path_factory.mktemp("benchmark") / "scores.csv"
    with pytest.MonkeyPatch.context() as patch:
        cheap(patch)
        patch.setattr(NPSE, "train", functools.partialmethod(NPSE.train, **TINY))
        rows = benchmark.run(["two_moons"], [200], [1, 2], reference=reference, out=out, **OPTIONS)
    return out, rows


@pytest.fixture
def copied(finished, tmp_path):
    """That file and its posteriors in a folder of the test's own."""
    out = tmp_path / "scores.csv"
    shutil.copy(finished[0], out)
    shutil.copytree(str(finished[0]) + ".runs", str(out) + ".runs")
    return out


def again(out, reference, observations=(1, 2), **options):
    return benchmark.run(["two_moons"], [200], observations, reference=reference, out=out, **{**OPTIONS, **options})


def row(**values) -> Row:
    """A row with these values; floats are None, and the rest as in a published comparison, where not given."""
    defaults = dict.fromkeys(COLUMNS) | {
        "task": "two_moons",
        "num_simulations": 10_000,
        "num_observation": 1,
        "algorithm": "NPSE",
        "train_calls": 1,
        "parameters": 10,
        "num_samples": 10_000,
        "C2ST_samples": 10_000,
        "seed": 0,
        "formulation": "edm",
        "network": "auto",
        "device": "cpu",
        "threads": 2,
        "edmund_version": "1",
    }
    return Row(**{**defaults, **values})


def test_scores_of_the_reference_law_itself_and_of_one_moved_and_widened(monkeypatch):
    asked = []

    def seen(first, second, name, *, workers):
        asked.append((len(first), len(second), name, workers))
        return 0.5

    monkeypatch.setattr(benchmark, "c2st", seen)
    draw = torch.Generator().manual_seed(0)
    std = torch.tensor([1.0, 10.0, 0.1])
    theirs, ours = (torch.randn(4000, 3, generator=draw) * std + 5 for _ in range(2))
    same = benchmark.scores(theirs, ours, c2st_samples=200, workers=2)
    assert list(same) == ["C2ST", "C2ST_rf", "MMD", "mean_error", "std_error"]
    assert asked == [(200, 200, "mlp", 2), (200, 200, "rf", 2)]
    assert same["MMD"] == mmd(theirs[:200], ours[:200]) and abs(same["MMD"]) < 0.02
    assert same["mean_error"] < 0.05 and same["std_error"] < 0.05
    moved = benchmark.scores(theirs, ours + 2 * std, classifiers=("rf",), c2st_samples=200)
    assert moved["mean_error"] == pytest.approx(2, abs=0.05) and moved["std_error"] < 0.05
    assert list(moved) == ["C2ST_rf", "MMD", "mean_error", "std_error"]
    widened = benchmark.scores(theirs, 3 * ours, classifiers=(), c2st_samples=200)
    assert widened["std_error"] == pytest.approx(2, abs=0.1)


def test_exact_scores_see_a_shift_a_scale_and_a_density():
    task = tasks.get("gaussian_linear")
    x = torch.linspace(-1, 1, 10)
    exact = task.posterior(x)
    draws = exact.sample(40_000)

    class Off:
        def log_prob(self, theta, x):
            return exact.log_prob(theta) - 0.3

    found = exact_scores(task, Off(), x, draws)
    assert found["exact_log_prob_error"] == pytest.approx(0.3, abs=1e-5)
    assert found["exact_mean_error"] < 0.005 and found["exact_covariance_error"] < 0.03
    found = exact_scores(task, Off(), x, x / 2 + 1.1 * (draws - x / 2) + 0.1)
    assert found["exact_mean_error"] == pytest.approx(0.1, abs=0.005)
    assert found["exact_covariance_error"] == pytest.approx(0.21, abs=0.02)
    assert exact_scores(tasks.get("slcp"), Off(), torch.zeros(8), draws[:, :5]) == {}


def test_rows_are_in_sbibms_columns_and_say_what_was_done(finished):
    out, rows = finished
    with out.open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0])[:8] == [
        "task", "num_simulations", "num_observation", "algorithm", "C2ST", "MMD", "NLTP", "RT"
    ]  # fmt: skip
    assert [(line["task"], line["num_simulations"], line["num_observation"]) for line in lines] == [
        ("two_moons", "200", "1"),
        ("two_moons", "200", "2"),
    ]
    assert benchmark_rows.read(out) == rows
    for each, line in zip(rows, lines, strict=True):
        assert line["C2ST"] == "" and each.C2ST is None and 0.5 < each.C2ST_rf <= 1
        assert (each.num_samples, each.C2ST_samples, each.seed, each.train_calls) == (DRAWS, DRAWS, 0, 1)
        assert math.isclose(each.RT, (each.train_seconds + each.sample_seconds) / 60)
        assert {name: getattr(each, name) for name in EXACT} == EXACT


def test_nltp_is_the_kept_posteriors(finished, reference):
    out, rows = finished
    posterior = Posterior.load(f"{out}.runs/two_moons-200-edm-auto-seed0/posterior")
    known = tasks.get("two_moons").reference(reference, 2)
    density = posterior.log_prob(known.true_parameters, x=known.x)
    assert float(density) == pytest.approx(-rows[1].NLTP, abs=1e-3)
    assert rows[1].parameters == sum(parameter.numel() for parameter in posterior.network.parameters())


def test_finished_rows_are_not_computed_again(copied, reference, finished, tiny, monkeypatch):
    monkeypatch.setattr(benchmark, "scores", None)
    assert again(copied, reference) == finished[1]
    assert tiny == []


def test_another_observation_takes_the_kept_posterior(copied, reference, finished, tiny):
    rows = again(copied, reference, (3, 1))
    assert [each.num_observation for each in rows] == [3, 1] and rows[1] == finished[1][0]
    assert tiny == [] and rows[0].train_seconds == finished[1][0].train_seconds
    assert len(benchmark_rows.read(copied)) == 3


def test_killed_between_training_and_scores(tmp_path, reference, tiny, monkeypatch):
    out = tmp_path / "scores.csv"
    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "scores", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            again(out, reference)
    assert benchmark_rows.read(out) == [] and len(tiny) == 1
    assert len(again(out, reference)) == 2 and len(tiny) == 1


def test_an_interrupted_training_is_gone_on_with_and_said(tmp_path, reference, tiny, monkeypatch):
    out = tmp_path / "scores.csv"
    train = NPSE.train

    def interrupted(self, **options):
        train(self, **options)
        self.result = dataclasses.replace(self.result, interrupted="SIGINT")

    with monkeypatch.context() as patch:
        patch.setattr(NPSE, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            again(out, reference)
    first = tiny[0]["directory"]
    rows = again(out, reference, (1,))
    assert len(tiny) == 2 and tiny[1]["directory"] == first
    assert rows[0].train_calls == 2 and "interrupted" in summary(rows)


def test_a_line_cut_short_is_computed_again(copied, reference, finished, tiny):
    copied.write_bytes(copied.read_bytes()[:-20])
    assert benchmark_rows.read(copied) == finished[1][:1]
    rows = again(copied, reference)
    assert rows[1].C2ST_rf == finished[1][1].C2ST_rf and rows[1].MMD == finished[1][1].MMD
    assert benchmark_rows.read(copied) == rows and tiny == []


def test_a_score_that_was_not_asked_for_is_added_to_its_row(copied, reference, finished, monkeypatch):
    monkeypatch.setattr(benchmark, "c2st", lambda first, second, name, **_: {"mlp": 0.75}[name])
    monkeypatch.setattr(benchmark, "exact_scores", None)
    rows = again(copied, reference, classifiers=("mlp", "rf"))
    assert rows == [dataclasses.replace(each, C2ST=0.75) for each in finished[1]]
    assert benchmark_rows.read(copied) == rows


def test_rows_of_other_options_stand_beside_and_are_not_averaged(copied, reference, finished, tiny):
    rows = again(copied, reference, c2st_samples=50)
    assert [each.C2ST_samples for each in rows] == [50, 50] and tiny == []
    assert again(copied, reference) == finished[1]
    found = benchmark_rows.read(copied)
    assert len(found) == 4
    with pytest.raises(InputError, match="different options"):
        compare(found, "rf")
    assert "50 of 100 draws" in summary(found) and "100 of 100 draws" in summary(found)


def test_work_of_another_version_is_refused(copied, reference, monkeypatch):
    monkeypatch.setattr(benchmark, "version", lambda _: "99")
    with pytest.raises(InputError, match="this is 99; name another file"):
        again(copied, reference)
    copied.unlink()
    with pytest.raises(InputError, match=r"was trained by edmund .*, this is 99"):
        again(copied, reference)


def test_files_of_something_else(tmp_path, copied):
    (tmp_path / "other.csv").write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match=r"begins with 'x,y'"):
        benchmark_rows.read(tmp_path / "other.csv")
    copied.write_text(copied.read_text().replace(",200,1,", ",many,1,"))
    with pytest.raises(InputError, match=r"line 2 of .*many"):
        benchmark_rows.read(copied)


def test_rows_go_to_text_and_back(tmp_path):
    out = tmp_path / "rows.csv"
    rows = [row(C2ST=0.1 + 0.2, num_observation=1), row(MMD=-1e-9, num_observation=2)]
    benchmark_rows.repair(out)
    for each in rows:
        benchmark_rows.put(out, each)
    assert benchmark_rows.read(out) == rows


def test_published_scores_are_those_of_the_table(shared):
    lines = [line.strip("|").split("|") for line in (shared / "sbi-tasks.md").read_text().splitlines() if "|" in line]
    mlp = {cells[0].strip(): cells[1:] for cells in lines if len(cells) == 6 and cells[0].strip() in tasks.NAMES}
    rf = {cells[0].strip(): cells[1:] for cells in lines if len(cells) == 5 and cells[0].strip() in tasks.NAMES}
    assert tuple(mlp) == tasks.NAMES and len(rf) == 5
    for table, methods in ((mlp, published.MLP), (rf, published.RF)):
        for place, method in enumerate(methods):
            numbers = {
                task: tuple(float(number) for number in cells[place].split("(")[0].split("/"))
                for task, cells in table.items()
                if cells[place].strip()
            }
            assert numbers == method.scores
    assert {task: float(cells[4]) for task, cells in mlp.items()} == published.CEILING


def test_comparisons_are_to_the_published_digits():
    found = compare([row(C2ST=0.5532), row(C2ST=0.5526, num_observation=2)], "mlp")
    assert len(found) == 1 and found[0].ours == pytest.approx(0.5529) and found[0].verdict == "best"
    (found,) = compare([row(C2ST=0.556)], "mlp")
    assert found.better == ("SNPE", "SNLE") and found.others["NPE"] == 0.604
    (found,) = compare([row(C2ST_rf=0.6, task="slcp", num_simulations=30_000)], "rf")
    assert found.others == {"NPSE VE": None, "Simformer": None, "GenSBI EDM": 0.741, "GenSBI SM": 0.568}
    (found,) = compare([row(C2ST_rf=0.9, task="sir")], "rf")
    assert found.verdict == ""
    assert compare([row(C2ST_rf=0.9)], "mlp") == []


def test_the_tables_count():
    text = summary(
        [
            row(task="slcp", C2ST=0.85, C2ST_rf=0.6),
            row(task="two_moons", C2ST=0.51, num_observation=3),
            row(task="two_moons", C2ST=0.52),
            row(task="sir", C2ST=0.9),
        ]
    )
    assert "at 10000 simulations: no worse than NPE on 2, no worse than the best published on 1 of 3 tasks" in text
    lines = text.splitlines()
    places = [next(number for number, line in enumerate(lines) if line.startswith(name)) for name in ("two_", "slcp")]
    assert places == sorted(places)
    assert lines[places[0]].split()[:5] == ["two_moons", "10000", "1,3", "0.515", "0.604"]
    assert lines[places[0]].endswith("best") and lines[places[1]].endswith("worse than SNPE, SNLE")
    assert "do not read it as better" not in text
    assert "do not read it as better" in summary([row(C2ST=0.5, C2ST_samples=2000)])


def command(*arguments, code=0):
    """`edmund sbi benchmark`: what it printed, or its line of error."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["edmund", "sbi", "benchmark", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert (ended.value.code or 0) == code, out.getvalue() + err.getvalue()
    if code:
        assert err.getvalue().count("\n") == 1 and err.getvalue().startswith("error: ")
    return err.getvalue() if code else out.getvalue()


def test_the_command_runs_resumes_and_sums_up(tmp_path, reference, tiny, real):
    out = tmp_path / "deep" / "scores.csv"
    arguments = ("--tasks", "two_moons", "--budgets", "2e2", "--observations", "1-2", "--reference", reference)
    arguments += ("--c2st", "rf", "--samples", DRAWS, "--device", "cpu", "--out", out)
    first = command(*arguments)
    assert "C2ST by rf" in first and "two_moons" in first and len(benchmark_rows.read(out)) == 2
    assert command(*arguments) == first[first.index("NPSE, formulation") :] and len(tiny) == 1
    assert command("--summary", "--out", out) == first[first.index("NPSE, formulation") :]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "two_moon"), "did you mean 'two_moons'?"),
        (("--budgets", "1e3,1.5"), "'1.5' must be a whole number of simulations"),
        (("--budgets", "many"), "'many' must be a whole number"),
        (("--budgets", "inf"), "'inf' must be a whole number"),
        (("--budgets", "0"), "'0' must be a whole number"),
        (("--observations", "1-11"), "observations has 11; a task has observations 1 to 10"),
        (("--observations", "0"), "observations is 0"),
        (("--observations", "one"), "--observations is 'one'"),
        (("--observations", "4"), "observations there: 1, 2, 3"),
        (("--reference", "nowhere"), "nowhere/two_moons/num_observation_1 is not a folder"),
        (("--c2st", "mpl"), "did you mean 'mlp'?"),
        (("--network", "transfomer"), "did you mean 'transformer'?"),
        (("--formulation", "edn"), "did you mean 'edm'?"),
        (("--samples", "50", "--c2st-samples", "60"), "c2st_samples is 60; it must be at most samples, 50"),
        (("--samples", "1000"), "has 100 samples; it must be at most as many"),
        (("--seed", "-1"), "seed is -1"),
        (("--workers", "0"), "workers is 0"),
        (("--summary",), "which has no rows"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_computed(tmp_path, reference, tiny, arguments, message):
    out = tmp_path / "scores.csv"
    usual = ("--tasks", "two_moons", "--observations", "1", "--reference", reference, "--samples", DRAWS, "--out", out)
    assert message in command(*usual, *arguments, code=2)
    assert tiny == [] and not out.exists()


def test_a_reference_is_asked_for(tmp_path):
    assert "--reference is not given" in command("--tasks", "two_moons", "--out", tmp_path / "scores.csv", code=2)
