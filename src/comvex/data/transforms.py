"""From a Pillow picture to a normalised tensor: the same way for every picture, or with random changes in training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from comvex.data.augmentation import Augmentation
from comvex.data.reading import CHANNEL_MODES
from comvex.errors import UserError
from comvex.preprocessing import check_preprocessing

SMALLEST_ERASED = 16
"""Pixels a side from which random erasing is on by default: in smaller pictures it hides what tells the class."""


@dataclass(frozen=True)
class Preprocessing:
    """What happens to every picture before a model sees it; travels with the weights."""

    image_size: tuple[int, int]
    """(height, width) in pixels."""
    channels: int
    """1 (grey) or 3 (RGB)."""
    mean: tuple[float, ...]
    """Subtracted from each channel, on the scale from 0 to 1."""
    std: tuple[float, ...]
    """Divides each channel, on the scale from 0 to 1."""
    crop_pct: float = 1.0
    """Share of the resized picture's side that the middle crop keeps; 0.875 for the published models."""

    def __post_init__(self) -> None:
        if self.channels not in CHANNEL_MODES:
            raise UserError(f"channels is {self.channels}: pictures are read with 1 (grey) or 3 (RGB) channels.")
        if not len(self.mean) == len(self.std) == self.channels:
            raise UserError(f"mean {self.mean} and std {self.std} must have {self.channels} numbers, one a channel.")
        check_preprocessing(self.mean, self.std, self.crop_pct)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of ``to_dict``, also after a way through JSON, which has no tuples."""
        try:
            height, width = values["image_size"]
            mean, std = tuple(values["mean"]), tuple(values["std"])
            return cls((height, width), values["channels"], mean, std, values.get("crop_pct", 1.0))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"The preprocessing of these weights does not say what to do: {error}.") from error

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """Resize so that the picture covers the size (bicubic, antialiased), crop the middle, scale, normalise.

        Maps an 8-bit picture of ``channels`` channels to a float tensor (channels, height, width). With ``crop_pct``
        below 1 the picture is resized to that much more than the size, as timm's validation does.
        """
        height, width = (math.floor(side / self.crop_pct) for side in self.image_size)
        return T.Compose([Cover(height, width), T.CenterCrop(self.image_size), *self._to_tensor()])

    def training_transform(self, augmentation: Augmentation, *, mirrored: bool) -> Callable[[Image.Image], Tensor]:
        """As ``transform``, with the random changes of training; they draw from torch's CPU generator alone.

        ``mirrored`` says whether flipping is right for these pictures if the augmentation leaves that open.
        """
        steps: list[Any] = []
        fill: Any = [round(255 * value) for value in self.mean] if self.channels > 1 else 0
        if augmentation.smallest_crop < 1:
            height, width = self.image_size
            scale = (augmentation.smallest_crop, 1.0)
            ratio = (3 / 4 * width / height, 4 / 3 * width / height)  # torchvision's, around the model's own shape
            steps.append(T.RandomResizedCrop((height, width), scale, ratio, T.InterpolationMode.BICUBIC))
        else:
            steps += [Cover(*self.image_size), T.CenterCrop(self.image_size)]
        if augmentation.rotation or augmentation.translation or augmentation.zoom or augmentation.shear:
            affine = T.RandomAffine(
                augmentation.rotation,
                translate=(augmentation.translation, augmentation.translation),
                scale=(1 - augmentation.zoom, 1 + augmentation.zoom),
                shear=augmentation.shear or None,
                interpolation=T.InterpolationMode.BILINEAR,
                fill=fill,
            )
            steps.append(affine)
        flip = augmentation.horizontal_flip
        if flip is None:
            flip = 0.5 if mirrored else 0.0
        if flip:
            steps.append(T.RandomHorizontalFlip(flip))
        if augmentation.color_jitter:
            steps.append(T.ColorJitter(*[augmentation.color_jitter] * 3))
        steps += self._to_tensor()
        erasing = augmentation.random_erasing
        if erasing is None:
            erasing = 0.25 if min(self.image_size) >= SMALLEST_ERASED else 0.0
        if erasing:
            steps.append(T.RandomErasing(erasing, scale=(0.02, 0.25)))
        return T.Compose(steps)

    def _to_tensor(self) -> list[Any]:
        return [ToNormalizedTensor(self.mean, self.std)]


class ToNormalizedTensor:
    """An 8-bit picture as a float tensor (channels, height, width), less the mean, divided by the deviation.

    The same as torchvision's ToTensor and Normalize, at a third of their cost.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]

    def __call__(self, picture: Image.Image) -> Tensor:
        values = torch.from_numpy(np.array(picture)).view(picture.height, picture.width, -1)
        channels_first = values.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
        return channels_first.div_(255).sub_(self.mean).div_(self.std)


@dataclass(frozen=True)
class Cover:
    """Resizes a picture to the smallest size with its own aspect ratio that covers (height, width)."""

    height: int
    width: int

    def __call__(self, picture: Image.Image) -> Image.Image:
        height, width = self.height, self.width
        if height * picture.width >= width * picture.height:  # wider than the size wanted: the height decides
            width = height * picture.width // picture.height
        else:
            height = width * picture.height // picture.width
        size = (width, height)
        return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)
