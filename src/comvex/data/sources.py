"""The pictures that a name, a folder or a file stands for, with their classes and their split into parts."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from comvex.data.cache import cache_folder
from comvex.data.csv_data import csv_data
from comvex.data.depth import settle_depth
from comvex.data.folders import folder_data, imagenet
from comvex.data.picture_set import DataSet, PictureSet
from comvex.data.shards import shard_data
from comvex.data.small_sets import cifar, digits, fashion_mnist
from comvex.errors import UserError

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
    decides which. Groups stay whole. What a smaller fraction trains on is part of what a larger one trains on.

    Raises ``ValueError`` if there is no such data set, or it has too few classes or an empty part.
    """
    found = find_data(name, split_seed=split_seed)
    return set_aside(found, name, split_seed=split_seed, fraction=fraction, val_fraction=val_fraction)


def set_aside(
    data: DataSet, name: str, *, split_seed: int = 0, fraction: float = 1.0, val_fraction: float = 0.1
) -> DataSet:
    """What ``find_data`` found by that name, with pictures for validation and a share of it all, as ``open_data`` says.

    Raises ``ValueError`` if a part is empty then.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction}: it must lie in (0, 1].")
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}: it must lie in (0, 1).")
    if len(data.train) == 0:
        raise UserError(f"The data set {name} has no training pictures: only comvex evaluate can do without.")
    own_val = data.val is not None
    if not own_val:
        # Another seed than the fraction's: the same one would always set aside the pictures that come first there.
        chosen = data.train.share(val_fraction, seed=split_seed + 1_000_003)
        data = replace(data, train=data.train.where(~chosen), val=data.train.where(chosen))
    if fraction < 1:
        data = replace(data, train=data.train.where(data.train.share(fraction, seed=split_seed)))
        if data.val is not None and not own_val:
            data = replace(data, val=data.val.where(data.val.share(fraction, seed=split_seed)))
    if len(data.train) == 0 or data.val is None or len(data.val) == 0:
        raise UserError(
            f"The data set {name} leaves {len(data.train)} pictures to train on and {len(data.val or ())} to "
            f"validate: both need at least one; raise fraction = {fraction} or val_fraction = {val_fraction}."
        )
    for part_name, part in (("val", data.val), ("test", data.test)):
        if data.multi_label and part is not None and len(part) and not part.labels.any():
            raise UserError(
                f"The {len(part)} {part_name} pictures of {name} have no label at all: nothing can be measured on them."
            )
    return settle_depth(data)


def find_data(name: str, *, split_seed: int) -> DataSet:
    """The data set of that name with the parts that it has; without parts of its own a fifth is the test set."""
    known = {
        "fashion-mnist": fashion_mnist,
        "cifar10": lambda: cifar("CIFAR10"),
        "cifar100": lambda: cifar("CIFAR100"),
        "imagenet-1k": lambda: imagenet(cache_folder() / "imagenet-1k"),
    }
    if name == "digits":
        return digits(split_seed=split_seed)
    if name in known:
        return known[name]()
    if name.startswith(HUB):
        from comvex.data.hub_data import hub_data

        return hub_data(name.removeprefix(HUB), split_seed=split_seed)
    if name.startswith(SHARDS):
        return shard_data(name.removeprefix(SHARDS), split_seed=split_seed)
    if Path(name).is_dir():
        return folder_data(Path(name), split_seed=split_seed)
    if Path(name).suffix.lower() == ".csv":
        return csv_data(Path(name), split_seed=split_seed)
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"There is no data set {name!r}: {hint}Give a folder of class folders, a .csv file, {HUB}NAME, "
        f"{SHARDS}PATTERN, or {', '.join(NAMES[:-1])} or {NAMES[-1]}."
    )
