"""Simulations of draws from the prior, spread over workers, with their failures kept aside.

The draws theta come from the seed at once, and are cut into batches. A batch runs with the global random streams of its
process seeded by the run's seed and its own number, so that x is a function of seed, n and batch alone: not of the
number of workers, the order in which they finish, or an interruption in between. joblib carries the batches, by the
backend that `joblib.parallel_config` names: processes of this machine, or those of Dask or Ray.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import joblib
import torch
from torch import Tensor

from edmund.errors import InputError, check_count
from edmund.progress import say, track
from edmund.sbi.priors import Prior
from edmund.sbi.simulation_store import Store
from edmund.sbi.simulator_batch import Batch, Floats, Job, Simulator, one_line, other_shapes
from edmund.training.order import seed_for


@dataclass(frozen=True, eq=False)
class Failure:
    """One simulation that gave no usable x: its row, its theta [D], what happened, and its x where it is not finite."""

    row: int
    theta: Tensor
    message: str
    x: Tensor | None


@dataclass(frozen=True, eq=False)
class SimulationResult:
    """What `simulate` returns.

    theta: [m, D] and x: [m, *], float32, the simulations that succeeded, in the order of their draws. rows: int64 [m],
    the number of each among all n. failures: the other n - m.
    """

    theta: Tensor
    x: Tensor
    rows: Tensor
    failures: tuple[Failure, ...]

    @property
    def summary(self) -> str:
        """One line: how many succeeded, how many failed, and of what, with the first message of each kind."""
        n = len(self.rows) + len(self.failures)
        if not self.failures:
            return f"{n} simulations, none failed"
        kinds = Counter(_kind(failure.message) for failure in self.failures)
        first = {_kind(failure.message): failure.message for failure in reversed(self.failures)}
        told = "; ".join(f"{count} {first[kind]}" for kind, count in kinds.most_common())
        return f"{n} simulations, {len(self.failures)} failed and are kept aside: {told}"


def simulate(
    simulator: Simulator,
    prior: Any,
    n: int,
    *,
    workers: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    nan: Literal["refuse", "mask"] = "refuse",
    directory: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> SimulationResult:
    """`n` draws theta from the prior and the simulator's x for each.

    simulator: theta [B, D] float32 to x [B, *], a tensor or an array; [B] is taken for [B, 1], after one more call of a
    single row, which must give one. It may draw from the global random streams of torch, NumPy and Python. prior:
    anything that `Prior.of` takes. workers: how many batches at a time (-1: one for each core); None: as many as
    `joblib.parallel_config` says, and one where nothing says otherwise. Threads of one process take turns, for they
    share its random streams. batch: rows of a call; by default a hundredth of n, at most 1000. Another batch gives
    other random numbers. seed: of theta and of all that the simulator draws.

    When the simulator raises an exception, the rows of its batch are tried one by one. Rows that still raise, and rows
    with NaN or infinite values, are the result's `failures`, and a warning counts them. nan: "mask" takes NaN for a
    value that is missing, as `NPSE(nan="mask")` does: then a row of NaN fails only if it holds nothing else.

    directory: a folder that gets each batch when it is finished; the same call goes on from there after an
    interruption, and a call with another prior, n, batch or seed is refused. The simulator is taken to be the same, and
    a prior is the same if its draws are: it must take them from the global streams.

    >>> from torch.distributions import Normal
    >>> done = simulate(lambda theta: theta + 0.1 * torch.randn(len(theta), 1), Normal(0.0, 1.0), 1000)
    >>> done.theta.shape, done.x.shape, done.summary
    (torch.Size([1000, 1]), torch.Size([1000, 1]), '1000 simulations, none failed')

    Raises InputError for arguments that cannot be used, a simulator that returns no array, another number of rows, or
    rows of different shapes, a folder of other simulations, and when every simulation failed.
    """
    if not callable(simulator):
        raise InputError(f"simulator is {simulator!r}; it must be a function of theta [B, D] that returns x [B, ...]")
    if nan not in ("refuse", "mask"):
        raise InputError(f"nan is {nan!r}; it must be 'refuse' or 'mask'")
    check_count("n", n)
    check_count("seed", seed, least=0)
    if workers is not None and workers != -1:
        check_count("workers", workers)
    size = min(1000, -(-n // 100)) if batch is None else check_count("batch", batch)
    known = Prior.of(prior)
    theta = known.sample(n, seed)
    collected = _Collected(theta)
    starts = range(0, n, size)
    store = None
    done: set[int] = set()
    if directory is not None:
        asked = {"seed": seed, "n": n, "batch": size, "nan": nan, "prior": _fingerprint(theta)}
        store = Store.open(Path(directory), asked)
        for number in range(len(starts)):
            found = store.load(number)
            if found is not None:
                collected.add(found)
                done.add(number)
    jobs = (
        Job(simulator, theta[start : start + size].clone(), start, seed_for(seed, number), number, nan == "mask")
        for number, start in enumerate(starts)
        if number not in done
    )
    try:
        with track(n, "simulate", progress, done=collected.seen) as bar:
            for outcome in _outcomes(jobs, workers):
                if isinstance(outcome, InputError):
                    raise outcome
                collected.add(outcome)
                if store is not None:
                    store.save(outcome, theta)
                failed = {"failed": len(collected.failures)} if collected.failures else {}
                bar.advance(len(outcome.rows) + len(outcome.failures), **failed)
    except KeyboardInterrupt:
        if store is not None:
            where = f"{collected.seen} of {n} simulations are in {str(store.folder)!r}"
            say(f"simulate: interrupted; {where}, and the same call goes on")
        raise
    result = collected.result(None if store is None else store.folder)
    if result.failures:
        warnings.warn(f"simulate: {result.summary}", stacklevel=2)
    return result


def _outcomes(jobs: Iterator[Job], workers: int | None) -> Iterator[Batch | InputError]:
    """What the batches came to, as they finish."""
    try:
        try:
            parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")
        except ValueError:  # multiprocessing's pools, and Ray's: some batches at a time
            yield from _rounds(jobs, workers)
            return
        yield from parallel(joblib.delayed(Job.run)(job) for job in jobs)
    except pickle.PicklingError as error:
        # The cause is the text of a traceback, whose last line says what could not be sent.
        lines = [line for line in str(error.__cause__ or error).splitlines() if line.strip(' "')]
        raise InputError(
            f"simulator cannot be sent to the workers ({one_line(lines[-1])}); it must hold nothing that cannot be "
            f"pickled, or run with workers=1"
        ) from error


def _rounds(jobs: Iterator[Job], workers: int | None) -> Iterator[Batch | InputError]:
    with joblib.Parallel(n_jobs=workers) as parallel:
        size = 4 * joblib.effective_n_jobs(workers)
        while part := list(itertools.islice(jobs, size)):
            yield from parallel(joblib.delayed(Job.run)(job) for job in part)


class _Collected:
    """The rows that have come so far, each in its place."""

    def __init__(self, theta: Tensor) -> None:
        self.theta = theta
        self.kept = torch.zeros(len(theta), dtype=torch.bool)
        self.x: Tensor | None = None
        self.shape: tuple[int, ...] | None = None
        self.failures: list[tuple[int, str, Floats | None]] = []

    @property
    def seen(self) -> int:
        return int(self.kept.sum()) + len(self.failures)

    def add(self, batch: Batch) -> None:
        if batch.shape is not None:
            self.shape = self.shape if self.shape is not None else batch.shape
            if batch.shape != self.shape:
                raise other_shapes(self.shape, batch.shape)
        if batch.x is not None:
            if self.x is None:
                self.x = torch.empty(len(self.theta), *batch.x.shape[1:])
            self.x[torch.from_numpy(batch.rows)] = torch.from_numpy(batch.x)
            self.kept[torch.from_numpy(batch.rows)] = True
        self.failures += batch.failures

    def result(self, folder: Path | None) -> SimulationResult:
        failures = tuple(
            Failure(row, self.theta[row], message, None if x is None else torch.from_numpy(x))
            for row, message, x in sorted(self.failures, key=lambda failure: failure[0])
        )
        if self.x is None:
            again = "" if folder is None else f"; delete {str(folder)!r} to simulate again"
            raise InputError(
                f"simulator: all {len(failures)} simulations failed; the first: {failures[0].message}; it is called "
                f"with theta [B, {self.theta.shape[1]}], a row for each simulation{again}"
            )
        if not failures:
            return SimulationResult(self.theta, self.x, torch.arange(len(self.theta)), ())
        return SimulationResult(self.theta[self.kept], self.x[self.kept], self.kept.nonzero().flatten(), failures)


def _fingerprint(theta: Tensor) -> str:
    """Of the prior, by what was drawn from it: a user's object has no other description."""
    return hashlib.sha256(theta.numpy().tobytes()).hexdigest()[:16]


def _kind(message: str) -> str:
    return message.partition(":")[0]
