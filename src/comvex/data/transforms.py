"""From a picture to a normalised tensor, the same way for every picture.

A picture is an 8-bit Pillow picture or, at full depth, an array (height, width, channels) of float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from comvex.data.cover import INTERPOLATIONS, Cover, Middle
from comvex.data.reading import CHANNEL_MODES
from comvex.errors import UserError
from comvex.preprocessing import check_preprocessing

Picture = Image.Image | NDArray[np.float32]
Transform = Callable[[Picture], Tensor]


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
        if min(self.image_size) < 1:
            raise UserError(f"image_size is {self.image_size}: each side must be at least 1 pixel.")
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
        resize = [Cover(height, width, self.interpolation), Middle(*self.image_size)]
        return Steps((*self.first_steps(), *resize, *self.last_steps()))

    def first_steps(self) -> list[Callable[[Any], Any]]:
        """What happens to a picture before it is resized."""
        return [to_channels_first] if self.full_depth else []

    def last_steps(self) -> list[Callable[[Any], Any]]:
        """What makes a normalised tensor of a picture that has its size."""
        return [Normalize(self.mean, self.std)] if self.full_depth else [ToNormalizedTensor(self.mean, self.std)]


@dataclass(frozen=True)
class Steps:
    """One step after the other."""

    steps: tuple[Callable[[Any], Any], ...]

    def __call__(self, picture: Any) -> Any:
        for step in self.steps:
            picture = step(picture)
        return picture


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
