"""Writing files so that a crash leaves the old one or the new one, never half of one; tables as CSV."""

import csv
import glob
import io
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from comvex.errors import UserError

OLD_SECONDS = 24 * 3600
"""After so long nobody writes any more to what has been left untouched."""


@contextmanager
def replace_file(file: Path) -> Iterator[Path]:
    """A temporary path to write to; on success it reaches the disk and takes the place of ``file`` in one step.

    Who may read it is what the umask says, whatever wrote it. An ``OSError`` names ``file``, not the temporary path.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(file)
    try:
        temporary.touch()
        try:
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors leaves a file that its owner alone may read
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # a full disk has no name
            error.filename = str(file)
        raise


def temporary_beside(path: Path) -> Path:
    """A new name beside a file or folder, to write to what is to take its place.

    By chance, not by the process's number, which in containers that share a disk may be the same.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def remove_leftovers(path: Path) -> None:
    """Delete what processes that were killed while they wrote have left of ``temporary_beside(path)``: what is old."""
    for place in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if time.time() - place.stat().st_mtime > OLD_SECONDS:
            shutil.rmtree(place) if place.is_dir() else place.unlink()


def is_temporary(path: Path) -> bool:
    """Whether a file or folder is one of ``temporary_beside``, of whatever process."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def check_writable(folder: Path) -> None:
    """Raises ``ValueError`` if a folder that is to be written to cannot be, or cannot be made; leaves nothing there."""
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be written to ({error.strerror}): choose another --out."
        ) from error


def write_text(file: Path, text: str) -> None:
    """Write a text file, complete or not at all."""
    with replace_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of the same columns as CSV; floats in full, so that equal files mean equal figures."""
    GrowingTable(file).write(rows)


class GrowingTable:
    """A CSV file that is written anew, complete or not at all, with all rows whenever some are added.

    Each row becomes text once, so that a long table does not take longer and longer.

    ``rows`` are those that the file has already.
    """

    def __init__(self, file: Path, rows: Sequence[dict[str, Any]] = ()) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = []
        self._text = io.StringIO()
        self._add(rows)

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows, of the same columns as those before; nothing is written if there are none."""
        self._add(rows)
        if rows:
            write_text(self.file, self._text.getvalue())

    def _add(self, rows: Sequence[dict[str, Any]]) -> None:
        if not rows:
            return
        writer = csv.DictWriter(self._text, fieldnames=list((self.rows or rows)[0]), lineterminator="\n")
        if not self.rows:
            writer.writeheader()
        writer.writerows(rows)
        self.rows += rows


def read_table(file: Path) -> list[dict[str, int | float | None]]:
    """The rows of figures that ``write_table`` wrote; raises ``ValueError`` if they are not whole."""
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            header, *rows = csv.reader(stream)
        return [dict(zip(header, map(number, row), strict=True)) for row in rows]
    except ValueError as error:
        raise UserError(f"The table {file} is damaged: {error}.") from error


def number(text: str) -> int | float | None:
    """What a cell of a table says: a whole number, another one in full, or nothing."""
    if text == "":
        return None
    return int(text) if text.lstrip("-").isdecimal() else float(text)
