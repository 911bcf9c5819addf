"""`edmund convert`: somebody else's network as a model of ours."""

from __future__ import annotations

import warnings
from pathlib import Path

from edmund import pretrained
from edmund.cli._run import check_new, say


def run(file: Path, out: Path) -> None:
    """The command."""
    check_new("OUT", out)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = pretrained.load(file)
    say(str(model.save(out)))
    shape = " x ".join(map(str, model.shape))
    parts = model.formulation
    say(f"{parts.name}, {shape}, {model.num_classes or 'no'} classes; {parts.num_steps} steps of {parts.sampler}.")
    for warning in caught:
        if issubclass(warning.category, pretrained.LeftOut):
            say(f"Note: {warning.message}.")
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    say("Next:")
    say(f"  edmund sample {out} -n 16")
