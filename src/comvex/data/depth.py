"""Whether a data set is read at full depth, and the mean and deviation of its channels then; functions of the data."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from comvex.data.full_depth import deep_channels
from comvex.data.picture_set import DataSet, PictureSet
from comvex.data.reading import UnreadablePictureError
from comvex.errors import UserError

LOGGER = logging.getLogger(__name__)

LOOKED_AT = 16
"""Training pictures that decide how a data set is read."""
MEASURED, MEASURED_SIDE = 256, 128
"""Training pictures, and rows and columns of each, that mean and deviation are measured on."""


def settle_depth(data: DataSet) -> DataSet:
    """The data, read at full depth if most of some training pictures have more than 8 bits of grey or RGB can hold.

    Then the number of channels is theirs, and the mean and deviation of each channel are measured on training pictures.

    Raises ``ValueError`` if none of the pictures that it would be measured on can be read.
    """
    if data.train.in_memory:
        return data
    found = [deep_channels(data.train.pictures[index]) for index in spread(len(data.train), LOOKED_AT)]
    channels = Counter(number for number in found if number is not None)
    if 2 * channels.total() <= len(found):
        if channels:
            LOGGER.warning(
                "Some pictures of %s have more than 8 bits or other channels than grey or RGB; as most have not, all "
                "are read as 8-bit RGB.", data.name,
            )  # fmt: skip
        return data
    data = replace(data.read_at(full_depth=True), channels=channels.most_common(1)[0][0])
    mean, std = measure(data.train, channels=data.channels)
    return replace(data, mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def spread(num: int, wanted: int) -> list[int]:
    """At most ``wanted`` numbers from range(num), evenly spread."""
    return np.linspace(0, num - 1, min(num, wanted)).astype(int).tolist()


def measure(pictures: PictureSet, *, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation of each channel, (channels,) each, on some rows and columns of some of the pictures.

    A channel of one value has the deviation 1.
    """
    num, total, squares = 0, np.zeros(channels), np.zeros(channels)
    problems: list[UnreadablePictureError] = []
    console = Console(stderr=True)
    with console.status("measuring the channels of the pictures"):
        for index in spread(len(pictures), MEASURED):
            try:
                values = np.asarray(pictures.read(index, channels=channels))
            except UnreadablePictureError as error:
                problems.append(error)
                continue  # it is named when its turn comes
            rows, columns = (spread(side, MEASURED_SIDE) for side in values.shape[:2])
            some = values[np.ix_(rows, columns)].reshape(-1, channels).astype(np.float64)
            num += len(some)
            total += some.sum(axis=0)
            squares += np.square(some).sum(axis=0)
    if num == 0:
        raise UserError(f"None of the training pictures can be read: {problems[0]}") from problems[0]
    mean = total / num
    std = np.sqrt(np.maximum(squares / num - mean**2, 0))
    return mean, np.where(std > 1e-12, std, 1.0)
