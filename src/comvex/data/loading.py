"""Batches of tensors from a picture set: in the order of training, which is a function of (seed, step), or once each.

What cannot be read is left out of its batch and named, so that one damaged file does not end a run.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from comvex.data.picture_set import PictureSet
from comvex.data.reading import UnreadablePictureError
from comvex.randomness import derive_seed, torch_seeded

Transform = Callable[[Image.Image], Tensor]

ORDER, AUGMENTATION = 1, 2
"""Purposes that a seed is derived for."""


class Batch(NamedTuple):
    """Pictures (B, C, height, width), labels and the messages of those that could not be read.

    Labels are (B,), or multi-label (B, num_classes) of 0 and 1.
    """

    pictures: Tensor
    labels: Tensor
    unreadable: list[str]


class Sample(NamedTuple):
    picture: Tensor | None
    label: np.integer | NDArray[np.integer]
    problem: str


def collate(samples: list[Sample]) -> Batch:
    """A batch of the samples that could be read; none at all gives empty tensors."""
    readable = [(sample.picture, sample.label) for sample in samples if sample.picture is not None]
    pictures = torch.stack([picture for picture, _ in readable]) if readable else torch.empty(0)
    labels = torch.from_numpy(np.array([label for _, label in readable], dtype=np.int64))
    return Batch(pictures, labels, [sample.problem for sample in samples if sample.picture is None])


def load_sample(pictures: PictureSet, index: int, transform: Transform, channels: int) -> Sample:
    label = pictures.labels[index]
    try:
        return Sample(transform(pictures.read(index, channels=channels)), label, "")
    except UnreadablePictureError as error:
        return Sample(None, label, str(error))


class TrainingPictures(Dataset[Sample]):
    """Augmented pictures by (epoch, index): what is random in a picture depends on the seed and on those two alone."""

    def __init__(self, pictures: PictureSet, transform: Transform, *, channels: int, seed: int) -> None:
        self.pictures, self.transform, self.channels, self.seed = pictures, transform, channels, seed

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        with torch_seeded(derive_seed(self.seed, AUGMENTATION, epoch, index)):
            return load_sample(self.pictures, index, self.transform, self.channels)


class EvaluationPictures(Dataset[Sample]):
    """Pictures by index, without anything random."""

    def __init__(self, pictures: PictureSet, transform: Transform, *, channels: int) -> None:
        self.pictures, self.transform, self.channels = pictures, transform, channels

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample:
        return load_sample(self.pictures, index, self.transform, self.channels)


def epoch_order(num_pictures: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which an epoch shows the pictures: a permutation of range(num_pictures)."""
    return np.random.default_rng(derive_seed(seed, ORDER, epoch)).permutation(num_pictures)


class StepOrder(Sampler[list[tuple[int, int]]]):
    """For each training step in [start, stop) the (epoch, index) of its pictures.

    An epoch has as many steps as there are whole batches in it, at least one.
    """

    def __init__(self, num_pictures: int, batch_size: int, *, seed: int, start: int, stop: int) -> None:
        self.num_pictures, self.batch_size, self.seed = num_pictures, batch_size, seed
        self.start, self.stop = start, stop
        self.steps_per_epoch = max(1, num_pictures // batch_size)

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, ordered_epoch = np.empty(0, np.int64), -1
        for step in range(self.start, self.stop):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != ordered_epoch:
                order, ordered_epoch = epoch_order(self.num_pictures, seed=self.seed, epoch=epoch), epoch
            first = place * self.batch_size
            yield [(epoch, int(index)) for index in order[first : first + self.batch_size]]


def training_loader(
    dataset: TrainingPictures, order: StepOrder, *, workers: int, pin_memory: bool
) -> DataLoader[Sample]:
    """Batches for the steps of ``order``, the same whatever the number of worker processes."""
    return DataLoader(
        dataset, batch_sampler=order, num_workers=workers, collate_fn=collate, pin_memory=pin_memory
    )  # fmt: skip


def evaluation_loader(
    pictures: PictureSet, transform: Transform, *, channels: int, batch_size: int, workers: int
) -> DataLoader[Sample]:
    """Every picture once, in order."""
    dataset = EvaluationPictures(pictures, transform, channels=channels)
    return DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=collate)
