"""The confusion matrix as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comvex.plotting import new_figure

MOST_NAMED = 30
"""With more classes than this the rows and columns have no names, and the cells no numbers."""


def draw_confusion(confusion: NDArray[np.int64], labels: Sequence[str], file: Path, *, title: str) -> None:
    """Each true class's row in percent of its pictures; ``confusion`` is (num_classes, num_classes) of counts.

    One column more counts what was taken for a class that none of the pictures has.
    """
    share = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    num_classes = len(labels)
    side = min(12.0, 3.0 + 0.42 * num_classes)
    with new_figure(file, size=(side + 1, side)) as figure:
        axes = figure.subplots()
        picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
        figure.colorbar(picture, label="share of the true class, %", shrink=0.7)
        if num_classes <= MOST_NAMED:
            columns = [*labels, "another class"][: confusion.shape[1]]
            axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
            axes.set_yticks(range(num_classes), labels)
            for row, column in zip(*np.nonzero(confusion), strict=True):
                colour = "white" if share[row, column] > 55 else "black"
                text = f"{share[row, column]:.0f}" if share[row, column] >= 0.5 else "<1"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
        axes.set(title=title, xlabel="predicted class", ylabel="true class")
        axes.spines[:].set_visible(False)
