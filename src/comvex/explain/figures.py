"""What a model's heads do, as figures: gates, non-locality, and where they look in a picture.

Shapes: layers, heads, (H, W) rows and columns of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from comvex.convit.analysis import AttentionMaps, Nonlocality
from comvex.explain.gallery import draw_attention, draw_picture
from comvex.explain.kernels import number_of_percent
from comvex.explain.sheet import PAGE_WIDTH, SMALL_TYPE, Sheet, new_sheet, print_figure
from comvex.plotting import BLUE, GREEN, GREY, VERMILION

Array = NDArray[Any]

GATE_COLOURS = "PuOr"
"""Orange where content decides, purple where position does: a pair that colour-blind readers can tell apart."""
MOST_COLUMNS = 8
"""Panels side by side in which a class token's attention is drawn; more heads go on in the next row."""
MOST_CELLS_WITH_NUMBERS = 16
"""Heads a row up to which a heat map has its values written in."""


def draw_class_token(
    shown: Image.Image, attention: Array, rollout: Array, file: Path, *, layers: Sequence[int]
) -> None:
    """The picture, attention rollout, and where the class token looks in each layer and head.

    ``attention`` (layers, heads, H, W), every map summing to one; ``rollout`` (H, W); ``layers`` their numbers.
    """
    num_maps = attention.shape[1] + 1
    rows_a_layer = -(-num_maps // MOST_COLUMNS)
    columns = max(2, -(-num_maps // rows_a_layer))
    title = (
        "Where the class token looks: the smallest and largest share of a patch in its attention; "
        "grey is 0, the fullest colour the largest share of that map"
    )
    text_lines = [(2, 0)] * (1 + rows_a_layer * len(layers))
    aspect = shown.height / shown.width
    with new_sheet(file, title=title, columns=columns, aspect=aspect, text_lines=text_lines, text_width=0.62) as sheet:
        shown = sheet.fitted(shown)
        draw_picture(sheet.panel(0, 0, above="picture\n"), shown)
        draw_attention(sheet.panel(0, 1, above=f"rollout\n{percent_range(rollout)}"), shown, rollout)
        for place, (layer, of_heads) in enumerate(zip(layers, attention, strict=True)):
            first_row = 1 + place * rows_a_layer
            sheet.label(first_row, f"layer {layer}")
            for number, weights in enumerate([of_heads.mean(axis=0), *of_heads]):
                name = f"head {number - 1}" if number else "all heads"
                row, column = divmod(number, columns)
                panel = sheet.panel(first_row + row, column, above=f"{name}\n{percent_range(weights)}")
                draw_attention(panel, shown, weights)


@dataclass(frozen=True)
class QueryRow:
    """Where a patch looks in each head of a layer: a row of the figure."""

    name: str
    weights: Array
    """(heads, H, W), every map summing to one."""
    class_token_share: Array | None
    """(heads,): what goes to the class token besides; None in a layer that has none."""


def draw_query(
    shown: Image.Image, maps: Sequence[AttentionMaps], file: Path, *, query: tuple[int, int], heads: Sequence[int]
) -> None:
    """Where a patch looks: a row per layer; of a single layer its content, positional and blended attention."""
    rows = rows_of(maps)
    where = f" in layer {maps[0].layer}" if len(maps) == 1 else ""
    title = (
        f"Where the patch in column {query[1]}, row {query[0]} (framed) looks{where}: grey is no attention, the "
        "fullest colour the share above the map"
    )
    text_lines = [(1 + (place == 0), int(row.class_token_share is not None)) for place, row in enumerate(rows)]
    columns, aspect = len(heads) + 1, shown.height / shown.width
    with new_sheet(file, title=title, columns=columns, aspect=aspect, text_lines=text_lines, text_width=0.28) as sheet:
        shown = sheet.fitted(shown)
        for place, row in enumerate(rows):
            draw_query_row(sheet, place, row, shown, query=query, heads=heads)


def draw_query_row(
    sheet: Sheet, place: int, row: QueryRow, shown: Image.Image, *, query: tuple[int, int], heads: Sequence[int]
) -> None:
    """The picture, and the chosen heads of a row beside it; the first row has the heads' numbers too."""
    shares = row.class_token_share
    above = "head\nshare, %" if place == 0 else ""
    sheet.label(place, row.name, above=above, below="" if shares is None else "class token, %")
    panel = sheet.panel(place, 0)
    draw_picture(panel, shown)
    mark_patch(panel, query, row.weights.shape[1:])
    for column, head in enumerate(heads, start=1):
        weights = row.weights[head]
        largest = number_of_percent(float(weights.max()))
        panel = sheet.panel(
            place,
            column,
            above=f"{head}\n{largest}" if place == 0 else largest,
            below="" if shares is None else number_of_percent(float(shares[head])),
        )
        draw_attention(panel, shown, weights, smooth=False)
        mark_patch(panel, query, weights.shape)


def rows_of(maps: Sequence[AttentionMaps]) -> list[QueryRow]:
    """The rows to draw, for the first picture and query."""
    if len(maps) > 1 or maps[0].positional is None:
        return [
            QueryRow(
                f"layer {of_layer.layer}",
                as_array(of_layer.blended[0, :, 0]),
                None if of_layer.class_token_share is None else as_array(of_layer.class_token_share[0, :, 0]),
            )
            for of_layer in maps
        ]
    return [
        QueryRow("content", as_array(maps[0].content[0, :, 0]), None),
        QueryRow("positional", as_array(maps[0].positional[:, 0]), None),
        QueryRow("blended", as_array(maps[0].blended[0, :, 0]), None),
    ]


def as_array(tensor: Any) -> Array:
    return tensor.float().cpu().numpy()


def mark_patch(axes: Any, patch: tuple[int, int], grid: tuple[int, ...]) -> None:
    """A frame, white on black, around a patch (row, column)."""
    from matplotlib.patches import Rectangle

    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()  # the picture's edges; its top is the smaller
    height, width = (bottom - top) / grid[0], (right - left) / grid[1]
    for colour, thickness in (("black", 1.4), ("white", 0.6)):
        frame = Rectangle((left + patch[1] * width, top + patch[0] * height), width, height, fill=False, clip_on=False)
        frame.set(edgecolor=colour, linewidth=thickness)
        axes.add_patch(frame)


def percent_range(weights: Array) -> str:
    """The smallest and largest share of a map, as text."""
    low, high = 100 * float(weights.min()), 100 * float(weights.max())
    digits = 0 if high >= 9.5 else 1 if high >= 0.95 else 2
    return f"{low:.{digits}f}\u2013{high:.{digits}f} %"


def draw_gates(gates: Array, file: Path) -> None:
    """Gates (layers, heads) in [0, 1] as a heat map; layers of plain attention, which have none, stay blank."""
    layers, heads = gates.shape
    with print_figure(file, size=(min(PAGE_WIDTH, max(3.6, 0.45 * heads + 1.8)), 0.26 * layers + 1.0)) as figure:
        axes = figure.add_subplot()
        axes.set_facecolor("#eeeeee")
        image = axes.imshow(np.ma.masked_invalid(gates), cmap=GATE_COLOURS, vmin=0, vmax=1, aspect="auto")
        for layer, head in np.ndindex(gates.shape):
            value = gates[layer, head]
            if heads <= MOST_CELLS_WITH_NUMBERS and not np.isnan(value):
                ink = ink_on(image.to_rgba(value))
                axes.text(head, layer, f"{value:.2f}", ha="center", va="center", fontsize=SMALL_TYPE, color=ink)
        for layer in np.flatnonzero(np.isnan(gates).all(axis=1)).tolist():
            axes.text((heads - 1) / 2, layer, "plain attention, no gate", ha="center", va="center", color=GREY)
        axes.set(xticks=range(heads), yticks=range(layers), xlabel="head", ylabel="layer", title="Gates")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1])
        bar.ax.set_yticklabels(["0: content", "0.5", "1: position"])
        bar.outline.set_visible(False)


def ink_on(colour: Sequence[float]) -> str:
    """Black or white, which is the easier to read on this colour (red, green, blue in [0, 1], sRGB)."""
    luminance = relative_luminance(colour)
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def relative_luminance(colour: Sequence[float]) -> float:
    """Light that an sRGB colour gives, by that of white (WCAG 2)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def draw_nonlocality(found: Nonlocality, file: Path, *, uniform: float) -> None:
    """Non-locality of each layer: a mark for each head, a line for the mean; ``uniform`` is what to compare with."""
    halves = (("content", VERMILION, "o", -0.2), ("positional", BLUE, "s", 0.0), ("blended", GREEN, "D", 0.2))
    plain = np.isnan(found.positional).all()
    num_layers = len(found.content)
    with print_figure(file, size=(min(PAGE_WIDTH, max(4.5, 0.3 * num_layers + 2.5)), 3.0)) as figure:
        axes = figure.add_subplot()
        for name, colour, marker, shift in halves[: 1 if plain else 3]:
            values = getattr(found, name)  # (layers, heads)
            layers = np.flatnonzero(~np.isnan(values).any(axis=1))
            for head in range(values.shape[1]):
                axes.plot(layers + shift, values[layers, head], marker, color=colour, markersize=2.5, alpha=0.5)
            axes.plot(
                layers,
                values[layers].mean(axis=1),
                color=colour,
                linewidth=1.5,
                markersize=5,
                marker=marker,
                label=name,
            )
        axes.axhline(uniform, color=GREY, linestyle="--", label="looking everywhere alike")
        pictures = "1 picture" if found.num_pictures == 1 else f"{found.num_pictures} pictures"
        axes.set(xticks=range(num_layers), xlabel="layer", ylabel="mean distance looked, patches", ylim=(0, None))
        axes.set_title(f"Non-locality on {pictures}: heads (marks), mean (line)")
        figure.legend(loc="outside lower center", ncols=4, fontsize=SMALL_TYPE)
