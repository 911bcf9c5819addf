"""`edmund sbi fit`: simulations in, the folder of a posterior out."""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from signal import Signals
from typing import Any

import numpy as np

from edmund.cli._run import check_new, make_folder, pick_device, say
from edmund.cli.sbi._files import read_simulations
from edmund.cli.sbi._run import HELD_OUT, plain_warnings
from edmund.errors import InputError
from edmund.sbi import NPSE, Prior, prior_from_yaml
from edmund.sbi import posterior as posteriors
from edmund.sbi.simulations import CONDITION, SimulationData
from edmund.training.fingerprint import check_same
from edmund.training.output import write_atomically

_MANIFEST = "fit.json"
_TRAINING = "training"
_ROWS = 1 << 14


def run(
    simulations: Path,
    prior: Path,
    out: Path | None,
    options: dict[str, Any],
    effort: dict[str, Any],
    *,
    seed: int,
    device: str | None,
) -> None:
    """The command; options: of `NPSE`, effort: of `NPSE.train`."""
    known = prior_from_yaml(prior)
    theta, x = read_simulations("SIMS", simulations)
    folder = Path("runs") / simulations.stem if out is None else out
    inference = NPSE(known, device=pick_device(device), **options)
    with plain_warnings():
        inference.append_simulations(theta, x)
        fresh = _open(folder, _manifest(known, inference.simulations.dataset(), {**options, **effort, "seed": seed}))
        if (folder / posteriors.FILE).is_file():
            say(f"{folder}: finished already")
        else:
            try:
                inference.train(directory=folder / _TRAINING, seed=seed, **effort)
            except InputError:
                if fresh and not (folder / _TRAINING).is_dir():
                    (folder / _MANIFEST).unlink(missing_ok=True)
                    folder.rmdir()
                raise
            except KeyboardInterrupt as stopped:  # the trainer has said so, and by which signal
                name = stopped.args[0] if stopped.args else Signals.SIGINT.name
                sys.exit(128 + Signals[name])
            assert inference.held_out is not None
            _keep(inference.held_out, folder / HELD_OUT)
            inference.build_posterior().save(folder)
    say(f"{folder}: the posterior of {', '.join(known.names or ())}; the held-out simulations beside it")
    say(f"next: edmund sbi check {folder}   edmund sbi sample {folder} --x OBSERVATIONS.csv")


def _manifest(prior: Prior, data: SimulationData, options: dict[str, Any]) -> dict[str, Any]:
    """What makes the run this one: all that was asked for, and a checksum of all simulations."""
    checksum = 0
    for start in range(0, len(data), _ROWS):
        theta, condition = data.__getitems__(list(range(start, min(start + _ROWS, len(data)))))
        checksum = zlib.crc32(condition[CONDITION].numpy().tobytes(), zlib.crc32(theta.numpy().tobytes(), checksum))
    described = {"count": len(data), "x_shape": list(data.x_shape), "crc32": checksum}
    law = {key: value for key, value in prior.config().items() if key != "transform"}
    manifest: dict[str, Any] = json.loads(json.dumps({**options, "prior": law, "simulations": described}))
    return manifest


def _open(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether the run is a new one; InputError if the folder holds anything but this run."""
    path = folder / _MANIFEST
    if path.is_file():
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"--out: {str(path)!r} is damaged: {error}") from None
        check_same(saved, manifest, folder)
        return False
    check_new("--out", folder)
    make_folder(folder)
    write_atomically(path, json.dumps(manifest, indent=1) + "\n")
    return True


def _keep(data: SimulationData, path: Path) -> None:
    theta, condition = data.__getitems__(list(range(len(data))))
    np.savez_compressed(path, theta=theta.numpy(), x=condition[CONDITION].numpy())
