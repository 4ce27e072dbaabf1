"""Weights for uneven classes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from comvex.data.balance import class_weights, sampling_weights

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(lambda values: np.array(values, np.int64))


@given(labels=LABELS)
def test_every_class_that_is_there_has_the_same_weight_in_all_and_the_mean_is_one(labels):
    weights = class_weights(labels, 6)
    assert weights.shape == (6,)
    assert weights.dtype == np.float32
    totals = [weights[label] * (labels == label).sum() for label in np.unique(labels)]
    np.testing.assert_allclose(totals, len(labels) / len(totals), rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1, rel=1e-6)
    assert weights[5] == 1


@given(labels=LABELS)
def test_sampling_shows_every_class_equally_often(labels):
    weights = sampling_weights(labels, 5)
    shown = np.bincount(labels, weights=weights)
    np.testing.assert_allclose(shown[shown > 0], len(labels) / len(np.unique(labels)), rtol=1e-6)


def test_of_several_labels_a_picture_the_weight_makes_yes_count_as_much_as_no():
    labels = np.zeros((20, 4), np.uint8)
    labels[:5, 0], labels[:1, 1], labels[:, 2] = 1, 1, 1
    weights = class_weights(labels, 4)
    np.testing.assert_array_equal(weights, [3, 19, 1, 1])  # all and none: nothing to balance
    losses = F.binary_cross_entropy_with_logits(
        torch.zeros(20, 4),
        torch.tensor(labels, dtype=torch.float),
        pos_weight=torch.from_numpy(weights),
        reduction="none",
    )
    for column in (0, 1):
        positive = labels[:, column] == 1
        assert losses[positive, column].sum().item() == pytest.approx(losses[~positive, column].sum().item(), rel=1e-5)
