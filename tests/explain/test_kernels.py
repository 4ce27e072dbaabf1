"""The figure of positional kernels: its numbers are the attention's, and what it cannot show is said."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.convit.analysis import positional_kernels
from comvex.convit.positional import positional_factors
from comvex.explain.kernels import Kernel, draw_kernels, number_of_percent


def model(*, heads: int = 4, layers: int = 2) -> ConViTWithLinearClassifier:
    return ConViTWithLinearClassifier(
        ConViTConfig(image_size=32, patch_size=8, dim=4 * heads, heads=heads, ff_dim=8, num_local_layers=layers,
                     num_nonlocal_layers=1, num_classes=2)
    )  # fmt: skip


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def exact(weights: torch.Tensor, half: int) -> np.ndarray:
    """The library's positional attention of the patch in the middle of a grid of 2 x half + 1 patches a side."""
    rows, columns = positional_factors(weights[None], (2 * half + 1, 2 * half + 1))
    return (rows[0, half, :, None] * columns[0, half, None, :]).numpy()


@pytest.mark.parametrize("weights", [(1.2, -0.8, -0.9), (0.02, 0.01, -0.02), (0.1, 0.0, -0.126), (-30.0, 30.0, -30.0)])
def test_a_drawn_kernel_is_the_positional_attention_on_a_grid_much_larger_than_the_figure(weights):
    w_x, w_y, w_d = weights
    kernel = Kernel(-w_x / (2 * w_d), -w_y / (2 * w_d), (-2 * w_d) ** -0.5)
    wanted = exact(torch.tensor(weights, dtype=torch.float64), 60)
    np.testing.assert_allclose(kernel.shares(np.arange(-6, 7)), wanted[54:67, 54:67], rtol=1e-9, atol=1e-15)
    assert kernel.largest_share() == pytest.approx(wanted.max(), rel=1e-9)


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(1e-4, 1e6))
def test_the_largest_share_is_a_share_and_that_of_the_patch_next_to_the_centre(dx, dy, width):
    kernel = Kernel(dx, dy, width)
    nearest = kernel.shares(np.array([round(dy)]))[0, 0] if round(dx) == round(dy) else None
    assert 0 < kernel.largest_share() <= 1
    assert nearest is None or nearest <= kernel.largest_share() * (1 + 1e-9)


def test_the_share_above_a_wide_kernel_is_of_the_whole_attention_and_it_is_marked(tmp_path, drawn):
    wide = model()
    with torch.no_grad():
        wide.blocks[1].attn.pos_proj.weight.copy_(torch.tensor([0.02, 0.0, -0.02]).expand(4, 3))  # 5 patches wide
    draw_kernels(positional_kernels(wide), tmp_path / "kernels.png", layers=[0, 1])
    share = exact(torch.tensor([0.02, 0.0, -0.02], dtype=torch.float64), 60).max()
    assert 0.006 < share < 0.0065  # over the 13 x 13 patches of the panel it would be 0.009
    assert texts(drawn[0]).count(f"{number_of_percent(share)}*") == 4
    assert "* more than 5 % lies outside" in " ".join(drawn[0].texts[0].get_text().split())


def test_without_kernels_that_leave_their_panels_no_mark_is_explained(tmp_path, drawn):
    draw_kernels(positional_kernels(model()), tmp_path / "kernels.png", layers=[0, 1])
    assert not any("*" in text for text in texts(drawn[0]))


@pytest.mark.parametrize("heads", [1, 4, 16])
def test_every_kernel_has_its_share_above_however_many_heads_there_are(tmp_path, drawn, heads):
    draw_kernels(positional_kernels(model(heads=heads)), tmp_path / "kernels.png", layers=[0, 1])
    shares = [text for text in texts(drawn[0]) if re.search(r"(^|\n)[\d.]+\*?$", text)]
    assert len(shares) == 2 * heads


def test_a_head_that_does_not_fall_off_with_distance_has_no_peak_and_no_share(tmp_path, drawn):
    rising = model()
    with torch.no_grad():
        rising.blocks[1].attn.pos_proj.weight[2] = torch.tensor([0.3, 0.0, 0.01])
    draw_kernels(positional_kernels(rising), tmp_path / "kernels.png", layers=[0, 1])
    panels = drawn[0].axes
    assert [place for place, panel in enumerate(panels) if any("no" in text.get_text() for text in panel.texts)] == [6]
    assert not panels[6].images
    assert all(panel.images for place, panel in enumerate(panels) if place != 6)
