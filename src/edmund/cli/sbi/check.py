"""`edmund sbi check`: whether a run's posterior can be trusted, as a page and in words."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edmund.cli._run import make_folder, say
from edmund.cli.sbi._files import read_simulations
from edmund.cli.sbi._run import HELD_OUT, load_posterior, plain_warnings
from edmund.errors import InputError, check_count
from edmund.sbi import Posterior, Simulations, simulate
from edmund.sbi.check import LEAST, check
from edmund.sbi.check_page import report
from edmund.sbi.simulations import CONDITION
from edmund.sbi.simulator_batch import Simulator
from edmund.training.order import seed_for

FAILED = 3
"""The exit code where the posterior is not calibrated."""


def run(
    directory: Path,
    simulations: Path | None,
    simulator: str | None,
    draws: int,
    samples: int,
    out: Path | None,
    *,
    seed: int,
    device: str | None,
) -> None:
    """The command; ends with the exit code."""
    check_count("--draws", draws, least=LEAST)
    check_count("--posterior-samples", samples, least=LEAST)
    posterior = load_posterior(directory, device)
    function = None if simulator is None else _import(simulator)
    path = directory / "check.html" if out is None else out
    with plain_warnings():
        theta, x, about = _truths(posterior, directory, simulations, function, draws, seed)
        given = {"--simulations": simulations, "--simulator": simulator}
        argument = next((option for option, value in given.items() if value is not None), "run")
        posterior.network.standardise.check_shape(x, f"{argument}: x")
        say(about)
        result = check(posterior, theta, x, samples=samples, simulator=function, seed=seed)
    make_folder(path.parent)
    report(result, path, title=str(directory), about=[about])
    say(result.verdict)
    say(str(path))
    sys.exit(0 if result.passed else FAILED)


def _truths(
    posterior: Posterior, directory: Path, path: Path | None, simulator: Simulator | None, draws: int, seed: int
) -> tuple[Tensor, Tensor, str]:
    """theta [N, D], x [N, *] and where they come from: a file, else the simulator, else the run itself."""
    if path is None and simulator is not None:
        # Another stream than that of the seed itself, by which the training simulations may have been drawn.
        fresh = simulate(simulator, posterior.prior, draws, seed=seed_for(seed, draws))
        return fresh.theta, fresh.x, f"{len(fresh.theta)} fresh simulations of the simulator, drawn from the prior."
    held_out = path is None
    source = directory / HELD_OUT if path is None else path
    if held_out and not source.is_file():
        raise InputError(
            f"run {str(directory)!r} has no {HELD_OUT} (it was not written by `edmund sbi fit`); give --simulations"
        )
    data = _checked(posterior, *read_simulations("run" if held_out else "--simulations", source))
    count = min(draws, len(data))
    if count < LEAST:
        told = f"{str(source)!r} holds {count} simulations; a check needs {LEAST} or more"
        raise InputError(f"{told}: give --simulations or --simulator" if held_out else f"--simulations: {told}")
    # Simulations in a file may be in some order.
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count]
    theta, condition = data.__getitems__(chosen.tolist())
    if held_out:
        about = (
            f"{count} of the {len(data)} simulations that were held out of training. They chose when it stopped, which "
            "may flatter the posterior a little; --simulations or --simulator gives fresh ones."
        )
    else:
        about = f"{count} of the {len(data)} simulations in {str(source)!r}, taken to be none of the training's."
    return theta, condition[CONDITION], about


def _checked(posterior: Posterior, theta: Any, x: Any) -> Any:
    prior = posterior.prior
    return Simulations(prior.dim, prior.accepts, nan="mask").append(theta, x).dataset()


def _import(name: str) -> Simulator:
    """The function of "module:function"; modules of the current folder are found too."""
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise InputError(f"--simulator is {name!r}; it must be module:function, such as my_model:simulate")
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise InputError(f"--simulator: the module {module!r} has no {attribute!r}") from None
    except Exception as error:  # the module's own code may raise anything
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"--simulator: the module {module!r} cannot be imported: {told}") from error
    finally:
        sys.path.remove("")
    if not callable(found):
        raise InputError(f"--simulator: {name!r} is a {type(found).__name__}; it must be a function of theta [B, D]")
    return found  # type: ignore[no-any-return]
