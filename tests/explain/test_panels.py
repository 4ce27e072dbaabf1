"""The figures' and the page's numbers and colours say what the attention is."""

import math

import numpy as np
import pytest
from PIL import Image

from comvex.convit.analysis import uniform_nonlocality
from comvex.explain.overlay import attention_over
from comvex.explain.panels import distances, enlarged, gate_colour, gates_html, with_frame


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (2, 5), (7, 4)])
def test_uniform_nonlocality_is_the_mean_distance_of_two_patches(grid):
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    expected = np.mean([math.dist(a, b) for a in places for b in places])
    assert uniform_nonlocality(grid) == pytest.approx(expected, rel=1e-12)


def test_distance_of_a_patch_is_weighted_by_its_attention():
    weights = np.zeros((2, 3, 4))
    weights[0, 2, 3] = 1
    weights[1, 0, 0], weights[1, 0, 2] = 0.75, 0.25
    np.testing.assert_allclose(distances(weights, (0, 0)), [math.hypot(2, 3), 0.5])


def test_colour_lies_where_the_attention_is_and_nowhere_else():
    weights = np.zeros((2, 3))
    weights[1, 2] = 0.4
    drawn = np.asarray(attention_over(Image.new("L", (30, 20), 128), weights)).astype(int)
    coloured = drawn[..., 0] - drawn[..., 2] > 50
    assert coloured[10:, 20:].all()
    assert coloured.sum() == 100
    assert (drawn[~coloured].max(axis=1) == drawn[~coloured].min(axis=1)).all()


def test_a_frame_is_around_its_patch_and_leaves_the_picture_alone():
    picture = Image.new("RGB", (60, 40), (90, 90, 90))
    framed = np.asarray(with_frame(picture, (1, 2), (2, 3)))
    changed = (framed != 90).any(axis=-1)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 39, 40, 59)
    assert not changed[25:35, 45:55].any()
    assert np.asarray(picture).max() == 90


def test_frames_fit_patches_of_a_pixel():
    assert with_frame(Image.new("L", (3, 3)), (2, 2), (3, 3)).size == (3, 3)


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (300, 200), (4000, 3000), (2, 700)])
def test_pictures_are_shown_at_about_one_size(size):
    shown = enlarged(Image.new("L", size), 260)
    assert 130 <= max(shown.size) <= 260
    assert min(shown.size) >= 1


def test_gates_go_from_orange_through_white_to_purple_and_plain_layers_are_blank():
    assert gate_colour(0.5) == (255, 255, 255)
    orange, purple = gate_colour(0.0), gate_colour(1.0)
    assert orange[0] > orange[2]
    assert purple[2] > purple[0]
    table = gates_html(np.array([[0.25, 0.75], [math.nan, math.nan]]), layer=1)
    assert table.count("cx-none") == 2
    assert "0.25" in table
    assert "nan" not in table
    assert "no gates" in gates_html(np.full((2, 2), math.nan), layer=0)
