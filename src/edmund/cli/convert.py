"""`edmund convert`: somebody else's network as a model of ours."""

from __future__ import annotations

from pathlib import Path

from edmund import pretrained
from edmund.cli._run import say
from edmund.errors import InputError


def run(file: Path, out: Path) -> None:
    """The command."""
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise InputError(f"OUT is {str(out)!r}, which is there already and not empty; name a new folder")
    model = pretrained.load(file)
    say(str(model.save(out)))
    shape = " x ".join(map(str, model.shape))
    say(f"{model.formulation.name}, {shape}, {model.num_classes or 'no'} classes. Next:")
    say(f"  edmund sample {out} -n 16")
