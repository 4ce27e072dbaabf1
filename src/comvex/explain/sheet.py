"""A printed page of equal panels with text above and below them. Lengths are in inches, type in points.

Places are worked out here and not by matplotlib's layout engine, which lets titles of narrow panels run into each
other and leaves wide gaps beside panels that are not square.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from comvex.plotting import GREY, new_figure

PAGE_WIDTH, PAGE_HEIGHT = 6.7, 9.0
"""What a page of a paper holds inside its margins."""
TYPE, SMALL_TYPE, TITLE_TYPE = 8, 7, 9
DOTS_AN_INCH = 300
SMALLEST_PANEL, LARGEST_PANEL = 0.2, 1.4
"""Longer side of a panel; only what does not fit a page at the smallest makes the page larger."""
NARROWEST_SHEET = 4.0
LEFT, RIGHT, GAP, LINE, TITLE_LINE = 0.82, 0.08, 0.06, 0.13, 0.17


def print_figure(file: Path, *, size: tuple[float, float]) -> AbstractContextManager[Any]:
    """A figure of (width, height) inches at the size and in the sharpness in which it is printed."""
    return new_figure(file, size=size, dpi=DOTS_AN_INCH, font_size=TYPE)


@dataclass(frozen=True)
class Sheet:
    """The panels of a figure: (width, height) of one, the distance between columns, and where each row's top is."""

    figure: Any
    panel_size: tuple[float, float]
    pitch: float
    tops: Sequence[float]
    """From the upper edge of the figure to that of the panels, row by row."""

    @property
    def pad(self) -> float:
        """From a panel to the text above and below: more for a flat one, that its row's name may stand beside it."""
        return 0.03 + (row_height(self.panel_size[1]) - self.panel_size[1]) / 2

    def fitted(self, picture: Image.Image) -> Image.Image:
        """The picture, made smaller if it has over twice the pixels that are printed of a panel's longer side."""
        longer = round(2 * DOTS_AN_INCH * max(self.panel_size))
        return ImageOps.contain(picture, (longer, longer)) if max(picture.size) > longer else picture

    def panel(self, row: int, column: int, *, above: str = "", below: str = "") -> Any:
        """The axes in a row and column, with small text in the middle above and below."""
        figure_width, figure_height = self.figure.get_size_inches()
        width, height = self.panel_size
        left = LEFT + column * self.pitch + (self.pitch - width) / 2
        bottom = figure_height - self.tops[row] - height
        axes = self.figure.add_axes(
            (left / figure_width, bottom / figure_height, width / figure_width, height / figure_height)
        )
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        middle = left + width / 2
        self.write(middle, bottom + height + self.pad, above, ha="center", va="bottom")
        self.write(middle, bottom - self.pad, below, ha="center", va="top", color=GREY)
        return axes

    def label(self, row: int, text: str, *, above: str = "", below: str = "") -> None:
        """What a row is, at its left; with what the numbers above and below its panels are."""
        bottom = self.figure.get_figheight() - self.tops[row] - self.panel_size[1]
        right = {"ha": "right", "color": GREY}
        self.write(LEFT - 0.02, bottom + self.panel_size[1] / 2, text, va="center", **right)
        self.write(LEFT - 0.02, bottom + self.panel_size[1] + self.pad, above, va="bottom", **right)
        self.write(LEFT - 0.02, bottom - self.pad, below, va="top", **right)

    def write(self, x: float, y: float, text: str, **look: Any) -> None:
        """Small text at a distance from the figure's lower left corner."""
        if text:
            width, height = self.figure.get_size_inches()
            self.figure.text(x / width, y / height, text, fontsize=SMALL_TYPE, linespacing=1.1, **look)


@contextmanager
def new_sheet(
    file: Path, *, title: str, columns: int, aspect: float, text_lines: Sequence[tuple[int, int]], text_width: float
) -> Iterator[Sheet]:
    """A figure of panels, saved when the drawing is done: at most a page if all the panels fit one.

    ``aspect`` is the height of a panel by its width; ``text_lines`` has for each row the lines of small text above and
    below its panels, and ``text_width`` is the width of the widest of these texts.
    """
    rows = len(text_lines)
    text_height = sum(LINE * (above + below) for above, below in text_lines)
    title_height = TITLE_LINE * len(wrapped(title, NARROWEST_SHEET)) + 0.1
    room = (PAGE_WIDTH - LEFT - RIGHT) / columns - GAP, (PAGE_HEIGHT - title_height - text_height) / rows - GAP
    width, height = panel_size(room, aspect)
    pitch = max(width, text_width) + GAP
    page_width = max(NARROWEST_SHEET, LEFT + columns * pitch + RIGHT)
    lines = wrapped(title, page_width)
    title_height = TITLE_LINE * len(lines) + 0.1
    bottoms = list(
        accumulate(
            (LINE * (above + below) + row_height(height) + GAP for above, below in text_lines), initial=title_height
        )
    )
    flat = (row_height(height) - height) / 2
    tops = [bottom + LINE * above + flat for bottom, (above, _) in zip(bottoms, text_lines, strict=False)]
    with print_figure(file, size=(page_width, bottoms[-1])) as figure:
        figure.set_layout_engine("none")
        place = 0.06 / page_width, 1 - 0.05 / bottoms[-1]
        figure.text(*place, "\n".join(lines), fontsize=TITLE_TYPE, va="top")
        yield Sheet(figure, (width, height), pitch, tops)


def row_height(panel_height: float) -> float:
    """Of panels so high and the name of the row at their left."""
    return max(panel_height, LINE)


def panel_size(room: tuple[float, float], aspect: float) -> tuple[float, float]:
    """(width, height) of a panel of this height by width in a (width, height) of room."""
    longer = min(LARGEST_PANEL, room[0] * max(1.0, aspect), room[1] * max(1.0, 1 / aspect))
    longer = max(SMALLEST_PANEL, longer)
    return longer / max(1.0, aspect), longer / max(1.0, 1 / aspect)


def wrapped(title: str, width: float) -> list[str]:
    """The lines of a title in so many inches."""
    return textwrap.wrap(title, int(13 * width))
