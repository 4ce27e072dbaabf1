"""The look of every figure: readable at print size, colours that colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comvex.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"

STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@contextmanager
def new_figure(file: Path, *, size: tuple[float, float], dpi: int = 150, font_size: float = 10) -> Iterator[Figure]:
    """A figure of (width, height) inches to draw on, saved as a PNG when the drawing is done; needs no display.

    ``dpi`` are the pixels an inch, ``font_size`` the points of the type; titles of axes are a tenth larger.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    sizes: dict[Any, Any] = {"font.size": font_size, "axes.titlesize": 1.1 * font_size}
    with rc_context(STYLE | sizes):
        figure = Figure(figsize=size)
        yield figure
        with replace_file(file) as temporary:
            figure.savefig(temporary, dpi=dpi, format="png")
