"""Pictures with labels, and a whole data set of them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from comvex.data.full_depth import as_values, fit_channels, read_values
from comvex.data.reading import ReducibleJpeg, StoredPicture, printable, read_picture, read_reducible, to_channels
from comvex.data.splits import grouped_share, rarest_label, stratified_share
from comvex.errors import UserError
from comvex.preprocessing import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class PictureSet:
    """Pictures with labels: files or what stands for them, read when asked for, or 8-bit pictures in memory.

    Those in memory are (num, height, width) of grey or (num, height, width, 3) of RGB. ``labels`` is (num,), the class
    of each picture, or multi-label (num, num_classes) of 0 and 1. ``groups`` (num,) has a number for each picture, the
    same for those that no split may part (of one patient, from one site). ``full_depth`` says whether pictures are read
    with all their bits and channels.
    """

    pictures: Sequence[Path] | Sequence[StoredPicture] | NDArray[np.uint8]
    labels: NDArray[np.integer]
    groups: NDArray[np.int64] | None = None
    full_depth: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        return isinstance(self.pictures, np.ndarray)

    @property
    def multi_label(self) -> bool:
        return self.labels.ndim == 2

    def read(self, index: int, *, channels: int) -> Image.Image | NDArray[np.float32]:
        """One picture, 8-bit grey or RGB, or at full depth an array (height, width, channels) of float32.

        Raises ``UnreadablePictureError`` if its file is damaged, or at full depth has another number of channels.
        """
        picture = self.pictures[index]
        if isinstance(picture, np.ndarray):
            if self.full_depth:
                return fit_channels(as_values(picture), channels)
            return to_channels(Image.fromarray(picture), channels=channels)
        if self.full_depth:
            return read_values(picture, channels=channels)
        return read_picture(picture, channels=channels)

    def read_reducible(self, index: int, *, channels: int) -> Image.Image | NDArray[np.float32] | ReducibleJpeg:
        """As ``read``, but of a JPEG file only the header is decoded; that the rest is damaged shows later."""
        picture = self.pictures[index]
        if self.full_depth or isinstance(picture, np.ndarray):
            return self.read(index, channels=channels)
        return read_reducible(picture, channels=channels)

    def name(self, index: int) -> str:
        """What to call a picture in a message: its file, or its number."""
        return f"number {index}" if self.in_memory else printable(self.pictures[index])

    def where(self, chosen: NDArray[np.bool_]) -> PictureSet:
        """The pictures for which ``chosen`` (num,) is true, in the same order."""
        groups = self.groups[chosen] if self.groups is not None else None
        if isinstance(self.pictures, np.ndarray):
            pictures = self.pictures[chosen]
        else:
            pictures = list(itertools.compress(self.pictures, chosen.tolist()))
        return replace(self, pictures=pictures, labels=self.labels[chosen], groups=groups)

    def share(self, share: float, *, seed: int) -> NDArray[np.bool_]:
        """Which pictures (num,) belong to a share of the whole; the shares of one seed are nested.

        Stratified by class, exactly where every picture has one class and stands for itself (``stratified_share``), and
        as far as that goes where groups stay whole or pictures have several labels (``grouped_share``, by the rarest
        label of a picture).
        """
        if self.groups is None and not self.multi_label:
            return stratified_share(self.labels, share, seed=seed)
        strata = rarest_label(self.labels) if self.multi_label else self.labels
        groups = self.groups if self.groups is not None else np.arange(len(self))
        return grouped_share(strata, groups, share, seed=seed)

    def fingerprint(self) -> str:
        """A short hash of the pictures' names (or pixels) and labels, to notice that the data have changed."""
        digest = hashlib.sha256(self.labels.tobytes())
        if isinstance(self.pictures, np.ndarray):
            digest.update(self.pictures.tobytes())
        else:
            digest.update("\n".join(str(file) for file in self.pictures).encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Labelled pictures in up to three parts, and what a model for them needs to know."""

    name: str
    classes: tuple[str, ...]
    train: PictureSet
    val: PictureSet | None
    test: PictureSet | None
    image_size: int
    """Side in pixels that a model takes unless told otherwise."""
    patch_size: int
    """Patch that goes with that size."""
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirrored: bool
    """Whether a picture means the same in the mirror, so that training may flip it."""

    class_ids: tuple[str, ...] = ()
    """The folders' names where ``classes`` are more readable ones (WordNet ids of ImageNet); else empty."""
    notes: tuple[str, ...] = ()
    """Sentences on what may not be meant so: why pictures have several labels, folders that are no classes."""
    problems: tuple[str, ...] = ()
    """Sentences on pictures that were left out because no training picture has their class."""
    test_drawn: bool = False
    """Whether the test pictures are not a part of the data themselves, but drawn by ``with_test_drawn``."""

    @property
    def multi_label(self) -> bool:
        """Whether a picture may have none or several of the classes."""
        return self.train.multi_label

    @property
    def full_depth(self) -> bool:
        """Whether pictures are read with all their bits and channels, not as 8-bit grey or RGB."""
        return self.train.full_depth

    def read_at(self, *, full_depth: bool) -> DataSet:
        """The same data, read at full depth or not, as a model wants them."""
        parts = {
            name: None if part is None else replace(part, full_depth=full_depth)
            for name, part in (("train", self.train), ("val", self.val), ("test", self.test))
        }
        return replace(self, **parts)

    def part(self, name: str) -> PictureSet:
        """The part called "train", "val" or "test"; raises ``ValueError`` if there is none."""
        part = {"train": self.train, "val": self.val, "test": self.test}[name]
        if part is None or len(part) == 0:
            raise UserError(f"The data set {self.name} has no {name} pictures.")
        return part


def picture_files_data(
    name: str,
    classes: tuple[str, ...],
    *,
    train: PictureSet,
    val: PictureSet | None,
    test: PictureSet | None,
) -> DataSet:
    """Picture files of any size and colour as a data set: read as RGB, by default as squares of 64 pixels."""
    return DataSet(
        name=name,
        classes=classes,
        train=train,
        val=val,
        test=test,
        image_size=64,
        patch_size=8,
        channels=3,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mirrored=True,
    )


def with_test_drawn(data: DataSet) -> DataSet:
    """Data without parts, of whose pictures a fifth becomes the test: always the same one.

    No seed decides it, so that what is chosen by validation pictures of whatever split has seen none of the test.
    """
    in_test = data.train.share(0.2, seed=0)
    return replace(data, train=data.train.where(~in_test), test=data.train.where(in_test), test_drawn=True)
