"""From a picture's own size to the model's, quickly and at random for training.

A JPEG file is decoded no finer than needed and resized by PyTorch's 8-bit kernel, whose pixels differ from Pillow's by
one level here and there (docs/input-side.md).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms.v2 import functional as F

from comvex.data.cover import Cover, Middle, Part, size_of
from comvex.data.reading import ReducibleJpeg

SPARE = 2
"""How many times finer than it is shown at least a JPEG file is decoded for training, if it is that fine itself: with
less, reduced pictures would differ more from whole ones."""
REDUCTIONS = (8, 4, 2)
"""By what libjpeg can divide the sides of a picture, besides 1."""


class MiddleCrop:
    """The middle of a picture at (height, width): what ``Cover`` and a middle crop show, resized quickly."""

    def __init__(self, size: tuple[int, int], interpolation: str) -> None:
        self.cover = Cover(*size, interpolation)
        self.crop = Middle(*size)

    def __call__(self, picture: Any) -> Any:
        """Takes a Pillow picture, a JPEG file or a float tensor (channels, height, width)."""
        if isinstance(picture, Tensor):
            return self.crop(self.cover(picture))
        return self.crop(resized_part(picture, *self.drawn(size_of(picture)), self.cover.interpolation))

    def drawn(self, size: tuple[int, int]) -> tuple[Part, tuple[int, int]]:
        """Which part of a picture of (height, width) pixels is resized, and to what (height, width)."""
        part = self.cover.without_ends(size)
        return part, self.cover.covering(part)


class RandomCrop(T.RandomResizedCrop):
    """torchvision's random crop, drawn from the size of the whole picture and resized quickly."""

    def __init__(
        self, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], interpolation: str
    ) -> None:
        super().__init__(size, scale, ratio, T.InterpolationMode(interpolation))
        self.quick_interpolation = interpolation

    def forward(self, img: Any) -> Any:
        """Takes a Pillow picture, a JPEG file or a float tensor (channels, height, width)."""
        if isinstance(img, Tensor):
            return super().forward(img)
        return resized_part(img, *self.drawn(size_of(img)), self.quick_interpolation)

    def drawn(self, size: tuple[int, int]) -> tuple[Part, tuple[int, int]]:
        """Which part of a picture of (height, width) pixels is resized, drawn anew, and to what (height, width)."""
        height, width = self.size
        # of the picture, torchvision looks at nothing but its size
        return self.get_params(torch.empty(()).expand(1, *size), list(self.scale), list(self.ratio)), (height, width)


def resized_part(
    picture: Image.Image | ReducibleJpeg, part: Part, size: tuple[int, int], interpolation: str
) -> Image.Image:
    """A part of a picture at (height, width), of a JPEG file decoded no finer than needed."""
    if isinstance(picture, Image.Image):
        whole = picture
    else:
        reduction = largest_reduction(part[2:], size)
        whole, part = picture.decode(reduction=reduction), on_reduced_pixels(part, reduction)
    top, left, height, width = part
    if (height, width) != size_of(whole):
        whole = whole.crop((left, top, left + width, top + height))
    return quickly_resized(whole, size, interpolation)


def on_reduced_pixels(part: Part, reduction: int) -> Part:
    """The pixels of a picture whose sides are divided that lie wholly in a part of the undivided one.

    They leave out less than one such pixel at each edge, of the ``SPARE`` or more for each that is shown.
    """
    top, left, height, width = part
    bottom, right = (top + height) // reduction, (left + width) // reduction
    top, left = -(-top // reduction), -(-left // reduction)
    return top, left, bottom - top, right - left


def largest_reduction(have: Sequence[int], wanted: Sequence[int]) -> int:
    """By how much the sides (height, width) of a JPEG picture may be divided when it is decoded: 1, 2, 4 or 8."""
    for reduction in REDUCTIONS:
        if all(side >= SPARE * reduction * shown for side, shown in zip(have, wanted, strict=True)):
            return reduction
    return 1


def quickly_resized(picture: Image.Image, size: Sequence[int], interpolation: str) -> Image.Image:
    """An 8-bit picture at (height, width), antialiased: Pillow's filter in whole numbers, several times faster."""
    height, width = size
    if (height, width) == (picture.height, picture.width):
        return picture
    values = torch.from_numpy(np.array(picture)).view(picture.height, picture.width, -1).permute(2, 0, 1)
    resized = F.resize(values, [height, width], T.InterpolationMode(interpolation), antialias=True)
    channels_last = resized.permute(1, 2, 0).contiguous().numpy()  # (height, width, channels)
    return Image.fromarray(channels_last[:, :, 0] if picture.mode == "L" else channels_last)
