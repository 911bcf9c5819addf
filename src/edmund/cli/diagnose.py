"""`edmund diagnose`: which noise levels matter, from the data and from the network."""

from __future__ import annotations

import json
from pathlib import Path

from rich.table import Table

from edmund import plots
from edmund.cli._run import console, load_model, make_folder, read_config, say
from edmund.config import Config
from edmund.errors import InputError
from edmund.model import Model
from edmund.noise_density import LogNormal, NoiseDensity
from edmund.training.diagnosis import Diagnosis, diagnose


def run(target: Path, overrides: list[str], out: Path | None) -> None:
    """The command."""
    if target.is_dir():
        if overrides:
            raise InputError(f"--set {overrides[0]!r}: a run's config is fixed; diagnose a config file to change it")
        config, trained = read_config(target), True
        model, folder = load_model(target, None), out or target / "diagnosis"
    else:
        config, trained = Config.load(target, overrides), False
        folder = out or Path(config.output.directory or ".") / "diagnosis"
    train, held_out = config.datasets()
    fresh = config.model(train)
    if not trained:
        model = fresh
    found = diagnose(
        model, fresh.to(next(model.network.parameters()).device), held_out if trained else train, trained=trained
    )
    make_folder(folder)
    _table(found, model)
    figure = plots.loss_against_sigma(
        found.sigmas.numpy(),
        None if found.current is None else found.current.numpy(),
        found.initial.numpy(),
        {"training": model.formulation.noise_density, "suggested": LogNormal(found.P_mean, found.P_std)},
        linear=found.linear.numpy(),
    )
    picture = plots.save(figure, folder / "loss_against_sigma.png")
    numbers = folder / "diagnosis.json"
    numbers.write_text(json.dumps(_plain(found), indent=2) + "\n")
    say(f"{picture}\n{numbers}")


def _table(found: Diagnosis, model: Model) -> None:
    formulation = model.formulation
    say(f"data, in the model's units: mean {found.mean:.4g}, standard deviation {found.sigma_data:.4g}")
    say(f"largest distance between two samples: {found.largest_distance:.4g}")
    table = Table(box=None, pad_edge=False)
    headings = ["sigma", "best linear", "at initialisation"] + (["now"] if found.current is not None else [])
    for heading in headings:
        table.add_column(heading, justify="right")
    curves = [found.linear, found.initial] + ([found.current] if found.current is not None else [])
    for index in range(0, len(found.sigmas), 2):
        table.add_row(f"{found.sigmas[index]:.3g}", *(f"{curve[index]:.4g}" for curve in curves))
    say("loss against sigma (1: no better than the data's mean and variance)")
    console.print(table)
    say("suggested:")
    say(f"  sigma_data {found.sigma_data:.4g}")
    density = f"p_mean {found.P_mean:.2f}, p_std {found.P_std:.2f}"
    source = "where the network" if found.from_network else "where the best linear denoiser"
    say(f"  {density}: {source} sees more than the mean")
    say(f"  (training has {_density(formulation.noise_density)})")
    say(f"  sigma_max {found.sigma_max:.3g} for VE (so far the noise must reach, and more costs steps)")


def _density(density: NoiseDensity) -> str:
    if isinstance(density, LogNormal):
        return f"{density.P_mean:.2f}, {density.P_std:.2f}"
    return repr(density)


def _plain(found: Diagnosis) -> dict[str, object]:
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in vars(found).items()}
