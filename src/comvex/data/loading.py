"""Batches of tensors from a picture set: in the order of training, which is a function of (seed, step), or once each.

What cannot be read is left out of its batch and named, so that one damaged file does not end a run.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from comvex.data.picture_set import PictureSet
from comvex.data.reading import UnreadablePictureError
from comvex.data.transforms import Transform
from comvex.randomness import derive_seed, seeded

if TYPE_CHECKING:  # they import torchvision, which takes as long as PyTorch itself; prediction does without
    from comvex.data.batch_augmentation import BatchAugmentation
    from comvex.data.training_transforms import TrainingTransform

ORDER, AUGMENTATION = 1, 2
"""Purposes that a seed is derived for."""


class Key(NamedTuple):
    """Which picture is shown: what is random in it depends on the seed and on these three alone."""

    epoch: int
    number: int
    repeat: int
    """How often the epoch has shown it before."""


class Batch(NamedTuple):
    """Pictures (B, C, height, width), labels, numbers in the picture set (B,), and what could not be read.

    Labels are (B,), or multi-label (B, num_classes) of 0 and 1. ``unreadable`` has a message for each such picture.
    """

    pictures: Tensor
    labels: Tensor
    indices: Tensor
    unreadable: list[str]


class Sample(NamedTuple):
    picture: Tensor | None
    label: np.integer | NDArray[np.integer]
    number: int
    problem: str


def collate(samples: list[Sample] | Batch) -> Batch:
    """A batch of the samples that could be read; none at all gives empty tensors. What is a batch stays as it is."""
    if isinstance(samples, Batch):
        return samples
    readable = [(sample.picture, sample.label, sample.number) for sample in samples if sample.picture is not None]
    pictures = torch.stack([picture for picture, _, _ in readable]) if readable else torch.empty(0)
    labels = torch.from_numpy(np.array([label for _, label, _ in readable], dtype=np.int64))
    indices = torch.tensor([index for _, _, index in readable], dtype=torch.int64)
    return Batch(pictures, labels, indices, [sample.problem for sample in samples if sample.picture is None])


def load_sample(pictures: PictureSet, index: int, tensor: Callable[[], Tensor]) -> Sample:
    """A picture with its label, or why ``tensor`` could not read it."""
    label = pictures.labels[index]
    try:
        return Sample(tensor(), label, index, "")
    except UnreadablePictureError as error:
        return Sample(None, label, index, str(error))


class TrainingPictures(Dataset[Sample]):
    """Augmented pictures by ``Key``, one at a time or, with the same result, the keys of a batch together.

    ``together`` changes a whole batch of these pictures; without it each goes through ``transform``.
    """

    def __init__(
        self,
        pictures: PictureSet,
        transform: TrainingTransform,
        *,
        channels: int,
        seed: int,
        together: BatchAugmentation | None = None,
    ) -> None:
        self.pictures, self.transform, self.channels, self.seed = pictures, transform, channels, seed
        self.together = together if together is not None and together.fits(pictures.pictures) else None

    def __getitem__(self, key: Key) -> Sample:
        with seeded(self.seed_of(key)):
            return load_sample(self.pictures, key.number, lambda: self.tensor(key.number))

    def tensor(self, index: int) -> Tensor:
        return self.transform(self.pictures.read_reducible(index, channels=self.channels))

    def __getitems__(self, keys: list[Key]) -> list[Sample] | Batch:
        """What PyTorch's loader asks for first."""
        if self.together is None or not keys:
            return [self[key] for key in keys]
        numbers = np.array([key.number for key in keys], np.int64)
        pictures = np.asarray(self.pictures.pictures)[numbers]
        tensors = self.together(pictures, [self.seed_of(key) for key in keys])
        labels = torch.from_numpy(self.pictures.labels[numbers].astype(np.int64))
        return Batch(tensors, labels, torch.from_numpy(numbers), [])

    def seed_of(self, key: Key) -> int:
        return derive_seed(self.seed, AUGMENTATION, *key)


class EvaluationPictures(Dataset[Sample]):
    """Pictures by index, without anything random."""

    def __init__(self, pictures: PictureSet, transform: Transform, *, channels: int) -> None:
        self.pictures, self.transform, self.channels = pictures, transform, channels

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample:
        return load_sample(self.pictures, index, lambda: self.tensor(index))

    def tensor(self, index: int) -> Tensor:
        return self.transform(self.pictures.read(index, channels=self.channels))


def epoch_order(
    num_pictures: int, *, seed: int, epoch: int, repeats: int = 1, weights: NDArray[np.floating] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order in which an epoch shows the pictures: their numbers, and how often each was shown before; both (num,).

    An epoch has as many places as there are pictures. Without ``repeats`` and ``weights`` it is a permutation. With
    ``repeats`` r (repeated augmentation, Hoffer et al. 2020) it shows a share 1 / r of the pictures, each r times in a
    row. With ``weights`` (num_pictures,) a picture is shown in proportion to its weight: its expected number of places,
    rounded up or down at random (systematic sampling).
    """
    generator = np.random.default_rng(derive_seed(seed, ORDER, epoch))
    if weights is None:
        shown = generator.permutation(num_pictures)
    else:
        ends = np.cumsum(weights) * (num_pictures / np.sum(weights))
        shown = np.searchsorted(ends[:-1], np.arange(num_pictures) + generator.random(), side="right")
        shown = generator.permutation(shown)
    shown = np.repeat(shown, repeats)[:num_pictures]
    by_index = np.argsort(shown, kind="stable")
    in_order = shown[by_index]
    first = np.searchsorted(in_order, in_order)  # where the run of each picture begins
    before = np.empty(num_pictures, np.int64)
    before[by_index] = np.arange(num_pictures) - first
    return shown, before


class StepOrder(Sampler[list[Key]]):
    """The keys of every training step in [start, stop), as far as they belong to one of several processes.

    The batch of a step is cut into ``accumulate`` times ``num_ranks`` pieces of the same size to within one picture;
    this process gets, one after the other, its ``accumulate`` pieces of each step. What a step shows depends on neither
    number. An epoch has as many steps as there are whole batches in it, at least one.
    """

    def __init__(
        self,
        num_pictures: int,
        batch_size: int,
        *,
        seed: int,
        start: int,
        stop: int,
        repeats: int = 1,
        weights: NDArray[np.floating] | None = None,
        accumulate: int = 1,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.num_pictures, self.batch_size, self.seed = num_pictures, batch_size, seed
        self.start, self.stop = start, stop
        self.repeats, self.weights = repeats, weights
        self.accumulate, self.rank, self.num_ranks = accumulate, rank, num_ranks
        self.steps_per_epoch = max(1, num_pictures // batch_size)

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        shown = before = np.empty(0, np.int64)
        ordered_epoch = -1
        for step in range(self.start, self.stop):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != ordered_epoch:
                shown, before = epoch_order(
                    self.num_pictures, seed=self.seed, epoch=epoch, repeats=self.repeats, weights=self.weights
                )
                ordered_epoch = epoch
            batch = slice(place * self.batch_size, (place + 1) * self.batch_size)
            keys = [
                Key(epoch, *pair) for pair in zip(shown[batch].tolist(), before[batch].tolist(), strict=True)
            ]  # fmt: skip
            pieces = self.accumulate * self.num_ranks
            for piece in range(self.rank, pieces, self.num_ranks):
                yield keys[piece * len(keys) // pieces : (piece + 1) * len(keys) // pieces]


def training_loader(
    dataset: TrainingPictures, order: StepOrder, *, workers: int, pin_memory: bool
) -> DataLoader[Sample]:
    """Batches for the pieces of ``order``, the same whatever the number of worker processes."""
    return DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=leave_signals_to_parent,
    )


def leave_signals_to_parent(worker: int) -> None:
    """Let a loader process pass over Ctrl-C, SIGUSR1 and the first SIGTERM.

    A terminal, a queue or a shell sends them to all processes of a run, which needs its pictures to finish the step.
    Where PyTorch and Python end a loader process that hangs, they send a SIGTERM each.
    """

    def receive(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, receive)
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has the first alone
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def evaluation_loader(
    pictures: PictureSet,
    transform: Transform,
    *,
    channels: int,
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
    rank: int = 0,
    num_ranks: int = 1,
) -> DataLoader[Sample]:
    """Every picture once, in order; of several processes each gets every ``num_ranks``-th, from its ``rank`` on."""
    dataset = EvaluationPictures(pictures, transform, channels=channels)
    own = range(rank, len(pictures), num_ranks)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=own,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=leave_signals_to_parent,
    )
