"""`edmund train`: config in, run folder out."""

from __future__ import annotations

import sys
from pathlib import Path
from signal import Signals

from edmund import plots, presets
from edmund.cli._run import CONFIG_FILE, make_folder, say
from edmund.config import Config, dump
from edmund.data import DataSet
from edmund.errors import InputError
from edmund.images.report import as_condition, class_labels, is_image, value_range
from edmund.model import Model, count_parameters
from edmund.presets import Preset
from edmund.training import Trainer, TrainingResult
from edmund.training.output import write_atomically


def run(path: Path | None, name: str | None, overrides: list[str], *, dry_run: bool, resume: bool) -> None:
    """The command; name: of a preset, in place of a config's path."""
    if path is not None and name is None:
        config, preset = Config.load(path, overrides), None
    elif name is not None and path is None:
        config, preset = Config.preset(name, overrides), presets.find(name)
    else:
        given = "neither is given" if path is None else f"CONFIG is {str(path)!r} and --preset {name!r}"
        raise InputError(f"CONFIG or --preset: {given}; give one of the two (edmund presets lists the presets)")
    directory = Path(config.output.directory or "runs/edmund")
    if preset is not None and config.data.source == "file" and config.data.path is None:
        images = f" or a folder or .zip of images (if of other sizes, data.size={preset.shape[1]} too)"
        wanted = (
            f"data.path is not given: preset {preset.name} wants {preset.data}; give --set data.path=PATH, an .npz"
            f"{images if preset.shape[0] <= 3 else ' with labels'}"
        )
        if not dry_run:
            raise InputError(wanted)
        say(dump(config.document()), end="")
        say(f"# model: {preset.parameters:,} parameters for such data")
        say(f"# {wanted}")
        return
    if dry_run:
        train, held_out = config.datasets()
        say(dump(config.resolved(train).document()), end="")
        for line in _differences(preset, train):
            say(f"# {line}")
        for line in describe(config.model(train), train, held_out):
            say(f"# {line}")
        return
    if resume and not (directory / CONFIG_FILE).is_file():
        raise InputError(f"--resume: {str(directory)!r} holds no run to go on with")
    fit(config, directory, preset)
    say(f"next: edmund sample {directory}   edmund evaluate {directory}   edmund diagnose {directory}")


def _differences(preset: Preset | None, train: DataSet) -> list[str]:
    """What of the data is not as the preset expects."""
    if preset is None:
        return []
    wanted, found = (preset.shape, preset.classes), (tuple(train.shape), train.num_classes)
    if wanted == found:
        return []
    told = [f"samples of shape {shape} and {classes or 'no'} classes" for shape, classes in (wanted, found)]
    side = preset.shape[-1]
    resize = "" if found[0][1:] == preset.shape[1:] else f" (data.size={side} makes images of that size)"
    return [f"note: preset {preset.name} is for {told[0]}, the data are {told[1]}{resize}: expect another result"]


def fit(config: Config, directory: Path, preset: Preset | None = None) -> TrainingResult:
    """Trains a config into a folder, or goes on with the run that is there; exits with 128 + the signal when it is told
    to stop. preset: the one that the config came from.
    """
    options = config.options()
    train, held_out = config.datasets()
    for line in _differences(preset, train):
        say(line)
    model = config.model(train)
    for line in describe(model, train, held_out):
        say(line)
    make_folder(directory)
    limits = value_range(train)

    def preview(current: Model, samples_seen: int, folder: Path) -> None:
        if not is_image(current.shape):
            return
        pictures = current.sample(64, progress=False, **as_condition(class_labels(64, current.num_classes)))
        (folder / "previews").mkdir(exist_ok=True)
        plots.write_png(folder / "previews" / f"{samples_seen:010d}.png", pictures, limits)  # type: ignore[arg-type]

    shown = preview if options.preview_interval is not None else None
    trainer = Trainer(model, train, directory, validation=held_out, options=options, preview=shown)
    # A new run has its config beside it from the start; one that is gone on with, when its trainer has accepted it.
    fresh = not (directory / "checkpoints").is_dir()
    text = dump(config.resolved(train).document())
    if fresh:
        write_atomically(directory / CONFIG_FILE, text)
    try:
        result = trainer.run()
    except InputError:
        if fresh and not (directory / "checkpoints").is_dir():
            (directory / CONFIG_FILE).unlink(missing_ok=True)
        raise
    write_atomically(directory / CONFIG_FILE, text)
    if result.interrupted is not None:  # the trainer has said so
        sys.exit(128 + Signals[result.interrupted])
    return result


def describe(model: Model, train: DataSet, held_out: DataSet) -> list[str]:
    """What will be trained on what, in three lines."""
    sigma_data = getattr(model.formulation.preconditioning, "sigma_data", None)
    values = sigma_data if isinstance(sigma_data, tuple) else (sigma_data,)
    spread = "" if sigma_data is None else ", sigma_data " + " ".join(f"{value:.4g}" for value in values)
    classes = f", {train.num_classes} classes" if train.num_classes else ""
    form = model.formulation
    return [
        f"data: {len(train)} training and {len(held_out)} held-out samples of shape {tuple(train.shape)}{classes}",
        f"model: {model.formulation.name}, {type(model.network).__name__} of "
        f"{count_parameters(model.network):,} parameters{spread}",
        f"sampling: {form.sampler}, {form.num_steps} steps on {form.grid} from {form.sigma_max:.5g} to "
        f"{form.sigma_min:.5g}",
    ]
