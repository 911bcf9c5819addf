"""The Typer group `edmund sbi`: one function a command; what each does is in the module it calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="sbi",
    help="Simulation-based inference: fit a posterior to simulations, sample it, check it.",
    no_args_is_help=True,
)

Run = Annotated[Path, typer.Argument(help="The folder that `edmund sbi fit` wrote.", show_default=False)]
Seed = Annotated[int, typer.Option(help="Seed of all that is drawn.")]
Device = Annotated[
    str | None,
    typer.Option(
        help="Device to compute on, such as cuda. [default: cuda if there is one, else cpu]", show_default=False
    ),
]


@app.callback()
def _root() -> None:
    """Simulation-based inference: fit a posterior to simulations, sample it, check it."""


@app.command()
def fit(
    simulations: Annotated[
        Path,
        typer.Argument(
            metavar="SIMS",
            help="An .npz with the arrays theta [N, D] and x [N, ...]; a folder with theta.npy and x.npy, which are "
            "read as needed; a Zarr group with the two; or the folder of edmund.sbi.simulate.",
            show_default=False,
        ),
    ],
    prior: Annotated[
        Path,
        typer.Option(
            help="A YAML file that names each parameter and its law: `parameters: {beta: {type: uniform, low: 0, high: "
            "1}, ...}`.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. [default: runs/ and SIMS' name]", show_default=False)
    ] = None,
    formulation: Annotated[str, typer.Option(help="edm, vp, ve, flow, iddpm or cosine.")] = "edm",
    network: Annotated[str, typer.Option(help="auto, mlp or transformer.")] = "auto",
    embedding: Annotated[
        str, typer.Option(help="Of x: vector, mlp, cnn (images), transformer (series), set, or auto, by x's shape.")
    ] = "auto",
    nan: Annotated[str, typer.Option(help="NaN in x: refuse, or mask as missing.")] = "refuse",
    samples: Annotated[
        int | None,
        typer.Option(
            help="Training samples seen, at most. [default: by how many simulations there are]", show_default=False
        ),
    ] = None,
    learn_simulator: Annotated[
        bool | None,
        typer.Option(
            help="Whether a learned simulator draws further simulations to train on. [default: where x is a short "
            "vector]",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Train the posterior p(theta | x) on simulations. The same command goes on with an interrupted run."""
    from edmund.cli.sbi import fit as command

    options = {"formulation": formulation, "network": network, "embedding": embedding, "nan": nan}
    effort = {"samples": samples, "learn_simulator": "auto" if learn_simulator is None else learn_simulator}
    command.run(simulations, prior, out, options, effort, seed=seed, device=device)


@app.command()
def sample(
    run: Run,
    x: Annotated[
        Path,
        typer.Option(
            "--x",
            help="The observations: a CSV file with one in each row, with or without a header; or a .npy.",
            show_default=False,
        ),
    ],
    n: Annotated[
        int | None, typer.Option("-n", help="Draws for each observation. [default: 10000]", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The .csv or .npz to write. [default: a .csv in RUN/samples]", show_default=False),
    ] = None,
    map_: Annotated[bool, typer.Option("--map", help="The mode of each posterior in place of draws.")] = False,
    iid: Annotated[
        bool, typer.Option("--iid", help="All rows are independent observations of one theta: one posterior of all.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="A picture to write as well: all pairs of parameters.", show_default=False),
    ] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Draw from the posterior of one observation or of many: a table of parameters."""
    from edmund.cli.sbi import sample as command

    command.run(run, x, n, out, mode=map_, iid=iid, plot=plot, seed=seed, device=device)


@app.command()
def benchmark(
    out: Annotated[Path, typer.Option(metavar="FILE.csv", help="The rows; what is there is not done again.")] = Path(
        "runs/sbi.csv"
    ),
    tasks: Annotated[str, typer.Option(help="Tasks, such as two_moons,slcp, or all ten.")] = "all",
    budgets: Annotated[str, typer.Option(help="Numbers of simulations, such as 1e3,1e4.")] = "1e4",
    observations: Annotated[str, typer.Option(help="Observations, of 1 to 10.")] = "1-5",
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Observations and reference posteriors, as sbibm has them.", show_default=False
        ),
    ] = None,
    c2st: Annotated[str, typer.Option(help="Classifiers of the two-sample test.")] = "mlp,rf",
    samples: Annotated[int, typer.Option(help="Draws of each posterior.")] = 10_000,
    c2st_samples: Annotated[
        int | None,
        typer.Option(
            help="How many of them are compared; the published scores are of 10000. [default: all]", show_default=False
        ),
    ] = None,
    seed: Seed = 0,
    formulation: Annotated[str, typer.Option(help="edm, vp, ve, flow, iddpm or cosine.")] = "edm",
    network: Annotated[str, typer.Option(help="auto, mlp or transformer.")] = "auto",
    summary: Annotated[bool, typer.Option("--summary", help="Compute nothing: print the tables of FILE.csv.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that train the test's classifiers.")] = 1,
    device: Device = None,
) -> None:
    """Train on sbibm's tasks, beside the published scores. The same command goes on with an interrupted run."""
    from edmund.cli.sbi import benchmark as command

    if summary:
        command.summarise(out)
        return
    command.run(
        tasks,
        budgets,
        observations,
        reference,
        out,
        c2st,
        command.Setting(samples, c2st_samples, seed, formulation, network),
        workers=workers,
        device=device,
    )


@app.command()
def check(
    run: Run,
    simulations: Annotated[
        Path | None,
        typer.Option(
            help="Simulations that it was not trained on, as `fit` reads them. [default: the held-out ones in RUN, or "
            "fresh ones of --simulator]",
            show_default=False,
        ),
    ] = None,
    simulator: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="The simulator, theta [B, D] -> x [B, ...]: the predictions are checked too.",
            show_default=False,
        ),
    ] = None,
    draws: Annotated[int, typer.Option(help="Simulations to check with, at most.")] = 500,
    posterior_samples: Annotated[int, typer.Option(help="Posterior samples for each.")] = 200,
    out: Annotated[
        Path | None, typer.Option(help="The page to write. [default: check.html in RUN]", show_default=False)
    ] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Check whether the posterior can be trusted: SBC, TARP, coverage and predictions, as an HTML page and in words.

    The exit code is 0 if no test fails, and 3 if the posterior is not calibrated.
    """
    from edmund.cli.sbi import check as command

    command.run(run, simulations, simulator, draws, posterior_samples, out, seed=seed, device=device)
