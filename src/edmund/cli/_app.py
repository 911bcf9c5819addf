"""The Typer application: one function a command; what each does is in the module it calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edmund.cli.sbi._app import app as sbi

app = typer.Typer(
    name="edmund",
    help="Diffusion generative models on the design space of EDM: train, sample, evaluate, diagnose.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(sbi)

Run = Annotated[Path, typer.Argument(help="The folder of a run, or of a saved model.", show_default=False)]
Steps = Annotated[int | None, typer.Option(help="Sampling steps. [default: the formulation's]", show_default=False)]
Sampler = Annotated[
    str | None,
    typer.Option(help="Sampler, by a name of `edmund samplers`. [default: the formulation's]", show_default=False),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Device to compute on, such as cuda. [default: cuda if there is one, else cpu]", show_default=False
    ),
]
Weight = Annotated[
    float | None,
    typer.Option(help="Weight w of classifier-free guidance towards the labels; 1 is off.", show_default=False),
]
Interval = Annotated[
    str | None,
    typer.Option(metavar="LOW,HIGH", help="Guide only between these noise levels. [default: all]", show_default=False),
]
Precision = Annotated[
    str | None,
    typer.Option(help="Precision of the network: fp32, bf16 or fp16. [default: the model's own]", show_default=False),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the network first: minutes, which long sampling wins back.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one key of the config; may be repeated."),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder to write to. [default: a folder in the run's]", show_default=False)
]
BatchSize = Annotated[int | None, typer.Option(help="Samples at a time; bounds the memory.", show_default=False)]


@app.callback()
def _root() -> None:
    """Diffusion generative models on the design space of EDM."""


@app.command()
def demo(
    type: Annotated[str, typer.Option(help="Formulation: EDM, VP, VE, iDDPM, Flow or Cosine.")] = "EDM",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to. [default: demo/TYPE]", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
) -> None:
    """Train on 1797 real 8 x 8 digits and look at what the model draws: three minutes on two cores."""
    from edmund.cli import demo as command

    command.run(type, out, seed)


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="A YAML config.", show_default=False)] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="In place of a config, a recipe by a name of `edmund presets`.", show_default=False),
    ] = None,
    set_: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the whole resolved config and train nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Insist on going on with a run (an existing one is gone on with anyway).")
    ] = False,
) -> None:
    """Train a model. The same command goes on with an interrupted run."""
    from edmund.cli import train as command

    command.run(config, preset, set_ or [], dry_run=dry_run, resume=resume)


@app.command()
def sample(
    run: Run,
    n: Annotated[
        int | None, typer.Option("-n", help="Number of samples. [default: one a seed, or 64]", show_default=False)
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Seeds, such as 0-63,100; one sample each. [default: 0 to n - 1]", show_default=False),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Classes, such as 3 or 0-9 (repeated in turn), or none. [default: each in turn]", show_default=False
        ),
    ] = None,
    steps: Steps = None,
    sampler: Sampler = None,
    grid: Annotated[
        str | None,
        typer.Option(
            help="Noise levels: edm, vp, ve, iddpm, poly_exponential. [default: the formulation's]", show_default=False
        ),
    ] = None,
    sigma_min: Annotated[float | None, typer.Option(help="Lowest positive noise level.", show_default=False)] = None,
    sigma_max: Annotated[float | None, typer.Option(help="Highest noise level.", show_default=False)] = None,
    s_churn: Annotated[
        float | None, typer.Option(help="Churn: noise is added in each step (Algorithm 2).", show_default=False)
    ] = None,
    s_min: Annotated[
        float | None, typer.Option(help="Churn only above this noise level. [default: 0]", show_default=False)
    ] = None,
    s_max: Annotated[
        float | None, typer.Option(help="Churn only below this noise level. [default: any]", show_default=False)
    ] = None,
    s_noise: Annotated[
        float | None, typer.Option(help="Scale of the churned noise. [default: 1]", show_default=False)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="One argument of the sampler, such as order=2 or eta=0.5; may be repeated.",
        ),
    ] = None,
    guidance: Weight = None,
    interval: Interval = None,
    trajectory: Annotated[bool, typer.Option("--trajectory", help="Keep every step, and draw it.")] = False,
    batch_size: BatchSize = None,
    out: Out = None,
    device: Device = None,
    precision: Precision = None,
    compile: Compile = False,
) -> None:
    """Draw samples: a picture and an .npz."""
    from edmund.cli import sample as command
    from edmund.cli._guide import Guide
    from edmund.cli._run import Network

    solver = {"s_churn": s_churn, "s_min": s_min, "s_max": s_max, "s_noise": s_noise}
    options = {
        "num_steps": steps,
        "grid": grid,
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
        "batch_size": batch_size,
    }
    command.run(
        run,
        n,
        seeds,
        labels,
        command.Solver(sampler, solver, set_ or []),
        Guide(guidance, interval),
        options,
        trajectory=trajectory,
        out=out,
        network=Network(device, precision, compile),
    )


@app.command()
def evaluate(
    run: Run,
    n: Annotated[int, typer.Option("-n", help="Number of samples to judge.")] = 2000,
    steps: Steps = None,
    sampler: Sampler = None,
    guidance: Weight = None,
    interval: Interval = None,
    batch_size: BatchSize = None,
    out: Out = None,
    device: Device = None,
    precision: Precision = None,
    compile: Compile = False,
) -> None:
    """Judge a run's samples beside the real data: metrics.json and pictures."""
    from edmund.cli import evaluate as command
    from edmund.cli._guide import Guide
    from edmund.cli._run import Network

    options = {"num_steps": steps, "sampler": sampler, "batch_size": batch_size}
    command.run(run, n, Guide(guidance, interval), options, out=out, network=Network(device, precision, compile))


@app.command()
def diagnose(
    target: Annotated[
        Path, typer.Argument(metavar="CONFIG|RUN", help="A YAML config, or the folder of a run.", show_default=False)
    ],
    set_: Overrides = None,
    out: Out = None,
) -> None:
    """Ask the data and the network which noise levels matter: sigma_data, the loss against sigma, P_mean and P_std."""
    from edmund.cli import diagnose as command

    command.run(target, set_ or [], out)


@app.command()
def formulations(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("formulations.png"),
) -> None:
    """Print Table 1 of the EDM paper as it stands in the library, and draw it."""
    from edmund.cli import formulations as command

    command.run(out)


@app.command()
def samplers() -> None:
    """Print every sampler by name: its order, denoiser calls a step, whether it draws noise, and its source."""
    from edmund.cli import samplers as command

    command.run()


@app.command()
def presets(
    name: Annotated[
        str | None, typer.Argument(help="Print this one as a YAML config. [default: list all]", show_default=False)
    ] = None,
) -> None:
    """Print the recipes that `edmund train --preset` knows, with the results they are known to give."""
    from edmund.cli import presets as command

    command.run(name)


@app.command()
def convert(
    file: Annotated[
        Path,
        typer.Argument(
            help="A snapshot (.pkl) of EDM or EDM2, a .safetensors of the same with its config, or the folder of a "
            "diffusers pipeline with a UNet2DModel.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write the model to.", show_default=False)],
) -> None:
    """Turn a published network into a model, without running anything that is in its files."""
    from edmund.cli import convert as command

    command.run(file, out)


@app.command()
def ema(
    run: Annotated[Path, typer.Argument(help="A run with training.ema_widths and its snapshots.", show_default=False)],
    width: Annotated[
        float | None, typer.Option(help="Write the model with the average of this relative width.", show_default=False)
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHS",
            help="Measure the validation loss of each of these widths, such as 0.03-0.25 (ten of them) or 0.05,0.1. "
            "[default, without --width: 0.03-0.25]",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="At the snapshot after so many samples. [default: the last]", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to. [default: in RUN/ema]", show_default=False)
    ] = None,
    device: Device = None,
) -> None:
    """Average a run's weights anew, over any width: write one, or find the best."""
    from edmund.cli import ema as command

    command.run(run, width, sweep, samples, out, device)
