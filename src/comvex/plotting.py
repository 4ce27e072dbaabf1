"""The look of every figure: readable at print size, colours that colour-blind readers can tell apart."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comvex.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"

LOGGER = logging.getLogger(__name__)

FONTS_OF_OTHER_SCRIPTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "IPAexGothic", "NanumGothic", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "PingFang SC",
    "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS",
)  # fmt: skip
"""Those of them that are installed write what matplotlib's own font, which has Latin, Greek and Cyrillic, has not."""

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

    ``dpi`` are the pixels an inch, ``font_size`` the points of the type; titles of axes are a tenth larger. Characters
    that no font has are boxes, which one warning tells of.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    fonts = ["sans-serif", *(name for name in FONTS_OF_OTHER_SCRIPTS if name in installed)]
    type_: dict[Any, Any] = {"font.family": fonts, "font.size": font_size, "axes.titlesize": 1.1 * font_size}
    with rc_context(STYLE | type_), told_missing_characters(file):
        figure = Figure(figsize=size)
        yield figure
        with replace_file(file) as temporary:
            figure.savefig(temporary, dpi=dpi, format="png")


@contextmanager
def told_missing_characters(file: Path) -> Iterator[None]:
    """Within it matplotlib's warnings of each single character that no font has become one sentence."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    others = [warning for warning in caught if "missing from font" not in str(warning.message)]
    for warning in others:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if len(others) < len(caught):
        LOGGER.warning(
            "%s has boxes for characters that no font on this machine has: with a font such as Noto Sans CJK they "
            "would be readable.",
            file,
        )
