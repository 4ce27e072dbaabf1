"""Attention laid over a picture: the picture in pale grey, and the more of one colour the more attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLOUR = np.array([0xD5, 0x5E, 0x00]) / 255
"""Vermilion of Okabe and Ito's palette; against grey it is told apart with any kind of colour vision."""
PALEST, STRONGEST = 0.4, 0.85
"""Lightness that black becomes, so that the picture stays behind; share of the colour at the map's largest value."""


def attention_over(picture: Image.Image, weights: NDArray[Any], *, smooth: bool = False) -> Image.Image:
    """The picture under ``weights`` (H, W) >= 0; RGB, of the picture's size.

    Each patch is a rectangle of one colour, from none at 0 to the fullest at the largest weight; with ``smooth`` the
    colours run into each other. A flat map is one even colour, so that it is not taken for one with a peak.
    """
    values = np.asarray(weights, dtype=np.float32)
    scaled = Image.fromarray(values / max(float(values.max()), 1e-12))
    way = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    share = STRONGEST * np.asarray(scaled.resize(picture.size, way)).clip(0, 1)[..., None]  # (height, width, 1)
    grey = PALEST + (1 - PALEST) * np.asarray(picture.convert("L"))[..., None] / 255
    return Image.fromarray(np.round(255 * ((1 - share) * grey + share * COLOUR)).astype(np.uint8))
