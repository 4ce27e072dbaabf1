"""The look of every figure: readable at print size, colours that colour-blind readers can tell apart."""

from __future__ import annotations

import logging
import re
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

CJK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK HK", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC",
    "Noto Sans JP", "Noto Sans KR", "Source Han Sans", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "IPAexGothic",
    "NanumGothic", "Microsoft YaHei", "Microsoft JhengHei", "SimHei", "Yu Gothic", "Meiryo", "Malgun Gothic",
    "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS",
)  # fmt: skip
"""Those of them that are installed write the Chinese, Japanese and Korean that matplotlib's own font lacks."""
MISSING = "Glyph .* missing from font"
"""How matplotlib warns of each character that none of the fonts has."""

STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # the names of folders and classes may have a dollar sign
}


@contextmanager
def new_figure(file: Path, *, size: tuple[float, float], dpi: int = 150, font_size: float = 10) -> Iterator[Figure]:
    """A figure of (width, height) inches to draw on, saved as a PNG when the drawing is done; needs no display.

    ``dpi`` are the pixels an inch, ``font_size`` the points of the type; titles of axes are a tenth larger. Characters
    that none of the fonts has are boxes, of which one warning tells.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    fonts = ["sans-serif", *(name for name in CJK_FONTS if name in installed)]
    type_: dict[Any, Any] = {"font.family": fonts, "font.size": font_size, "axes.titlesize": 1.1 * font_size}
    with rc_context(STYLE | type_):
        figure = Figure(figsize=size)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", MISSING)
            yield figure
        with replace_file(file) as temporary, told_missing_characters(file):
            figure.savefig(temporary, dpi=dpi, format="png")


@contextmanager
def told_missing_characters(file: Path) -> Iterator[None]:
    """Within it matplotlib's warnings of each single character become one sentence; others stay what they are."""
    import matplotlib

    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", MISSING)
        yield
    missing = [warning for warning in caught if re.search(MISSING, str(warning.message))]
    for warning in caught:
        if warning not in missing:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if missing:
        LOGGER.warning(
            "%s has boxes for characters that neither matplotlib's font nor any of the usual Chinese, Japanese and "
            "Korean fonts here has. After installing such a font, Noto Sans CJK for example, remove %s, the list of "
            "fonts that matplotlib knows.",
            file,
            Path(matplotlib.get_cachedir()) / "fontlist-*.json",
        )
