"""Hugging Face data sets (``hfds/NAME``), from the Hub or from a folder of files that ``datasets`` can read.

timm's reader does the loading; what training needs beyond it is random access by number, which these data sets have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from comvex.data.picture_set import DataSet, PictureSet, picture_files_data, with_test_drawn
from comvex.errors import UserError

if TYPE_CHECKING:
    from timm.data.readers.reader_hfds import ReaderHfds

SPLITS = {"train": ("train",), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""What the parts are called there."""


@dataclass(frozen=True, slots=True)
class HubPicture:
    """A picture by its row; ``str()`` of it names the split and the row."""

    reader: ReaderHfds
    row: int

    def content(self) -> bytes:
        with self.reader[self.row][0] as stream:
            return stream.read()

    def __str__(self) -> str:
        return f"{self.reader.split}[{self.row}]"


def hub_data(name: str) -> DataSet:
    """A Hugging Face data set with a column of pictures and one of classes.

    Its splits are the parts; without a test split but with a validation split there is no test set, and with neither a
    stratified fifth is. The labels are the column ``label``, or else the only column of classes.

    Raises ``ValueError`` if ``datasets`` is not installed, the data set cannot be had, or its columns leave it open
    which are meant.
    """
    splits = load_splits(name)
    parts = {}
    for part, names in SPLITS.items():
        found = next((split for split in names if split in splits), None)
        if found is not None:
            parts[part] = found
    if "train" not in parts:
        raise UserError(f"The data set hfds/{name} has no split train, only {', '.join(splits)}.")
    image, label = find_columns(name, splits[parts["train"]])
    classes = class_names(name, splits[parts["train"]], label)
    sets = {
        part: read_split(name, split, splits[split], image=image, label=label, classes=classes)
        for part, split in parts.items()
    }
    short = name.rstrip("/").rpartition("/")[2]
    data = picture_files_data(short, classes, train=sets["train"], val=sets.get("val"), test=sets.get("test"))
    return with_test_drawn(data) if len(sets) == 1 else data


def load_splits(name: str) -> dict[str, Any]:
    """The splits of a data set, each a ``datasets.Dataset``."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise UserError(
            f"hfds/{name} needs the package datasets, which is not installed: pip install 'comvex[hub-data]'."
        ) from error
    try:
        return {str(split): rows for split, rows in datasets.load_dataset(name).items()}
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise UserError(f"The data set hfds/{name} cannot be had: {reason}.") from error


def find_columns(name: str, rows: Any) -> tuple[str, str]:
    """The column of pictures and that of labels."""
    from datasets import ClassLabel, Image

    columns = rows.features
    images = [column for column, kind in columns.items() if isinstance(kind, Image)]
    labels = [column for column, kind in columns.items() if isinstance(kind, ClassLabel)]
    if "image" in images:
        images = ["image"]
    if "label" in columns:
        labels = ["label"]
    if len(images) != 1 or len(labels) != 1:
        raise UserError(
            f"The data set hfds/{name} has the columns {', '.join(columns)}: it must have one of pictures, called "
            "image if there are several, and one of classes, called label if there are several."
        )
    return images[0], labels[0]


def class_names(name: str, rows: Any, label: str) -> tuple[str, ...]:
    """The classes: those that the data set names, or else the different labels of the training rows, sorted."""
    kind = rows.features[label]
    names = getattr(kind, "names", None)
    found = tuple(names) if names is not None else tuple(str(value) for value in sorted(set(rows[label])))
    if len(found) < 2:
        raise UserError(f"The data set hfds/{name} has pictures of one class only: at least two are needed.")
    return found


def read_split(
    name: str, split: str, rows: Any, *, image: str, label: str, classes: tuple[str, ...]
) -> PictureSet:  # fmt: skip
    """The pictures of a split by row, and their labels."""
    from timm.data.dataset_factory import create_dataset

    data: Any = create_dataset(f"hfds/{name}", split=split, input_key=image, target_key=label)
    labels = list(rows[label])
    if not hasattr(rows.features[label], "names"):
        index = {text: number for number, text in enumerate(classes)}
        unknown = sorted({str(value) for value in labels} - index.keys())
        if unknown:
            raise UserError(f"The split {split} of hfds/{name} has the class {unknown[0]!r}, which train has not.")
        labels = [index[str(value)] for value in labels]
    if min(labels) < 0:
        raise UserError(f"The split {split} of hfds/{name} has pictures without a class (label {min(labels)}).")
    return PictureSet([HubPicture(data.reader, row) for row in range(len(labels))], np.array(labels, np.int64))
