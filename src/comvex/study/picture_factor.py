"""The picture factor: how many times more pictures a plain ViT needs for an accuracy that ConViT has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal


@dataclass(frozen=True)
class Factor:
    """A picture factor, or the bound that is all that can be said of it."""

    value: float
    bound: Literal["", ">", "<"] = ""
    """">": not even the most pictures that were tried brought the plain ViT there. "<": the fewest were too many."""

    def __str__(self) -> str:
        return f"{self.bound} {self.value:.2f}".strip()


def picture_factor(num_pictures: float, accuracy: float, plain: Sequence[tuple[float, float]]) -> Factor:
    """How many times more than ``num_pictures`` a plain ViT needs for ``accuracy``.

    ``plain`` has (pictures, accuracy) of the plain ViT, at least once. Between two of them its accuracy is taken as
    linear in the logarithm of the pictures; where that crosses ``accuracy`` first, few pictures first, is the answer.
    """
    points = sorted(plain)
    fewest, worst = points[0]
    if accuracy < worst:
        return Factor(fewest / num_pictures, "<")
    if accuracy == worst:
        return Factor(fewest / num_pictures)
    for (before, low), (after, high) in pairwise(points):
        if low < accuracy <= high:
            share = (accuracy - low) / (high - low)
            return Factor(math.exp(math.log(before) + share * math.log(after / before)) / num_pictures)
    return Factor(points[-1][0] / num_pictures, ">")
