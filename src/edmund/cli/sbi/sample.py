"""`edmund sbi sample`: parameters drawn from the posterior of observations, as a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from edmund import plots
from edmund.cli._run import console, make_folder, say
from edmund.cli.sbi._files import read_observations
from edmund.cli.sbi._run import load_posterior, parameter_names, plain_warnings
from edmund.errors import InputError, check_count
from edmund.sbi import Posterior

_N = 10_000


def run(
    directory: Path,
    x: Path,
    n: int | None,
    out: Path | None,
    *,
    mode: bool,
    iid: bool,
    plot: Path | None,
    seed: int,
    device: str | None,
) -> None:
    """The command."""
    if mode:
        for given, option in ((n is not None, "-n"), (iid, "--iid"), (plot is not None, "--plot")):
            if given:
                raise InputError(f"--map gives the mode of each posterior in place of draws; leave {option} out")
    count = check_count("-n", _N if n is None else n)
    posterior = load_posterior(directory, device)
    observed = torch.from_numpy(np.array(read_observations("--x", x), dtype=np.float32))
    if observed.ndim == len(posterior.x_shape):
        observed = observed[None]
    path = directory / "samples" / f"{x.stem}{'-map' if mode else ''}.csv" if out is None else out
    for argument, file, suffixes in (("--out", path, (".csv", ".npz")), ("--plot", plot, (".png", ".pdf", ".svg"))):
        if file is not None and file.suffix.lower() not in suffixes:
            raise InputError(f"{argument} is {str(file)!r}; it must end in {' or '.join(suffixes)}")
    if plot is not None and len(observed) > 1 and not iid:
        raise InputError(
            f"--plot draws one posterior, and {str(x)!r} has {len(observed)} observations; give one, or --iid where "
            "all are of one theta"
        )
    with plain_warnings():
        theta = _draw(posterior, observed, count, mode, iid, seed)
    names = parameter_names(posterior)
    make_folder(path.parent)
    _write(path, theta, names)
    if theta.shape[1] == 1:
        _print(theta[:, 0], names)
    say(str(path))
    if plot is not None:
        make_folder(plot.parent)
        say(str(plots.save(plots.pairs(theta[:, 0], names=names, title="Draws of the posterior"), plot)))


def _draw(posterior: Posterior, x: Tensor, n: int, mode: bool, iid: bool, seed: int) -> Tensor:
    """theta [n, B, D], where B is the number of posteriors."""
    if mode:
        return torch.stack([posterior.map(row[None], seed=seed) for row in x])[None]
    if iid:
        return posterior.sample_iid((n,), x=x, seed=seed, show_progress_bars=True)[:, None]
    return posterior.sample_batched((n,), x=x, seed=seed, show_progress_bars=True)


def _write(path: Path, theta: Tensor, names: list[str]) -> None:
    """A row for each draw, with a column that counts the observations from 1 where there are several."""
    n, observations, dim = theta.shape
    if path.suffix.lower() == ".npz":
        array = theta[:, 0] if observations == 1 else theta
        np.savez_compressed(path, theta=array.numpy(), names=np.array(names, dtype=np.str_))
        return
    rows = theta.transpose(0, 1).reshape(-1, dim).numpy().astype(np.float64)
    columns, formats = list(names), ["%.9g"] * dim
    if observations > 1:
        number = np.repeat(np.arange(1, observations + 1), n)
        rows = np.column_stack([number, rows])
        columns, formats = ["observation", *names], ["%d", *formats]
    np.savetxt(path, rows, fmt=formats, delimiter=",", header=",".join(columns), comments="")


def _print(theta: Tensor, names: list[str]) -> None:
    """The draws [n, D] of one posterior in a few numbers; or its mode, where n is 1."""
    table = Table(box=None, pad_edge=False)
    table.add_column("parameter")
    if len(theta) == 1:
        values = {"value": theta[0]}
    else:
        low, median, high = theta.double().quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), dim=0)
        values = {"mean": theta.mean(0), "std": theta.std(0), "5 %": low, "median": median, "95 %": high}
    for heading in values:
        table.add_column(heading, justify="right")
    for k, name in enumerate(names):
        table.add_row(name, *(f"{float(column[k]):.4g}" for column in values.values()))
    console.print(table, markup=False)
