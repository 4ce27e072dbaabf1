"""The parts of the browser page as HTML: classes, layers, heads, gates. Nothing here knows of Gradio.

Shapes: layers, heads, (H, W) rows and columns of patches.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from comvex.convit.analysis import AttentionMaps
from comvex.explain.overlay import attention_over
from comvex.inference.predictor import Prediction

Array = NDArray[Any]
Half = Literal["blended", "content", "positional"]

HEAD_SIDE, LAYER_SIDE, CANVAS_SIDE = 260, 150, 640
"""Pixels of the longer side of a head's picture, of a layer's, and of the one to be clicked on."""

MOST_COLUMNS = 5
"""Heads side by side, where the window is wide enough."""


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    """The picture with a longer side of about ``side`` pixels: small ones as clear squares, large ones made smaller."""
    longer = max(picture.size)
    if longer <= side // 2:
        times = side // longer
        return picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)
    size = max(1, round(picture.width * side / longer)), max(1, round(picture.height * side / longer))
    return picture.resize(size, Image.Resampling.LANCZOS)


def with_frame(picture: Image.Image, patch: tuple[int, int], grid: tuple[int, int]) -> Image.Image:
    """An RGB copy with a frame, white within black, around a patch (row, column)."""
    picture = picture.convert("RGB")
    height, width = picture.height / grid[0], picture.width / grid[1]
    left, top = patch[1] * width, patch[0] * height
    thickness = max(2, round(max(picture.size) / 160))
    draw = ImageDraw.Draw(picture)
    for colour, inset in (("black", 0), ("white", thickness)):
        box = (left + inset, top + inset, max(left + inset, left + width - 1 - inset),
               max(top + inset, top + height - 1 - inset))  # fmt: skip
        draw.rectangle(box, outline=colour, width=thickness)
    return picture


def as_source(picture: Image.Image) -> str:
    """An RGB picture as the address of its own content; of JPEG, which is encoded 20 times as fast as WebP."""
    content = io.BytesIO()
    picture.save(content, format="JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def image_html(picture: Image.Image, text: str) -> str:
    return f'<img src="{as_source(picture)}" alt="{escape(text)}" width="{picture.width}" height="{picture.height}">'


def weights_of(maps: AttentionMaps, half: Half) -> Array | None:
    """(heads, H, W) of one half of a layer's attention, or of their blend; None if the layer does not have it."""
    if half == "positional":
        return None if maps.positional is None else maps.positional[:, 0].float().cpu().numpy()
    return getattr(maps, half)[0, :, 0].float().cpu().numpy()


def distances(weights: Array, query: tuple[int, int]) -> Array:
    """(heads, H, W) -> (heads,): mean distance in patches from the query to where it looks."""
    rows, columns = np.indices(weights.shape[1:])
    return (weights * np.hypot(rows - query[0], columns - query[1])).sum(axis=(1, 2))


def classes_html(predictions: Sequence[Prediction]) -> str:
    rows = "".join(
        f'<div class="cx-class"><span class="cx-name">{escape(entry.label)}</span>'
        f'<span class="cx-number">{100 * entry.probability:.1f} %</span>'
        f'<span class="cx-track"><span style="width:{100 * entry.probability:.2f}%"></span></span></div>'
        for entry in predictions
    )
    return f'<div class="cx-classes">{rows}</div>'


def layers_html(shown: Image.Image, maps: Sequence[AttentionMaps], *, query: tuple[int, int], layer: int) -> str:
    """Where a patch (row, column) looks in every layer, on the mean over its heads; the chosen layer is framed."""
    picture, cells = enlarged(shown, LAYER_SIDE), []
    for of_layer in maps:
        weights = of_layer.blended[0, :, 0].float().cpu().numpy()
        grid = weights.shape[1:]
        drawn = with_frame(attention_over(picture, weights.mean(axis=0)), query, grid)
        distance = distances(weights, query).mean()
        chosen = ' class="cx-chosen" aria-current="true"' if of_layer.layer == layer else ""
        cells.append(
            f"<figure{chosen}>{image_html(drawn, f'layer {of_layer.layer}')}"
            f"<figcaption>layer {of_layer.layer}<small>{distance:.1f}</small></figcaption></figure>"
        )
    return (
        f'<p class="cx-head">Where the patch in row {query[0]}, column {query[1]} looks <small>layer by layer, on the '
        "mean of the heads; the fuller the colour, the more; the numbers are mean distances in patches</small></p>"
        f'<div class="cx-layers">{"".join(cells)}</div>'
    )


def heads_html(
    shown: Image.Image, maps: AttentionMaps, *, gates: Array, query: tuple[int, int], half: Half = "blended"
) -> str:
    """Where a patch looks in each head of a layer, ``gates`` (heads,) beside it."""
    weights = weights_of(maps, half)
    if weights is None:
        return '<p class="cx-note">This layer is plain attention: it has no positional half and no gates.</p>'
    picture, cells = enlarged(shown, HEAD_SIDE), []
    for head, (share, distance) in enumerate(zip(weights, distances(weights, query), strict=True)):
        drawn = with_frame(attention_over(picture, share), query, share.shape)
        cells.append(
            f"<figure>{image_html(drawn, f'head {head}')}<figcaption><b>head {head}</b>"
            f"<small>{distance:.1f} patches away</small><small>{percent(float(share.max()))} at most on one</small>"
            f"{gate_html(gates[head])}"
            "</figcaption></figure>"
        )
    note = ""
    if maps.class_token_share is not None:
        note = (
            '<p class="cx-note">Plain attention, without gates. The patch gives '
            f"{percent(float(maps.class_token_share[0, :, 0].mean()))} of it to the class token, left out here.</p>"
        )
    elif maps.positional is None:
        note = '<p class="cx-note">Plain attention, without gates.</p>'
    columns = math.ceil(len(cells) / math.ceil(len(cells) / MOST_COLUMNS))
    return f'{note}<div class="cx-heads" style="--cx-columns:{columns}">{"".join(cells)}</div>'


def gate_html(gate: float) -> str:
    """A gate in [0, 1] as a bar from content to position; nothing for a head that has none."""
    if math.isnan(gate):
        return ""
    return (
        f'<span class="cx-gate" title="gate {gate:.3f}"><span style="width:{100 * gate:.1f}%"></span></span>'
        f"<small>gate {gate:.2f}</small>"
    )


def gates_html(gates: Array, *, layer: int) -> str:
    """All gates (layers, heads) as a table; the chosen layer is framed."""
    if np.isnan(gates).all():
        return '<p class="cx-note">This model is plain attention throughout: it has no gates.</p>'
    head = "".join(f'<th scope="col">{number}</th>' for number in range(gates.shape[1]))
    rows = []
    for number, row in enumerate(gates):
        chosen = ' class="cx-chosen"' if number == layer else ""
        rows.append(f'<tr{chosen}><th scope="row">{number}</th>{"".join(map(gate_cell, row))}</tr>')
    return (
        '<p class="cx-head">Gates <small>of every layer and head</small></p>'
        f'<div class="cx-scroll"><table class="cx-gates"><thead><tr><th>layer</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="cx-key"><span class="cx-content">0</span> content decides'
        '<span class="cx-position">1</span> position decides</p>'
    )


def gate_cell(gate: float) -> str:
    if math.isnan(gate):
        return '<td class="cx-none" title="plain attention">·</td>'
    red, green, blue = gate_colour(gate)
    ink = "#fff" if 0.299 * red + 0.587 * green + 0.114 * blue < 130 else "#111"
    return f'<td style="background:rgb({red},{green},{blue});color:{ink}">{gate:.2f}</td>'


def gate_colour(gate: float) -> tuple[int, int, int]:
    """Orange at 0 through white at 0.5 to purple at 1, as in the report's figure of the gates."""
    end = np.array([230, 97, 1]) if gate < 0.5 else np.array([94, 60, 153])
    red, green, blue = np.round(255 + (end - 255) * abs(2 * gate - 1)).astype(int).tolist()
    return red, green, blue


def percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %"
