"""From a picture to a normalised tensor: the same way for every picture, or with random changes in training.

A picture is an 8-bit Pillow picture or, at full depth, an array (height, width, channels) of float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from comvex.data.augmentation import Augmentation
from comvex.data.crops import INTERPOLATIONS, Cover, MiddleCrop, RandomCrop
from comvex.data.reading import CHANNEL_MODES, ReducibleJpeg
from comvex.errors import UserError
from comvex.preprocessing import check_preprocessing

SMALLEST_ERASED = 16
"""Pixels a side from which random erasing is on by default: in smaller pictures it hides what tells the class."""
ERASED_SCALE = (0.02, 0.25)
"""Smallest and largest share of the picture that a rectangle erased by a constant has."""

Picture = Image.Image | NDArray[np.float32]
Transform = Callable[[Picture], Tensor]
TrainingTransform = Callable[[Picture | ReducibleJpeg], Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """What happens to every picture before a model sees it; travels with the weights."""

    image_size: tuple[int, int]
    """(height, width) in pixels."""
    channels: int
    """1 (grey) or 3 (RGB); at full depth any number."""
    mean: tuple[float, ...]
    """Subtracted from each channel, on the scale from 0 to 1."""
    std: tuple[float, ...]
    """Divides each channel, on the scale from 0 to 1."""
    crop_pct: float = 1.0
    """Share of the resized picture's side that the middle crop keeps; 0.875 for the published models."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How pictures are resized, with antialiasing."""
    full_depth: bool = False
    """Whether pictures are read with all their bits and channels (``data/full_depth.py``), not as 8-bit grey or RGB."""

    def __post_init__(self) -> None:
        if not self.full_depth and self.channels not in CHANNEL_MODES:
            raise UserError(
                f"channels is {self.channels}: pictures of 8 bits are read with 1 (grey) or 3 (RGB) channels."
            )
        if not len(self.mean) == len(self.std) == self.channels > 0:
            raise UserError(f"mean {self.mean} and std {self.std} must have {self.channels} numbers, one a channel.")
        check_preprocessing(self.mean, self.std, self.crop_pct)
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(f"interpolation is {self.interpolation!r}: it must be {' or '.join(INTERPOLATIONS)}.")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of ``to_dict``, also after a way through JSON, which has no tuples."""
        try:
            height, width = values["image_size"]
            optional = {name: values[name] for name in ("crop_pct", "interpolation", "full_depth") if name in values}
            return cls((height, width), values["channels"], tuple(values["mean"]), tuple(values["std"]), **optional)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"The preprocessing of these weights does not say what to do: {error}.") from error

    def transform(self) -> Transform:
        """Resize so that the picture covers the size (antialiased), crop the middle, scale, normalise.

        Maps a picture of ``channels`` channels to a float tensor (channels, height, width). With ``crop_pct`` below 1
        the picture is resized to that much more than the size, as timm's validation does.
        """
        height, width = (math.floor(side / self.crop_pct) for side in self.image_size)
        return T.Compose(
            [*self._start(), Cover(height, width, self.interpolation), T.CenterCrop(self.image_size), *self._finish()]
        )

    def training_transform(self, augmentation: Augmentation, *, mirrored: bool) -> TrainingTransform:
        """As ``transform``, with the random changes of training; what it draws from, ``seeded`` seeds.

        Takes JPEG files too, of which it decodes no more than it needs; resizes more quickly and less exactly.
        ``mirrored`` says whether flipping is right for these pictures if the augmentation leaves that open.

        Raises ``ValueError`` if RandAugment is asked for in words that timm does not know, or at full depth.
        """
        steps = [*self._start(), *self._random_shape(augmentation)]
        flip = flip_probability(augmentation, mirrored=mirrored)
        if flip:
            steps.append(T.RandomHorizontalFlip(flip))
        if augmentation.auto_augment:
            steps.append(self._rand_augment(augmentation.auto_augment))
        elif augmentation.color_jitter:
            jitter = augmentation.color_jitter
            steps.append(JitterValues(jitter) if self.full_depth else T.ColorJitter(jitter, jitter, jitter))
        return T.Compose([*steps, *self._finish(), *self._random_erasing(augmentation)])

    def _random_shape(self, augmentation: Augmentation) -> list[Any]:
        """Random crops, or the middle one, and rotations and the like."""
        height, width = self.image_size
        steps: list[Any] = [MiddleCrop(self.image_size, self.interpolation)]
        if augmentation.smallest_crop < 1:
            scale = (augmentation.smallest_crop, 1.0)
            low, high = (ratio * width / height for ratio in augmentation.crop_ratio)
            steps = [RandomCrop(self.image_size, scale, (low, high), self.interpolation)]
        if augmentation.is_affine:
            fill: Any = list(self.mean) if self.full_depth else self.edge_colour
            affine = T.RandomAffine(
                augmentation.rotation,
                translate=(augmentation.translation, augmentation.translation),
                scale=(1 - augmentation.zoom, 1 + augmentation.zoom),
                shear=augmentation.shear or None,
                interpolation=T.InterpolationMode.BILINEAR,
                fill=fill,
            )
            steps.append(affine)
        return steps

    @property
    def edge_colour(self) -> int | tuple[int, ...]:
        """What comes in at the edges of 8-bit pictures that are turned or moved."""
        return tuple(round(255 * value) for value in self.mean) if self.channels > 1 else 0

    def _rand_augment(self, words: str) -> Any:
        """timm's RandAugment, with what timm's own training transform tells it."""
        if self.full_depth:
            raise UserError(
                f"auto_augment is {words!r}, but these pictures are read at full depth: RandAugment is for pictures "
                'of 8 bits, so auto_augment must be empty ("").'
            )
        from timm.data.auto_augment import rand_augment_transform

        settings = {
            "translate_const": int(min(self.image_size) * 0.45),
            "img_mean": tuple(min(255, round(255 * value)) for value in self.mean),
            "interpolation": Image.Resampling[self.interpolation.upper()],
        }
        try:
            augment = rand_augment_transform(words, settings)
        except (AssertionError, ValueError, KeyError) as error:
            raise UserError(
                f"auto_augment is {words!r}, which timm does not understand: it must be RandAugment, such as "
                "rand-m9-mstd0.5-inc1, or empty."
            ) from error
        for operation in augment.ops:
            if operation.name.startswith("Posterize"):
                operation.level_fn = functools.partial(keep_a_bit, operation.level_fn)
        return augment

    def _random_erasing(self, augmentation: Augmentation) -> list[Any]:
        probability = erasing_probability(augmentation, self.image_size)
        if not probability:
            return []
        if augmentation.erase_with == "constant":
            return [T.RandomErasing(probability, scale=ERASED_SCALE)]
        from timm.data.random_erasing import RandomErasing

        return [RandomErasing(probability, mode="pixel", device="cpu")]

    def _start(self) -> list[Any]:
        return [to_channels_first] if self.full_depth else []

    def _finish(self) -> list[Any]:
        return [Normalize(self.mean, self.std)] if self.full_depth else [ToNormalizedTensor(self.mean, self.std)]


def flip_probability(augmentation: Augmentation, *, mirrored: bool) -> float:
    """How likely a picture is flipped; ``mirrored`` decides where the augmentation leaves it open."""
    return augmentation.horizontal_flip if augmentation.horizontal_flip is not None else 0.5 if mirrored else 0.0


def erasing_probability(augmentation: Augmentation, image_size: tuple[int, int]) -> float:
    """How likely a rectangle of a picture of (height, width) pixels is erased."""
    if augmentation.random_erasing is not None:
        return augmentation.random_erasing
    return 0.25 if min(image_size) >= SMALLEST_ERASED else 0.0


def keep_a_bit(level_function: Callable[..., tuple[int]], level: float, settings: dict[str, Any]) -> tuple[int]:
    """How many bits posterizing keeps: timm's number, at least one.

    At the full magnitude of 10 timm asks for none, which Pillow 13 refuses and others answer with a black picture.
    """
    [bits] = level_function(level, settings)
    return (max(1, bits),)


class ToNormalizedTensor:
    """An 8-bit picture as a float tensor (channels, height, width), less the mean, divided by the deviation.

    The same as torchvision's ToTensor and Normalize, at a third of their cost.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]

    def __call__(self, picture: Image.Image) -> Tensor:
        return self.of_bytes(torch.from_numpy(np.array(picture)).view(picture.height, picture.width, -1))

    def of_bytes(self, values: Tensor) -> Tensor:
        """8-bit values (..., height, width, channels) -> (..., channels, height, width)."""
        channels_first = values.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format)
        return channels_first.div_(255).sub_(self.mean).div_(self.std)


def to_channels_first(values: NDArray[np.float32]) -> Tensor:
    """An array (height, width, channels) as a tensor (channels, height, width) of its own."""
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


class Normalize:
    """A float tensor (channels, height, width) less the mean, divided by the deviation."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]

    def __call__(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.std


class JitterValues:
    """Random brightness and contrast of a float tensor of any number of channels, by up to a share; no value is cut."""

    def __init__(self, largest: float) -> None:
        self.largest = largest

    def __call__(self, values: Tensor) -> Tensor:
        brightness, contrast = (1 + self.largest * (2 * torch.rand(2) - 1)).clamp(min=0).tolist()
        mean = values.mean()
        return brightness * (mean + contrast * (values - mean))
