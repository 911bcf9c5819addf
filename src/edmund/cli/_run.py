"""What the commands share: a run's folder, its config and its data; seeds and labels as people write them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import yaml
from rich.console import Console

from edmund import samplers
from edmund.config import Config
from edmund.devices import known_device
from edmund.errors import InputError, unknown
from edmund.model import Model, load

CONFIG_FILE = "config.yaml"

_MOST_NUMBERS = 10_000_000

console = Console(highlight=False)


def say(text: str, end: str = "\n") -> None:
    """Prints text as it is: no markup, no wrapping, so that paths and commands can be copied."""
    console.print(text, markup=False, soft_wrap=True, end=end)


def read_config(run: Path) -> Config:
    """The config that a run's folder holds."""
    path = run / CONFIG_FILE
    if not path.is_file():
        raise InputError(
            f"run {str(run)!r} has no {CONFIG_FILE}, which says what data to compare with: it is not a run of "
            f"`edmund train`"
        )
    try:
        return Config.of(yaml.safe_load(path.read_text()))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def load_model(run: Path, device: str | None) -> Model:
    """A run's model, on the device asked for, or on the GPU if there is one."""
    return load(run, device=pick_device(device))


def pick_device(device: str | None) -> torch.device:
    """The device asked for; InputError where it is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return known_device(device)


def pick_sampler(model: Model, name: str | None, churn: dict[str, float | None]) -> samplers.Sampler:
    """The sampler asked for; what is not asked of its churn, or of the sampler itself, is as in the run."""
    given = {key: value for key, value in churn.items() if value is not None}
    own = model.formulation.sampler
    makers = samplers.named()
    if name is not None and name not in makers:
        raise unknown("--sampler", name, makers)
    solver = own if name is None else makers[name]()
    before = getattr(own, "churn", None)
    if given and before is None and "S_churn" not in given:
        flag = next(iter(given)).lower().replace("_", "-")
        raise InputError(f"--{flag} is given without --s-churn; without it there is no churn to shape")
    wanted = dataclasses.replace(before, **given) if before is not None else samplers.Churn(**given) if given else None
    if wanted is None:
        return solver
    if "churn" not in {field.name for field in dataclasses.fields(solver)}:  # type: ignore[arg-type]
        if not given:
            return solver
        raise InputError(f"--s-churn is given, but the sampler {solver.name} has no churn")
    return dataclasses.replace(solver, churn=wanted)  # type: ignore[type-var]


def parse_numbers(argument: str, text: str) -> list[int]:
    """ "0-63,100" as a list of integers."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError(f"{argument} is {text!r}; it must be numbers and ranges such as 0-63,100")
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise InputError(f"{argument} is {text!r}; the range {part.strip()} runs backwards")
        if high - low + len(numbers) > _MOST_NUMBERS:
            raise InputError(f"{argument} is {text!r}; that is more than {_MOST_NUMBERS} numbers")
        numbers += range(low, high + 1)
    return numbers


def make_folder(folder: Path) -> Path:
    """The folder, made if absent; InputError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".edmund-write-test"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(f"folder {str(folder)!r} cannot be written: {error.strerror or error}") from error
    return folder
