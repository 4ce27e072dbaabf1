"""The pictures that a name, a folder or a CSV file stands for, with their classes and their split into parts."""

import difflib
import gzip
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comvex.data.csv_data import csv_data
from comvex.data.picture_set import DataSet, PictureSet, picture_files_data
from comvex.data.reading import SUFFIXES
from comvex.errors import UserError

NAMES = ("digits", "fashion-mnist")
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SYSTEM_DATASETS = (Path("/usr/share/datasets"), Path("/usr/local/share/datasets"))


def open_data(name: str, *, split_seed: int = 0, fraction: float = 1.0, val_fraction: float = 0.1) -> DataSet:
    """The data set that a name (``NAMES``), a folder of class folders or a CSV file of paths and labels stands for.

    ``fraction`` in (0, 1] keeps a stratified share of the training pictures; ``val_fraction`` of what is left is then
    set aside for validation, unless the data have pictures for that. ``split_seed`` decides which. Groups stay whole.

    Raises ``ValueError`` if there is no such data set, or it has too few classes or an empty part.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction}: it must lie in (0, 1].")
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}: it must lie in (0, 1).")
    if name == "digits":
        data = digits(split_seed=split_seed)
    elif name == "fashion-mnist":
        data = fashion_mnist()
    elif Path(name).is_dir():
        data = folder(Path(name), split_seed=split_seed)
    elif Path(name).suffix.lower() == ".csv":
        data = csv_data(Path(name), split_seed=split_seed)
    else:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"There is no data set {name!r}: {hint}Give a folder of class folders, a .csv file, or "
            f"{' or '.join(NAMES)}."
        )
    if fraction < 1:
        data = replace(data, train=data.train.where(data.train.share(fraction, seed=split_seed)))
    if data.val is None:
        # Another seed than the fraction's: the same one would always set aside the pictures that come first there.
        chosen = data.train.share(val_fraction, seed=split_seed + 1_000_003)
        data = replace(data, train=data.train.where(~chosen), val=data.train.where(chosen))
    if len(data.train) == 0 or data.val is None or len(data.val) == 0:
        raise UserError(
            f"The data set {name} leaves {len(data.train)} pictures to train on and {len(data.val or ())} to validate: "
            f"both need at least one; raise fraction = {fraction} or val_fraction = {val_fraction}."
        )
    for part_name, part in (("val", data.val), ("test", data.test)):
        if data.multi_label and part is not None and len(part) and not part.labels.any():
            raise UserError(
                f"The {len(part)} {part_name} pictures of {name} have no label at all: nothing can be measured on them."
            )
    return data


def digits(*, split_seed: int) -> DataSet:
    """Scikit-learn's handwritten digits: 1,797 grey pictures of 8 x 8 pixels, a stratified fifth for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import StratifiedShuffleSplit

    bunch: Any = load_digits()
    pictures = PictureSet(np.round(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64))
    split = StratifiedShuffleSplit(n_splits=1, test_size=0.2, random_state=split_seed)
    train_indices, _ = next(split.split(bunch.data, bunch.target))
    in_train = np.isin(np.arange(len(pictures)), train_indices)
    return DataSet(
        name="digits",
        classes=tuple(str(digit) for digit in range(10)),
        train=pictures.where(in_train),
        val=None,
        test=pictures.where(~in_train),
        image_size=8,
        patch_size=2,
        dim=72,
        heads=9,
        learning_rate=2e-3,
        channels=1,
        mean=(0.3053,),
        std=(0.3760,),
        mirrored=False,
    )


def fashion_mnist() -> DataSet:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey pictures of clothes, 28 x 28 pixels."""
    folder = find_fashion_mnist()
    return DataSet(
        name="fashion-mnist",
        classes=FASHION_MNIST_CLASSES,
        train=read_idx_pair(folder, "train"),
        val=None,
        test=read_idx_pair(folder, "t10k"),
        image_size=28,
        patch_size=4,
        dim=96,
        heads=4,
        learning_rate=1e-3,
        channels=1,
        mean=(0.2860,),
        std=(0.3530,),
        mirrored=True,
    )


def find_fashion_mnist() -> Path:
    """The folder with Fashion-MNIST's four files: the system's, or one in the user's cache, downloaded if need be."""
    for system in SYSTEM_DATASETS:
        if (system / "fashion-mnist").is_dir():
            return system / "fashion-mnist"
    from torchvision.datasets import FashionMNIST

    cache = Path.home() / ".cache" / "comvex"
    try:
        return Path(FashionMNIST(cache, download=True).raw_folder)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"Fashion-MNIST is not on this machine and cannot be downloaded ({error}): install the system package "
            f"dataset-fashion-mnist, or put its four .gz files into {cache / 'FashionMNIST' / 'raw'}."
        ) from error


def read_idx_pair(folder: Path, part: str) -> PictureSet:
    pictures = read_idx(folder, f"{part}-images-idx3-ubyte")
    labels = read_idx(folder, f"{part}-labels-idx1-ubyte")
    if pictures.ndim != 3 or labels.ndim != 1 or len(pictures) != len(labels):
        raise UserError(
            f"{folder} has {part} pictures {pictures.shape} and labels {labels.shape}: they do not belong together."
        )
    return PictureSet(pictures, labels.astype(np.int64))


def read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """A file of bytes in LeCun's IDX format, compressed or not."""
    file = folder / f"{name}.gz" if (folder / f"{name}.gz").is_file() else folder / name
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        kind, num_axes = content[2], content[3]
        shape = struct.unpack_from(f">{num_axes}I", content, 4)
        if kind != 0x08:
            raise ValueError(f"its elements are of kind {kind:#x}, not bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, struct.error) as error:
        raise UserError(f"The data file {file} cannot be read: {error}.") from error


def folder(root: Path, *, split_seed: int) -> DataSet:
    """A folder of class folders, or one with such folders called train, val and test (those that are there).

    Without ``train`` a stratified fifth of all pictures is the test set. With ``train`` but without ``test`` there is
    no test set.
    """
    if (root / "train").is_dir():
        classes = class_names(root / "train")
        parts = {name: list_pictures(root / name, classes) for name in ("val", "test") if (root / name).is_dir()}
        train = list_pictures(root / "train", classes)
    else:
        classes = class_names(root)
        pictures = list_pictures(root, classes)
        in_test = pictures.share(0.2, seed=split_seed)
        train, parts = pictures.where(~in_test), {"test": pictures.where(in_test)}
    return picture_files_data(
        root.resolve().name, classes, train=train, val=parts.get("val"), test=parts.get("test")
    )  # fmt: skip


def class_names(root: Path) -> tuple[str, ...]:
    """The folders in ``root`` that have pictures anywhere inside, sorted."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = tuple(path.name for path in folders if next(picture_files(path), None) is not None)
    if not classes:
        endings = ", ".join(sorted(SUFFIXES))
        raise UserError(f"The folder {root} has no pictures: it must hold one folder per class with {endings} files.")
    if len(classes) == 1:
        raise UserError(f"The folder {root} has pictures of one class only, {classes[0]!r}: at least two are needed.")
    return classes


def picture_files(root: Path) -> Iterator[Path]:
    """The picture files anywhere in a folder, sorted; links to folders are not followed, so that loops end."""
    for directory, folders, files in os.walk(root):
        folders.sort()
        for file in sorted(files):
            if Path(file).suffix.lower() in SUFFIXES and not file.startswith("."):
                yield Path(directory) / file


def list_pictures(root: Path, classes: tuple[str, ...]) -> PictureSet:
    """All pictures of the class folders in ``root``; raises ``ValueError`` for a class that is not in ``classes``."""
    unknown = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")} - set(classes)
    strangers = sorted(name for name in unknown if next(picture_files(root / name), None) is not None)
    if strangers:
        raise UserError(f"The folder {root} has the class {strangers[0]!r}, which the training pictures do not have.")
    files = [(file, label) for label, name in enumerate(classes) for file in picture_files(root / name)]
    if not files:
        raise UserError(f"The folder {root} has no pictures of the classes {', '.join(classes)}.")
    return PictureSet([file for file, _ in files], np.array([label for _, label in files], dtype=np.int64))
