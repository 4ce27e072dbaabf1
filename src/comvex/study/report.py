"""The report of a study: results.csv, curves.csv, the figures, and a page of Markdown with the tables."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import comvex
from comvex.files import write_table, write_text
from comvex.processor import machine_line
from comvex.study.figures import draw_ablation, draw_layers, draw_learning_curves, draw_sample_efficiency, label
from comvex.study.layers import LayerFigures, read_layers
from comvex.study.plan import PlannedRun, Study, command
from comvex.study.results import (
    Comparison,
    Result,
    Summary,
    compare,
    differences_to_convit,
    lead_interval,
    next_seed_within,
    read_result,
    summarise,
)

RESULTS, CURVES, REPORT = "results.csv", "curves.csv", "report.md"
FIGURE, CURVES_FIGURE = "figure.png", "curves.png"
LAYERS, LAYERS_FIGURE = "layers.csv", "layers.png"


def write_report(
    study: Study,
    runs: Sequence[PlannedRun],
    out: Path,
    *,
    absent: Mapping[str, Sequence[str]] | None = None,
    draw: bool = True,
) -> dict[str, Any]:
    """Write what the finished runs of a study have come to, and return it as plain values for JSON.

    ``absent`` has, for a fraction, the classes that some of its runs had no picture of to train on.
    Without ``draw`` the figures, which take a second or two, stay as they are. Nothing is written before a run is
    finished. Several workers must take turns, or one may write what it had read before another one finished a run.
    """
    results = [result for run in runs if (result := read_result(run, out)) is not None]
    summaries, comparisons = summarise(results), compare(results)
    if results:
        layers = [layer for run in runs for layer in read_layers(run, out)]
        write_tables(results, layers, out)
        if draw:
            write_figures(study, results, summaries, comparisons, layers, out)
        text = "\n".join(report_lines(study, runs, results, summaries, comparisons, layers, out, absent or {}))
        write_text(out / REPORT, text + "\n")
    return {
        "study": study.kind,
        "verdict": verdict(comparisons) if study.kind == "sample-efficiency" and comparisons else None,
        "out": str(out),
        "num_runs": len(runs),
        "num_finished": len(results),
        "results": [result.row() for result in results],
        "summary": [dataclasses.asdict(summary) for summary in summaries],
        "comparison": [dataclasses.asdict(comparison) for comparison in comparisons],
    }


def write_tables(results: Sequence[Result], layers: Sequence[LayerFigures], out: Path) -> None:
    write_table(out / RESULTS, [result.row() for result in results])
    curves = [
        {
            "architecture": result.architecture,
            "fraction": result.fraction,
            "seed": result.seed,
            "step": step,
            "val_top1": top1,
            "val_loss": loss,
        }
        for result in results
        for (step, top1), loss in zip(result.curve, result.losses, strict=True)
    ]
    write_table(out / CURVES, curves)
    write_table(out / LAYERS, [dataclasses.asdict(layer) for layer in layers])


def write_figures(
    study: Study,
    results: Sequence[Result],
    summaries: Sequence[Summary],
    comparisons: Sequence[Comparison],
    layers: Sequence[LayerFigures],
    out: Path,
) -> None:
    title = Path(study.recipe.data).name
    draw_learning_curves(results, out / CURVES_FIGURE, title=title)
    if layers:
        draw_layers(layers, out / LAYERS_FIGURE, title=title)
    if study.kind == "ablation":
        draw_ablation(results, summaries, out / FIGURE, title=title)
    elif comparisons:
        draw_sample_efficiency(results, summaries, comparisons, out / FIGURE, title=title)


def report_lines(
    study: Study,
    runs: Sequence[PlannedRun],
    results: Sequence[Result],
    summaries: Sequence[Summary],
    comparisons: Sequence[Comparison],
    layers: Sequence[LayerFigures],
    out: Path,
    absent: Mapping[str, Sequence[str]],
) -> list[str]:
    hours = sum(result.seconds for result in results) / 3600
    heading = {"sample-efficiency": "Sample efficiency", "ablation": "Ablation"}[study.kind]
    state = f"{len(results)} of {len(runs)} runs are finished; added up, they trained for {hours:.2f} hours."
    lines = [f"# {heading}: {Path(study.recipe.data).name}", "", state, ""]
    if study.kind == "sample-efficiency":
        if comparisons:
            lines += [verdict(comparisons), ""]
        lines += comparison_table(summaries, comparisons)
    lines += accuracy_table(summaries, differences_to_convit(results)) if study.kind == "ablation" else []
    has_figure = study.kind == "ablation" or comparisons
    lines += ["", f"![{heading}]({FIGURE})", ""] if has_figure else [""]
    lines += [f"![Validation accuracy against steps]({CURVES_FIGURE})", ""]
    lines += plateau_lines(study, results, summaries)
    lines += LAYERS_LINES if layers else []
    lines += [
        "## How it was measured",
        "",
        *method_lines(study, results, summaries, absent),
        "",
        "```bash",
        command(study, out),
        "```",
        "",
    ]
    lines += [*machine_lines(results), "", f"Each run is in [{RESULTS}]({RESULTS}), its curve in [{CURVES}]({CURVES})."]
    return lines


LAYERS_LINES = [
    "## What became of the layers",
    "",
    f"![How far the layers look, and their gates]({LAYERS_FIGURE})",
    "",
    "Left the mean distance, in patches, from a patch to what it attends to, each layer on its own input, of a few "
    "validation pictures; right the gates, 1 for position alone, 0 for content alone. A convolutional layer looks "
    "near; attention that is the same everywhere looks as far as the plain ViT does before the first step. "
    f"[{LAYERS}]({LAYERS}) has every seed.",
    "",
]


def comparison_table(summaries: Sequence[Summary], comparisons: Sequence[Comparison]) -> list[str]:
    """Both architectures beside each other, a line for each fraction, in Markdown."""
    found = {(summary.architecture, summary.fraction): summary for summary in summaries}
    compared = {comparison.fraction: comparison for comparison in comparisons}
    lines = [
        "| pictures | ConViT top-1, % | plain ViT top-1, % | lead, points | ahead | relative, % | factor | by seed |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for fraction in sorted({fraction for _, fraction in found}):
        own = [found.get((name, fraction)) for name in ("convit", "plain")]
        num_pictures = next(summary.num_pictures for summary in own if summary is not None)
        cells = [f"{num_pictures:,.0f} ({100 * fraction:g} %)", *map(accuracy, own)]
        comparison = compared.get(fraction)
        if comparison is None:
            cells += [""] * 5
        else:
            ahead = f"{sum(lead > 0 for lead in comparison.leads)} of {len(comparison.leads)}"
            cells += [lead_words(comparison.leads), ahead, f"{comparison.improvement:+.1f}"]
            cells += [str(comparison.factor), spread(comparison)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def lead_words(leads: Sequence[float]) -> str:
    """The mean lead with its 95 % interval, where there is one: +1.17 (-0.25 to +2.59)."""
    mean, interval = f"{statistics.mean(leads):+.2f}", lead_interval(leads)
    return mean if interval is None else f"{mean} ({interval[0]:+.2f} to {interval[1]:+.2f})"


def verdict(comparisons: Sequence[Comparison]) -> str:
    """Who leads, as far as the seeds settle it; of one comparison at least."""
    ahead, behind, unsettled = [], [], []
    for comparison in comparisons:
        low, high = lead_interval(comparison.leads) or (0.0, 0.0)
        place = ahead if 0 < low < high else behind if low < high < 0 else unsettled  # without scatter nothing is known
        place.append(comparison.num_pictures)
    clauses = [
        f"{name} leads with {pictures_words(own)} (the 95 % interval of the lead excludes 0)"
        for name, own in (("ConViT", ahead), ("the plain ViT", behind))
        if own
    ]
    if unsettled:
        clauses.append(f"with {pictures_words(unsettled)} the seeds do not settle which leads: more of them may")
    sentence = "; ".join(clauses)
    return f"{sentence[0].upper()}{sentence[1:]}."


def pictures_words(numbers: Sequence[float]) -> str:
    """540, 2,700 and 5,400 pictures."""
    words = [f"{number:,.0f}" for number in numbers]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words) + " pictures"


def spread(comparison: Comparison) -> str:
    """The picture factors of the single seeds, lowest first; upper bounds before all of them, lower bounds last."""
    order = {"<": 0, "": 1, ">": 2}
    factors = sorted(comparison.factors, key=lambda factor: (order[factor.bound], factor.value))
    return ", ".join(map(str, factors))


def accuracy(summary: Summary | None) -> str:
    """Mean, deviation, and how many seeds they are of: 77.1 ± 0.6 (3)."""
    if summary is None:
        return "-"
    return with_spread(f"{summary.top1:.2f}", summary.deviation, summary.num_seeds)


def with_spread(mean: str, deviation: float | None, num_seeds: int) -> str:
    """A mean with its standard deviation, where there is one, and the number of seeds."""
    return f"{mean}{'' if deviation is None else f' ± {deviation:.2f}'} ({num_seeds})"


def accuracy_table(summaries: Sequence[Summary], differences: Mapping[tuple[str, float], Sequence[float]]) -> list[str]:
    """A line for each architecture, a column for each fraction, and the difference to ConViT, in Markdown."""
    found = {(summary.architecture, summary.fraction): summary for summary in summaries}
    fractions = sorted({fraction for _, fraction in found})
    columns = [text for fraction in fractions for text in (f"{100 * fraction:g} %: top-1, %", "difference")]
    lines = [f"| architecture | {' | '.join(columns)} |", f"| --- | {' | '.join(['---:'] * len(columns))} |"]
    for name in dict.fromkeys(architecture for architecture, _ in found):
        cells = [label(name)]
        for fraction in fractions:
            cells += [accuracy(found.get((name, fraction))), mean_of(differences.get((name, fraction), ()))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def mean_of(differences: Sequence[float]) -> str:
    """Mean, deviation, and of how many: -0.56 ± 0.30 (2)."""
    if not differences:
        return ""
    deviation = statistics.stdev(differences) if len(differences) > 1 else None
    return with_spread(f"{statistics.mean(differences):+.2f}", deviation, len(differences))


def method_lines(
    study: Study, results: Sequence[Result], summaries: Sequence[Summary], absent: Mapping[str, Sequence[str]]
) -> list[str]:
    """What a reader must know to believe the figures."""
    chosen = "of the last epoch" if study.recipe.select == "last" else "that were best in validation"
    lines = [
        f"Accuracy is that of the weights {chosen}, on test pictures that each run has seen once, "
        "after its end. A seed decides the pictures, which are set aside for validation, the initial weights, order "
        "and augmentation, and is the same for all architectures; the pictures of a smaller fraction are among those "
        "of a larger one.",
        *(absent_sentence(fraction, names) for fraction, names in sorted(absent.items())),
        spread_line(summaries),
        test_line(results),
        length_line(study, results),
    ]
    if study.kind == "sample-efficiency":
        lines.append(
            "The lead is ConViT's top-1 less the plain ViT's on the same pictures; in brackets, from Student's t, the "
            "interval in which its mean over all seeds lies 19 times out of 20, and then in how many pairs ConViT is "
            "ahead. Each interval is of its fraction alone: of five, one excludes 0 by chance more often than once in "
            "20 times. The pairs of one seed are not independent: small fractions are part of larger ones."
        )
        lines.append(
            "The (picture) factor says how many times more pictures the plain ViT needs for ConViT's accuracy, "
            "interpolated in the logarithm of the pictures; > and < are bounds, where the plain ViT had no such "
            "accuracy."
        )
    return "\n\n".join(lines).splitlines()


def spread_line(summaries: Sequence[Summary]) -> str:
    """What ± means, and where one seed more is to be expected."""
    line = "Behind ± stands the standard deviation over the seeds, in brackets their number."
    within = [
        f"{next_seed_within(num):.1f} deviations of the mean of {num}"
        for num in sorted({summary.num_seeds for summary in summaries if summary.num_seeds > 1})
    ]
    if not within:
        return line
    return f"{line} One seed more lies, 19 times out of 20, within {', '.join(within)}."


def test_line(results: Sequence[Result]) -> str:
    """How far the number of test pictures alone lets an accuracy be off."""
    fewest = min(result.num_test_pictures for result in results)
    errors = [math.sqrt(result.top1 * (100 - result.top1) / fewest) for result in results]
    low, high = (f"{error:.2f}" for error in (min(errors), max(errors)))
    return (
        f"There are {fewest:,} test pictures, the same for all runs: by their number alone an accuracy has a standard "
        f"error of {low if low == high else f'{low} to {high}'} points, which is not in ±."
    )


def absent_sentence(fraction: str, names: Sequence[str]) -> str:
    """That some classes cannot be learnt; with a few of their names."""
    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return (
        f"At {100 * float(fraction):g} % of the pictures there is, with some seed, no picture to train on of "
        f"{len(names)} {'class' if len(names) == 1 else 'classes'}: {some}."
    )


def length_line(study: Study, results: Sequence[Result]) -> str:
    """How long the runs of a fraction are; see ``plan.length``."""
    steps, stretch = study.recipe.steps, study.stretch
    if steps is None:
        epochs = study.recipe.epochs
        all_pictures = "those of all pictures" if epochs is None else f"the {epochs} of all pictures"
        power = "" if stretch == 1 else f" to the power {stretch:g}"
        fewer = min(result.num_pictures for result in results) < study.recipe.batch_size
        exception = ", fewer where an epoch has less than a batch" if fewer else ""
        rest = f", so that twice the pictures have {2 ** (1 - stretch):.2f} times the steps" if stretch < 1 else ""
        return f"A fraction's epochs are {all_pictures} times (1 / fraction){power}{rest}{exception}."
    if stretch == 1:
        return f"Every fraction has {steps} steps."
    power = "" if stretch == 0 else f" to the power {1 - stretch:g}"
    return f"A fraction's steps are {steps} times fraction{power}."


def plateau_lines(study: Study, results: Sequence[Result], summaries: Sequence[Summary]) -> list[str]:
    """Whether the runs were still learning when they ended, in Markdown; nothing where all are of a few epochs."""
    lines = []
    told = [each for each in summaries if each.late_change is not None and each.least_loss_at]
    ended_early = sum(result.ended_early for result in results)
    if told:
        lines += [
            "## Were the runs long enough?",
            "",
            "Means over the seeds, of the validation pictures"
            + (":" if ended_early else "; each run went down to the lowest learning rate:"),
            "",
            "| architecture | pictures | steps | top-1 late, points | loss least after | by seed |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
            *(
                f"| {label(each.architecture)} | {each.num_pictures:,.0f} ({100 * each.fraction:g} %) "
                f"| {each.steps:,.0f} | {late_words(each)} | {least_words(each)} |"
                for each in told
            ),
            "",
            "Late is the change of the accuracy, its mean over the last fifth of the epochs less that over the fifth "
            "before; some of that is what the falling learning rate brings to a run of any length. The loss, a mean "
            "over a tenth of the epochs, was least after that share of them: at 100 % it still fell, well below that "
            "it had ceased to. Accuracy can go on rising where the loss does not fall any more: whether it would, only "
            "runs of twice the length show.",
            "",
        ]
    if study.recipe.patience is not None:
        lines += [
            f"Patience of {study.recipe.patience} epochs of all pictures (times what epochs are multiplied by) ended "
            f"{ended_early} of the {len(results)} runs before their last step.",
            "",
        ]
    return lines


def late_words(summary: Summary) -> str:
    """The late change of the accuracy with its deviation over the seeds, where there is one: +0.41 ± 0.30."""
    deviation = "" if summary.late_deviation is None else f" ± {summary.late_deviation:.2f}"
    return f"{summary.late_change:+.2f}{deviation}"


def least_words(summary: Summary) -> str:
    """After which share of its epochs the loss was least, the mean and each run, lowest first: 72 % | 44, 72, 100."""
    places = sorted(100 * place for place in summary.least_loss_at)
    return f"{statistics.mean(places):.0f} % | {', '.join(f'{place:.0f}' for place in places)}"


def machine_lines(results: Sequence[Result]) -> list[str]:
    """Where each run was trained, as far as its folder says it, and where the page was written."""
    lines = [
        f"- {count} of the runs: {machine or 'where they were trained was not noted'}"
        for machine, count in Counter(result.machine for result in results).items()
    ]
    page = f"This page: {machine_line(f'comvex {comvex.__version__}')}"
    return ["Where the runs ended:", "", *lines, "", page] if lines else [page]
