"""The pictures that a name, a folder or a file stands for, with their classes and their split into parts."""

from __future__ import annotations

import difflib
import functools
import logging
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from comvex.data.cache import cache_folder
from comvex.data.csv_data import csv_data
from comvex.data.depth import settle_depth
from comvex.data.folders import data_folder, folder_data, imagenet, visible
from comvex.data.picture_set import DataSet, PictureSet
from comvex.data.reading import SUFFIXES, printable
from comvex.data.shards import shard_data
from comvex.data.small_sets import cifar, digits, fashion_mnist
from comvex.errors import UserError

LOGGER = logging.getLogger(__name__)

__all__ = ["NAMES", "DataSet", "PictureSet", "open_data"]

NAMES = ("digits", "fashion-mnist", "cifar10", "cifar100", "imagenet-1k")
HUB, SHARDS = "hfds/", "wds/"
"""What names of Hugging Face data sets and of WebDataset shards begin with, as in timm."""


def open_data(name: str, *, split_seed: int = 0, fraction: float = 1.0, val_fraction: float = 0.1) -> DataSet:
    """The data set that a name stands for.

    It is one of ``NAMES``, a folder of class folders, a CSV file of paths and labels, ``hfds/NAME`` (a Hugging Face
    data set) or ``wds/PATTERN`` (WebDataset shards).

    ``val_fraction`` of the training pictures is set aside for validation, unless the data have pictures for that;
    ``fraction`` in (0, 1] then keeps a stratified share of what is left, and of what was set aside. ``split_seed``
    decides which. Groups stay whole. What a smaller fraction trains on is part of what a larger one trains on. Data
    without parts have a fifth for the test, the same whatever the seed.

    Raises ``ValueError`` if there is no such data set, or it has too few classes, an empty part, or one with classes
    that the training pictures do not have. The log has the notes on the data.
    """
    found = find_data(name)
    for note in found.notes:
        LOGGER.info("%s", note)
    return settle_depth(set_aside(found, name, split_seed=split_seed, fraction=fraction, val_fraction=val_fraction))


def set_aside(
    data: DataSet, name: str, *, split_seed: int = 0, fraction: float = 1.0, val_fraction: float = 0.1
) -> DataSet:
    """What ``find_data`` found by that name, with pictures for validation and a share of it all, as ``open_data`` says.

    How deep they are read is not settled. Raises ``ValueError`` if a part is empty then.
    """
    if not 0 <= split_seed < 2**32:
        raise UserError(f"split_seed is {split_seed}: it must lie in [0, 2**32).")
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction}: it must lie in (0, 1].")
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}: it must lie in (0, 1).")
    if len(data.train) == 0:
        raise UserError(f"The data set {name} has no training pictures: only comvex evaluate can do without.")
    whole = with_validation(data, split_seed=split_seed, val_fraction=val_fraction)
    if not has_both(whole):
        allowed = allowed_val_fraction(data, whole, split_seed=split_seed)
        raise UserError(
            f"{name} has {len(data.train)} training pictures, of which val_fraction = {val_fraction} leaves "
            f"{describe_both(whole)}: both need at least one, so {allowed}."
        )
    reduce_val = data.val is None
    data = reduced(whole, fraction, split_seed=split_seed, reduce_val=reduce_val)
    if not has_both(data):
        least = smallest(lambda share: has_both(reduced(whole, share, split_seed=split_seed, reduce_val=reduce_val)))
        raise UserError(
            f"{name} has {describe_both(whole)}, of which fraction = {fraction:g} leaves {describe_both(data)}: both "
            f"need at least one, so the fraction must be at least {least}."
        )
    for part_name, part in (("val", data.val), ("test", data.test)):
        if data.multi_label and part is not None and len(part) and not part.labels.any():
            raise UserError(
                f"The {len(part)} {part_name} pictures of {name} have no label at all: nothing can be measured on them."
            )
    return data


def with_validation(data: DataSet, *, split_seed: int = 0, val_fraction: float = 0.1) -> DataSet:
    """The data with a share of the training pictures set aside for validation, unless they have pictures for that.

    Either part may be empty then.
    """
    if data.val is not None:
        return data
    # Another seed than the fraction's: the same one would always set aside the pictures that come first there.
    chosen = data.train.share(val_fraction, seed=split_seed + 1_000_003)
    return replace(data, train=data.train.where(~chosen), val=data.train.where(chosen))


def reduced(data: DataSet, fraction: float, *, split_seed: int, reduce_val: bool) -> DataSet:
    """A share of the training pictures and, if ``reduce_val``, of the validation pictures; may be empty."""
    if fraction == 1:
        return data

    def share(part: PictureSet) -> PictureSet:
        return part.where(part.share(fraction, seed=split_seed))

    val = share(data.val) if reduce_val and data.val is not None else data.val
    return replace(data, train=share(data.train), val=val)


def has_both(data: DataSet) -> bool:
    """Whether there are pictures to train on and to validate."""
    return len(data.train) > 0 and data.val is not None and len(data.val) > 0


def describe_both(data: DataSet) -> str:
    return f"{len(data.train)} pictures to train on and {len(data.val or ())} to validate"


def allowed_val_fraction(data: DataSet, whole: DataSet, *, split_seed: int) -> str:
    """What would help where ``with_validation`` made ``whole`` of the data and left a part of it empty."""
    if len(whole.train) == 0:
        return "it must be smaller"
    tried = functools.partial(with_validation, data, split_seed=split_seed)
    least = smallest(lambda share: bool(tried(val_fraction=share).val))
    if least is None or not has_both(tried(val_fraction=least)):
        return "more pictures are needed"
    return f"it must be at least {least}"


def smallest(is_enough: Callable[[float], bool]) -> float | None:
    """The smallest of the shares 0.001, 0.002, ..., 0.999 that is enough, as all larger ones are; None if none is."""
    shares = [thousandth / 1000 for thousandth in range(1, 1000)]
    place = bisect_left(shares, True, key=is_enough)
    return shares[place] if place < len(shares) else None


def find_data(name: str) -> DataSet:
    """The data set of that name with the parts that it has; without parts of its own a fifth is the test set.

    Raises ``ValueError`` if there is none, or a part has classes that the training pictures do not have.
    """
    data = read_source(name)
    if data.problems:
        raise UserError(data.problems[0])
    return data


def read_source(name: str) -> DataSet:
    """As ``find_data``, but of a folder or CSV file pictures of unknown classes are left out, as ``problems`` says."""
    known = {
        "digits": digits,
        "fashion-mnist": fashion_mnist,
        "cifar10": lambda: cifar("CIFAR10"),
        "cifar100": lambda: cifar("CIFAR100"),
        "imagenet-1k": lambda: imagenet(cache_folder() / "imagenet-1k"),
    }
    check_name(name)
    if name in known:
        return known[name]()
    if name.startswith(HUB):
        from comvex.data.hub_data import hub_data

        return hub_data(name.removeprefix(HUB))
    if name.startswith(SHARDS):
        return shard_data(name.removeprefix(SHARDS))
    if Path(name).is_dir():
        return folder_data(Path(name))
    return csv_data(Path(name))


def check_name(name: str) -> None:
    """Raises ``ValueError`` if a name stands for no data set, as far as a glance can tell."""
    path = Path(name)
    if name in NAMES or name.startswith((HUB, SHARDS)) or path.is_dir() or path.suffix.lower() == ".csv":
        return
    if path.is_file():
        is_picture = path.suffix.lower() in SUFFIXES
        near = data_folder(path.parent) if is_picture else f"{SHARDS}{name}" if path.suffix == ".tar" else None
        found = f"{printable(name)!r} is a {'picture' if is_picture else 'file'}, not a data set"
    else:
        by_name = {
            other.name: other
            for other in visible(path.parent)
            if other.is_dir() or other.suffix.lower() == ".csv"
        } | {known: Path(known) for known in NAMES}  # fmt: skip
        near = next((by_name[match] for match in difflib.get_close_matches(path.name, by_name, n=1)), None)
        found = f"There is no data set {printable(name)!r}"
    hint = f"did you mean {printable(near)!r}? If not, " if near is not None else ""
    raise UserError(
        f"{found}: {hint}give a folder of class folders, a .csv file, {HUB}NAME, {SHARDS}PATTERN, or "
        f"{', '.join(NAMES[:-1])} or {NAMES[-1]}."
    )
