"""The pictures that an export is compared and calibrated with: those of a run or of named data, or what stands in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from comvex.convit.published import packaged_pictures, such_as_data
from comvex.data.loading import evaluation_loader
from comvex.data.picture_set import PictureSet
from comvex.data.reading import CHANNEL_MODES
from comvex.data.transforms import Preprocessing
from comvex.errors import UserError
from comvex.inference.exported import ExportedInfo
from comvex.inference.run_data import evaluation_data, training_data
from comvex.inference.runtimes import Floats

NUM_PICTURES = 64
"""Pictures that are compared, if there are so many."""


@dataclass(frozen=True)
class RealPictures:
    """Pictures with which an export is compared or calibrated, ready to be read."""

    name: str
    pictures: PictureSet
    why: str = ""
    """Why these, if they are not those that one would expect."""

    def batches(self, preprocessing: Preprocessing, *, batch_size: int) -> Iterator[Tensor]:
        """Tensors (B, C, height, width) as the model wants them; what cannot be read is left out."""
        channels = preprocessing.channels
        loader = evaluation_loader(
            self.pictures, preprocessing.transform(), channels=channels, batch_size=batch_size, workers=0
        )
        for batch in loader:
            if len(batch.pictures):
                yield batch.pictures


def comparison_pictures(source: str | Path, data: str | None, preprocessing: Preprocessing) -> RealPictures:
    """Test pictures of the data named, or of the run's own; where neither is at hand those that come with a packaged
    model, or scikit-learn's photographs.

    Raises ``ValueError`` if the data named cannot be read, or none of these has the channels that the model takes.
    """
    if data is None and (files := packaged_pictures(source)):
        return RealPictures(f"those that come with {source}", PictureSet(files, np.arange(len(files))))
    if data is None and not training_data(source):
        return photographs(preprocessing)
    try:
        data_set = evaluation_data(source, data, part="all").read_at(full_depth=preprocessing.full_depth)
    except UserError as error:
        if data is not None:
            raise
        return photographs(preprocessing, why=f"The data of {source} cannot be read. {error}")
    part = next(part for part in (data_set.test, data_set.val, data_set.train) if part is not None and len(part))
    return RealPictures(data_set.name, spread(part, NUM_PICTURES))


def calibration_pictures(
    source: str | Path, data: str | None, preprocessing: Preprocessing, *, num: int
) -> RealPictures:
    """Training pictures of the data named, or of the run's own; raises ``ValueError`` if there are none."""
    if data is None and not training_data(source):
        raise UserError(
            f"int8 is calibrated on training pictures, and {source} is of no run: --data must say where some are"
            f"{such_as_data(source)}."
        )
    data_set = evaluation_data(source, data, part="train").read_at(full_depth=preprocessing.full_depth)
    return RealPictures(data_set.name, spread(data_set.train, num))


def spread(pictures: PictureSet, num: int) -> PictureSet:
    """``num`` of the pictures at most, evenly from first to last: of all classes, where they are sorted by class."""
    chosen = np.zeros(len(pictures), bool)
    chosen[np.linspace(0, len(pictures) - 1, min(num, len(pictures))).astype(np.int64)] = True
    return pictures.where(chosen)


def photographs(preprocessing: Preprocessing, *, why: str = "") -> RealPictures:
    """Scikit-learn's two, of a flower and of a temple, 427 x 640 pixels in RGB; their labels mean nothing.

    Raises ``ValueError`` for a model of other channels than grey or RGB.
    """
    if preprocessing.channels not in CHANNEL_MODES:
        raise UserError(
            f"{why}{' ' * bool(why)}The model takes pictures of {preprocessing.channels} channels, and the photographs "
            "to compare with where there are no data are RGB: --data must name pictures."
        )
    from sklearn.datasets import load_sample_images

    pictures = np.stack(load_sample_images().images)  # (2, 427, 640, 3)
    labels = np.zeros(len(pictures), np.int64)
    shown = PictureSet(pictures, labels, full_depth=preprocessing.full_depth)
    return RealPictures("scikit-learn's photographs", shown, why)


@dataclass(frozen=True)
class Calibration:
    """What int8 is calibrated on: whole batches (B, C, height, width) of the pictures that can be read."""

    name: str
    batches: list[Floats]
    num_unreadable: int

    @property
    def num_pictures(self) -> int:
        """Pictures that are used."""
        return sum(len(batch) for batch in self.batches)


def calibration_batches(calibration: RealPictures, info: ExportedInfo) -> Calibration:
    """Calibration pictures in batches as the exported model takes them, of one picture where the batch is open.

    What does not fill a last batch is left out. Raises ``ValueError`` if what can be read fills none.
    """
    size = 1 if "batch" in info.dynamic else info.batch_size
    batches = calibration.batches(Preprocessing.from_dict(info.preprocessing), batch_size=1)
    pictures = [batch.numpy() for batch in batches]
    if len(pictures) < size:
        raise UserError(
            f"Of {len(calibration.pictures)} training pictures of {calibration.name} to calibrate on {len(pictures)} "
            f"can be read: at least {size} must be, a batch."
        )
    whole = [np.concatenate(pictures[first : first + size]) for first in range(0, len(pictures) - size + 1, size)]
    return Calibration(calibration.name, whole, num_unreadable=len(calibration.pictures) - len(pictures))
