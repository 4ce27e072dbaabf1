"""Stratified shares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comvex.data.splits import grouped_share, rarest_label, stratified_share

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
    with pytest.raises(ValueError, match=r"-0\.1"):
        grouped_share(np.zeros(3, np.int64), np.arange(3), -0.1, seed=0)


GROUPED = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), min_size=1, max_size=200).map(
    lambda pairs: (np.array([label for label, _ in pairs]), np.array([group for _, group in pairs]))
)


@given(pictures=GROUPED, shares=st.tuples(st.floats(0, 1), st.floats(0, 1)), seed=st.integers(0, 2**32))
def test_groups_stay_whole_and_a_smaller_share_of_them_lies_inside_a_larger_one(pictures, shares, seed):
    labels, groups = pictures
    small, large = sorted(shares)
    inside, outside = (grouped_share(labels, groups, share, seed=seed) for share in (small, large))
    assert not (inside & ~outside).any()
    for group in groups:
        assert len(set(inside[groups == group].tolist())) == 1


@given(pictures=GROUPED, share=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_a_share_of_groups_has_its_number_of_pictures_to_within_half_a_group(pictures, share, seed):
    labels, groups = pictures
    chosen = grouped_share(labels, groups, share, seed=seed)
    assert abs(int(chosen.sum()) - share * len(labels)) <= np.bincount(groups).max() / 2 + 1e-9


@given(labels=LABELS, share=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_without_groups_every_stratum_gives_about_its_share(labels, share, seed):
    chosen = grouped_share(labels, np.arange(len(labels)), share, seed=seed)
    sizes = np.bincount(labels)
    for label, size in enumerate(sizes):
        slack = 1 + size * np.count_nonzero(sizes) / len(labels)  # whole pictures, in this stratum and in the others
        assert abs(int(chosen[labels == label].sum()) - share * size) <= slack + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_common_strata_give_their_share_exactly_and_by_chance(seed):
    labels = np.repeat([0, 1], [300, 100])
    chosen = grouped_share(labels, np.arange(400), 0.5, seed=seed)
    assert abs(chosen[:300].sum() - 150) <= 1
    assert abs(chosen[300:].sum() - 50) <= 1
    assert 50 < chosen[:150].sum() < 100  # not the first, nor the last of each


def test_rare_strata_are_chosen_as_often_as_common_ones():
    labels = np.array([0] * 96 + [1, 2, 3, 4])
    chosen = np.mean([grouped_share(labels, np.arange(100), 0.2, seed=seed) for seed in range(400)], axis=0)
    assert chosen[:96].mean() == pytest.approx(0.2, abs=0.01)
    assert chosen[96:].mean() == pytest.approx(0.2, abs=0.05)  # 1,600 draws have a deviation of 0.01


@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 2**32))
def test_a_picture_counts_for_the_rarest_of_its_labels(num, num_classes, seed):
    labels = np.random.default_rng(seed).integers(0, 2, (num, num_classes), dtype=np.uint8)
    found = rarest_label(labels)
    totals = [sum(int(row[label]) for row in labels) for label in range(num_classes)]
    for row, label in zip(labels, found.tolist(), strict=True):
        own = [index for index in range(num_classes) if row[index]]
        assert (label in own and totals[label] == min(totals[index] for index in own)) if own else label == num_classes
