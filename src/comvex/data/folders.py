"""A folder of class folders as a data set, and the index of its files, which is kept for the next time."""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np
from rich.console import Console
from rich.markup import escape

from comvex import run_folder
from comvex.data.cache import read_cache, write_cache
from comvex.data.picture_set import DataSet, PictureSet, picture_files_data, with_test_drawn
from comvex.data.reading import SUFFIXES, printable
from comvex.errors import UserError

LOGGER = logging.getLogger(__name__)

SMALLEST_CACHED = 5_000
"""Files in a folder from which its index is kept; fewer are found in no time."""
SETTLED = 2 * 10**9
"""Nanoseconds since the last change of a folder from which its time of change tells whether it changed again."""
WORDNET_ID = re.compile(r"n\d{8}")
PART_LIKE = re.compile(
    r"(?:(?P<train>train(?:ing)?)|(?P<val>val(?:id|idation)?)|(?P<test>test(?:ing|s)?))"
    r"(?:[ _-]?(?:set|data|images|pictures|split))?",
    re.IGNORECASE,
)
"""What people call the folders of the parts; the group that matched is what they must be called."""
OWN = (run_folder.RECIPE, run_folder.STUDY, run_folder.EVALUATED, run_folder.HEADS)
"""A folder that has one of these was written by comvex: a run, a study, an evaluation, a report of ``explain``."""
NUM_NAMED = 4
"""Folders that a message names, of any number."""


@dataclass(frozen=True)
class FolderIndex:
    """The picture files in a folder, by their paths inside it, and the folders in there as they were."""

    files: tuple[str, ...]
    """In order: the files of a folder by name, then those of the folders in it."""
    folders: dict[str, tuple[int, int]]
    """Path inside the folder -> time of the last change in nanoseconds, number of entries."""
    left_out: dict[str, int]
    """Ending in lower case -> number of files in class folders that have it, and so are no pictures that are read."""

    @cached_property
    def by_class(self) -> dict[str, list[str]]:
        """Class folder -> the pictures in it, however deep; a picture beside the class folders has no class."""
        found: dict[str, list[str]] = defaultdict(list)
        for file in self.files:
            name, slash, _ = file.partition("/")
            if slash:
                found[name].append(file)
        return dict(found)

    @cached_property
    def nested(self) -> dict[str, list[str]]:
        """Class folder that has no picture directly in it -> the folders in it that have pictures, sorted."""
        return {
            name: sorted({file.split("/")[1] for file in files})
            for name, files in self.by_class.items()
            if all(file.count("/") > 1 for file in files)
        }

    @property
    def has_parts_alone(self) -> bool:
        """Whether all pictures are in class folders inside folders called val and test, which are no classes then."""
        num_in_parts = sum(len(self.by_class[name]) for name in self.nested if name in ("val", "test"))
        return 0 < num_in_parts == len(self.files)

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
    if kept is not None and "left_out" in kept:
        folders = {path: (time, num) for path, time, num in kept["folders"]}
        index = FolderIndex(tuple(kept["files"]), folders, kept["left_out"])
        if index.is_current(root):
            return index
    started = time.time_ns()
    index = scan_folder(root)
    last_change = max((changed for changed, _ in index.folders.values()), default=0)
    if len(index.files) >= SMALLEST_CACHED and last_change < started - SETTLED:
        folders = [[path, *known] for path, known in index.folders.items()]
        write_cache("folders", key, {"files": index.files, "folders": folders, "left_out": index.left_out})
    return index


def scan_folder(root: Path) -> FolderIndex:
    """Look for the picture files of a folder.

    Hidden files and folders are left out, and folders of runs and studies with their figures. Links to folders are
    followed if they lie in ``root`` itself, unless that would lead back into it; deeper ones are not, so that loops
    end. A folder that cannot be opened is named in the log.
    """
    files: list[str] = []
    folders: dict[str, tuple[int, int]] = {}
    left_out: Counter[str] = Counter()
    looking = f"looking for pictures in {escape(printable(root))}"
    with Console(stderr=True).status(looking) as status:  # shown in a terminal only
        for folder, known, pictures, endings in walk(root, "", outside=root.resolve()):
            folders[folder] = known
            files += pictures
            if folder:
                left_out.update(endings)
            status.update(f"{looking}: {len(files)}")
    return FolderIndex(tuple(files), folders, dict(left_out))


Found = tuple[str, tuple[int, int], list[str], list[str]]
"""A folder's path, (time of change, entries), the picture files in it, the endings of its other files."""


def walk(root: Path, folder: str, *, outside: Path | None) -> Iterator[Found]:
    """What a folder inside ``root`` holds, and each folder in it."""
    path = root / folder
    try:
        changed = path.stat().st_mtime_ns
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        LOGGER.warning("The folder %s cannot be read and is left out: %s.", printable(path), error.strerror)
        return
    if folder and any(entry.name in OWN for entry in entries):
        return
    prefix = f"{folder}/" if folder else ""
    inside, files, endings = [], [], []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and may_follow(entry, outside)):
            inside.append(entry.name)
        elif not is_special(entry):
            ending = PurePath(entry.name).suffix.lower()
            if ending in SUFFIXES:
                files.append(prefix + entry.name)
            else:
                endings.append(ending)
    yield folder, (changed, len(entries)), files, endings
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


def folder_data(root: Path) -> DataSet:
    """A folder of class folders, or one with such folders called train, val and test (those that are there).

    Without ``train`` a stratified fifth of all pictures is the test set. With ``train`` but without ``test`` there is
    no test set. Where there are no others than val and test, there are no training pictures. Folders of ImageNet's
    WordNet ids give classes with readable names. Classes that ``train`` does not have are problems of the data.

    Raises ``ValueError`` if there are fewer than two classes, a part has no pictures, or a folder seems to be a part
    but is called otherwise.
    """
    labelled = root / "train" if (root / "train").is_dir() else root
    index = index_folder(labelled)
    check_part_names(root, index)
    problems: list[str] = []
    left_out = Counter(index.left_out)
    if labelled is not root:
        classes, train = labelled_pictures(labelled, index)
        parts = {}
        for name in ("val", "test"):
            if (root / name).is_dir():
                own = index_folder(root / name)
                left_out.update(own.left_out)
                _, parts[name] = labelled_pictures(root / name, own, classes)
                problems += strange_classes(root / name, own, classes)
    elif index.has_parts_alone:
        classes, train, parts = parts_alone(root, index)
    else:
        classes, train = labelled_pictures(root, index)
        parts = {}
    data = picture_files_data(
        printable(root.resolve().name), tuple(printable(name) for name in classes), train=train, val=parts.get("val"),
        test=parts.get("test"),
    )  # fmt: skip
    if labelled is root and not parts:
        data = with_test_drawn(data)
    notes = [] if index.has_parts_alone or not index.nested else [note_nested(index)]
    if left_out:
        notes.append(note_left_out(left_out))
    return name_wordnet_classes(replace(data, notes=tuple(notes), problems=tuple(problems)))


def check_part_names(root: Path, index: FolderIndex) -> None:
    """Raises ``ValueError`` if folders seem to be parts, by their names and what is in them, but are not called so.

    ``index`` is that of ``train`` or, where there is none, of ``root``. Then a single folder called val or test may be
    a class, such as "valid" beside "invalid".
    """
    alike = {
        folder.name: match.lastgroup
        for folder in visible(root)
        if (match := PART_LIKE.fullmatch(folder.name)) and folder.is_dir()
    }
    if "train" in alike:
        for name, part in alike.items():
            if part not in alike:
                raise UserError(
                    f"The folder {printable(root / name)} looks like a part of the data: it must be called {part}, or "
                    "lie elsewhere."
                )
        return
    nested = [name for name in alike if name in index.nested]
    if not index.has_parts_alone and (len(nested) > 1 or "train" in [alike[name] for name in nested]):
        raise UserError(
            f"The folder {printable(root)} has no folder train, but {' and '.join(nested)} "
            f"look{'s' if len(nested) == 1 else ''} like parts of the data: parts must be called train, val and test, "
            "and classes otherwise."
        )


def note_nested(index: FolderIndex) -> str:
    """The sentence that says which class folders have pictures only in the folders in them."""
    named = [f"{printable(name)} ({first_few(inner)})" for name, inner in index.nested.items()]
    plural = "s" if len(named) > 1 else ""
    return (
        f"The class folder{plural} {first_few(named)} ha{'ve' if plural else 's'} pictures only in deeper folders, "
        "which are no classes."
    )


def note_left_out(endings: Counter[str]) -> str:
    """The sentence that counts the files whose endings are those of no picture that is read, such as .heic."""
    counts = [f"{number} {ending or 'without an ending'}" for ending, number in endings.most_common()]
    return f"Files in class folders that are not read as pictures, by their endings: {first_few(counts)}."


def first_few(names: list[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(map(printable, names[:NUM_NAMED])) + more


def parts_alone(root: Path, index: FolderIndex) -> tuple[tuple[str, ...], PictureSet, dict[str, PictureSet]]:
    """The classes of val and test together, no training pictures, and the part of each of the two that is there."""
    classes = tuple(sorted({name for names in index.nested.values() for name in names}))
    parts = {part: labelled_pictures(root / part, index_folder(root / part), classes)[1] for part in index.nested}
    return classes, PictureSet([], np.empty(0, np.int64)), parts


def labelled_pictures(
    root: Path, index: FolderIndex, classes: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], PictureSet]:
    """The classes of a folder of class folders, those given or else those that have pictures, sorted; its pictures.

    Pictures of other classes than those given are left out. Raises ``ValueError`` for no pictures at all, or a single
    class where none are given.
    """
    if index.files and not index.by_class:
        raise no_class_folders(root, index)
    if classes is None:
        classes = check_classes(root, index)
    if not index.by_class:
        raise UserError(f"The folder {printable(root)} has no pictures of the classes {', '.join(classes)}.")
    files = [root / file for name in classes for file in index.by_class.get(name, ())]
    labels = np.repeat(np.arange(len(classes)), [len(index.by_class.get(name, ())) for name in classes])
    return classes, PictureSet(files, labels)


def strange_classes(root: Path, index: FolderIndex, classes: tuple[str, ...]) -> list[str]:
    """A sentence for each class of a part that is none of the training pictures' classes."""
    return [
        f"The folder {printable(root)} has the class {printable(name)!r}, which the training pictures do not have."
        for name in sorted(index.by_class.keys() - set(classes))
    ]


def no_class_folders(root: Path, index: FolderIndex) -> UserError:
    """What is wrong with a folder whose pictures lie directly in it."""
    data = data_folder(root)
    hint = f"did you mean {printable(data)!r}?" if data is not None else "it must hold one folder per class."
    if root.name in ("train", "val", "test"):
        hint = f"a folder called {root.name} must hold one folder per class."
    return UserError(
        f"The folder {printable(root)} has no class folders, its {len(index.files)} pictures lie directly in it: {hint}"
    )


def data_folder(class_folder: Path) -> Path | None:
    """The folder of class folders that a folder of pictures seems to belong to; None if no other has pictures."""
    if class_folder.name in ("", ".."):
        class_folder = class_folder.resolve()
    above = class_folder.parent
    if not any(has_pictures(folder) for folder in visible(above) if folder.name != class_folder.name):
        return None
    return above.parent if above.name in ("train", "val", "test") else above


def visible(folder: Path) -> list[Path]:
    """What lies in a folder and is not hidden, sorted; nothing if it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def has_pictures(folder: Path) -> bool:
    """Whether a picture lies directly in a folder."""
    try:
        with os.scandir(folder) as found:
            return any(PurePath(entry.name).suffix.lower() in SUFFIXES for entry in found)
    except OSError:
        return False


def check_classes(root: Path, index: FolderIndex) -> tuple[str, ...]:
    """The folders that have pictures, sorted; the log names those that have none."""
    by_class = index.by_class
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
        [name] = by_class
        inner = index.nested.get(name, [])
        hint = f"; did you mean {printable(root / name)!r}, which holds {first_few(inner)}?" if len(inner) > 1 else "."
        raise UserError(
            f"The folder {printable(root)} has pictures of one class only, {printable(name)!r}: at least two are "
            f"needed{hint}"
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
    return replace(folder_data(root), name="imagenet-1k")
