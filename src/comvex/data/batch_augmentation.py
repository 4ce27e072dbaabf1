"""Small pictures in memory, augmented a batch at a time: the same tensors as one by one, at a tenth of the cost.

What is drawn for a picture comes from its own seed, in the order in which torchvision's transforms draw it, so neither
the other pictures of the batch nor their number change anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from comvex.data.augmentation import Augmentation
from comvex.data.training_transforms import (
    ERASED_SCALE,
    affine_changes,
    edge_colour,
    erasing_probability,
    flip_probability,
)
from comvex.data.transforms import Preprocessing, ToNormalizedTensor


@dataclass(frozen=True)
class BatchAugmentation:
    """Affine changes, flips and constant erasing of pictures that have the model's size and channels already."""

    preprocessing: Preprocessing
    augmentation: Augmentation
    mirrored: bool

    def fits(self, pictures: object) -> bool:
        """Whether these pictures need nothing else: 8-bit ones in memory, no random crops, no changes of colour."""
        preprocessing, augmentation = self.preprocessing, self.augmentation
        channels = () if preprocessing.channels == 1 else (preprocessing.channels,)
        return (
            isinstance(pictures, np.ndarray)
            and pictures.shape[1:] == (*preprocessing.image_size, *channels)
            and not preprocessing.full_depth
            and augmentation.smallest_crop == 1
            and not augmentation.auto_augment
            and not augmentation.color_jitter
            and augmentation.erase_with == "constant"
        )

    def __call__(self, pictures: NDArray[np.uint8], seeds: Sequence[int]) -> Tensor:
        """Pictures (B, height, width) or (B, height, width, 3), each with a seed -> (B, channels, height, width)."""
        flip = flip_probability(self.augmentation, mirrored=self.mirrored)
        erase = erasing_probability(self.augmentation, self.preprocessing.image_size)
        affine = self._affine_ranges()
        num_affine = len(affine)
        with torch.random.fork_rng(devices=[]):
            drawn, erased = self._draw(seeds, [*affine, *[(0.0, 1.0)] * (bool(flip) + bool(erase))], erase)
        if num_affine:
            pictures = warp(
                pictures, self._matrices(drawn[:, :num_affine]), fill=edge_colour(self.preprocessing)
            )  # fmt: skip
        if flip:
            flipped = drawn[:, num_affine] < np.float32(flip)
            pictures = np.where(flipped.reshape(-1, *[1] * (pictures.ndim - 1)), pictures[:, :, ::-1], pictures)
        values = torch.from_numpy(pictures).view(*pictures.shape[:3], self.preprocessing.channels)
        tensors = ToNormalizedTensor(self.preprocessing.mean, self.preprocessing.std).of_bytes(values)
        for number, (top, left, height, width) in erased:
            tensors[number, :, top : top + height, left : left + width] = 0
        return tensors

    def _affine_ranges(self) -> list[tuple[float, float]]:
        """Between what angle, shifts to the right and down, scale and, if there is any, shear are drawn; or nothing."""
        height, width = self.preprocessing.image_size
        changes = affine_changes(self.augmentation, (height, width))
        if not any(changes):
            return []
        right, down = changes.translation * width, changes.translation * height
        ranges = [
            (-changes.rotation, changes.rotation), (-right, right), (-down, down), (1 - changes.zoom, 1 + changes.zoom)
        ]  # fmt: skip
        return [*ranges, (-changes.shear, changes.shear)] if changes.shear else ranges

    def _draw(
        self, seeds: Sequence[int], ranges: Sequence[tuple[float, float]], erase: float
    ) -> tuple[NDArray[np.float32], list[tuple[int, tuple[int, int, int, int]]]]:
        """Numbers in the ranges, (B, len(ranges)), and the erased pictures, each with (top, left, height, width).

        The last number of a row decides whether a picture is erased, and its rectangle is drawn after them. Each number
        is drawn by itself and in its range, as torchvision does: to scale all of them afterwards would be rounded
        otherwise on processors that multiply and add at once.
        """
        drawn = torch.empty(len(seeds), len(ranges))
        erased = []
        shape = torch.empty(1, *self.preprocessing.image_size)
        for number, (seed, row) in enumerate(zip(seeds, drawn.unbind(), strict=True)):
            torch.default_generator.manual_seed(seed)
            for cell, (low, high) in zip(row.unbind(), ranges, strict=True):
                cell.uniform_(low, high)
            if erase and row[-1] < erase:
                top, left, height, width, _ = T.RandomErasing.get_params(shape, ERASED_SCALE, (0.3, 3.3), [0.0])
                if height < shape.shape[1]:  # else torchvision has found none that fits, and erases nothing
                    erased.append((number, (top, left, height, width)))
        return drawn.numpy(), erased

    def _matrices(self, drawn: NDArray[np.float32]) -> NDArray[np.float64]:
        """The inverse affine maps (B, 6), from where a picture's pixel goes to where it comes from.

        ``drawn`` (B, 4 or 5): angle in degrees, shifts in pixels to the right and down, scale, shear in degrees.
        """
        height, width = self.preprocessing.image_size
        angle, right, down, scale, *shears = drawn.T.astype(np.float64)
        right, down = np.rint(right), np.rint(down)
        cos, sin = (each(function, np.radians(angle)) for function in (math.cos, math.sin))
        shear = each(math.tan, np.radians(shears[0])) if shears else 0.0
        # The rotation times the shear has determinant 1, so that its inverse has the same entries
        across = [(cos - sin * shear) / scale, (cos * shear + sin) / scale]
        along = [-sin / scale, cos / scale]
        middle_x, middle_y = width / 2, height / 2
        shifts = [
            row[0] * (-middle_x - right) + row[1] * (-middle_y - down) + middle
            for row, middle in ((across, middle_x), (along, middle_y))
        ]
        return np.stack([*across, shifts[0], *along, shifts[1]], axis=1)


def each(function: Callable[[float], float], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A function of the standard library, of every value (B,); the last digit of NumPy's depends on the processor."""
    return np.array([function(value) for value in values.tolist()], np.float64)


def warp(
    pictures: NDArray[np.uint8], matrices: Iterable[NDArray[np.float64]], *, fill: int | tuple[int, ...]
) -> NDArray[np.uint8]:
    """Each picture (height, width) or (height, width, 3) through its inverse affine map, bilinearly, by Pillow."""
    num, height, width = pictures.shape[:3]
    column = Image.new("L" if pictures.ndim == 3 else "RGB", (width, num * height))  # read once, which is cheaper
    for number, (picture, matrix) in enumerate(zip(pictures, matrices, strict=True)):
        warped = Image.fromarray(picture).transform(
            (width, height), Image.Transform.AFFINE, matrix.tolist(), Image.Resampling.BILINEAR, fillcolor=fill
        )
        column.paste(warped, (0, number * height))
    return np.array(column).reshape(pictures.shape)
