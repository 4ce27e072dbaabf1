"""What the parts must agree on about preparing pictures: ImageNet's figures, and which values are possible."""

from __future__ import annotations

import math
from collections.abc import Iterable

from comvex.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training pictures, for each of red, green and blue, on the scale from 0 to 1."""
IMAGENET_CROP_PCT = 0.875
"""Share of the resized picture's side that the published models see: 224 of 256 pixels."""


def check_preprocessing(mean: Iterable[float], std: Iterable[float], crop_pct: float) -> None:
    """Raises ``ValueError`` for a mean or deviation that is no finite number, a deviation or crop that is not possible.

    ``mean`` and ``std`` have a number for each channel, on the scale from 0 to 1; ``crop_pct`` lies in (0, 1].
    """
    for name, numbers in (("mean", mean), ("std", std)):
        if not all(is_number(number) for number in numbers):
            raise UserError(f"{name} is {numbers!r}: it must have a number for each channel.")
    if not all(number > 0 for number in std):
        raise UserError(f"std is {std!r}: its numbers must be positive.")
    if not is_number(crop_pct) or not 0 < crop_pct <= 1:
        raise UserError(f"crop_pct is {crop_pct!r}: it must lie in (0, 1].")


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
