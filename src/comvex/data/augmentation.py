"""The random changes of training pictures, as settings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Augmentation:
    """How training pictures are changed at random, anew each time they are seen."""

    smallest_crop: float = 1.0
    """Random crops keep at least this share of the area; 1 means no random crops."""
    rotation: float = 10.0
    """Largest rotation, in degrees."""
    translation: float = 0.1
    """Largest shift, as a share of the side."""
    zoom: float = 0.1
    """Largest change of scale, as a share."""
    shear: float = 0.0
    """Largest shear, in degrees."""
    horizontal_flip: float | None = None
    """Probability of a flip. Default: 0.5, or 0 where a mirrored picture means something else (digits)."""
    color_jitter: float = 0.0
    """Largest change of brightness, contrast and saturation, as a share."""
    random_erasing: float | None = None
    """Probability that a rectangle of the picture is blanked. Default: 0.25, or 0 below 16 pixels a side (digits)."""
