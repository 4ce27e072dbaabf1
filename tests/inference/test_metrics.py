"""Figures of merit against scikit-learn and SciPy."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import top_k_accuracy_score

from comvex.inference.metrics import num_correct, wilson_interval


@given(total=st.integers(1, 5000), share=st.floats(0, 1))
def test_the_interval_is_wilsons(total, share):
    correct = round(share * total)
    expected = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, total) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-4)


def test_nothing_is_known_of_no_pictures():
    assert wilson_interval(0, 0) == (0, 100)


@given(seed=st.integers(0, 2**31), k=st.sampled_from([1, 5]))
def test_top_k_is_scikit_learns(seed, k):
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(50, 7, generator=generator), torch.randint(7, (50,), generator=generator)
    expected = top_k_accuracy_score(labels, logits, k=k, normalize=False, labels=range(7))
    assert num_correct(logits, labels, k=k) == expected


def test_with_fewer_than_five_classes_every_label_is_among_the_top_five():
    assert num_correct(torch.randn(9, 3), torch.randint(3, (9,)), k=5) == 9
