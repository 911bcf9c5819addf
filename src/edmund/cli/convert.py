"""`edmund convert`: somebody else's network as a model of ours."""

from __future__ import annotations

import warnings
from pathlib import Path

from edmund import pretrained
from edmund.cli._run import say
from edmund.errors import InputError
from edmund.model import Model


def run(file: Path, out: Path) -> None:
    """The command."""
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise InputError(f"OUT is {str(out)!r}, which is there already and not empty; name a new folder")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = pretrained.load(file)
    say(str(model.save(out)))
    shape = " x ".join(map(str, model.shape))
    say(f"{model.formulation.name}, {shape}, {model.num_classes or 'no'} classes; by default {_sampling(model)}.")
    for warning in caught:
        say(f"Note: {warning.message}.")
    say("Next:")
    say(f"  edmund sample {out} -n 16")


def _sampling(model: Model) -> str:
    parts = model.formulation
    return f"{parts.num_steps} steps of {type(parts.sampler).__name__}"
