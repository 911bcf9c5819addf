"""What the commands of `edmund sbi` share: a run's folder, and warnings as one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edmund.cli._run import pick_device
from edmund.errors import InputError
from edmund.sbi import Posterior

HELD_OUT = "held_out.npz"
"""In a run's folder: the simulations that were kept from training."""


def load_posterior(run: Path, device: str | None) -> Posterior:
    """The posterior of a run, on the device asked for, or on the GPU if there is one."""
    if not run.is_dir():
        raise InputError(f"run {str(run)!r} is not a folder that is there; give one that `edmund sbi fit` wrote")
    return Posterior.load(run, device=pick_device(device))


def parameter_names(posterior: Posterior) -> list[str]:
    """The prior's, or theta_1 ..."""
    return list(posterior.prior.names or [f"theta_{k + 1}" for k in range(posterior.prior.dim)])


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Inside, a warning is one line on stderr, without the code that it came from."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        yield
