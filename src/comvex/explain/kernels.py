"""Each head's positional attention around the patch that looks, as a figure. Shapes: layers, heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comvex.convit.analysis import PositionalKernels
from comvex.explain.sheet import SMALL_TYPE, new_sheet
from comvex.plotting import GREY, VERMILION

Array = NDArray[Any]

LARGEST_WINDOW = 6
"""Patches to each side of the query that are drawn at most."""
LARGEST_SHARE_OUTSIDE = 0.05
"""Of a kernel's attention; one with more of it outside what is drawn is marked."""


@dataclass(frozen=True)
class Kernel:
    """A head's positional attention on a grid without borders: a Gaussian on whole offsets from the query."""

    dx: float
    dy: float
    width: float
    """Standard deviation along each axis, in patches as the centre is."""

    def shares(self, offsets: Array) -> Array:
        """(rows, columns): the share of each patch whose dy and dx are among the ``offsets``."""
        return np.outer(shares_along(self.dy, self.width, offsets), shares_along(self.dx, self.width, offsets))

    def largest_share(self) -> float:
        return math.prod(float(shares_along(at, self.width, np.rint(at))) for at in (self.dx, self.dy))


def shares_along(centre: float, width: float, offsets: Any) -> Array:
    """exp(-(d - centre)^2 / (2 width^2)) at whole offsets d, divided by its sum over all whole d."""
    nearest = np.rint(centre)

    def relative(places: Any) -> Array:  # to the largest term, which would itself be 0 for very narrow kernels
        return np.exp(((nearest - centre) ** 2 - (places - centre) ** 2) / (2 * width**2))

    if width > 2:  # the sum is the integral to 34 digits, by Poisson's formula
        total = math.sqrt(2 * math.pi) * width * math.exp((nearest - centre) ** 2 / (2 * width**2))
    else:
        total = relative(nearest + np.arange(-25, 26)).sum()
    return relative(offsets) / total


def draw_kernels(kernels: PositionalKernels, file: Path, *, layers: Sequence[int]) -> None:
    """Each head's kernel around its query, in ``layers``; away from the borders it is the same for every query.

    Above it the share of its largest patch, as on a grid without borders. A head that does not fall off with distance
    has no peak: its attention depends on the size of the grid, and is not drawn.
    """
    heads, radius = kernels.width.shape[1], window(kernels)
    offsets = np.arange(-radius, radius + 1)
    found = {
        place: Kernel(float(kernels.dx[place]), float(kernels.dy[place]), float(kernels.width[place]))
        for place in np.ndindex(kernels.width.shape)
        if np.isfinite(kernels.width[place])
    }
    outside = {place for place, kernel in found.items() if 1 - kernel.shares(offsets).sum() > LARGEST_SHARE_OUTSIDE}
    title = (
        f"Positional kernels, {radius} patches to each side of the query (cross), and the share of the largest patch"
    )
    if outside:
        title += f"; * more than {100 * LARGEST_SHARE_OUTSIDE:.0f} % lies outside the panel"
    text_lines = [(2, 0)] + [(1, 0)] * (len(layers) - 1)
    with new_sheet(file, title=title, columns=heads, aspect=1, text_lines=text_lines, text_width=0.3) as sheet:
        for row, layer in enumerate(layers):
            first = row == 0
            sheet.label(row, f"layer {layer}", above="head\nshare, %" if first else "")
            for head in range(heads):
                kernel = found.get((layer, head))
                share = "" if kernel is None else number_of_percent(kernel.largest_share())
                text = share + "*" * ((layer, head) in outside)
                panel = sheet.panel(row, head, above=f"{head}\n{text}" if first else text)
                draw_kernel(panel, kernel, offsets)


def draw_kernel(panel: Any, kernel: Kernel | None, offsets: Array) -> None:
    """A kernel on the panel, bright where the share is large and black at 0; or that it has no peak."""
    if kernel is None:
        panel.set_facecolor("#eeeeee")
        middle = {"ha": "center", "va": "center", "transform": panel.transAxes}
        panel.text(0.5, 0.5, "no\npeak", fontsize=SMALL_TYPE, linespacing=1, color=GREY, **middle)
        return
    edge = offsets[-1] + 0.5
    panel.imshow(
        kernel.shares(offsets), cmap="cividis", vmin=0, vmax=kernel.largest_share(), extent=(-edge, edge, edge, -edge)
    )
    panel.plot(0, 0, "+", color=VERMILION, markersize=5, markeredgewidth=1)


def window(kernels: PositionalKernels) -> int:
    """How far to each side most kernels reach: the ninth tenth of centre and two widths, in whole patches."""
    reach = np.maximum(np.abs(kernels.dx), np.abs(kernels.dy)) + 2 * kernels.width
    known = reach[np.isfinite(reach)]
    if len(known) == 0:
        return LARGEST_WINDOW
    return int(np.clip(np.ceil(np.quantile(known, 0.9)), 2, LARGEST_WINDOW))


def number_of_percent(share: float) -> str:
    """A share in percent with two significant digits where it has so many, without the sign."""
    percent = 100 * share
    return f"{percent:.{0 if percent >= 9.5 else 1 if percent >= 0.95 else 2}f}"
