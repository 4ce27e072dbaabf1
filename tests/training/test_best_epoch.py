"""The best epoch is chosen by the criterion where the pictures can tell, and by the loss where they cannot."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comvex.training.best_epoch import best_epoch, standard_error


def rows(*figures: tuple[float, float]) -> list[dict[str, float]]:
    return [{"epoch": number, "top1": top1, "val_loss": loss} for number, (top1, loss) in enumerate(figures, start=1)]


def chosen(history: list[dict[str, float]], num_pictures: int) -> float:
    return best_epoch(history, criterion="top1", num_pictures=num_pictures)["epoch"]


def test_a_lucky_epoch_of_few_pictures_gives_way_to_a_lower_loss():
    history = rows((90.0, 0.5), (98.6, 0.172), (97.9, 0.152), (97.9, 0.157))
    assert chosen(history, 142) == 3
    assert chosen(history, 1_000_000) == 2  # so many pictures can tell 98.6 from 97.9


def test_a_criterion_that_is_higher_beyond_chance_wins_whatever_the_loss():
    assert chosen(rows((50.0, 0.7), (90.0, 2.0)), 100) == 2
    assert chosen(rows((90.0, 2.0), (50.0, 0.7)), 100) == 1


def test_the_first_of_equal_epochs_is_kept():
    assert chosen(rows((80.0, 0.6), (80.0, 0.6)), 100) == 1


def test_all_pictures_right_is_still_uncertain():
    assert standard_error(100, 142) == pytest.approx(100 * math.sqrt(142.5 / 143 * 0.5 / 143 / 142))
    assert chosen(rows((100.0, 0.5), (99.99, 0.1)), 142) == 2
    assert standard_error(50, 10_000) == pytest.approx(0.5, rel=1e-3)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), min_size=1, max_size=20), st.integers(1, 10_000))
def test_the_best_so_far_was_always_the_newest_when_it_became_so(figures, num_pictures):
    """Only the newest epoch's weights can be written, so the best may never go back to one that was passed over."""
    history = rows(*figures)
    kept = history[0]["epoch"]
    for length in range(1, len(history) + 1):
        best = chosen(history[:length], num_pictures)
        assert best in (kept, history[length - 1]["epoch"])
        kept = best
