"""Classifier-free guidance as the commands ask for it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edmund import guidance
from edmund.cli._run import CONFIG_FILE, parse_interval, read_config
from edmund.denoiser import Denoiser
from edmund.errors import InputError
from edmund.model import Model


class Guide(NamedTuple):
    """What is asked of guidance: the weight w, and the interval of sigma as "low,high"."""

    w: float | None
    interval: str | None


def guided(model: Model, guide: Guide, labels: str | None, directory: Path) -> Denoiser:
    """The model's denoiser with classifier-free guidance, if that is asked for."""
    if guide.w is None:
        if guide.interval is not None:
            raise InputError(f"--interval is {guide.interval!r} without --guidance; it says where to guide")
        return model.denoiser
    interval = None if guide.interval is None else parse_interval("--interval", guide.interval)
    wrapped = guidance.ClassifierFree(model.denoiser, guide.w, interval)
    if guide.w == 1:  # off: asks nothing of the model
        return wrapped
    if not model.num_classes:
        raise InputError(f"--guidance is {guide.w}, but the model has no classes to guide towards")
    if labels == "none":
        raise InputError(f"--guidance is {guide.w}, but --labels is 'none': there is no class to guide towards")
    if not getattr(model.network, "null_class", True):
        raise InputError(
            f"--guidance is {guide.w}, but a {type(model.network).__name__} has no 'no label' of its own; guide in "
            "Python with guidance.ClassifierFree(model.denoiser, w, negative={'labels': ...})"
        )
    if (directory / CONFIG_FILE).is_file() and read_config(directory).options().label_dropout == 0:
        raise InputError(
            f"--guidance is {guide.w}, but the run was trained with training.label_dropout 0: its network never "
            f"saw a sample without its label; train one with `edmund train CONFIG --set training.label_dropout=0.1`"
        )
    return wrapped
