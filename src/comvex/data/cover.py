"""From a picture's own size to the model's, exactly: as evaluation and prediction see it.

Pillow resizes, to the bit as timm does. torchvision is imported for pictures of full depth alone: it takes as long to
import as PyTorch itself.
"""

import math
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from comvex.data.reading import ReducibleJpeg

LONGEST = 16
"""A picture this many times longer than the model's shape loses its ends before it is resized, which would make it
huge; the middle crop removes them in any case."""
INTERPOLATIONS = ("bicubic", "bilinear")

Part = tuple[int, int, int, int]
"""(top, left, height, width) in pixels."""


@dataclass(frozen=True)
class Cover:
    """Resizes a picture to the smallest size with its own aspect ratio that covers (height, width)."""

    height: int
    width: int
    interpolation: str = "bicubic"

    def __call__(self, picture: Any) -> Any:
        """Takes and gives an 8-bit Pillow picture, or a float tensor (channels, height, width)."""
        size = size_of(picture)
        _, _, height, width = part = self.without_ends(size)
        if (height, width) != size:
            picture = cropped(picture, part)
        height, width = self.covering(part)
        if (height, width) == size_of(picture):
            return picture
        if isinstance(picture, Image.Image):
            return picture.resize((width, height), Image.Resampling[self.interpolation.upper()])
        from torchvision.transforms.v2 import functional as F

        return F.resize(picture, [height, width], F.InterpolationMode(self.interpolation), antialias=True)

    def without_ends(self, size: tuple[int, int]) -> Part:
        """The middle of a picture that is very much longer than the size's shape; all of any other."""
        have_height, have_width = size
        height = min(have_height, math.ceil(LONGEST * have_width * self.height / self.width))
        width = min(have_width, math.ceil(LONGEST * have_height * self.width / self.height))
        return round((have_height - height) / 2), round((have_width - width) / 2), height, width

    def covering(self, part: Part) -> tuple[int, int]:
        """The smallest (height, width) that covers the size and has the shape of the part."""
        _, _, have_height, have_width = part
        if self.height * have_width >= self.width * have_height:  # wider than the size wanted: the height decides
            return self.height, self.height * have_width // have_height
        return self.width * have_height // have_width, self.width


@dataclass(frozen=True)
class Middle:
    """The middle of (height, width) of a picture that covers it."""

    height: int
    width: int

    def __call__(self, picture: Any) -> Any:
        """Takes and gives an 8-bit Pillow picture, or a float tensor (channels, height, width)."""
        have_height, have_width = size_of(picture)
        top, left = round((have_height - self.height) / 2), round((have_width - self.width) / 2)
        return cropped(picture, (top, left, self.height, self.width))


def cropped(picture: Any, part: Part) -> Any:
    """A part of a Pillow picture or of a tensor (channels, height, width)."""
    top, left, height, width = part
    if isinstance(picture, Image.Image):
        return picture.crop((left, top, left + width, top + height))
    return picture[:, top : top + height, left : left + width]


def size_of(picture: Image.Image | ReducibleJpeg | Tensor) -> tuple[int, int]:
    """(height, width) in pixels."""
    if isinstance(picture, Image.Image):
        return picture.height, picture.width
    if isinstance(picture, ReducibleJpeg):
        return picture.size
    return picture.shape[-2], picture.shape[-1]
