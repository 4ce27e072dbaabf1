"""Pictures with what the model says of them and where it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from comvex.explain.overlay import attention_over
from comvex.plotting import BLUE, GREY, VERMILION, new_figure


@dataclass(frozen=True)
class Exhibit:
    """A picture, where the class token looks in it (H, W), the most probable classes, and the true one."""

    picture: Image.Image
    attention: NDArray[np.float32]
    labels: Sequence[str]
    probabilities: Sequence[float]
    truth: str


def draw_gallery(exhibits: Sequence[Exhibit], file: Path, *, title: str) -> None:
    """A column for each exhibit: the picture, the class token's attention over it, and the probabilities."""
    with new_figure(file, size=(1.35 * len(exhibits) + 0.6, 4.6)) as figure:
        axes = figure.subplots(3, len(exhibits), squeeze=False, height_ratios=(1, 1, 0.9))
        for column, exhibit in zip(axes.T, exhibits, strict=True):
            draw_picture(column[0], exhibit.picture)
            column[0].set_title(exhibit.truth, loc="center")
            draw_attention(column[1], exhibit.picture, exhibit.attention)
            draw_probabilities(column[2], exhibit)
        for axis, name in zip(
            axes[:, 0], ("true class\nand picture", "class token\nlooks here", "probability, %"), strict=True
        ):
            axis.set_ylabel(name, color=GREY)
        figure.suptitle(title, x=0.01, ha="left")


def draw_picture(axes: Any, picture: Image.Image) -> None:
    axes.imshow(picture.convert("RGB"), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw_attention(axes: Any, picture: Image.Image, attention: NDArray[np.float32], *, smooth: bool = True) -> None:
    """The picture in pale grey under the attention (H, W), stretched from patches to pixels, smoothly or as squares."""
    finer = max(1, 256 // max(picture.size))  # so that a smooth map is smooth on a picture of a few pixels too
    enlarged = picture.resize((finer * picture.width, finer * picture.height), Image.Resampling.NEAREST)
    axes.imshow(attention_over(enlarged, attention, smooth=smooth), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw_probabilities(axes: Any, exhibit: Exhibit) -> None:
    """Bars, the most probable class on top; blue where it is the true one, vermilion where it is not."""
    right = exhibit.labels[0] == exhibit.truth
    percent = [100 * value for value in exhibit.probabilities]
    colours = [BLUE if right else VERMILION] + [GREY] * (len(percent) - 1)
    axes.barh(range(len(percent)), percent, color=colours)
    axes.set_yticks(range(len(percent)), exhibit.labels)
    axes.set(xlim=(0, 100), xticks=[0, 50, 100])
    axes.invert_yaxis()
