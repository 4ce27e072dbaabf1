"""Stratified, seeded, nested splits: every class gives its share, and a smaller share lies inside a larger one."""

import numpy as np
from numpy.typing import NDArray

from comvex.errors import UserError


def stratified_share(labels: NDArray[np.int64], share: float, *, seed: int) -> NDArray[np.bool_]:
    """Which pictures belong to a share of the whole, about the same share of every class.

    ``labels`` (num_pictures,), ``share`` in [0, 1]. Each class is put in a random order of its own, and its picture at
    place r of n is taken if (r + 0.5) / n < share: so the shares of one seed are nested, and a class of one picture
    is taken whole or not at all.

    Raises ``ValueError`` if ``share`` lies outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise UserError(f"The share {share} must lie in [0, 1].")
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = np.random.default_rng([seed, int(label)]).permutation(len(members))
        place[members[order]] = (np.arange(len(members)) + 0.5) / len(members)
    return place < share
