"""The course of a run as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comvex.inference.task import Task
from comvex.plotting import BLUE, GREY, VERMILION, new_figure

Rows = Sequence[dict[str, Any]]

HEAD_PANELS = {
    "gate": ("Gate", "share of positional attention"),
    "nonlocality_blended": ("Non-locality", "distance looked, patches"),
    "nonlocality_content": ("Non-locality, content", "distance looked, patches"),
}
"""Columns of heads.csv that are drawn: title and unit of each."""


def draw_curves(history: Rows, best: dict[str, Any], file: Path, *, task: Task, title: str, targets: str = "") -> None:
    """Loss, the task's criterion, learning rate and gradient norm over the epochs.

    ``history`` has the rows of metrics.csv, of which one is best; ``targets`` says what was done to the labels that
    the training loss is of.
    """
    with new_figure(file, size=(11, 3.5)) as figure:
        axes = figure.subplot_mosaic(
            [["loss", "merit", "rate"], ["loss", "merit", "norm"]], width_ratios=(1, 1, 0.8)
        )  # fmt: skip
        draw_column(axes["loss"], history, "train_loss", BLUE, label=f"training ({targets})" if targets else "training")
        draw_column(axes["loss"], history, "val_loss", VERMILION, label="validation")
        axes["loss"].set(title=task.loss_name, xlabel="epoch", ylabel="nats", ylim=(0, None))
        axes["loss"].legend()
        draw_column(axes["merit"], history, task.criterion, VERMILION)
        epoch, value = best["epoch"], best[task.criterion]
        axes["merit"].plot(epoch, value, "o", color=VERMILION, clip_on=False)
        axes["merit"].annotate(f"{value:.1f} %", (epoch, value), (0, -14), textcoords="offset points", ha="right")
        axes["merit"].set(title=f"Validation {task.criterion_name}", xlabel="epoch", ylabel="%")
        draw_column(axes["rate"], history, "learning_rate", GREY)
        axes["rate"].set(title="Learning rate", ylim=(0, None))
        axes["rate"].ticklabel_format(axis="y", scilimits=(-2, 3))
        draw_column(axes["norm"], history, "gradient_norm", GREY)
        axes["norm"].set(title="Gradient norm before clipping", xlabel="epoch", ylim=(0, None))
        figure.suptitle(title, x=0.01, ha="left")


def draw_column(axes: Any, rows: Rows, name: str, colour: Any, **look: Any) -> None:
    """One column over the epochs; too few of them for a line to be seen are points."""
    marker = "o" if len(rows) < 3 else ""
    axes.plot([row["epoch"] for row in rows], [row[name] for row in rows], color=colour, marker=marker, **look)
    axes.xaxis.get_major_locator().set_params(integer=True)


def draw_heads(rows: Rows, file: Path, *, title: str) -> None:
    """Gates and non-locality over the epochs: a thick line for the mean of each layer, a thin one for each head.

    ``rows`` are those of heads.csv. What no layer has, such as the gates of a plain vision transformer, is left out.
    The axes show the range that occurs, not all from 0, for layers often differ by little.
    """
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    panels = [name for name in HEAD_PANELS if any(row[name] is not None for row in rows)]
    layers = sorted({row["layer"] for row in rows})
    # Without its yellow end, which is hard to see on white
    colours = {layer: colormaps["viridis"](0.9 * place / max(1, len(layers) - 1)) for place, layer in enumerate(layers)}
    size = (1.95 * len(panels) + 0.85, max(2.4, 0.16 * len(layers) + 0.6))  # a page's width, at which type is 8 points
    with new_figure(file, size=size, dpi=300, font_size=8) as figure:
        for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for layer in layers:
                of_layer = [row for row in rows if row["layer"] == layer and row[name] is not None]
                draw_layer(axes, of_layer, name, colours[layer])
            heading, unit = HEAD_PANELS[name]
            axes.set(title=heading, xlabel="epoch", ylabel=unit)
        handles = [Line2D([], [], color=colours[layer], linewidth=2) for layer in layers]
        figure.legend(handles, [f"layer {layer}" for layer in layers], loc="outside right upper", fontsize=7)
        figure.suptitle(f"{title}: mean of each layer (thick) and its heads (thin)", x=0.01, ha="left", fontsize=9)


def draw_layer(axes: Any, rows: Rows, name: str, colour: Any) -> None:
    """The heads of one layer, and their mean in each epoch."""
    for head in sorted({row["head"] for row in rows}):
        own = [row for row in rows if row["head"] == head]
        draw_column(axes, own, name, colour, linewidth=0.7, alpha=0.35, markersize=3)
    by_epoch: dict[int, list[float]] = {}
    for row in rows:
        by_epoch.setdefault(row["epoch"], []).append(row[name])
    means = [{"epoch": epoch, name: sum(values) / len(values)} for epoch, values in by_epoch.items()]
    draw_column(axes, means, name, colour, linewidth=2)
