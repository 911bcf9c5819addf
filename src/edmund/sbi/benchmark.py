"""The benchmark of simulation-based inference (sbibm; Lueckmann et al. 2021, arXiv 2101.04653), run on `NPSE`.

For each task and budget one posterior is trained on simulations of the task's own simulator, and then asked for every
observation (it is amortised: the published sequential methods spend the budget on each observation anew). Its draws
are compared with the reference posterior's. Nothing of the references reaches the training.

The work is resumed where it stopped: a row that is in the file is not computed again, and each posterior is kept in a
folder beside the file.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edmund.errors import InputError, check_count, unknown
from edmund.metrics import c2st, mmd
from edmund.metrics.c2st import CLASSIFIERS
from edmund.model import count_parameters
from edmund.progress import say
from edmund.sbi import benchmark_rows, tasks
from edmund.sbi.benchmark_rows import Options, Row
from edmund.sbi.npse import NPSE
from edmund.sbi.posterior import Posterior
from edmund.sbi.simulate import simulate
from edmund.training.output import write_atomically, writing_to

ALGORITHM = "NPSE"
OBSERVATIONS = 10
"""Observations a task has in sbibm."""
COLUMN = {"mlp": "C2ST", "rf": "C2ST_rf"}
"""The column of each classifier's score."""
_DENSITY_DRAWS = 100
"""Draws of the exact posterior at which the density is compared."""
_RECORD = "run.json"


def run(
    names: Iterable[str],
    budgets: Iterable[int],
    observations: Iterable[int],
    *,
    reference: str | os.PathLike[str],
    out: str | os.PathLike[str],
    classifiers: Collection[str] = CLASSIFIERS,
    samples: int = 10_000,
    c2st_samples: int | None = None,
    seed: int = 0,
    formulation: str = "edm",
    network: str = "auto",
    workers: int = 1,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> list[Row]:
    """The rows of these tasks, budgets and observations: of the file `out`, those it lacks trained and scored first.

    names: of `tasks`. budgets: numbers of simulations. observations: 1 to 10. reference: a folder in sbibm's layout.
    out: the CSV; the posteriors are kept in OUT.runs. classifiers: of `metrics.c2st`. samples: draws of each posterior.
    c2st_samples: how many of them C2ST and MMD compare; None: all. The published numbers are of 10 000; with fewer a
    classifier learns less and C2ST is lower. seed: of the simulations, the training and the draws. formulation,
    network, device: of `NPSE`. workers: processes that train C2ST's folds. progress: talk on stderr.

    Raises InputError for what cannot be used, before anything is computed.
    """
    chosen = [tasks.get(name) for name in _distinct("tasks", names)]
    sizes = [check_count("budgets", budget) for budget in _distinct("budgets", budgets)]
    numbers = [_observation(number) for number in _distinct("observations", observations)]
    for classifier in _distinct("classifiers", classifiers):
        if classifier not in CLASSIFIERS:
            raise unknown("classifiers", classifier, CLASSIFIERS)
    check_count("workers", workers)
    check_count("samples", samples, least=2)
    compared = samples if c2st_samples is None else check_count("c2st_samples", c2st_samples, least=10)
    if compared > samples:
        raise InputError(f"c2st_samples is {compared}; it must be at most samples, {samples}")
    if not isinstance(formulation, str) or not isinstance(network, str):
        raise InputError("formulation and network must be names, which the file's rows are told apart by")
    options = Options(
        ALGORITHM,
        check_count("seed", seed, least=0),
        formulation.lower(),
        network,
        samples,
        compared,
        version("edmund"),
    )
    references = {(task.name, number): task.reference(Path(reference), number) for task in chosen for number in numbers}
    for (name, number), each in references.items():
        if len(each.samples) < compared:
            raise InputError(
                f"c2st_samples is {compared}, but the reference of {name}, observation {number}, has "
                f"{len(each.samples)} samples; it must be at most as many"
            )
    for task in chosen:
        _inference(task, options, device)
    path = Path(out)
    there = {row.key: row for row in benchmark_rows.read(path)}
    _check_version(path, there.values(), options)
    benchmark_rows.repair(path)

    rows = []
    for task in chosen:
        for size in sizes:
            trained: _Trained | None = None
            for number in numbers:
                row = there.get((options, task.name, size, number))
                missing = [name for name in classifiers if row is None or getattr(row, COLUMN[name]) is None]
                if row is None or missing:
                    if trained is None:
                        trained = _trained(task, size, options, path, device, progress)
                    row = _row(
                        task, size, number, references[task.name, number], trained, options, missing, row, workers
                    )
                    benchmark_rows.put(path, row)
                    say(_told(row), progress)
                rows.append(row)
    return rows


def scores(
    reference: Tensor,
    samples: Tensor,
    *,
    classifiers: Collection[str] = CLASSIFIERS,
    c2st_samples: int | None = None,
    workers: int = 1,
) -> dict[str, float]:
    """How far draws [n, D] are from a reference [m, D], by the columns of `Row`: C2ST, C2ST_rf, MMD and the moments'.

    c2st_samples: the number of first rows of both that C2ST and MMD compare; None: the smaller set's.
    """
    n = min(len(reference), len(samples)) if c2st_samples is None else c2st_samples
    result = {
        COLUMN[name]: c2st(reference[:n], samples[:n], name, workers=workers)
        for name in CLASSIFIERS
        if name in classifiers
    }
    result["MMD"] = mmd(reference[:n], samples[:n])
    ours, theirs = samples.double(), reference.double()
    std = theirs.std(0)
    result["mean_error"] = float(((ours.mean(0) - theirs.mean(0)) / std).square().mean().sqrt())
    result["std_error"] = float((ours.std(0) / std - 1).square().mean().sqrt())
    return result


def exact_scores(task: tasks.Task, posterior: Posterior, x: Tensor, samples: Tensor) -> dict[str, float]:
    """How far a posterior and its draws [n, D] are from the exact one, by the columns of `Row`; empty if unknown."""
    exact = task.posterior(x)
    if exact is None:
        return {}
    theta = exact.sample(_DENSITY_DRAWS)
    difference = posterior.log_prob(theta, x=x) - exact.log_prob(theta)
    return {
        "exact_mean_error": float((samples.double().mean(0) - exact.mean).abs().max()),
        "exact_covariance_error": float(
            (samples.double().mT.cov() - exact.covariance).norm() / exact.covariance.norm()
        ),
        "exact_log_prob_error": float(difference.abs().mean()),
    }


@dataclass(frozen=True)
class _Trained:
    """A posterior, and what its training took."""

    posterior: Posterior
    seconds: float
    calls: int
    validation_loss: float | None


def runs_folder(out: Path, task: str, size: int, options: Options) -> Path:
    """Where the posterior of a task and budget is kept."""
    name = f"{task}-{size}-{options.formulation}-{options.network}-seed{options.seed}"
    return out.with_name(out.name + ".runs") / name


def _trained(
    task: tasks.Task, size: int, options: Options, out: Path, device: torch.device | str | None, progress: bool
) -> _Trained:
    """The posterior of one task and budget: from its folder, or trained now, from where a killed training was."""
    folder = runs_folder(out, task.name, size, options)
    record = _read_record(folder, options)
    if not record["done"]:
        say(f"benchmark: {task.name}, {size} simulations: training in {folder}", progress)
        record["calls"] += 1
        _write_record(folder, record)
        start = time.perf_counter()
        try:
            _train(task, size, options, folder, record, device, progress)
        finally:
            record["seconds"] += time.perf_counter() - start
            _write_record(folder, record)
        say(f"benchmark: {task.name}, {size} simulations: trained in {record['seconds']:.0f} s", progress)
    posterior = Posterior.load(folder / "posterior", device="cpu" if device is None else device)
    return _Trained(posterior, record["seconds"], record["calls"], record["validation_loss"])


def _train(
    task: tasks.Task,
    size: int,
    options: Options,
    folder: Path,
    record: dict[str, Any],
    device: torch.device | str | None,
    progress: bool,
) -> None:
    found = simulate(task.simulator, task.prior, size, seed=options.seed, progress=progress)
    inference = _inference(task, options, device)
    inference.append_simulations(found.theta, found.x)
    inference.train(directory=folder / "training", seed=options.seed, progress=progress)
    result = inference.result
    if result is None or result.interrupted is not None:
        raise KeyboardInterrupt
    inference.build_posterior().save(folder / "posterior")
    loss = result.best_validation_loss
    record["validation_loss"] = None if loss is None or not math.isfinite(loss) else loss
    record["done"] = True


def _inference(task: tasks.Task, options: Options, device: torch.device | str | None) -> NPSE:
    network: Any = options.network  # NPSE refuses other names
    return NPSE(task.prior, options.formulation, network, device=device)


def _read_record(folder: Path, options: Options) -> dict[str, Any]:
    path = folder / _RECORD
    fresh = {
        "edmund_version": options.edmund_version,
        "done": False,
        "calls": 0,
        "seconds": 0.0,
        "validation_loss": None,
    }
    if not path.exists():
        return fresh
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.keys() != fresh.keys():
            raise ValueError(f"it has {', '.join(record)}")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"out: {path} is damaged; remove its folder to train anew ({error})") from None
    if record["edmund_version"] != options.edmund_version:
        raise InputError(
            f"out: {folder} was trained by edmund {record['edmund_version']}, this is {options.edmund_version}; "
            "name another file, or remove the folder"
        )
    return dict(record)


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _RECORD, json.dumps(record, indent=2, allow_nan=False) + "\n")


def _row(
    task: tasks.Task,
    size: int,
    number: int,
    reference: tasks.Reference,
    trained: _Trained,
    options: Options,
    classifiers: Sequence[str],
    known: Row | None,
    workers: int,
) -> Row:
    """The row of one observation; known: one that lacks the scores of these classifiers alone."""
    posterior, x = trained.posterior, reference.x
    start = time.perf_counter()
    # Observations do not share their noise, so that a mean over them is a mean over draws too.
    draws = posterior.sample((options.num_samples,), x=x, seed=options.seed * OBSERVATIONS + number)
    seconds = time.perf_counter() - start
    found: dict[str, float | None] = {
        **scores(reference.samples, draws, classifiers=classifiers, c2st_samples=options.C2ST_samples, workers=workers)
    }
    if known is not None:
        added: dict[str, Any] = {COLUMN[name]: found[COLUMN[name]] for name in classifiers}
        return dataclasses.replace(known, **added)
    found |= exact_scores(task, posterior, x, draws)
    found["NLTP"] = -float(posterior.log_prob(reference.true_parameters[None], x=x))
    numbers: dict[str, Any] = {name: _finite(found.get(name)) for name in _MEASURED}
    return Row(
        task=task.name,
        num_simulations=size,
        num_observation=number,
        RT=(trained.seconds + seconds) / 60,
        train_seconds=trained.seconds,
        train_calls=trained.calls,
        sample_seconds=seconds,
        parameters=count_parameters(posterior.network),
        validation_loss=trained.validation_loss,
        device=posterior.network.location_bias.device.type,
        threads=torch.get_num_threads(),
        **numbers,
        **dataclasses.asdict(options),
    )


_MEASURED = (
    "C2ST",
    "MMD",
    "NLTP",
    "C2ST_rf",
    "mean_error",
    "std_error",
    "exact_mean_error",
    "exact_covariance_error",
    "exact_log_prob_error",
)


def _told(row: Row) -> str:
    told = [f"{name} {getattr(row, name):.3f}" for name in COLUMN.values() if getattr(row, name) is not None]
    told += [f"mean off by {row.mean_error:.3f} std" if row.mean_error is not None else ""]
    return (
        f"benchmark: {row.task}, {row.num_simulations} simulations, observation {row.num_observation}: "
        f"{', '.join(filter(None, told))}; {row.num_samples} draws in {row.sample_seconds or 0:.1f} s"
    )


def _check_version(path: Path, rows: Iterable[Row], options: Options) -> None:
    """Refuses to set rows of this version beside the same ones of another."""
    for row in rows:
        if row.edmund_version != options.edmund_version:
            raise InputError(
                f"out: {str(path)!r} has rows of edmund {row.edmund_version}, this is {options.edmund_version}; "
                "name another file"
            )


def _observation(number: int) -> int:
    if check_count("observations", number) > OBSERVATIONS:
        raise InputError(f"observations has {number}; a task has observations 1 to {OBSERVATIONS}")
    return number


def _distinct(argument: str, values: Iterable[Any]) -> list[Any]:
    """Each once, in order."""
    found = list(dict.fromkeys([values] if isinstance(values, str) else values))
    if not found:
        raise InputError(f"{argument} is empty; give at least one")
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
