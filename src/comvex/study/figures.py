"""The figures of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comvex.plotting import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure
from comvex.study.layers import LayerFigures, over_seeds
from comvex.study.picture_factor import Factor
from comvex.study.plan import CONVIT, PLAIN
from comvex.study.results import Comparison, Result, Summary

PURPLE, SKY = "#CC79A7", "#56B4E9"
LABELS = {CONVIT: "ConViT", PLAIN: "plain ViT"}


def colours_of(architectures: Sequence[str]) -> dict[str, str]:
    """A colour for each architecture; ConViT and the plain ViT have the same in every figure."""
    others = iter((GREEN, ORANGE, PURPLE, SKY, "#000000"))
    fixed = {CONVIT: BLUE, PLAIN: VERMILION}
    return {name: fixed[name] if name in fixed else next(others) for name in architectures}


def label(architecture: str) -> str:
    return LABELS.get(architecture, architecture)


def draw_sample_efficiency(
    results: Sequence[Result],
    summaries: Sequence[Summary],
    comparisons: Sequence[Comparison],
    file: Path,
    *,
    title: str,
) -> None:
    """Accuracy, relative improvement and picture factor against the number of training pictures."""
    with new_figure(file, size=(11, 3.8)) as figure:
        accuracy, improvement, factor = figure.subplots(1, 3)
        draw_accuracy(accuracy, results, summaries)
        draw_improvement(improvement, comparisons)
        draw_factor(factor, comparisons)
        for axes in (accuracy, improvement, factor):
            axes.set_xscale("log")
            axes.grid(alpha=0.25)
            label_pictures(axes, summaries)
        figure.suptitle(f"{title}: lines are means over the seeds, dots single seeds", x=0.01, ha="left")


def label_pictures(axes: Any, summaries: Sequence[Summary]) -> None:
    """Mark the fractions on the axis of pictures, and say how many pictures the largest one has."""
    places = {summary.fraction: summary.num_pictures for summary in summaries}
    axes.set_xticks(list(places.values()), [f"{100 * fraction:g} %" for fraction in places])
    axes.minorticks_off()
    most = max(places)
    axes.set_xlabel(f"training pictures ({100 * most:g} % = {places[most]:,.0f})")


def draw_accuracy(axes: Any, results: Sequence[Result], summaries: Sequence[Summary]) -> None:
    for name, colour in colours_of((CONVIT, PLAIN)).items():
        own = sorted((s for s in summaries if s.architecture == name), key=lambda summary: summary.fraction)
        axes.errorbar(
            [summary.num_pictures for summary in own],
            [summary.top1 for summary in own],
            yerr=[summary.deviation or 0.0 for summary in own],
            color=colour, marker="o", markersize=4, capsize=3, label=label(name),
        )  # fmt: skip
        singles = [result for result in results if result.architecture == name]
        draw_dots(axes, [result.num_pictures for result in singles], [result.top1 for result in singles], colour)
    axes.set(title="Accuracy, mean ± deviation", ylabel="top-1 on the test pictures, %")
    axes.legend()


def draw_improvement(axes: Any, comparisons: Sequence[Comparison]) -> None:
    places = [comparison.num_pictures for comparison in comparisons]
    axes.axhline(0, color=GREY, linewidth=1)
    axes.plot(places, [comparison.improvement for comparison in comparisons], "o-", color=BLUE, markersize=4)
    for comparison in comparisons:
        draw_dots(axes, [comparison.num_pictures] * len(comparison.improvements), comparison.improvements, BLUE)
    axes.set(title="Relative improvement of ConViT", ylabel="of top-1 over the plain ViT, %")


def draw_factor(axes: Any, comparisons: Sequence[Comparison]) -> None:
    """Factors that are only bounds are triangles which point to where the factor lies, and no part of the line."""
    axes.axhline(1, color=GREY, linewidth=1)
    known = [comparison for comparison in comparisons if not comparison.factor.bound]
    axes.plot([c.num_pictures for c in known], [c.factor.value for c in known], "-", color=GREEN)
    for comparison in comparisons:
        draw_factors(axes, comparison.num_pictures, comparison.factors, alpha=0.35, size=4)
        draw_factors(axes, comparison.num_pictures, [comparison.factor], alpha=1.0, size=6)
    title = "Picture factor" + (" (▲ at least, ▼ at most)" if len(known) < len(comparisons) else "")
    axes.set(title=title, ylabel="pictures, plain ViT / ConViT", ylim=(0, None))


def draw_factors(axes: Any, place: float, factors: Sequence[Factor], *, alpha: float, size: float) -> None:
    markers = {"": "o", ">": "^", "<": "v"}
    for factor in factors:
        axes.plot(
            place, factor.value, markers[factor.bound], color=GREEN, alpha=alpha, markersize=size, markeredgewidth=0
        )


def draw_dots(axes: Any, x: Sequence[float], y: Sequence[float], colour: str) -> None:
    axes.plot(x, y, "o", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)


def draw_ablation(results: Sequence[Result], summaries: Sequence[Summary], file: Path, *, title: str) -> None:
    """Top-1 of every architecture, a panel for each fraction."""
    fractions = sorted({summary.fraction for summary in summaries})
    names = list(dict.fromkeys(summary.architecture for summary in summaries))
    colours = colours_of(names)
    with new_figure(file, size=(2.2 + 4.2 * len(fractions), 1.4 + 0.35 * len(names))) as figure:
        panels = figure.subplots(1, len(fractions), squeeze=False, sharey=True)[0]
        for axes, fraction in zip(panels, fractions, strict=True):
            for summary in summaries:
                if summary.fraction != fraction:
                    continue
                place, colour = names.index(summary.architecture), colours[summary.architecture]
                spread = summary.deviation or 0.0
                axes.errorbar(summary.top1, place, xerr=spread, color=colour, marker="o", capsize=3)
            singles = [result for result in results if result.fraction == fraction]
            for result in singles:
                place = names.index(result.architecture)
                draw_dots(axes, [result.top1], [place], colours[result.architecture])
            axes.set(title=f"{100 * fraction:g} % of the pictures", xlabel="top-1 on the test pictures, %")
            axes.set_yticks(range(len(names)), [label(name) for name in names])
            axes.grid(alpha=0.25, axis="x")
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        figure.suptitle(f"{title}: mean ± deviation, and single seeds", x=0.01, ha="left")


def draw_learning_curves(results: Sequence[Result], file: Path, *, title: str) -> None:
    """Validation accuracy against steps, a line for each run, a panel for each fraction."""
    fractions = sorted({result.fraction for result in results})
    names = list(dict.fromkeys(result.architecture for result in results))
    colours = colours_of(names)
    columns = min(3, len(fractions))
    rows = math.ceil(len(fractions) / columns)
    with new_figure(file, size=(max(7.5, 2.0 + 3.0 * columns), 0.8 + 3.0 * rows)) as figure:
        panels = [figure.add_subplot(rows, columns, place + 1) for place in range(len(fractions))]
        for axes, fraction in zip(panels, fractions, strict=True):
            last = 0
            for result in results:
                if result.fraction == fraction:
                    last = max(last, result.curve[-1][0])
                    steps, top1 = zip(*result.curve, strict=True)
                    axes.plot(steps, top1, color=colours[result.architecture], linewidth=1, alpha=0.7)
                    axes.plot(steps[-1], top1[-1], "o", color=colours[result.architecture], markersize=4)
            axes.set(title=f"{100 * fraction:g} % of the pictures", xlabel="training steps", xlim=(0, 1.05 * last))
            axes.set_ylabel("validation top-1, %")
            axes.grid(alpha=0.25)
        handles = [figure.axes[0].plot([], [], color=colour)[0] for colour in colours.values()]
        figure.legend(handles, [label(name) for name in names], loc="outside right upper")
        figure.suptitle(f"{title}: every run, to the step where it ended", x=0.01, ha="left")


LAYER_PANELS = {
    "nonlocality": ("How far the layers look", "mean distance, patches"),
    "gate": ("Gates", "share of positional attention"),
}
"""Figures of a layer that are drawn: title and unit of each."""


def draw_layers(layers: Sequence[LayerFigures], file: Path, *, title: str) -> None:
    """How far each layer looks and its gate, means over heads and seeds: a line for each architecture and fraction.

    Dotted lines are before the first step. Gates are left out where no layer has one.
    """
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(each.architecture for each in layers))
    fractions = sorted({each.fraction for each in layers})
    colours = colours_of(names)
    # The most pictures are the darkest
    alphas = {fraction: 0.25 + 0.75 * (place + 1) / len(fractions) for place, fraction in enumerate(fractions)}
    panels = [name for name in LAYER_PANELS if over_seeds(layers, name, begun=True)]
    with new_figure(file, size=(2.6 + 4.2 * len(panels), 3.8)) as figure:
        for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for (architecture, _), values in over_seeds(layers, name, begun=False).items():
                axes.plot(*zip(*values.items(), strict=True), ":", color=colours[architecture])
            for (architecture, fraction), values in over_seeds(layers, name, begun=True).items():
                places, means = zip(*values.items(), strict=True)
                axes.plot(places, means, "o-", color=colours[architecture], alpha=alphas[fraction], markersize=4)
            heading, unit = LAYER_PANELS[name]
            axes.set(title=heading, xlabel="layer", ylabel=unit)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.25)
        handles = [Line2D([], [], color=colours[name], label=label(name)) for name in names]
        handles += [
            Line2D([], [], color="black", marker="o", alpha=alphas[fraction], label=f"{100 * fraction:g} %")
            for fraction in fractions
        ]
        handles.append(Line2D([], [], color="black", linestyle=":", label="before the first step"))
        figure.legend(handles=handles, loc="outside right upper")
        figure.suptitle(f"{title}: means over heads and seeds", x=0.01, ha="left")
