"""The benchmark's rows as tables in words: means over observations beside the published scores, and who is better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from edmund.errors import InputError
from edmund.sbi import published, tasks
from edmund.sbi.benchmark_rows import Options, Row
from edmund.sbi.published import Published

_AS_PUBLISHED = 10_000
_DIGITS = 3
"""Of the published scores; ours are compared as rounded to as many."""
_BASELINE = "NPE"


@dataclass(frozen=True)
class Comparison:
    """One task and budget by one classifier.

    ours: the mean C2ST over `observations`. others: of each published method, None where there is no number.
    """

    task: str
    num_simulations: int
    observations: tuple[int, ...]
    ours: float
    others: dict[str, float | None]

    @property
    def better(self) -> tuple[str, ...]:
        """The published methods that are better, to the digits that were published."""
        return tuple(
            name for name, score in self.others.items() if score is not None and score < round(self.ours, _DIGITS)
        )

    @property
    def verdict(self) -> str:
        """In words; empty where nothing was published."""
        if all(score is None for score in self.others.values()):
            return ""
        return f"worse than {', '.join(self.better)}" if self.better else "best"


def compare(rows: Iterable[Row], classifier: str) -> list[Comparison]:
    """One comparison for each task and budget, in the tasks' order, of rows that share their options.

    classifier: "mlp" or "rf". Raises InputError for rows of different options, whose mean would be of no method.
    """
    rows = list(rows)
    if len({row.options for row in rows}) > 1:
        raise InputError("rows are of different options; compare those of one: see Row.options")
    column, methods = {"mlp": ("C2ST", published.MLP), "rf": ("C2ST_rf", published.RF)}[classifier]
    result = []
    for (task, size), group in _groups(rows):
        scored = [(row.num_observation, value) for row in group if (value := getattr(row, column)) is not None]
        if scored:
            numbers, values = zip(*sorted(scored), strict=True)
            others = {method.method: method.score(task, size) for method in methods}
            result.append(Comparison(task, size, numbers, fmean(values), others))
    return result


def summary(rows: Iterable[Row]) -> str:
    """All rows as tables, those of each set of options by themselves."""
    by_options: dict[Options, list[Row]] = {}
    for row in rows:
        by_options.setdefault(row.options, []).append(row)
    return "\n\n".join(_section(options, group) for options, group in by_options.items())


def _section(options: Options, rows: Sequence[Row]) -> str:
    head = (
        f"{options.algorithm}, formulation {options.formulation}, network {options.network}, seed {options.seed}, "
        f"{options.C2ST_samples} of {options.num_samples} draws compared, edmund {options.edmund_version}"
    )
    parts = [head]
    if options.C2ST_samples < _AS_PUBLISHED:
        parts.append(
            f"The published scores compare {_AS_PUBLISHED} draws; C2ST by {options.C2ST_samples} is lower for the same "
            "posterior, as the classifier learns from fewer: do not read it as better than they are."
        )
    for classifier, methods in (("mlp", published.MLP), ("rf", published.RF)):
        found = compare(rows, classifier)
        if found:
            parts.append(_scores(classifier, methods, found))
    parts.append(_cost(rows))
    return "\n\n".join(parts)


def _scores(classifier: str, methods: Sequence[Published], found: Sequence[Comparison]) -> str:
    names = [method.method for method in methods]
    ceiling = published.CEILING if classifier == "mlp" else {}
    lines = [["task", "simulations", "observations", "ours", *names, *(["ceiling"] if ceiling else []), ""]]
    lines += [
        [
            each.task,
            str(each.num_simulations),
            _ranges(each.observations),
            _score(each.ours),
            *(_score(each.others[name]) for name in names),
            *([_score(ceiling.get(each.task))] if ceiling else []),
            each.verdict,
        ]
        for each in found
    ]
    title = f"C2ST by {classifier}, means over observations (published: 1-{methods[0].observations})"
    return "\n".join([title, *_aligned(lines, left=(0, len(lines[0]) - 1)), *_counts(names, found)])


def _counts(names: Sequence[str], found: Sequence[Comparison]) -> list[str]:
    lines = []
    for size in sorted({each.num_simulations for each in found}):
        judged = [each for each in found if each.num_simulations == size and each.verdict]
        if not judged:
            continue
        best = f"no worse than the best published on {sum(not each.better for each in judged)} of {len(judged)} tasks"
        if _BASELINE in names:
            best = f"no worse than {_BASELINE} on {sum(_BASELINE not in each.better for each in judged)}, {best}"
        lines.append(f"at {size} simulations: {best}")
    return lines


def _cost(rows: Sequence[Row]) -> str:
    heading = ["task", "simulations", "parameters", "held-out loss", "training s", "sampling s", "mean off", "std off"]
    known = any(row.exact_mean_error is not None for row in rows)
    lines = [heading + (["exact: mean off", "covariance off", "log_prob off"] if known else [])]
    for (task, size), group in _groups(rows):
        first = group[0]
        resumed = "+" if any(row.train_calls > 1 for row in group) else ""
        cells = [
            task,
            str(size),
            str(first.parameters),
            _number(first.validation_loss, "{:.5g}"),
            _number(first.train_seconds, "{:.0f}") + resumed,
            _number(_mean(group, "sample_seconds"), "{:.1f}"),
            _number(_mean(group, "mean_error"), "{:.3f} std"),
            _number(_mean(group, "std_error"), "{:.1%}"),
        ]
        if known:
            cells += [
                _number(_mean(group, "exact_mean_error"), "{:.3g}"),
                _number(_mean(group, "exact_covariance_error"), "{:.1%}"),
                _number(_mean(group, "exact_log_prob_error"), "{:.3f} nat"),
            ]
        lines.append(cells)
    notes = []
    if any(row.train_calls > 1 for row in rows):
        notes.append("+: training was interrupted; the seconds of a call that was killed are not known")
    machines = sorted({f"{row.device}, {row.threads} thread{'s' * (row.threads > 1)}" for row in rows})
    title = f"Cost ({'; '.join(machines)}) and moments against the reference, means over observations"
    return "\n".join([title, *_aligned(lines, left=(0,)), *notes])


def _groups(rows: Iterable[Row]) -> list[tuple[tuple[str, int], list[Row]]]:
    """Rows by task and budget, in the order of the tasks."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.num_simulations), []).append(row)
    order = {name: place for place, name in enumerate(tasks.NAMES)}
    return sorted(groups.items(), key=lambda item: (order.get(item[0][0], len(order)), item[0]))


def _aligned(lines: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 5 as "1-3,5"; rising."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)


def _mean(rows: Sequence[Row], column: str) -> float | None:
    values = [value for row in rows if (value := getattr(row, column)) is not None]
    return fmean(values) if values else None


def _score(value: float | None) -> str:
    return _number(value, f"{{:.{_DIGITS}f}}")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
