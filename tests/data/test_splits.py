"""Stratified shares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comvex.data.splits import stratified_share

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=200).map(lambda values: np.array(values, dtype=np.int64))


@given(labels=LABELS, shares=st.tuples(st.floats(0, 1), st.floats(0, 1)), seed=st.integers(0, 2**32))
def test_a_smaller_share_lies_inside_a_larger_one(labels, shares, seed):
    small, large = sorted(shares)
    inside, outside = (stratified_share(labels, share, seed=seed) for share in (small, large))
    assert not (inside & ~outside).any()


@given(labels=LABELS, share=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_every_class_gives_its_share_to_within_one_picture(labels, share, seed):
    chosen = stratified_share(labels, share, seed=seed)
    for label in np.unique(labels):
        size = int((labels == label).sum())
        assert abs(int(chosen[labels == label].sum()) - share * size) <= 0.5 + 1e-9


def test_the_seed_decides_and_nothing_else():
    labels = np.repeat(np.arange(4), 50)
    first, again, other = (stratified_share(labels, 0.3, seed=seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert stratified_share(labels, 0, seed=0).sum() == 0
    assert stratified_share(labels, 1, seed=0).all()


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"1\.5"):
        stratified_share(np.zeros(3, np.int64), 1.5, seed=0)
