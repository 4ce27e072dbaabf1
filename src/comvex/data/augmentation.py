"""The random changes of training pictures, as settings."""

from dataclasses import dataclass
from typing import Annotated, Literal

from comvex.errors import UserError
from comvex.help import DEFAULT_TOLD

PROBABILITIES = ("horizontal_flip", "random_erasing")


@dataclass(frozen=True)
class Augmentation:
    """How training pictures are changed at random, anew each time they are seen."""

    smallest_crop: float = 1.0
    """Random crops keep at least this share of the area; 1 means no random crops."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Narrowest and widest random crop: width by height, as a multiple of the model's own."""
    rotation: Annotated[float | None, DEFAULT_TOLD] = None
    """Largest rotation, in degrees. Default: 0, or 10 below 16 pixels a side (digits)."""
    translation: Annotated[float | None, DEFAULT_TOLD] = None
    """Largest shift, as a share of the side. Default: 0.08, or 0.1 below 16 pixels a side (digits)."""
    zoom: Annotated[float | None, DEFAULT_TOLD] = None
    """Largest change of scale, as a share. Default: 0, or 0.1 below 16 pixels a side (digits)."""
    shear: float = 0.0
    """Largest shear, in degrees."""
    horizontal_flip: Annotated[float | None, DEFAULT_TOLD] = None
    """Probability of a flip. Default: 0.5, or 0 where a mirrored picture means something else (digits)."""
    auto_augment: str = ""
    """RandAugment (Cubuk et al. 2020) in timm's words, such as rand-m9-mstd0.5-inc1; empty for none. For 8-bit
    pictures."""
    color_jitter: float = 0.0
    """Largest change of brightness, contrast and saturation, as a share. Left out where auto_augment is, as in timm."""
    random_erasing: Annotated[float | None, DEFAULT_TOLD] = None
    """Probability that a rectangle of the picture is erased. Default: 0.25, or 0 below 16 pixels a side (digits)."""
    erase_with: Literal["constant", "noise"] = "constant"
    """What an erased rectangle is filled with: the mean, or noise in every pixel."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop_ratio", tuple(self.crop_ratio))  # a list after a way through JSON
        if not 0 < self.smallest_crop <= 1:
            raise UserError(f"smallest_crop is {self.smallest_crop}: it must lie in (0, 1].")
        if len(self.crop_ratio) != 2 or not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise UserError(f"crop_ratio is {self.crop_ratio}: it must be two positive numbers, the smaller one first.")
        for name in PROBABILITIES:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} is {value}: it must lie in [0, 1].")
        for name in ("rotation", "translation", "zoom", "shear", "color_jitter"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"{name} is {value}: it must not be negative.")
            if value is not None and name in ("translation", "zoom") and value >= 1:
                raise UserError(f"{name} is {value}: it must be less than 1.")
        if self.auto_augment and not self.auto_augment.startswith("rand"):
            raise UserError(
                f"auto_augment is {self.auto_augment!r}: it must be RandAugment, as in rand-m9-mstd0.5, or empty."
            )
        if self.erase_with not in ("constant", "noise"):
            raise UserError(f"erase_with is {self.erase_with!r}: it must be constant or noise.")
