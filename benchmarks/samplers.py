"""Error against NFE of every sampler, beside k-diffusion's, diffusers' and azula's, and what a step costs.

    python benchmarks/samplers.py [--only errors,fitted,overhead] [--problems 2-D,64-D,digits] [--out FILE] [--docs]

Three problems whose answers are known (_samplers_problems.py), every sampler (_samplers_peers.py), the most steps that
fit in each NFE, the step to 0 included. Deterministic samplers: root mean square distance to the converged solution of
the probability-flow ODE from the same latents. Stochastic ones: sliced Wasserstein distance to the law, and the errors
of mean and covariance. Sections that are not run are kept from the file. --docs puts the tables into docs/samplers.md,
and the plots beside it. The peers come with the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

import _samplers_peers as peers
import _samplers_problems as problems
import torch
from torch import Tensor

import edmund
from edmund import formulation, plots, process, samplers

BUDGETS = (8, 10, 18, 35, 63, 127)
MIXTURES = {"2-D": (2, 5, 0, 2048), "64-D": (64, 20, 0, 1024)}
DIGITS_SAMPLES = 64
SECTIONS = ("errors", "fitted", "overhead")
HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "samplers.md"
FIT_SAMPLES = {"2-D": 512, "64-D": 256, "digits": 32}
FIT_BUDGETS = (8, 10, 18, 35)
FIT_ITERATIONS = {8: 10, 10: 10, 18: 6, 35: 3}
FIT_ITERATIONS_DIGITS = {8: 5, 10: 5, 18: 3, 35: 2}
FITTED = {
    "deis order 4": (samplers.DEIS(order=4), process.EDM()),
    "ipndm": (samplers.IPNDM(), process.EDM()),
    "lms order 4, flow": (samplers.LMS(order=4), process.RectifiedFlow()),
}
OVERHEAD = ("euler", "heun", "lms", "dpmpp_2m", "dpmpp_3m half", "unipc", "deis", "ddim", "euler_ancestral")
OVERHEAD_STEPS = 100
DEFAULTS = "defaults"
ROUNDING = 5e-3  # what the float32 inside some peers may decide


def problem(name: str) -> problems.Problem:
    if name == "digits":
        return problems.digits(DIGITS_SAMPLES)
    return problems.mixture(*MIXTURES[name])


def judged(given: problems.Problem, samples: Tensor, stochastic: bool) -> dict[str, float]:
    """The errors of samples; those of the law alone where noise was drawn."""
    errors = given.law_errors(samples)
    return errors if stochastic else errors | given.ode_errors(samples)


def measure(given: problems.Problem, table: list[peers.Row]) -> dict[str, Any]:
    """{sampler: {library: {NFE: errors}}} on EDM's grid from 80 to 0.002, rho 7; and of the defaults."""
    found: dict[str, Any] = {}
    for row in table:
        found[row.name] = {"stochastic": row.stochastic}
        start = perf_counter()
        for library, method in row.methods.items():
            found[row.name][library] = {}
            for budget, fits in peers.most_steps(row, method, BUDGETS).items():
                if fits is None:
                    continue
                samples = method(given.call, given.latents, peers.levels(row, fits[0]))
                errors = judged(given, samples, row.stochastic)
                found[row.name][library][str(budget)] = {"steps": fits[0], "nfe": fits[1]} | errors
        print(f"  {row.name:22s}{perf_counter() - start:6.1f} s", flush=True)
    found[DEFAULTS] = {"stochastic": formulation.EDM().sampler.stochastic, "edmund": defaults(given)}
    return found


def defaults(given: problems.Problem) -> dict[str, dict[str, float]]:
    """What edmund.sample(denoiser, shape, num_steps=N) gives, with the most steps that fit."""
    count = 0

    def denoise(z: Tensor, sigma: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return given.call(z, sigma)

    found = {}
    for budget in BUDGETS:
        for num_steps in range(budget, 0, -1):
            few = given.latents[:1]
            trivial = _Trivial()
            edmund.sample(trivial, few.shape, latents=few, num_steps=num_steps, progress=False)
            if trivial.calls <= budget:
                break
        count = 0
        samples = edmund.sample(
            denoise, given.latents.shape, latents=given.latents, num_steps=num_steps, batch_size=len(given.latents),
            progress=False,
        )  # fmt: skip
        errors = judged(given, samples, formulation.EDM().sampler.stochastic)
        found[str(budget)] = {"steps": num_steps, "nfe": count} | errors
    return found


class _Trivial:
    """A denoiser that costs nothing, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, z: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        return z * 0.5


def measure_fitted(given: problems.Problem) -> dict[str, Any]:
    """{sampler: {NFE: errors on the grid fitted for it and these steps, and what the fit cost}}."""
    found: dict[str, Any] = {}
    iterations = FIT_ITERATIONS_DIGITS if given.name == "digits" else FIT_ITERATIONS
    for name, (sampler, path) in FITTED.items():
        found[name] = {}
        for budget in FIT_BUDGETS:
            start = perf_counter()
            fitted = problems.fitted(given, sampler, path, budget, FIT_SAMPLES[given.name], iterations[budget])
            sigmas = fitted(budget, 0.002, 80.0)
            samples = peers.edmund(sampler, path)(given.call, given.latents, sigmas)
            cost = {"fit_nfe": fitted.nfe, "fit_samples": FIT_SAMPLES[given.name]}
            found[name][str(budget)] = {"steps": budget, "nfe": budget} | judged(given, samples, False) | cost
            print(f"  {name}, NFE {budget}: fitted in {perf_counter() - start:.0f} s", flush=True)
    return found


def measure_overhead(repetitions: int = 15) -> dict[str, dict[str, float]]:
    """{sampler: {library: microseconds a step beyond the denoiser}}: a denoiser that costs one multiplication, 64 x 3 x
    32 x 32 in float32, OVERHEAD_STEPS steps, the libraries in turn; the median. Of diffusers only
    scheduler.step counts, not its making nor the translation of E[y | z] for it.
    """
    latents = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found: dict[str, dict[str, float]] = {}
    for row in peers.rows():
        if row.name not in OVERHEAD:
            continue
        sigmas = peers.levels(row, OVERHEAD_STEPS)
        seconds: dict[str, list[float]] = {library: [] for library in row.methods}
        for repetition in range(repetitions + 1):
            for library, method in row.methods.items():
                spent = 0.0

                def denoise(z: Tensor, sigma: Tensor) -> Tensor:
                    nonlocal spent
                    begin = perf_counter()
                    image = z * 0.5
                    spent += perf_counter() - begin
                    return image

                own = sigmas if library in ("edmund", "diffusers") else sigmas.float()
                begin, translated = perf_counter(), peers.adapting["seconds"]
                method(denoise, latents, own)
                total = perf_counter() - begin - spent - (peers.adapting["seconds"] - translated)
                if repetition > 0:  # the first is not counted
                    seconds[library].append(total / OVERHEAD_STEPS)
        found[row.name] = {library: 1e6 * statistics.median(values) for library, values in seconds.items()}
        print(f"  {row.name}: {', '.join(f'{k} {v:.0f} us' for k, v in found[row.name].items())}", flush=True)
    return found


# What the numbers say


def quantity(rows: dict[str, Any], name: str) -> str:
    return "sliced_wasserstein" if rows[name]["stochastic"] else "rms"


def best(rows: dict[str, Any], libraries: tuple[str, ...], budget: int, stochastic: bool) -> tuple[float, str, str]:
    """The least error of all samplers of these libraries: (error, sampler, library)."""
    cells = [
        (row[library][str(budget)][quantity(rows, name)], name, library)
        for name, row in rows.items()
        if name != DEFAULTS and row["stochastic"] == stochastic
        for library in libraries
        if str(budget) in row.get(library, {})
    ]
    return min(cells)


def targets(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every claim with its numbers: what, where, ours, theirs, ratio, the bound, met."""
    claims: list[dict[str, Any]] = []

    def claim(what: str, where: str, ours: float, theirs: float, bound: float, of: str) -> None:
        ratio = ours / theirs
        claims.append(
            {"what": what, "where": where, "ours": ours, "theirs": theirs, "ratio": ratio, "bound": bound,
             "met": ratio <= bound, "of": of}
        )  # fmt: skip

    for name, kept in results["problems"].items():
        rows = kept["rows"]
        for sampler, row in rows.items():
            if row["stochastic"] or "edmund" not in row or sampler == DEFAULTS:
                continue
            for budget in BUDGETS:
                others = [
                    (row[library][str(budget)]["rms"], library)
                    for library in peers.LIBRARIES[1:]
                    if str(budget) in row.get(library, {}) and str(budget) in row["edmund"]
                ]
                if others:
                    error, library = min(others)
                    mine = row["edmund"][str(budget)]["rms"]
                    claim("same name", f"{sampler}, {name}, NFE {budget}", mine, error, 1.02, library)
        for budget in BUDGETS:
            theirs, sampler, library = best(rows, peers.LIBRARIES[1:], budget, False)
            of = f"{library}'s {sampler}"
            if budget <= 35:
                mine = best(rows, ("edmund",), budget, False)[0]
                claim("our best, same grid", f"{name}, NFE {budget}", mine, theirs, 1 + ROUNDING, of)
                fitted = [
                    cells[str(budget)]["rms"] for cells in kept.get("fitted", {}).values() if str(budget) in cells
                ]
                if fitted:
                    claim("our best, fitted grid", f"{name}, NFE {budget}", min(fitted), theirs, 1 / 1.3, of)
            error = rows[DEFAULTS]["edmund"][str(budget)].get("rms", math.nan)
            claim("defaults, any peer in each cell", f"{name}, NFE {budget}", error, theirs, 1 + ROUNDING, of)
    means = over_problems(results)
    for budget in BUDGETS:
        theirs, of = min(
            (errors[budget], f"{library}'s {sampler}")
            for (sampler, library), errors in means.items()
            if library != "edmund" and budget in errors
        )
        mine = means[DEFAULTS, "edmund"][budget]
        claim("defaults, one peer for all problems", f"NFE {budget}", mine, theirs, 1 + ROUNDING, of)
    return claims


def over_problems(results: dict[str, Any]) -> dict[tuple[str, str], dict[int, float]]:
    """The geometric mean over the problems of each deterministic sampler's error: {(sampler, library): {NFE: mean}}."""
    kept = [entry["rows"] for entry in results["problems"].values()]
    means: dict[tuple[str, str], dict[int, float]] = {}
    for name, row in kept[0].items():
        for library in peers.LIBRARIES:
            if library not in row or row["stochastic"]:
                continue
            means[name, library] = {
                budget: statistics.geometric_mean([rows[name][library][str(budget)]["rms"] for rows in kept])
                for budget in BUDGETS
                if str(budget) in row[library]
            }
    return means


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(
        ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)] + ["| " + " | ".join(line) + " |" for line in lines]
    )


def shown(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0e}"


def best_table(results: dict[str, Any]) -> str:
    """The best of each library, of the fitted grids and of the defaults."""
    lines = []
    for name, kept in results["problems"].items():
        rows = kept["rows"]
        for library in peers.LIBRARIES:
            cells = [best(rows, (library,), budget, False) for budget in BUDGETS]
            lines.append([name, library, *(f"{shown(error)} ({sampler})" for error, sampler, _ in cells)])
        for fitted_name, cells in kept.get("fitted", {}).items():
            values = [shown(cells[str(b)]["rms"]) if str(b) in cells else "" for b in BUDGETS]
            lines.append([name, f"edmund, fitted grid: {fitted_name}", *values])
        values = [shown(rows[DEFAULTS]["edmund"][str(b)].get("rms", math.nan)) for b in BUDGETS]
        lines.append([name, "edmund, defaults", *values])
    return table(["problem", "best of", *(f"NFE {budget}" for budget in BUDGETS)], lines)


def one_table(results: dict[str, Any], count: int = 15) -> str:
    """The samplers that do best over all problems, by the mean over NFE 18 and 35; and the defaults."""
    ordered = sorted(
        (math.sqrt(errors[18] * errors[35]), sampler, library, errors)
        for (sampler, library), errors in over_problems(results).items()
        if 18 in errors
    )
    merged: dict[str, tuple[list[str], dict[int, float]]] = {}
    for mean, sampler, library, errors in ordered:
        name = "**edmund's defaults**" if sampler == DEFAULTS else sampler
        same = f"{name} {mean:.2g}"
        merged.setdefault(same, ([name], errors))[0].append(library)
    lines = [
        [names[0], ", ".join(dict.fromkeys(names[1:])), *(shown(errors[b]) if b in errors else "" for b in BUDGETS)]
        for rank, (names, errors) in enumerate(merged.values())
        if rank < count or names[0].startswith("**") or names[0] in ("heun", "euler")
    ]
    return table(["sampler", "of", *(f"NFE {budget}" for budget in BUDGETS)], lines)


def fit_table(results: dict[str, Any]) -> str:
    """What the fitted grids cost, and what they give."""
    lines = [
        [
            name,
            sampler,
            budget,
            str(cell["fit_samples"]),
            str(cell["fit_nfe"]),
            shown(cell["rms"]),
            shown(cell["median"]),
        ]
        for name, kept in results["problems"].items()
        for sampler, cells in kept.get("fitted", {}).items()
        for budget, cell in cells.items()
    ]
    return table(["problem", "sampler", "NFE", "fitted on", "fit's NFE", "RMS", "median"], lines)


def full_table(kept: dict[str, Any], stochastic: bool) -> str:
    """A sampler and an NFE a line, a library a column."""
    lines = []
    for name, row in kept["rows"].items():
        if row["stochastic"] != stochastic or name == DEFAULTS:
            continue
        key = "sliced_wasserstein" if stochastic else "rms"
        for budget in BUDGETS:
            values = [row.get(library, {}).get(str(budget), {}).get(key) for library in peers.LIBRARIES]
            if any(value is not None for value in values):
                lines.append([name, str(budget), *("" if value is None else shown(value) for value in values)])
    return table(["sampler", "NFE", *peers.LIBRARIES], lines)


def moments_table(kept: dict[str, Any], budget: int) -> str:
    """Errors of mean and covariance of the stochastic samplers."""
    lines = []
    for name, row in kept["rows"].items():
        if row["stochastic"] and name != DEFAULTS:
            cells = [row.get(library, {}).get(str(budget)) for library in peers.LIBRARIES]
            lines.append([name, *("" if c is None else f"{c['mean']:.3f} / {c['covariance']:.3f}" for c in cells)])
    return table(["sampler", *peers.LIBRARIES], lines)


def targets_table(claims: list[dict[str, Any]]) -> str:
    """How many of each kind are met, and the ones that are not."""
    lines = []
    for what in dict.fromkeys(claim["what"] for claim in claims):
        own = [claim for claim in claims if claim["what"] == what]
        missed = [claim for claim in own if not claim["met"]]
        worst = max(own, key=lambda claim: claim["ratio"])
        lines.append(
            [what, f"<= {own[0]['bound']:.4g}", f"{len(own) - len(missed)} of {len(own)}",
             f"{worst['ratio']:.3g} ({worst['where']}, against {worst['of']})"]
        )  # fmt: skip
    return table(["target: ours / the peers' best", "bound", "met", "worst ratio"], lines)


def missed_table(claims: list[dict[str, Any]]) -> str:
    lines = [
        [c["what"], c["where"], shown(c["ours"]), f"{shown(c['theirs'])} ({c['of']})", f"{c['ratio']:.3g}"]
        for c in claims
        if not c["met"]
    ]
    return table(["target", "where", "ours", "theirs", "ratio"], lines)


def overhead_table(overhead: dict[str, dict[str, float]]) -> str:
    lines = []
    for name, values in overhead.items():
        others = [value for library, value in values.items() if library != "edmund"]
        columns = [f"{values[library]:.0f}" if library in values else "" for library in peers.LIBRARIES]
        lines.append([name, *columns, f"{values['edmund'] / min(others):.2f}" if others else ""])
    return table(["microseconds a step", *peers.LIBRARIES, "ours / the least of theirs"], lines)


def sections(results: dict[str, Any]) -> dict[str, str]:
    """Every table of the document, by the name of its place."""
    made = {}
    if results.get("problems") and all("rows" in kept for kept in results["problems"].values()):
        claims = targets(results)
        made |= {"targets": targets_table(claims), "best": best_table(results), "missed": missed_table(claims)}
        made["one for all"] = one_table(results)
        made["fit cost"] = fit_table(results)
        for name, kept in results["problems"].items():
            made[f"floor {name}"] = ", ".join(f"{key} {value:.3g}" for key, value in kept["floor"].items())
            made[f"deterministic {name}"] = full_table(kept, False)
            made[f"stochastic {name}"] = full_table(kept, True)
            made[f"moments {name}"] = moments_table(kept, 63)
    if results.get("overhead"):
        made["overhead"] = overhead_table(results["overhead"])
    return made


def draw(results: dict[str, Any], folder: Path) -> None:
    """A plot a problem: ours, the peers' best, the fitted grid, the defaults."""
    wanted = ("heun", "euler", "lms", "dpmpp_2m", "unipc", "lms order 4, flow")
    for name, kept in results["problems"].items():
        rows = kept["rows"]
        lines = {
            sampler: {budget: rows[sampler]["edmund"][str(budget)]["rms"] for budget in BUDGETS} for sampler in wanted
        }
        lines["the peers' best of all"] = {b: best(rows, peers.LIBRARIES[1:], b, False)[0] for b in BUDGETS}
        lines["edmund's defaults"] = {b: rows[DEFAULTS]["edmund"][str(b)].get("rms", math.nan) for b in BUDGETS}
        strong = ["the peers' best of all", "edmund's defaults"]
        if "fitted" in kept:
            strong.append("edmund's best, fitted grid")
            lines[strong[-1]] = {b: min(cells[str(b)]["rms"] for cells in kept["fitted"].values()) for b in FIT_BUDGETS}
        figure = plots.error_against_nfe(
            lines,
            highlight=strong,
            title=f"{kept['title']}: error against denoiser calls",
            caption="RMS distance to the converged solution of the probability-flow ODE, EDM's grid 80 to 0.002 but "
            "where said. The peers' best is the least of all samplers of k-diffusion, diffusers and azula at that NFE.",
        )
        plots.save(figure, folder / f"samplers-{name.lower()}.png")


def fill(document: Path, made: dict[str, str]) -> None:
    """Put each table between <!-- table NAME --> and <!-- end -->."""
    text = document.read_text()
    for name, content in made.items():
        start = f"<!-- table {name} -->\n"
        if start in text:
            before, _, rest = text.partition(start)
            text = before + start + content + "\n" + rest[rest.index("<!-- end -->") :]
    document.write_text(text)


def main() -> None:
    """Run what is asked for, print the tables and the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections to run, of errors, fitted, overhead; none")
    parser.add_argument("--problems", default="2-D,64-D,digits")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "samplers.json")
    parser.add_argument("--docs", action="store_true", help="put tables and plots into docs/")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="diffusers|k_diffusion|torchsde")
    results = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    asked = arguments.only.split(",")
    start = perf_counter()
    with torch.no_grad():
        if "errors" in asked or "fitted" in asked:
            for name in arguments.problems.split(","):
                given = problem(name)
                print(f"{given.title}: {len(given.latents)} samples, {perf_counter() - start:.0f} s so far", flush=True)
                kept = results.setdefault("problems", {}).setdefault(name, {})
                kept |= {"title": given.title, "samples": len(given.latents), "floor": given.floor}
                if "errors" in asked:
                    kept["rows"] = measure(given, peers.rows())
                if "fitted" in asked:
                    kept["fitted"] = measure_fitted(given)
                write(arguments.out, results)
        if "overhead" in asked:
            print("overhead of a step")
            results["overhead"] = measure_overhead()
            write(arguments.out, results)
    made = sections(results)
    for name, content in made.items():
        print(f"\n== {name}\n{content}")
    print(f"\n{perf_counter() - start:.0f} s; written to {arguments.out}")
    if arguments.docs:
        draw(results, DOCS.parent / "images")
        fill(DOCS, made)


def write(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
