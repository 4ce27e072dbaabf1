"""Which epoch's weights are the best, as far as the validation pictures can tell."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any


def standard_error(percent: float, num_pictures: int) -> float:
    """The standard error of a share of that many pictures, in percentage points; never 0, not for 100 % either."""
    share = (percent / 100 * num_pictures + 0.5) / (num_pictures + 1)
    return 100 * math.sqrt(share * (1 - share) / num_pictures)


def selected_epoch(
    history: Sequence[dict[str, Any]], *, select: str, criterion: str, num_pictures: int
) -> dict[str, Any]:
    """The row of metrics.csv whose weights are kept and tested: the "last", or the "best" in validation so far."""
    if select == "last":
        return history[-1]
    return best_epoch(history, criterion=criterion, num_pictures=num_pictures)


def best_epoch(history: Sequence[dict[str, Any]], *, criterion: str, num_pictures: int) -> dict[str, Any]:
    """The best row of metrics.csv.

    A later epoch takes the place of the best so far if its ``criterion`` is higher by more than one standard error, or,
    where the difference is less than that and so chance, if its validation loss is lower. With few validation pictures
    the highest figure alone would choose a lucky epoch: 1 of 142 pictures is 0.7 points.
    """

    def better(best: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
        difference, error = row[criterion] - best[criterion], standard_error(best[criterion], num_pictures)
        if difference > error or (difference >= -error and row["val_loss"] < best["val_loss"]):
            return row
        return best

    return functools.reduce(better, history)
