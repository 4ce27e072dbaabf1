"""A folder of class folders as a data set, and the index of its files, which is kept for the next time."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
from rich.console import Console

from comvex.data.cache import read_cache, write_cache
from comvex.data.picture_set import DataSet, PictureSet, picture_files_data
from comvex.data.reading import SUFFIXES, printable
from comvex.errors import UserError

LOGGER = logging.getLogger(__name__)

SMALLEST_CACHED = 5_000
"""Files in a folder from which its index is kept; fewer are found in no time."""
SETTLED = 2 * 10**9
"""Nanoseconds since the last change of a folder from which its time of change tells whether it changed again."""
WORDNET_ID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class FolderIndex:
    """The picture files in a folder, by their paths inside it, and the folders in there as they were."""

    files: tuple[str, ...]
    """In order: the files of a folder by name, then those of the folders in it."""
    folders: dict[str, tuple[int, int]]
    """Path inside the folder -> time of the last change in nanoseconds, number of entries."""

    @property
    def has_parts_alone(self) -> bool:
        """Whether all pictures are in class folders inside folders called val and test, which are no classes then."""
        paths = [file.split("/") for file in self.files]
        return bool(paths) and all(len(path) > 2 and path[0] in ("val", "test") for path in paths)

    def is_current(self, root: Path) -> bool:
        """Whether nothing has come, gone or changed its name since; looks at the folders, not at the files."""
        try:
            return all(
                ((root / path).stat().st_mtime_ns, len(list((root / path).iterdir()))) == known
                for path, known in self.folders.items()
            )
        except OSError:
            return False


def index_folder(root: Path) -> FolderIndex:
    """The picture files of a folder, from the cache if it is large and has not changed."""
    key = str(root.resolve())
    kept = read_cache("folders", key)
    if kept is not None:
        index = FolderIndex(tuple(kept["files"]), {path: (time, num) for path, time, num in kept["folders"]})
        if index.is_current(root):
            return index
    started = time.time_ns()
    index = scan_folder(root)
    last_change = max((changed for changed, _ in index.folders.values()), default=0)
    if len(index.files) >= SMALLEST_CACHED and last_change < started - SETTLED:
        folders = [[path, *known] for path, known in index.folders.items()]
        write_cache("folders", key, {"files": index.files, "folders": folders})
    return index


def scan_folder(root: Path) -> FolderIndex:
    """Look for the picture files of a folder.

    Hidden files and folders are left out. Links to folders are followed if they lie in ``root`` itself, unless that
    would lead back into it; deeper ones are not, so that loops end. A folder that cannot be opened is named in the log.
    """
    files: list[str] = []
    folders: dict[str, tuple[int, int]] = {}
    looking = f"looking for pictures in {printable(root)}"
    with Console(stderr=True).status(looking) as status:  # shown in a terminal only
        for folder, known, names in walk(root, "", outside=root.resolve()):
            folders[folder] = known
            files += names
            status.update(f"{looking}: {len(files)}")
    return FolderIndex(tuple(files), folders)


def walk(root: Path, folder: str, *, outside: Path | None) -> Iterator[tuple[str, tuple[int, int], list[str]]]:
    """For a folder inside ``root`` and each folder in it: its path, (time of change, entries), picture files."""
    path = root / folder
    try:
        changed = path.stat().st_mtime_ns
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        LOGGER.warning("The folder %s cannot be read and is left out: %s.", printable(path), error.strerror)
        return
    prefix = f"{folder}/" if folder else ""
    inside, files = [], []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and may_follow(entry, outside)):
            inside.append(entry.name)
        elif PurePath(entry.name).suffix.lower() in SUFFIXES and not is_special(entry):
            files.append(prefix + entry.name)
    yield folder, (changed, len(entries)), files
    for name in inside:
        yield from walk(root, prefix + name, outside=None)


def may_follow(link: os.DirEntry[str], outside: Path | None) -> bool:
    """Whether a link leads to a folder that neither is nor holds nor lies in the folder ``outside``; None: never."""
    if outside is None:
        return False
    try:
        if not link.is_dir():
            return False
        target = Path(link.path).resolve(strict=True)
    except (OSError, RuntimeError):  # links that lead to each other
        LOGGER.warning("The link %s leads nowhere and is left out.", printable(link.path))
        return False
    if outside.is_relative_to(target):
        LOGGER.warning("The link %s leads back to where it comes from and is left out.", printable(link.path))
        return False
    return True


def is_special(entry: os.DirEntry[str]) -> bool:
    """Whether this is no file that can be read to its end: a pipe, a device, a link to a folder."""
    try:
        return not entry.is_file() and (not entry.is_symlink() or entry.is_dir())
    except OSError:  # links that lead to each other: a picture that cannot be read, as any broken link
        return False


def folder_data(root: Path, *, split_seed: int) -> DataSet:
    """A folder of class folders, or one with such folders called train, val and test (those that are there).

    Without ``train`` a stratified fifth of all pictures is the test set. With ``train`` but without ``test`` there is
    no test set. Where there are no others than val and test, there are no training pictures. Folders of ImageNet's
    WordNet ids give classes with readable names.

    Raises ``ValueError`` if there are fewer than two classes, a part has other classes than ``train`` or no pictures.
    """
    if (root / "train").is_dir():
        classes, train = labelled_pictures(root / "train")
        parts = {
            name: labelled_pictures(root / name, classes)[1]
            for name in ("val", "test")
            if (root / name).is_dir()
        }  # fmt: skip
    elif any((root / part).is_dir() for part in ("val", "test")) and index_folder(root).has_parts_alone:
        classes, train, parts = parts_alone(root)
    else:
        classes, pictures = labelled_pictures(root)
        in_test = pictures.share(0.2, seed=split_seed)
        train, parts = pictures.where(~in_test), {"test": pictures.where(in_test)}
    data = picture_files_data(
        root.resolve().name, tuple(printable(name) for name in classes), train=train, val=parts.get("val"),
        test=parts.get("test"),
    )  # fmt: skip
    return name_wordnet_classes(data)


def parts_alone(root: Path) -> tuple[tuple[str, ...], PictureSet, dict[str, PictureSet]]:
    """The classes of val and test together, no training pictures, and the part of each of the two that is there."""
    paths = [file.split("/") for file in index_folder(root).files]
    classes = tuple(sorted({name for _, name, *_ in paths}))
    parts = {part: labelled_pictures(root / part, classes)[1] for part in sorted({part for part, *_ in paths})}
    return classes, PictureSet([], np.empty(0, np.int64)), parts


def labelled_pictures(root: Path, classes: tuple[str, ...] | None = None) -> tuple[tuple[str, ...], PictureSet]:
    """The classes of a folder of class folders, those given or else those that have pictures, sorted; its pictures.

    Raises ``ValueError`` for pictures of other classes than those given, none at all, or a single class.
    """
    index = index_folder(root)
    by_class: dict[str, list[Path]] = {}
    for file in index.files:
        name, slash, _ = file.partition("/")
        if slash:  # a picture beside the class folders has no class
            by_class.setdefault(name, []).append(root / file)
    if classes is None:
        classes = check_classes(root, by_class, index)
    strangers = sorted(by_class.keys() - set(classes))
    if strangers:
        raise UserError(
            f"The folder {printable(root)} has the class {printable(strangers[0])!r}, which the training pictures do "
            "not have."
        )
    if not by_class:
        raise UserError(f"The folder {printable(root)} has no pictures of the classes {', '.join(classes)}.")
    files = [file for name in classes for file in by_class.get(name, ())]
    labels = np.repeat(np.arange(len(classes)), [len(by_class.get(name, ())) for name in classes])
    return classes, PictureSet(files, labels)


def check_classes(root: Path, by_class: dict[str, list[Path]], index: FolderIndex) -> tuple[str, ...]:
    """The folders that have pictures, sorted; the log names those that have none."""
    empty = sorted({path.partition("/")[0] for path in index.folders if path} - by_class.keys())
    if empty and by_class:
        LOGGER.warning(
            "The class folders %s in %s have no pictures and are left out.",
            ", ".join(map(printable, empty)), printable(root),
        )  # fmt: skip
    if not by_class:
        endings = ", ".join(sorted(SUFFIXES))
        raise UserError(
            f"The folder {printable(root)} has no pictures: it must hold one folder per class with {endings} files."
        )
    if len(by_class) == 1:
        raise UserError(
            f"The folder {printable(root)} has pictures of one class only, {printable(next(iter(by_class)))!r}: at "
            "least two are needed."
        )
    return tuple(sorted(by_class))


def name_wordnet_classes(data: DataSet) -> DataSet:
    """Data whose classes are ImageNet's WordNet ids, with names that can be read; any other as they are.

    The order stays: timm's and torchvision's is that of the ids. All 1,000 classes have exactly timm's names, two of
    which occur twice; of fewer, the id stands beside such a name.
    """
    if not all(WORDNET_ID.fullmatch(name) for name in data.classes):
        return data
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    known = {number: info.label_name_to_description(number) for number in info.label_names()}
    if not set(data.classes) <= known.keys():
        return data
    names = [known[name] for name in data.classes]
    if len(names) == len(known):
        return replace(data, classes=tuple(names), class_ids=data.classes, image_size=224, patch_size=16)
    distinct = [
        name if names.count(name) == 1 else f"{name} ({number})"
        for name, number in zip(names, data.classes, strict=True)
    ]
    return replace(data, classes=tuple(distinct), class_ids=data.classes)


def imagenet(root: Path) -> DataSet:
    """ImageNet-1k from the cache folder; raises ``ValueError`` that says what to put there if it is missing."""
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        raise UserError(
            f"ImageNet-1k is not in {root}: put its folders train and val there (or links to them), each with one "
            "folder of pictures per WordNet id, such as n01440764."
        )
    return replace(folder_data(root, split_seed=0), name="imagenet-1k")
