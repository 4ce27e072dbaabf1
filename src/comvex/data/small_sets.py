"""Well-known data sets of small pictures, which fit into memory: the digits, Fashion-MNIST, CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import codecs
import gzip
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from comvex.data.cache import cache_folder
from comvex.data.picture_set import DataSet, PictureSet
from comvex.errors import UserError

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SYSTEM_DATASETS = (Path("/usr/share/datasets"), Path("/usr/local/share/datasets"))
CIFAR_COLOURS = {
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""Mean and deviation of red, green and blue of the training pictures, on the scale from 0 to 1."""


def digits() -> DataSet:
    """Scikit-learn's handwritten digits: 1,797 grey pictures of 8 x 8 pixels, a stratified fifth for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import StratifiedShuffleSplit

    bunch: Any = load_digits()
    pictures = PictureSet(np.round(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64))
    split = StratifiedShuffleSplit(n_splits=1, test_size=0.2, random_state=0)
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
        channels=1,
        mean=(0.3053,),
        std=(0.3760,),
        mirrored=False,
        test_drawn=True,
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
    from torchvision.datasets import FashionMNIST, utils

    folder = cache_folder() / "FashionMNIST" / "raw"

    def download() -> None:
        for name, md5 in FashionMNIST.resources:
            utils.download_url(f"{FashionMNIST.mirrors[0]}{name}", folder, name, md5)

    fetch(
        "Fashion-MNIST", folder, FashionMNIST.resources, download,
        otherwise="install the system package dataset-fashion-mnist, or put the four .gz files of "
        f"https://github.com/zalandoresearch/fashion-mnist into {folder}",
    )  # fmt: skip
    return folder


def fetch(
    name: str, folder: Path, files: Sequence[tuple[str, str]], download: Callable[[], None], *, otherwise: str
) -> None:
    """Have a data set's files, each with its MD5 checksum, in a folder; what is missing or damaged is downloaded.

    If another process does so, this one waits for it. Raises ``ValueError`` if they cannot be downloaded; it ends with
    what a person can do ``otherwise``.
    """
    from torchvision.datasets.utils import check_integrity

    def missing() -> Path | None:
        return next((folder / file for file, md5 in files if not check_integrity(folder / file, md5)), None)

    absent = missing()
    if absent is None:  # where nothing needs to be written, nothing needs to be locked
        return
    try:
        with downloading(name):
            if missing() is not None:
                download()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{name} is not on this machine ({absent} is missing or damaged) and cannot be downloaded "
            f"({' '.join(str(error).split())}): {otherwise}."
        ) from error


@contextmanager
def downloading(name: str) -> Iterator[None]:
    """Within it no other process downloads this data set into the cache folder; waits until none does.

    The lock ends with the process, however it ends. Raises ``OSError`` if the cache folder cannot be written to.
    """
    from filelock import FileLock

    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with Console(stderr=True).status(f"waiting for another process that downloads {name}"):  # in a terminal only
        held = FileLock(cache / f".{name}.lock").acquire()
    with held:
        yield


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


# CIFAR (Krizhevsky 2009)


def cifar(name: str) -> DataSet:
    """CIFAR10 or CIFAR100: 50,000 + 10,000 RGB pictures of 32 x 32 pixels, with 10 or 100 (fine) classes.

    Raises ``ValueError`` if it is neither in the cache folder nor can be downloaded.
    """
    import torchvision.datasets

    kind = getattr(torchvision.datasets, name)
    folder = find_cifar(kind)
    batches = {part: [name for name, _ in getattr(kind, f"{part}_list")] for part in ("train", "test")}
    classes = read_batch(folder / kind.meta["filename"])[kind.meta["key"]]
    mean, std = CIFAR_COLOURS[name]
    return DataSet(
        name=name.lower(),
        classes=tuple(classes),
        train=read_cifar([folder / batch for batch in batches["train"]]),
        val=None,
        test=read_cifar([folder / batch for batch in batches["test"]]),
        image_size=32,
        patch_size=4,
        channels=3,
        mean=mean,
        std=std,
        mirrored=True,
    )


def find_cifar(kind: Any) -> Path:
    """The folder with the files of torchvision's CIFAR10 or CIFAR100, in the cache folder.

    Downloaded and unpacked if need be; what is unpacked in part only, or damaged, is unpacked again.
    """
    from torchvision.datasets import utils

    cache = cache_folder()
    folder = cache / kind.base_folder
    fetch(
        kind.__name__,
        folder,
        [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])],
        lambda: utils.download_and_extract_archive(kind.url, cache, filename=kind.filename, md5=kind.tgz_md5),
        otherwise=f"put {kind.filename} of its authors into {cache}, or the folder {kind.base_folder} that is in it",
    )
    return folder


def read_cifar(files: list[Path]) -> PictureSet:
    """The pictures and (fine) labels of CIFAR's batches."""
    pictures, labels = [], []
    for file in files:
        batch = read_batch(file)
        try:
            pictures.append(batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.array(batch["labels"] if "labels" in batch else batch["fine_labels"], np.int64))
        except (KeyError, AttributeError, ValueError) as error:
            raise UserError(f"The data file {file} does not hold pictures as CIFAR's do: {error}.") from error
        if len(pictures[-1]) != len(labels[-1]):
            raise UserError(f"The data file {file} has {len(pictures[-1])} pictures and {len(labels[-1])} labels.")
    return PictureSet(np.concatenate(pictures), np.concatenate(labels))


def read_batch(file: Path) -> dict[str, Any]:
    """A pickled dictionary of CIFAR's authors, opened as data: lists, numbers, strings and NumPy arrays only.

    Raises ``ValueError`` if the file is missing or damaged, or names anything else.
    """
    try:
        with file.open("rb") as stream:
            content = ArrayUnpickler(stream, encoding="latin1").load()
    except (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, pickle.UnpicklingError) as error:
        raise UserError(f"The data file {file} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"The data file {file} cannot be read: it holds no dictionary.")
    return content


class ArrayUnpickler(pickle.Unpickler):
    """Opens pickles of plain values and NumPy arrays, and runs nothing that a file names."""

    ALLOWED = {  # noqa: RUF012 - never changed
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,  # how Python 3 writes bytes for Python 2
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")
        return self.ALLOWED[module, name]
