"""WebDataset shards (``wds/PATTERN``): tar files where the members of a sample differ in their ending only.

The members are found once, and then read where they lie, so that any sample can be read at any time: the order of
training is a function of (seed, epoch) here too, which streaming through the shards would not allow.
"""

from __future__ import annotations

import glob
import itertools
import json
import logging
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from comvex.data.cache import read_cache, write_cache
from comvex.data.folders import first_few
from comvex.data.picture_set import DataSet, PictureSet, picture_files_data, with_test_drawn
from comvex.data.reading import SUFFIXES, printable
from comvex.errors import UserError

LOGGER = logging.getLogger(__name__)

PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""How the names of the shards of each part begin in a folder of shards."""
SMALLEST_CACHED = 500
"""Samples of a shard from which its index is kept; fewer are found in no time."""
BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class ShardPicture:
    """A picture inside a shard; ``str()`` of it is SHARD:MEMBER."""

    shard: Path
    member: str
    offset: int
    size: int

    def content(self) -> bytes:
        with self.shard.open("rb") as stream:
            stream.seek(self.offset)
            found = stream.read(self.size)
        if len(found) < self.size:
            raise EOFError(f"the shard ends before the picture does, after {len(found)} of {self.size} bytes")
        return found

    def __str__(self) -> str:
        return f"{self.shard}:{self.member}"


def shard_data(pattern: str) -> DataSet:
    """The data set in WebDataset shards.

    ``pattern`` is a folder, in which shards are called train*.tar, val*.tar and test*.tar, or one of names with braces
    or stars, such as ``shards/pets-{000..011}.tar``; of those, and of a folder without val and test, a stratified fifth
    is the test set. A sample is a picture and a member ``cls`` with the number or name of its class (or ``json`` with
    the key "label"). Numbers are named by the lines of ``classes.txt`` beside the shards, if it is there.

    Raises ``ValueError`` if there are no shards, one that is named is missing, one is damaged, or a sample has no label
    or two different ones.
    """
    parts = find_shards(pattern)
    samples = {part: [sample for shard in shards for sample in index_shard(shard)] for part, shards in parts.items()}
    classes, number = number_classes(pattern, parts["train"][0].parent, samples)
    sets = {
        part: PictureSet([picture for picture, _ in found], np.array([number[label] for _, label in found], np.int64))
        for part, found in samples.items()
    }
    name = Path(BRACES.sub("", pattern)).stem.strip("-_*") or "shards"
    data = picture_files_data(name, classes, train=sets["train"], val=sets.get("val"), test=sets.get("test"))
    return with_test_drawn(data) if len(sets) == 1 else data


def find_shards(pattern: str) -> dict[str, list[Path]]:
    """The shards of each part, sorted.

    Raises ``ValueError`` if there are none for training, or a name that the pattern stands for is that of none.
    """
    folder = Path(pattern)
    if folder.is_dir():
        found = {
            part: sorted(shard for start in starts for shard in folder.glob(f"{start}[-_.0-9]*.tar"))
            + sorted(folder.glob(f"{starts[0]}.tar"))
            for part, starts in PARTS.items()
        }
        found = {part: shards for part, shards in found.items() if shards}
        if "train" not in found:
            raise UserError(f"The folder {folder} has no shards for training: they must be called train*.tar.")
        return found
    named = {name: matching(name) for name in expand_braces(pattern)}
    missing = [name for name, shards in named.items() if not shards]
    if len(missing) == len(named):
        raise UserError(
            f"There are no shards {pattern}: wds/ must be followed by a folder of tar files, or by their names, as in "
            "wds/shards/pets-{000..011}.tar."
        )
    if missing:
        raise UserError(f"{len(missing)} of the {len(named)} shards {pattern} are missing: {first_few(missing)}.")
    return {"train": sorted({shard for shards in named.values() for shard in shards})}


def matching(name: str) -> list[Path]:
    """The files that a name stands for, in which only stars mean something else than themselves; none if none is there.

    Brackets and question marks are parts of names.
    """
    path = Path(name)
    if "*" not in path.name:
        return [path] if path.is_file() else []
    return list(path.parent.glob("*".join(map(glob.escape, path.name.split("*")))))


def expand_braces(pattern: str) -> Iterator[str]:
    """The names that a pattern stands for: {000..011} for each number of that many digits, {a,b} for each word."""
    pieces = BRACES.split(pattern)  # text and content of braces in turns
    choices = [[piece] if place % 2 == 0 else expand_one(piece) for place, piece in enumerate(pieces)]
    return ("".join(words) for words in itertools.product(*choices))


def expand_one(content: str) -> list[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", content)
    if numbers is None:
        return content.split(",")
    first, last = numbers.groups()
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


def index_shard(shard: Path) -> list[tuple[ShardPicture, str]]:
    """The pictures of a shard and their labels in the order of the file, from the cache if it has not changed."""
    status = shard.stat()
    key = f"{shard.resolve()} {status.st_size} {status.st_mtime_ns}"
    members = read_cache("shards", key)
    if members is None:
        looking = f"looking for pictures in {escape(printable(shard))}"
        with Console(stderr=True).status(looking):  # shown in a terminal only
            members = scan_shard(shard)
        if len(members) >= SMALLEST_CACHED:
            write_cache("shards", key, members)
    return [(ShardPicture(shard, *place), label) for *place, label in members]


def scan_shard(shard: Path) -> list[list[Any]]:
    """For each sample of a shard the name, place and size of its picture, and its label, as plain values."""
    samples: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                stem, ending = split_member(member.name)
                if not member.isfile() or not stem:
                    continue
                sample = samples.setdefault(stem, {})
                if f".{ending}" in SUFFIXES:
                    if "picture" in sample:
                        raise UserError(f"The sample {stem} of the shard {printable(shard)} has two pictures.")
                    sample["picture"] = [member.name, member.offset_data, member.size]
                elif ending in ("cls", "json"):
                    content = tar.extractfile(member)
                    assert content is not None
                    label = read_label(ending, content.read())
                    if label is not None and sample.setdefault("label", label) != label:
                        raise UserError(
                            f"The sample {stem} of the shard {printable(shard)} has two labels, {sample['label']!r} "
                            f"and {label!r}."
                        )
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"The shard {printable(shard)} cannot be read as a tar file: {error}.") from error
    pictures = {stem: sample for stem, sample in samples.items() if "picture" in sample}
    unlabelled = next((stem for stem, sample in pictures.items() if "label" not in sample), None)
    if unlabelled is not None:
        raise UserError(
            f"The sample {unlabelled} of the shard {printable(shard)} has no label: it must have a member "
            f'{unlabelled}.cls, or {unlabelled}.json with the key "label".'
        )
    return [[*sample["picture"], sample["label"]] for sample in pictures.values()]


def split_member(name: str) -> tuple[str, str]:
    """The name of a sample and the ending of its member, which begins at the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return (f"{folder}{slash}{stem}" if stem else ""), ending.lower()


def read_label(ending: str, content: bytes) -> str | None:
    """The class that a member says, as text; None if it is JSON without a label."""
    if ending == "cls":
        return content.decode("utf-8").strip()
    values = json.loads(content)
    label = values.get("label") if isinstance(values, dict) else None
    return None if label is None else str(label)


def number_classes(
    pattern: str, folder: Path, samples: dict[str, list[tuple[ShardPicture, str]]]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes and the number of each label: numbers in their own order, names sorted.

    Raises ``ValueError`` if there is only one, or a part has a class that the training samples do not have.
    """
    labels = {part: {label for _, label in found} for part, found in samples.items()}
    known = labels["train"]
    for part, found in labels.items():
        if found - known:
            raise UserError(
                f"The {part} shards of {pattern} have the class {min(found - known)!r}, which the training shards do "
                "not have."
            )
    if len(known) < 2:
        raise UserError(f"The shards {pattern} have pictures of {len(known)} class: at least two are needed.")
    numeric = all(label.isdecimal() for label in known)
    ordered = sorted(known, key=int) if numeric else sorted(known)
    number = {label: place for place, label in enumerate(ordered)}
    return tuple(name_numbers(folder / "classes.txt", ordered) if numeric else ordered), number


def name_numbers(file: Path, numbers: list[str]) -> list[str]:
    """The names of numbered classes, which are the lines of a file from 0 on; without such a file the numbers."""
    if not file.is_file():
        return numbers
    names = file.read_text(encoding="utf-8").splitlines()
    if int(numbers[-1]) >= len(names):
        raise UserError(f"{file} has {len(names)} lines, but there is a class {numbers[-1]} (the first is 0).")
    return [names[int(number)].strip() for number in numbers]
