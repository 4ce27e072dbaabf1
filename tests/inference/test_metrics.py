"""Figures of merit against scikit-learn, their equations and written-out loops."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from comvex.inference.metrics import among_largest, average_precision, wilson_interval


@given(total=st.integers(1, 5000), share=st.floats(0, 1))
def test_the_interval_is_wilsons(total, share):
    """Each end p is as far from the share as 1.96 standard deviations of a share of p (Wilson 1927)."""
    correct = round(share * total)
    low, high = (end / 100 for end in wilson_interval(correct, total))
    assert 0 <= low <= correct / total <= high <= 1
    z = NormalDist().inv_cdf(0.975)
    for end in (low, high):
        squared = (correct / total - end) ** 2
        assert squared == pytest.approx(z * z * end * (1 - end) / total, rel=1e-9, abs=1e-15)


def test_nothing_is_known_of_no_pictures():
    assert wilson_interval(0, 0) == (0, 100)


@given(seed=st.integers(0, 2**31), k=st.sampled_from([1, 5]))
def test_top_k_is_scikit_learns(seed, k):
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(50, 7, generator=generator), torch.randint(7, (50,), generator=generator)
    expected = top_k_accuracy_score(labels, logits, k=k, normalize=False, labels=range(7))
    assert int(among_largest(logits, labels, k=k).sum()) == expected


def test_with_fewer_than_five_classes_every_label_is_among_the_top_five():
    assert among_largest(torch.randn(9, 3), torch.randint(3, (9,)), k=5).all()


def average_precision_with_loops(scores: list[int], labels: list[int]) -> float:
    """The sum over thresholds, from the highest down, of the precision there times the recall that it adds."""
    positives, total, recall_before = sum(labels), 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        found = [label for score, label in zip(scores, labels, strict=True) if score >= threshold]
        precision, recall = sum(found) / len(found), sum(found) / positives
        total += precision * (recall - recall_before)
        recall_before = recall
    return 100 * total


@given(
    st.integers(1, 4).flatmap(
        lambda num_classes: st.lists(
            st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=num_classes, max_size=num_classes),
            min_size=1,
            max_size=30,
        )
    )
)
def test_average_precision_is_that_of_loops_over_thresholds_with_ties_too(pictures):
    scores = np.array([[score for score, _ in row] for row in pictures], np.float32)
    labels = np.array([[label for _, label in row] for row in pictures], np.uint8)
    found = average_precision(scores, labels)
    for column, value in enumerate(found.tolist()):
        if not labels[:, column].any():
            assert math.isnan(value)
        else:
            expected = average_precision_with_loops(scores[:, column].tolist(), labels[:, column].tolist())
            assert value == pytest.approx(expected, rel=1e-9)
