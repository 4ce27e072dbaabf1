"""Stratified, seeded, nested splits: every class gives its share, and a smaller share lies inside a larger one."""

import numpy as np
from numpy.typing import NDArray

from comvex.errors import UserError


def stratified_share(labels: NDArray[np.integer], share: float, *, seed: int) -> NDArray[np.bool_]:
    """Which pictures belong to a share of the whole, about the same share of every class.

    ``labels`` (num_pictures,), ``share`` in [0, 1]. Each class is put in a random order of its own, and its picture at
    place r of n is taken if (r + 0.5) / n < share: so the shares of one seed are nested, and a class of one picture
    is taken whole or not at all.

    Raises ``ValueError`` if ``share`` lies outside [0, 1].
    """
    check_share(share)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = np.random.default_rng([seed, int(label)]).permutation(len(members))
        place[members[order]] = (np.arange(len(members)) + 0.5) / len(members)
    return place < share


def grouped_share(
    strata: NDArray[np.integer], groups: NDArray[np.integer], share: float, *, seed: int
) -> NDArray[np.bool_]:
    """Which pictures belong to a share of the whole that parts no group, with about the same share of every stratum.

    ``strata`` and ``groups`` (num_pictures,) are numbers from 0, ``share`` in [0, 1]. A group counts for the rarest
    stratum among its pictures. The groups of a stratum, in a random order of their own, are spread evenly over [0, 1]
    from a random start; all groups, sorted by that, are taken from the front as long as the middle of the group lies
    inside the share of all pictures. So the shares of one seed are nested, and the number of pictures is right to
    within half a group.

    Raises ``ValueError`` if ``share`` lies outside [0, 1].
    """
    check_share(share)
    if len(strata) == 0:
        return np.zeros(0, np.bool_)
    _, group_of = np.unique(groups, return_inverse=True)  # (num_pictures,), numbers without gaps
    by_group_and_rarity = np.lexsort((strata, np.bincount(strata)[strata], group_of))
    _, first = np.unique(group_of[by_group_and_rarity], return_index=True)
    stratum = strata[by_group_and_rarity][first]  # (num_groups,)

    key = np.empty(len(stratum))
    for value in np.unique(stratum):
        members = np.flatnonzero(stratum == value)
        generator = np.random.default_rng([seed, int(value)])
        order = generator.permutation(len(members))
        key[members[order]] = (np.arange(len(members)) + generator.random()) / len(members)
    in_order = np.argsort(key, kind="stable")
    sizes = np.bincount(group_of)[in_order]
    place = np.empty(len(stratum))
    place[in_order] = (np.cumsum(sizes) - sizes / 2) / len(strata)
    return (place < share)[group_of]


def rarest_label(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """The one label that each picture counts for when pictures have several: its rarest in the whole set.

    ``labels`` is (num_pictures, num_classes) of 0 and 1; a picture without any counts for a class of its own kind,
    num_classes.
    """
    num_pictures, num_classes = labels.shape
    frequency = np.where(labels, labels.sum(axis=0, dtype=np.int64), num_pictures + 1)
    return np.where(labels.any(axis=1), frequency.argmin(axis=1), num_classes)


def check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise UserError(f"The share {share} must lie in [0, 1].")
