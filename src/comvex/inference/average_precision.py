"""The average precision of every class as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comvex.plotting import BLUE, VERMILION, new_figure

MOST_NAMED = 60
"""With more classes than this the bars have neither names nor numbers."""


def draw_average_precision(
    percent: NDArray[np.float64], chance: NDArray[np.float64], labels: Sequence[str], file: Path, *, title: str
) -> None:
    """A bar for each class, the best on top, with a line where guessing would be.

    ``percent`` and ``chance`` are (num_classes,); the average precision of guessing is the share of positive pictures.
    A class without any, for which ``percent`` is NaN, has no bar and stands at the end.
    """
    order: list[int] = np.argsort(-percent, kind="stable").tolist()  # NaN last
    num = len(order)
    with new_figure(file, size=(8, 1.5 + 0.25 * min(num, MOST_NAMED))) as figure:
        axes = figure.subplots()
        axes.barh(range(num), np.nan_to_num(percent[order]), color=BLUE, label="average precision")
        low, high = np.arange(num) - 0.4, np.arange(num) + 0.4
        axes.vlines(
            chance[order], low, high, color=VERMILION, linewidth=2, label="guessing: share of positive pictures"
        )
        if num <= MOST_NAMED:
            axes.set_yticks(range(num), [labels[index] for index in order])
            for place, index in enumerate(order):
                known = not np.isnan(percent[index])
                text = f"{percent[index]:.1f}" if known else "no positive picture"
                axes.text(percent[index] + 1 if known else 1, place, text, va="center", fontsize=8)
        else:
            axes.set(yticks=[], ylabel=f"{num} classes, sorted")
        axes.set(xlabel="average precision, %", xlim=(0, 108), xticks=range(0, 101, 20))
        axes.invert_yaxis()
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        figure.legend(loc="outside lower right", ncols=2, fontsize=8)
