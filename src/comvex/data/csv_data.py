"""A data set from a CSV file of picture paths and labels: one row a picture, one or several labels a row.

Columns: ``path``, relative to the file's folder or absolute; ``label`` or ``labels``; optionally ``split`` (train, val
or test) and ``group`` (patient, site: pictures that no split may part). Others are ignored.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from comvex.data.picture_set import DataSet, PictureSet, picture_files_data, with_test_drawn
from comvex.errors import UserError

SEPARATOR = ";"
"""Between the labels of one cell."""
OTHER_SIGNS = (";", "\t", "|")
"""What some programs write between cells instead of commas."""
COLUMNS = ("path", "label", "labels", "split", "group")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Row:
    """A picture as the CSV file has it; ``number`` counts the header as row 1, as spreadsheets do."""

    number: int
    file: Path
    labels: tuple[str, ...]
    split: str
    group: str


def csv_data(file: Path) -> DataSet:
    """The data set of a CSV file, with a note that says why it is multi-label if it is.

    It is multi-label if the column is called ``labels``, or a cell has several labels (``cat;dog``) or none. The
    classes are the labels found, sorted. Without ``split`` column a fifth of the pictures is the test set, which
    ``PictureSet.share`` chooses; with one there is a test set only if it says so. A picture that is missing counts as
    one that cannot be read, and is left out when its turn comes. Labels that no training row has are problems of the
    data, and their rows are left out.

    Raises ``ValueError`` if there is no such file, a column or a cell is missing or says something else than it may, a
    group lies on both sides of a split, there are fewer than two classes (multi-label: none), or no picture exists.
    """
    header, cells = read_table(file)
    columns = find_columns(file, header)
    rows = [read_row(file, number, row, columns) for number, row in cells]
    if not rows:
        raise UserError(f"{file} has no rows: each must name a picture and its labels.")
    check_rows(file, rows)
    problems: list[str] = []
    if "split" in columns:
        check_splits(file, rows)
        rows, problems = without_strangers(file, rows)
    reason = why_multi_label(rows, columns)
    multi_label = bool(reason)
    classes = tuple(sorted({label for row in rows for label in row.labels}))
    if not classes:
        raise UserError(f"{file} has no label in any row: at least one class is needed.")
    if not multi_label and len(classes) == 1:
        raise UserError(f"{file} has pictures of one class only, {classes[0]!r}: at least two are needed.")

    pictures = picture_set(rows, classes, multi_label=multi_label)
    if "split" in columns:
        split = np.array([row.split for row in rows])
        train, val, test = (pictures.where(split == name) for name in SPLITS)
        val, test = (part if len(part) else None for part in (val, test))
        data = picture_files_data(file.stem, classes, train=train, val=val, test=test)
    else:
        data = with_test_drawn(picture_files_data(file.stem, classes, train=pictures, val=None, test=None))
    notes = (f"{file} is multi-label, because {reason}.",) if reason else ()
    return replace(data, notes=notes, problems=tuple(problems))


def why_multi_label(rows: list[Row], columns: dict[str, int]) -> str:
    """What makes a file multi-label; empty if every picture has one label."""
    if "labels" in columns:
        return "the column is called labels"
    several = [row for row in rows if len(row.labels) > 1]
    if several:
        number, labels = several[0].number, several[0].labels
        return f"row {number} has {len(labels)} labels ({len(several)} of {len(rows)} rows have several)"
    none = [row for row in rows if not row.labels]
    return f"row {none[0].number} has no label ({len(none)} of {len(rows)} rows)" if none else ""


def read_table(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and the rows of a CSV file with their numbers, every cell stripped; empty rows are left out."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            table = [[cell.strip() for cell in row] for row in csv.reader(stream)]
    except FileNotFoundError as error:
        raise UserError(f"There is no file {file}: --data must name a CSV file that exists.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as CSV in UTF-8: {error}.") from error
    if not table:
        raise UserError(f"{file} is empty: its first row must name the columns, path and label.")
    header, *rows = table
    return header, [(number, row) for number, row in enumerate(rows, start=2) if any(row)]


def find_columns(file: Path, header: list[str]) -> dict[str, int]:
    """Where the columns that mean something are."""
    found = ", ".join(header)
    for name in COLUMNS:
        if header.count(name) > 1:
            raise UserError(f"{file} has the column {name!r} {header.count(name)} times; its columns are {found}.")
    if "path" not in header:
        if len(header) == 1 and (other := next((sign for sign in OTHER_SIGNS if sign in found), None)):
            raise UserError(
                f"{file} has the one column {found!r}: cells must be separated by commas, not by {other!r}."
            )
        raise UserError(f"{file} has no column 'path'; its columns are {found}.")
    if "label" not in header and "labels" not in header:
        raise UserError(f"{file} has no column 'label' or 'labels'; its columns are {found}.")
    if "label" in header and "labels" in header:
        raise UserError(f"{file} has both columns 'label' and 'labels': it must have one of them.")
    return {name: header.index(name) for name in COLUMNS if name in header}


def read_row(file: Path, number: int, cells: list[str], columns: dict[str, int]) -> Row:
    """One row, checked by itself."""
    where = f"Row {number} of {file}"
    if len(cells) <= max(columns.values()):
        raise UserError(f"{where} has {len(cells)} cells, fewer than its header names.")
    row = {name: cells[place] for name, place in columns.items()}
    if not row["path"]:
        raise UserError(f"{where} has no path.")
    split = row.get("split", "train")
    if split not in SPLITS:
        raise UserError(f"{where} has the split {split!r}: it must be train, val or test.")
    if row.get("group") == "":
        raise UserError(f"{where} has no group: every row needs one if there is a column 'group'.")
    labels = (label.strip() for label in row.get("labels", row.get("label", "")).split(SEPARATOR))
    return Row(
        number=number,
        file=file.parent / row["path"],
        labels=tuple(dict.fromkeys(label for label in labels if label)),
        split=split,
        group=row.get("group", ""),
    )


def check_rows(file: Path, rows: list[Row]) -> None:
    """Raises ``ValueError`` if two rows name the same picture, or no row names one that exists."""
    first: dict[str, Row] = {}
    for row in rows:
        earlier = first.setdefault(os.path.normpath(row.file), row)
        if earlier is not row:
            raise UserError(
                f"Row {row.number} of {file} names {row.file} again, as row {earlier.number} does: a picture has one "
                f"row, with its labels separated by {SEPARATOR!r}."
            )
    if not any(row.file.is_file() for row in rows):
        raise UserError(
            f"None of the pictures of {file} exists, such as {rows[0].file} in row {rows[0].number}: paths are "
            f"relative to {file.parent}, or absolute."
        )


def check_splits(file: Path, rows: list[Row]) -> None:
    """Raises ``ValueError`` if no row is for training, or the file parts a group."""
    if not any(row.split == "train" for row in rows):
        raise UserError(f"{file} has no row whose split is train.")
    side: dict[str, Row] = {}
    for row in rows:
        other = side.setdefault(row.group, row)
        if row.group and other.split != row.split:
            raise UserError(
                f"The group {row.group!r} of {file} is in {other.split} (row {other.number}) and in {row.split} "
                f"(row {row.number}): a group must be on one side."
            )


def without_strangers(file: Path, rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows whose labels training rows have, and a sentence for each label that none has."""
    known = {label for row in rows if row.split == "train" for label in row.labels}
    first: dict[str, Row] = {}
    for row in rows:
        for label in row.labels:
            if label not in known:
                first.setdefault(label, row)
    return [row for row in rows if known.issuperset(row.labels)], [
        f"Row {row.number} of {file} has the label {label!r}, which no training row has."
        for label, row in first.items()
    ]


def picture_set(rows: list[Row], classes: tuple[str, ...], *, multi_label: bool) -> PictureSet:
    """All rows as one set."""
    index = {label: place for place, label in enumerate(classes)}
    if multi_label:
        labels = np.zeros((len(rows), len(classes)), np.uint8)
        for place, row in enumerate(rows):
            labels[place, [index[label] for label in row.labels]] = 1
    else:
        labels = np.array([index[row.labels[0]] for row in rows], np.int64)
    groups = np.unique([row.group for row in rows], return_inverse=True)[1] if rows[0].group else None
    return PictureSet([row.file for row in rows], labels, groups)
