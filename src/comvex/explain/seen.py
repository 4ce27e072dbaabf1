"""A picture as a model sees it: the part that its preprocessing keeps, ready to be shown and to be asked about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from comvex.data.transforms import Preprocessing
from comvex.inference.predictor import Picture, Prediction, Predictor

LARGEST_SHOWN = 768
"""Pixels of the longer side of what is shown; a photograph of 12 megapixels is made this small first."""


@dataclass(frozen=True)
class SeenPicture:
    """A picture that a model has looked at."""

    name: str
    shown: Image.Image
    """What the model sees of it, 8-bit grey or RGB, at up to ``LARGEST_SHOWN`` pixels; it covers whole patches."""
    inputs: Tensor
    """(1, C, height, width), what the model gets."""
    predictions: list[Prediction]
    """The most probable classes, best first."""


def see(predictor: Predictor, picture: Picture, *, name: str | None = None, top: int = 5) -> SeenPicture:
    """Read a picture as the model wants it and classify it; ``name`` is by default that of the file.

    Raises ``ValueError`` for what is no picture or cannot be read.
    """
    if name is None:
        name = Path(picture).name if isinstance(picture, str | Path) else "picture"
    values = predictor.read(picture)
    inputs = predictor.transform(values)[None]
    shown = shown_part(as_8_bit(values), predictor.preprocessing)
    return SeenPicture(
        name=name,
        shown=to_whole_patches(shown, inputs, predictor.model.config.patch_size),
        inputs=inputs,
        predictions=predictor.predict(values, top=top)[0],
    )


def as_8_bit(values: Image.Image | NDArray[np.float32]) -> Image.Image:
    """A picture to show: an array (height, width, channels) by its own range; of other than 3 channels the first."""
    if isinstance(values, Image.Image):
        return values
    kept = values if values.shape[2] == 3 else values[..., 0]
    low, high = float(kept.min()), float(kept.max())
    return Image.fromarray(np.round((kept - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))


def shown_part(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The middle that resizing and cropping keep, to within a pixel of the model's, in the picture's own sharpness."""
    covered = [side / preprocessing.crop_pct for side in preprocessing.image_size]
    scale = max(covered[0] / picture.height, covered[1] / picture.width)
    height, width = (side / scale for side in preprocessing.image_size)
    left, top = max(0.0, (picture.width - width) / 2), max(0.0, (picture.height - height) / 2)
    zoom = min(1.0, LARGEST_SHOWN / max(height, width))
    size = max(1, round(zoom * width)), max(1, round(zoom * height))
    box = (left, top, min(picture.width, left + width), min(picture.height, top + height))
    return picture.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3)


def to_whole_patches(shown: Image.Image, inputs: Tensor, patch_size: int) -> Image.Image:
    """With the black right and bottom edge that a model made with ``pad_to_patch`` adds, if its patches need one."""
    height, width = inputs.shape[-2:]
    across, down = (-(-side // patch_size) * patch_size / side for side in (width, height))
    return shown.crop((0, 0, round(shown.width * across), round(shown.height * down)))
