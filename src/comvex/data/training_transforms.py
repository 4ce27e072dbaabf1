"""From a picture to a normalised tensor, with the random changes of training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from comvex.data.augmentation import Augmentation
from comvex.data.crops import MiddleCrop, RandomCrop
from comvex.data.reading import ReducibleJpeg
from comvex.data.transforms import Picture, Preprocessing
from comvex.errors import UserError

TINY = 16
"""Pixels a side below which other changes suit by default: erasing hides what tells the class, small turns do not."""
ERASED_SCALE = (0.02, 0.25)
"""Smallest and largest share of the picture that a rectangle erased by a constant has."""

TrainingTransform = Callable[[Picture | ReducibleJpeg], Tensor]


def training_transform(
    preprocessing: Preprocessing, augmentation: Augmentation, *, mirrored: bool
) -> TrainingTransform:
    """As ``preprocessing.transform()``, with the random changes of training; what it draws from, ``seeded`` seeds.

    Takes JPEG files too, of which it decodes no more than it needs; resizes more quickly and less exactly.
    ``mirrored`` says whether flipping is right for these pictures if the augmentation leaves that open.

    Raises ``ValueError`` if RandAugment is asked for in words that timm does not know, or at full depth.
    """
    steps = [*preprocessing.first_steps(), *random_shape(preprocessing, augmentation)]
    flip = flip_probability(augmentation, mirrored=mirrored)
    if flip:
        steps.append(T.RandomHorizontalFlip(flip))
    if augmentation.auto_augment:
        steps.append(rand_augment(preprocessing, augmentation.auto_augment))
    elif augmentation.color_jitter:
        jitter = augmentation.color_jitter
        steps.append(JitterValues(jitter) if preprocessing.full_depth else T.ColorJitter(jitter, jitter, jitter))
    return T.Compose([*steps, *preprocessing.last_steps(), *random_erasing(preprocessing, augmentation)])


def random_shape(preprocessing: Preprocessing, augmentation: Augmentation) -> list[Any]:
    """Random crops, or the middle one, and rotations and the like."""
    height, width = preprocessing.image_size
    steps: list[Any] = [MiddleCrop(preprocessing.image_size, preprocessing.interpolation)]
    if augmentation.smallest_crop < 1:
        scale = (augmentation.smallest_crop, 1.0)
        low, high = (ratio * width / height for ratio in augmentation.crop_ratio)
        steps = [RandomCrop(preprocessing.image_size, scale, (low, high), preprocessing.interpolation)]
    affine = affine_changes(augmentation, preprocessing.image_size)
    if any(affine):
        fill: Any = list(preprocessing.mean) if preprocessing.full_depth else edge_colour(preprocessing)
        steps.append(
            T.RandomAffine(
                affine.rotation,
                translate=(affine.translation, affine.translation),
                scale=(1 - affine.zoom, 1 + affine.zoom),
                shear=affine.shear or None,
                interpolation=T.InterpolationMode.BILINEAR,
                fill=fill,
            )
        )
    return steps


def edge_colour(preprocessing: Preprocessing) -> int | tuple[int, ...]:
    """What comes in at the edges of 8-bit pictures that are turned or moved."""
    return tuple(round(255 * value) for value in preprocessing.mean) if preprocessing.channels > 1 else 0


def rand_augment(preprocessing: Preprocessing, words: str) -> Any:
    """timm's RandAugment, with what timm's own training transform tells it."""
    if preprocessing.full_depth:
        raise UserError(
            f"auto_augment is {words!r}, but these pictures are read at full depth: RandAugment is for pictures "
            'of 8 bits, so auto_augment must be empty ("").'
        )
    from timm.data.auto_augment import rand_augment_transform

    settings = {
        "translate_const": int(min(preprocessing.image_size) * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in preprocessing.mean),
        "interpolation": Image.Resampling[preprocessing.interpolation.upper()],
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


def random_erasing(preprocessing: Preprocessing, augmentation: Augmentation) -> list[Any]:
    probability = erasing_probability(augmentation, preprocessing.image_size)
    if not probability:
        return []
    if augmentation.erase_with == "constant":
        return [T.RandomErasing(probability, scale=ERASED_SCALE)]
    from timm.data.random_erasing import RandomErasing

    return [RandomErasing(probability, mode="pixel", device="cpu")]


class Affine(NamedTuple):
    """The largest rotation (degrees), shift (share of the side), change of scale (share) and shear (degrees)."""

    rotation: float
    translation: float
    zoom: float
    shear: float


def affine_changes(augmentation: Augmentation, image_size: tuple[int, int]) -> Affine:
    """How pictures of (height, width) pixels are turned, moved, zoomed and sheared; all 0 if they are not."""
    tiny = min(image_size) < TINY
    return Affine(
        rotation=augmentation.rotation if augmentation.rotation is not None else 10.0 if tiny else 0.0,
        translation=augmentation.translation if augmentation.translation is not None else 0.1 if tiny else 0.08,
        zoom=augmentation.zoom if augmentation.zoom is not None else 0.1 if tiny else 0.0,
        shear=augmentation.shear,
    )


def flip_probability(augmentation: Augmentation, *, mirrored: bool) -> float:
    """How likely a picture is flipped; ``mirrored`` decides where the augmentation leaves it open."""
    return augmentation.horizontal_flip if augmentation.horizontal_flip is not None else 0.5 if mirrored else 0.0


def erasing_probability(augmentation: Augmentation, image_size: tuple[int, int]) -> float:
    """How likely a rectangle of a picture of (height, width) pixels is erased."""
    if augmentation.random_erasing is not None:
        return augmentation.random_erasing
    return 0.25 if min(image_size) >= TINY else 0.0


def keep_a_bit(level_function: Callable[..., tuple[int]], level: float, settings: dict[str, Any]) -> tuple[int]:
    """How many bits posterizing keeps: timm's number, at least one.

    At the full magnitude of 10 timm asks for none, which Pillow 13 refuses and others answer with a black picture.
    """
    [bits] = level_function(level, settings)
    return (max(1, bits),)


class JitterValues:
    """Random brightness and contrast of a float tensor of any number of channels, by up to a share; no value is cut."""

    def __init__(self, largest: float) -> None:
        self.largest = largest

    def __call__(self, values: Tensor) -> Tensor:
        brightness, contrast = (1 + self.largest * (2 * torch.rand(2) - 1)).clamp(min=0).tolist()
        mean = values.mean()
        return brightness * (mean + contrast * (values - mean))
