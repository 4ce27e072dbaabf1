"""Figures for print: nothing is cut off or runs into anything else, type can be read, numbers and colours are right."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from comvex.convit.analysis import AttentionMaps, attention_maps
from comvex.explain.figures import GATE_COLOURS, draw_class_token, draw_gates, draw_query, ink_on
from comvex.explain.overlay import attention_over
from comvex.explain.sheet import DOTS_AN_INCH, PAGE_HEIGHT, PAGE_WIDTH
from comvex.inference.predictor import load


def random_maps(heads: int, grid: tuple[int, int], *, layers: int, with_class_token: int) -> list[AttentionMaps]:
    """Maps of one query in one picture; the last ``with_class_token`` layers have a class token."""
    found = []
    for layer in range(layers):
        content = torch.randn(1, heads, 1, grid[0] * grid[1]).mul(4).softmax(dim=-1).unflatten(-1, grid)
        share = torch.rand(1, heads, 1) if layer >= layers - with_class_token else None
        found.append(AttentionMaps(layer, content, None, content, share))
    return found


def boxes(figure: Figure) -> Iterator[tuple[str, np.ndarray]]:
    """Each text and panel of a figure with its (left, bottom, right, top) in inches."""
    for text in figure.texts:
        yield text.get_text(), text.get_window_extent().get_points().ravel() / figure.dpi
    for number, axes in enumerate(figure.axes):
        yield f"panel {number}", axes.get_window_extent().get_points().ravel() / figure.dpi


def overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return min(one[2], other[2]) > max(one[0], other[0]) and min(one[3], other[3]) > max(one[1], other[1])


def check_layout(figure: Figure) -> None:
    """Nothing overlaps, nothing is outside, and the figure fits a page at sizes of type that can be read."""
    figure.set_dpi(DOTS_AN_INCH)  # which saving has set back
    width, height = figure.get_size_inches()
    assert width <= PAGE_WIDTH + 1e-9
    assert height <= PAGE_HEIGHT + 1e-9
    assert min(text.get_fontsize() for text in figure.texts) >= 7
    found = list(boxes(figure))
    for name, (left, bottom, right, top) in found:
        assert 0 <= left < right <= width, name
        assert 0 <= bottom < top <= height, name
    for (name, box), (other, other_box) in combinations(found, 2):
        assert not overlap(box, other_box), (name, other)


SHAPES = [(4, (14, 14)), (16, (14, 14)), (16, (16, 7)), (1, (4, 4)), (16, (2, 20))]


@pytest.mark.parametrize(("heads", "grid"), SHAPES)
def test_no_text_of_the_patch_figure_is_cut_off_or_runs_into_another(tmp_path, drawn, heads, grid):
    maps = random_maps(heads, grid, layers=12, with_class_token=2)
    shown = Image.new("L", (8 * grid[1], 8 * grid[0]), 99)
    draw_query(shown, maps, tmp_path / "patch.png", query=(1, 0), heads=range(heads))
    check_layout(drawn[0])


@pytest.mark.parametrize(("heads", "grid"), SHAPES)
def test_no_text_of_the_class_tokens_figure_is_cut_off_or_runs_into_another(tmp_path, drawn, heads, grid):
    flat = np.full((2, heads, *grid), 1 / (grid[0] * grid[1]))
    draw_class_token(
        Image.new("L", (8 * grid[1], 8 * grid[0]), 99), flat, flat[0, 0], tmp_path / "class.png", layers=(10, 11)
    )
    check_layout(drawn[0])


def test_figures_have_300_pixels_an_inch(tmp_path):
    draw_gates(np.full((2, 4), 0.5), tmp_path / "gates.png")
    with Image.open(tmp_path / "gates.png") as image:
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_the_patch_figure_tells_the_largest_share_of_each_map_and_what_goes_to_the_class_token(
    small_run, tmp_path, drawn
):
    model = load(small_run).model
    picture = torch.randn(1, 1, 8, 8)
    maps = attention_maps(model, picture, queries=[(1, 2)])
    for of_layer in maps:
        of_layer.blended[...] = torch.rand_like(of_layer.blended).mul(9).exp()  # so that no two numbers are alike
        of_layer.blended[...] /= of_layer.blended.sum(dim=(-2, -1), keepdim=True)
    draw_query(Image.new("L", (32, 32)), maps, tmp_path / "patch.png", query=(1, 2), heads=range(4))
    figure = drawn[0]
    assert "column 2, row 1" in figure.texts[0].get_text()
    words = [text.get_text().split("\n")[-1] for text in figure.texts[1:]]
    numbers = sorted(float(word) for word in words if word.replace(".", "").isdigit())
    assert maps[0].class_token_share is None
    assert maps[1].class_token_share is not None
    largest = [100 * float(value) for of_layer in maps for value in of_layer.blended.amax(dim=(-2, -1)).flatten()]
    wanted = sorted(largest + [100 * float(share) for share in maps[1].class_token_share.flatten()])
    np.testing.assert_allclose(numbers, wanted, rtol=0.05, atol=0.005)  # they have two digits


def test_the_figure_of_one_layer_says_which_layer_it_is(tmp_path, drawn):
    maps = random_maps(4, (4, 4), layers=8, with_class_token=0)[7:]
    maps = [replace(maps[0], positional=maps[0].content[0])]
    draw_query(Image.new("L", (32, 32), 99), maps, tmp_path / "patch.png", query=(0, 0), heads=(1, 3))
    check_layout(drawn[0])
    texts = [" ".join(text.get_text().split()) for text in drawn[0].texts]
    assert "looks in layer 7" in texts[0]
    assert {"content", "positional", "blended"} <= set(texts)


def test_a_flat_map_is_one_even_colour_also_where_maps_are_smooth():
    nearly_flat = np.full((4, 4), 1 / 16)
    nearly_flat[1, 2] *= 1.03
    for smooth in (False, True):
        drawn = np.asarray(attention_over(Image.new("L", (64, 64), 128), nearly_flat, smooth=smooth)).astype(int)
        assert np.ptp(drawn, axis=(0, 1)).max() <= 8


def test_numbers_on_gates_have_the_contrast_that_text_needs_on_every_colour():
    def contrast(one, other) -> float:
        def light(colour):
            parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
            return np.dot(parts, (0.2126, 0.7152, 0.0722)) + 0.05

        return max(light(one), light(other)) / min(light(one), light(other))

    for value in np.linspace(0, 1, 101):
        colour = colormaps[GATE_COLOURS](value)
        ink = (1, 1, 1) if ink_on(colour) == "white" else (0, 0, 0)
        assert contrast(colour, ink) >= 4.5, value
