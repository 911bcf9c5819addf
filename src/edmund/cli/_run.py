"""What the commands share: a run's folder, its config and its data; seeds and labels as people write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from rich.console import Console

from edmund import samplers
from edmund.config import Config, make_sampler, parse_sampler, sampler_keys, sampler_values
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


class Network(NamedTuple):
    """How a run's network is evaluated: on which device (None: the GPU if there is one), see `Model.optimise`."""

    device: str | None
    precision: str | None
    compile: bool


def load_model(run: Path, device: str | None) -> Model:
    """A run's model, on the device asked for, or on the GPU if there is one."""
    return load(run, device=pick_device(device))


def load_optimised(run: Path, network: Network) -> Model:
    """A run's model, made fast to evaluate."""
    return load_model(run, network.device).optimise(precision=network.precision, compile=network.compile)


def pick_device(device: str | None) -> torch.device:
    """The device asked for; InputError where it is not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return known_device(device)


def pick_sampler(
    model: Model, name: str | None, churn: Mapping[str, float | None], assignments: Sequence[str] = ()
) -> samplers.Sampler:
    """The sampler asked for; what is not asked of its churn, or of the sampler itself, is as in the run.

    churn: values of s_churn, s_min, s_max and s_noise, None where not given. assignments: "key=value" of other
    arguments of the sampler.
    """
    own = model.formulation.sampler
    makers = samplers.named()
    if name is not None and name not in makers:
        raise unknown("--sampler", name, makers)
    kind = own.name if name is None else name
    given = parse_sampler(kind, assignments) | {key: value for key, value in churn.items() if value is not None}
    if name is None and not given:
        return own
    keys = sampler_keys(kind)
    for key in given:
        if key not in keys:
            raise InputError(f"--{key.replace('_', '-')} is given, but the sampler {kind} has no churn")
    carried = sampler_values(own)
    if name is not None:
        carried = {key: value for key, value in carried.items() if key in churn and "s_churn" in keys & carried.keys()}
    if "s_churn" not in carried | given:
        # A sampler's own s_noise has a value to begin with, churn's has none.
        shaped = [key for key in given if key in churn and keys[key].default is None]
        if shaped:
            raise InputError(
                f"--{shaped[0].replace('_', '-')} is given without --s-churn; without it there is no churn to shape"
            )
    return make_sampler(kind, carried | given)


def parse_interval(argument: str, text: str) -> tuple[float, float]:
    """ "0.3,5" as two numbers."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{argument} is {text!r}; it must be two noise levels such as 0.3,5") from None
    return low, high


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


def check_new(argument: str, folder: Path) -> None:
    """Refuses a folder to write to that holds something."""
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise InputError(f"{argument} is {str(folder)!r}, which is there already and not empty; name a new folder")


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
