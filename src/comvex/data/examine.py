"""Reading single pictures to find out what they are, with several processes and a memory of what was read before."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from comvex.data.cache import cache_file
from comvex.data.full_depth import decode_values, deep_channels
from comvex.data.reading import (
    DECODING_ERRORS,
    PictureFile,
    UnreadablePictureError,
    machine_is_short,
    open_picture,
    read_picture,
    unreadable,
)
from comvex.data.shards import ShardPicture

LOGGER = logging.getLogger(__name__)
AT_ONCE = 512
"""Pictures that are examined between two writings of the cache."""


@dataclass(frozen=True)
class Finding:
    """What a picture turned out to be."""

    height: int
    width: int
    mode: str
    """Pillow's mode, or the number of channels where that cannot hold the values."""
    content: str
    """Hash of the bytes of the file."""
    pixels: str
    """Hash of the size and the values after decoding."""
    problem: str
    """Why it cannot be read, else empty; then the other fields say nothing."""


@dataclass(frozen=True)
class ReadPicture:
    """The bytes of a picture, read before."""

    name: str
    bytes: bytes

    def content(self) -> bytes:
        return self.bytes

    def __str__(self) -> str:
        return self.name


def examine(picture: PictureFile | np.ndarray) -> Finding:
    """Read a picture, all of it; what cannot be read is a finding too."""
    if isinstance(picture, np.ndarray):
        height, width = picture.shape[:2]
        mode = "L" if picture.ndim == 2 else "RGB"
        return Finding(height, width, mode, digest(picture.tobytes()), digest_values(picture), "")
    try:
        with open_picture(picture) as stream:
            read = ReadPicture(str(picture), stream.read())
        channels = deep_channels(read)
        if channels is not None:
            values = decode_values(read)
            mode = f"{channels} channel{'s' if channels > 1 else ''} at full depth"
        else:
            with open_picture(read) as stream, Image.open(stream) as opened:
                mode = opened.mode
            values = np.asarray(read_picture(read))
    except UnreadablePictureError as error:
        return Finding(0, 0, "", "", "", str(error))
    except DECODING_ERRORS as error:
        if machine_is_short(error):
            raise
        return Finding(0, 0, "", "", "", str(unreadable(picture, error)))
    height, width = values.shape[:2]
    return Finding(height, width, mode, digest(read.bytes), digest_values(values), "")


def digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def digest_values(values: np.ndarray) -> str:
    """Hash of the shape and the values of a picture."""
    return digest(repr(values.shape).encode() + np.ascontiguousarray(values).tobytes())


def examine_all(
    data: str, pictures: Sequence[Any], *, workers: int, advance: Callable[[int], None]
) -> tuple[list[Finding], int]:
    """The findings of all pictures in order, and how many are from an earlier time.

    ``data`` is the name under which findings are kept. They are written as they come, so that a check that was stopped
    goes on where it was; one counts as long as the file has the same size and time of change.
    """
    memory = FindingMemory(data)
    stamps = [stamp(picture) for picture in pictures]
    findings = {index: found for index, key in enumerate(stamps) if (found := memory.known.get(key)) is not None}
    advance(len(findings))
    missing = [index for index in range(len(pictures)) if index not in findings]
    num_known = len(findings)
    results = examine_missing([pictures[index] for index in missing], workers=workers)
    remaining = iter(missing)
    while batch := list(islice(remaining, AT_ONCE)):
        fresh = {}
        for index, finding in zip(batch, results, strict=False):  # the results go on with the next batch
            fresh[index] = finding
            advance(1)
        findings |= fresh
        memory.add([(stamps[index], finding) for index, finding in fresh.items()])
    return [findings[index] for index in range(len(pictures))], num_known


def examine_missing(pictures: Sequence[Any], *, workers: int) -> Iterator[Finding]:
    """The findings of pictures in order, by several processes if there are enough pictures for that to be worth it."""
    if workers == 0 or len(pictures) < AT_ONCE:
        yield from map(examine, pictures)
        return
    # Processes of their own start, as forking a process with threads is not safe
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(examine, pictures, chunksize=16)


Stamp = tuple[str, int, int] | None
"""Name, size and time of change in nanoseconds; None for what has none."""


def stamp(picture: Any) -> Stamp:
    """By what a finding is recognised; None for a picture in memory or on the Hub, or a file that is not there."""
    if isinstance(picture, ShardPicture):
        return stamp_file(picture.shard, str(picture.offset))
    return stamp_file(picture, "") if isinstance(picture, Path) else None


def stamp_file(file: Path, place: str) -> Stamp:
    try:
        status = file.stat()
    except OSError:
        return None
    return f"{file.absolute()}:{place}", status.st_size, status.st_mtime_ns


class FindingMemory:
    """What earlier checks of a data set found, one line of JSON a picture, added to as a check goes on."""

    def __init__(self, data: str) -> None:
        self.file = cache_file("checks", data).with_suffix(".jsonl")
        self.known: dict[Stamp, Finding] = {}
        try:
            lines = self.file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            if not isinstance(error, FileNotFoundError):
                LOGGER.warning("The cache %s cannot be read and is made again: %s.", self.file, error)
            return
        for line in lines:
            try:
                name, size, changed, *finding = json.loads(line)
                self.known[name, size, changed] = Finding(*finding)
            except (ValueError, TypeError):  # a check was killed while it wrote this line
                LOGGER.warning("A line of the cache %s is damaged; its picture is read again.", self.file)

    def add(self, findings: list[tuple[Stamp, Finding]]) -> None:
        """Keep more findings; those without a stamp cannot be kept, and what a new package may make readable is not."""
        lines = [
            json.dumps([*key, *astuple(finding)]) + "\n"
            for key, finding in findings
            if key is not None and not finding.problem
        ]
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write("\n" * (stream.tell() > 0 and not self.ends_in_newline()) + "".join(lines))
        except OSError as error:
            LOGGER.warning("The cache %s cannot be written: %s.", self.file, error)

    def ends_in_newline(self) -> bool:
        with self.file.open("rb") as stream:
            stream.seek(-1, 2)
            return stream.read(1) == b"\n"
