"""Reference posteriors in files, in sbibm's layout.

`DIRECTORY/TASK/num_observation_K/` holds `observation.csv`, `true_parameters.csv` (a header and one row) and
`reference_posterior_samples.csv.bz2` (a header and 10 000 rows). The observations are what published scores were
measured on; a simulator is never asked for new ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edmund.errors import InputError, check_count


@dataclass(frozen=True)
class Reference:
    """x [dim_x], draws of p(theta | x) [n, dim_theta], the theta that x was made from [dim_theta]; all float32."""

    x: Tensor
    samples: Tensor
    true_parameters: Tensor


def read_reference(
    directory: str | Path,
    task: str,
    observation: int,
    *,
    dim_theta: int,
    dim_x: int,
    observation_file: str = "observation.csv",
) -> Reference:
    """The `Reference` of one observation of `task`; InputError for a file that is absent or of another width."""
    folder = observation_folder(directory, task, observation)
    return Reference(
        x=read_table(folder / observation_file, dim_x)[0],
        samples=read_table(folder / "reference_posterior_samples.csv.bz2", dim_theta),
        true_parameters=read_table(folder / "true_parameters.csv", dim_theta)[0],
    )


def observation_folder(directory: str | Path, task: str, observation: int) -> Path:
    """The folder of one observation; InputError, with the observations there are, where it is absent."""
    number = check_count("observation", observation)
    folder = Path(directory) / task / f"num_observation_{number}"
    if not folder.is_dir():
        there = sorted(int(path.name.rpartition("_")[2]) for path in folder.parent.glob("num_observation_[0-9]*"))
        known = f"observations there: {', '.join(map(str, there))}" if there else f"no observation of {task} is there"
        raise InputError(f"observation is {observation!r}, but {folder} is not a folder; {known}")
    return folder


def read_table(path: Path, width: int) -> Tensor:
    """The rows of a CSV file with a header, plain or bz2: [n, width] float32."""
    if not path.is_file():
        raise InputError(f"reference: {path} is not there; sbibm's layout has one for each observation")
    try:
        rows = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2, dtype=np.float32)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"reference: {path} is not a table of numbers under one header line: {error}") from error
    if rows.shape[0] == 0 or rows.shape[1] != width or not np.isfinite(rows).all():
        raise InputError(f"reference: {path} holds {list(rows.shape)} numbers; it must hold [n, {width}] finite ones")
    return torch.from_numpy(rows)
