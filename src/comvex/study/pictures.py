"""The pictures that a study is made with: what its data must have, and what each fraction leaves of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from comvex.data.depth import settle_depth
from comvex.data.picture_set import DataSet
from comvex.data.sources import find_data, set_aside
from comvex.errors import UserError
from comvex.study.plan import Study
from comvex.training.recipe import Recipe


@dataclass(frozen=True)
class StudyPictures:
    """What a study's folder notes of them."""

    num: int
    """To train on at a fraction of 1."""
    hashes: dict[str, str]
    """For each part of the data a short hash of its labels and its files' names, or its pixels where they are in
    memory, to notice that they are others now."""
    absent_classes: dict[str, list[str]]
    """For a fraction, as its decimal number, the classes of which no picture is left to train on with some seed."""


def look_through(study: Study) -> StudyPictures:
    """Open the data of a study and divide them for every fraction and seed.

    Raises ``ValueError`` for data that a study cannot be made with, and for a recipe whose models they do not fit.
    """
    from comvex.training.build import build_config, settle  # it needs torch

    recipe = study.recipe
    data = find_data(recipe.data)
    if data.multi_label:
        raise UserError(f"The pictures of {recipe.data} have several labels each: a study compares top-1 accuracies.")
    if data.test is None or not len(data.test):
        raise UserError(
            f"The data set {recipe.data} has no test pictures: a study needs some that chose nothing, in a folder test "
            "beside train, or all pictures in one folder, a fifth of which is then the test."
        )
    whole = settle_depth(set_aside(data, recipe.data, val_fraction=recipe.val_fraction))
    for run in study.runs(len(whole.train)):
        settle(run.recipe, whole)
        build_config(run.recipe.model, whole)
    absent = {}
    for fraction in sorted(study.fractions):
        try:
            names = absent_classes(data, recipe, fraction, study.seeds)
        except UserError as error:
            raise UserError(f"fractions has {fraction:g}: {error}") from error
        if names:
            absent[f"{fraction:g}"] = names
    parts = {"training": data.train, "validation": data.val, "test": data.test}
    hashes = {name: part.fingerprint() for name, part in parts.items() if part is not None}
    return StudyPictures(len(whole.train), hashes, absent)


def absent_classes(data: DataSet, recipe: Recipe, fraction: float, seeds: Sequence[int]) -> list[str]:
    """Classes of which the run of some seed has no picture to train on; raises ``ValueError`` if a part is empty."""
    absent: set[int] = set()
    for seed in seeds:
        part = set_aside(data, recipe.data, split_seed=seed, fraction=fraction, val_fraction=recipe.val_fraction)
        absent.update(np.setdiff1d(np.arange(len(data.classes)), part.train.labels).tolist())
    return [data.classes[label] for label in sorted(absent)]


def with_fitting_fractions(study: Study) -> tuple[Study, list[str]]:
    """A study with those of its fractions that its data have enough pictures for, and a sentence for each left out.

    Those are left out that would leave no picture to train on or to validate, or none of a class that a larger
    fraction has.

    Raises ``ValueError`` if none is left.
    """
    recipe = study.recipe
    data = find_data(recipe.data)
    set_aside(data, recipe.data, val_fraction=recipe.val_fraction)  # raises what is wrong with the data themselves
    fitting, left_out = [], []
    fewest: list[str] | None = None  # absent classes of the largest
    for fraction in sorted(study.fractions, reverse=True):
        try:
            absent = absent_classes(data, recipe, fraction, study.seeds)
        except UserError as error:
            left_out.append(f"without the fraction {fraction:g}: {error}")
            continue
        fewest = absent if fewest is None else fewest
        more = [name for name in absent if name not in fewest]
        if more:
            left_out.append(f"without the fraction {fraction:g}: it leaves no training picture of {', '.join(more)}.")
        else:
            fitting.append(fraction)
    if not fitting:
        raise UserError(f"The pictures of {recipe.data} are too few for a study: {left_out[0]}")
    return dataclasses.replace(study, fractions=tuple(sorted(fitting))), left_out[::-1]
