"""What a model's heads do, as figures: kernels, gates, non-locality; and where they look in a picture.

Shapes: layers, heads, (H, W) rows and columns of patches.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from comvex.convit.analysis import AttentionMaps, Nonlocality, PositionalKernels
from comvex.explain.gallery import draw_attention, draw_picture
from comvex.plotting import BLUE, GREEN, GREY, VERMILION, new_figure

Array = NDArray[Any]

GATE_COLOURS = "PuOr"
"""Orange where content decides, purple where position does: a pair that colour-blind readers can tell apart."""
LARGEST_WINDOW = 6
"""Patches to each side of the query that a positional kernel is drawn for."""
MOST_COLUMNS = 10
"""Panels side by side in which a class token's attention is drawn; more heads go on in the next row."""
MOST_CELLS_WITH_NUMBERS = 16
"""Heads a row up to which a heat map has its values written in."""


def panel_side(rows: int, columns: int) -> float:
    """Inches a side of one of so many panels: legible, and together about a page."""
    return max(0.62, min(1.4, 9.0 / columns, 11.0 / rows))


def entitle(figure: Any, text: str) -> None:
    """A title at the left, in as many lines as it takes."""
    figure.suptitle(textwrap.fill(text, int(12 * figure.get_figwidth())), x=0.01, ha="left")


def draw_class_token(
    shown: Image.Image, attention: Array, rollout: Array, file: Path, *, layers: Sequence[int]
) -> None:
    """The picture, attention rollout, and where the class token looks in each layer and head.

    ``attention`` (layers, heads, H, W), every map summing to one; ``rollout`` (H, W); ``layers`` their numbers.
    """
    heads = attention.shape[1]
    rows_a_layer = -(-(heads + 1) // MOST_COLUMNS)
    columns = max(2, -(-(heads + 1) // rows_a_layer))
    rows = 1 + rows_a_layer * len(layers)
    side = panel_side(rows, columns)
    with new_figure(file, size=(side * columns + 0.5, (side + 0.45) * rows + 0.5)) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        draw_picture(axes[0, 0], shown)
        axes[0, 0].set_title("picture\n", fontsize=9)
        draw_attention(axes[0, 1], shown, rollout)
        axes[0, 1].set_title(f"rollout\n{percent_range(rollout)}", fontsize=9)
        hide(axes[0, 2:])
        for place, layer in enumerate(layers):
            panels = axes[1 + place * rows_a_layer : 1 + (place + 1) * rows_a_layer].ravel()
            maps = [attention[place].mean(axis=0), *attention[place]]
            names = ["all heads", *(f"head {head}" for head in range(heads))]
            for panel, weights, name in zip(panels, maps, names, strict=False):
                draw_attention(panel, shown, weights)
                panel.set_title(f"{name}\n{percent_range(weights)}", fontsize=9)
            hide(panels[heads + 1 :])
            panels[0].set_ylabel(f"layer {layer}", color=GREY)
        entitle(figure, "Where the class token looks: the share of its attention per patch")


def draw_query(
    shown: Image.Image, maps: Sequence[AttentionMaps], file: Path, *, query: tuple[int, int], heads: Sequence[int]
) -> None:
    """Where a patch looks: a row per layer; of a single layer its content, positional and blended attention."""
    rows = rows_of(maps)
    side = panel_side(len(rows), len(heads) + 1)
    with new_figure(file, size=(side * (len(heads) + 1) + 0.9, (side + 0.28) * len(rows) + 0.6)) as figure:
        axes = figure.subplots(len(rows), len(heads) + 1, squeeze=False)
        for panels, (name, weights) in zip(axes, rows, strict=True):
            draw_picture(panels[0], shown)
            mark_patch(panels[0], query, weights.shape[1:])
            panels[0].set_ylabel(name, color=GREY)
            for panel, head in zip(panels[1:], heads, strict=True):
                draw_attention(panel, shown, weights[head], smooth=False)
                mark_patch(panel, query, weights.shape[1:])
                panel.set_title(f"head {head}: {percent(weights[head])}", fontsize=9 if side > 0.9 else 6)
        where = f"row {query[0]}, column {query[1]}"
        entitle(figure, f"Where the patch in {where} looks; the fullest colour is the share above")


def rows_of(maps: Sequence[AttentionMaps]) -> list[tuple[str, Array]]:
    """Name and (heads, H, W) of each row to draw, for the first picture and query."""
    if len(maps) > 1 or maps[0].positional is None:
        return [(f"layer {of_layer.layer}", as_array(of_layer.blended[0, :, 0])) for of_layer in maps]
    return [
        ("content", as_array(maps[0].content[0, :, 0])),
        ("positional", as_array(maps[0].positional[:, 0])),
        ("blended", as_array(maps[0].blended[0, :, 0])),
    ]


def as_array(tensor: Any) -> Array:
    return tensor.float().cpu().numpy()


def mark_patch(axes: Any, patch: tuple[int, int], grid: tuple[int, ...]) -> None:
    """A frame, white on black, around a patch (row, column)."""
    from matplotlib.patches import Rectangle

    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()  # the picture's edges; its top is the smaller
    height, width = (bottom - top) / grid[0], (right - left) / grid[1]
    for colour, thickness in (("black", 2.4), ("white", 1.2)):
        frame = Rectangle((left + patch[1] * width, top + patch[0] * height), width, height, fill=False, clip_on=False)
        frame.set(edgecolor=colour, linewidth=thickness)
        axes.add_patch(frame)


def hide(axes: Any) -> None:
    for panel in axes:
        panel.set_axis_off()


def percent(weights: Array) -> str:
    """The largest share of a map, as text."""
    share = 100 * float(weights.max())
    return f"{share:.0f} %" if share >= 9.5 else f"{share:.1f} %"


def percent_range(weights: Array) -> str:
    """The smallest and largest share of a map, as text."""
    low, high = 100 * float(weights.min()), 100 * float(weights.max())
    digits = 0 if high >= 9.5 else 1 if high >= 0.95 else 2
    return f"{low:.{digits}f} to {high:.{digits}f} %"


def draw_kernels(kernels: PositionalKernels, weights: Array, file: Path) -> None:
    """Each head's positional attention around its query: ``weights`` (layers, heads, 3) on dx, dy and dx^2 + dy^2.

    Away from the borders that is the same for every query. Layers of plain attention are left out.
    """
    layers = np.flatnonzero(~np.isnan(weights[..., 0]).any(axis=1))
    radius = window(kernels)
    offsets = np.arange(-radius, radius + 1)
    heads = weights.shape[1]
    side = panel_side(len(layers), heads)
    with new_figure(file, size=(side * heads + 1.0, (side + 0.28) * len(layers) + 0.9)) as figure:
        axes: Any = figure.subplots(len(layers), heads, squeeze=False)
        for layer, head in np.ndindex(len(layers), heads):
            panel, number = axes[layer, head], layers[layer]
            share = kernel(weights[number, head], offsets)
            panel.imshow(share, cmap="cividis", vmin=0, extent=bounds(radius))
            panel.plot(0, 0, "+", color=VERMILION, markersize=7, markeredgewidth=1.4)
            panel.spines[:].set_visible(False)
            if side > 0.7:
                place = {"ha": "right", "va": "bottom", "transform": panel.transAxes}
                panel.text(0.97, 0.03, percent(share), color="white", fontsize=7, **place)
            panel.set(xticks=[], yticks=[])
            if layer == 0:
                panel.set_title(f"head {head}", fontsize=9 if side > 0.7 else 6)
            if head == 0:
                panel.set_ylabel(f"layer {number}", color=GREY)
        reach = f"{radius} patches to each side of the query (cross)"
        entitle(figure, f"Positional kernels, {reach}; in the corner the share at the peak")


def bounds(radius: int) -> tuple[float, float, float, float]:
    return (-radius - 0.5, radius + 0.5, radius + 0.5, -radius - 0.5)


def window(kernels: PositionalKernels) -> int:
    """How far to each side most kernels reach: the ninth tenth of centre and two widths, in whole patches."""
    reach = np.maximum(np.abs(kernels.dx), np.abs(kernels.dy)) + 2 * kernels.width
    known = reach[np.isfinite(reach)]
    if len(known) == 0:
        return LARGEST_WINDOW
    return int(np.clip(np.ceil(np.quantile(known, 0.9)), 2, LARGEST_WINDOW))


def kernel(weights: Array, offsets: Array) -> Array:
    """softmax(w_x dx + w_y dy + w_d (dx^2 + dy^2)) over a window (paper, Eq. 6): (rows, columns)."""
    dx, dy = offsets[None, :], offsets[:, None]
    score = weights[0] * dx + weights[1] * dy + weights[2] * (dx**2 + dy**2)
    share = np.exp(score - score.max())
    return share / share.sum()


def draw_gates(gates: Array, file: Path) -> None:
    """Gates (layers, heads) in [0, 1] as a heat map; layers of plain attention, which have none, stay blank."""
    layers, heads = gates.shape
    with new_figure(file, size=(max(4.6, 0.55 * heads + 2.2), 0.36 * layers + 1.5)) as figure:
        axes = figure.add_subplot()
        axes.set_facecolor("#eeeeee")
        image = axes.imshow(np.ma.masked_invalid(gates), cmap=GATE_COLOURS, vmin=0, vmax=1, aspect="auto")
        for layer, head in np.ndindex(gates.shape):
            value = gates[layer, head]
            if heads <= MOST_CELLS_WITH_NUMBERS and not np.isnan(value):
                colour = "white" if abs(value - 0.5) > 0.35 else "black"
                axes.text(head, layer, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
        for layer in np.flatnonzero(np.isnan(gates).all(axis=1)).tolist():
            axes.text((heads - 1) / 2, layer, "plain attention, no gate", ha="center", va="center", color=GREY)
        axes.set(xticks=range(heads), yticks=range(layers), xlabel="head", ylabel="layer", title="Gates")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1])
        bar.ax.set_yticklabels(["0: content", "0.5", "1: position"])
        bar.outline.set_visible(False)


def draw_nonlocality(found: Nonlocality, file: Path, *, uniform: float) -> None:
    """Non-locality of each layer: a mark for each head, a line for the mean; ``uniform`` is what to compare with."""
    halves = (("content", VERMILION, "o", -0.2), ("positional", BLUE, "s", 0.0), ("blended", GREEN, "D", 0.2))
    plain = np.isnan(found.positional).all()
    num_layers = len(found.content)
    with new_figure(file, size=(max(5.5, 0.5 * num_layers + 2.5), 3.8)) as figure:
        axes = figure.add_subplot()
        for name, colour, marker, shift in halves[: 1 if plain else 3]:
            values = getattr(found, name)  # (layers, heads)
            layers = np.flatnonzero(~np.isnan(values).any(axis=1))
            for head in range(values.shape[1]):
                axes.plot(layers + shift, values[layers, head], marker, color=colour, markersize=3, alpha=0.5)
            axes.plot(layers, values[layers].mean(axis=1), color=colour, linewidth=2, marker=marker, label=name)
        axes.axhline(uniform, color=GREY, linestyle="--", label="looking everywhere alike")
        pictures = "1 picture" if found.num_pictures == 1 else f"{found.num_pictures} pictures"
        axes.set(xticks=range(num_layers), xlabel="layer", ylabel="mean distance looked, patches", ylim=(0, None))
        axes.set_title(f"Non-locality on {pictures}: heads (marks), mean (line)")
        figure.legend(loc="outside lower center", ncols=4, fontsize=9)
