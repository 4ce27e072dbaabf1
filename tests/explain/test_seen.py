"""What is shown of a picture is what the model sees of it."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.data.transforms import Preprocessing
from comvex.errors import UserError
from comvex.explain.query import parse_query
from comvex.explain.seen import LARGEST_SHOWN, see
from comvex.inference.predictor import Predictor


def predictor(size: tuple[int, int], *, channels: int = 3, pad: bool = False, **preparing) -> Predictor:
    """A small model with random weights for pictures of a size in pixels; its values are on the scale from 0 to 1."""
    whole_patches = (-(-size[0] // 8) * 8, -(-size[1] // 8) * 8)
    config = ConViTConfig(
        image_size=whole_patches, image_channel=channels, patch_size=8, dim=8, heads=4, ff_dim=16, num_classes=3,
        num_local_layers=1, num_nonlocal_layers=1, pad_to_patch=pad,
    )  # fmt: skip
    plain = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    preprocessing = Preprocessing(size, channels, **plain, **preparing)
    return Predictor(
        ConViTWithLinearClassifier(config),
        preprocessing=preprocessing,
        labels=("a", "b", "c"),
        device=torch.device("cpu"),
    )


def scene(width: int, height: int) -> Image.Image:
    """A picture without any symmetry."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    picture = Image.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))
    ImageDraw.Draw(picture).ellipse((width * 0.5, height * 0.2, width * 0.7, height * 0.5), fill="white")
    return picture


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (64, 64), (4000, 3000)])
@pytest.mark.parametrize(("size", "crop_pct"), [((64, 64), 1.0), ((64, 96), 0.875), ((96, 32), 0.7)])
def test_what_is_shown_is_what_the_model_gets(width, height, size, crop_pct):
    seen = see(predictor(size, crop_pct=crop_pct), scene(width, height))
    assert max(seen.shown.size) <= LARGEST_SHOWN
    as_the_model = np.asarray(seen.shown.resize(size[::-1], Image.Resampling.BICUBIC)) / 255
    given_to_it = seen.inputs[0].permute(1, 2, 0).numpy()
    # A shift by a pixel of the 64 changes an edge of the disc, not a fiftieth of the whole
    assert np.abs(as_the_model - given_to_it).mean() < 0.02


def test_a_padded_edge_is_shown_so_that_the_picture_is_whole_patches():
    seen = see(predictor((60, 36), pad=True), scene(36, 60))
    assert seen.shown.size == (40, 64)
    assert np.asarray(seen.shown)[60:].max() == 0


def test_pictures_of_full_depth_are_shown_by_their_own_range():
    values = np.linspace(0.2, 0.3, 64 * 64 * 5, dtype=np.float32).reshape(64, 64, 5)
    shown = see(predictor((64, 64), channels=5, full_depth=True), values).shown
    assert shown.mode == "L"
    assert np.asarray(shown).min() == 0
    assert np.asarray(shown).max() == 255


def test_a_query_is_column_and_row():
    assert parse_query("3,1", (2, 5)) == (1, 3)
    assert parse_query(None, (3, 6)) == (1, 3)


@pytest.mark.parametrize("text", ["3", "a,b", "5,0", "0,2", "-1,0", "1,1,1", ""])
def test_a_query_that_is_no_patch_is_refused(text):
    with pytest.raises(UserError, match=r"column X from 0 to 4 and row Y from 0 to 1"):
        parse_query(text, (2, 5))
