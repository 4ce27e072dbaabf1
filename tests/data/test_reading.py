"""Reading picture files of every kind that people have."""

import errno
import resource

import numpy as np
import pytest
from PIL import Image

from comvex.data.full_depth import read_values
from comvex.data.reading import UnreadablePictureError, machine_is_short, read_picture, to_channels

RED, BLUE = (200, 30, 40), (10, 20, 220)


def two_halves(mode: str) -> Image.Image:
    """8 x 6 pixels, the left half red and the right half blue, in a mode of Pillow's."""
    picture = Image.new("RGB", (8, 6), RED)
    picture.paste(BLUE, (4, 0, 8, 6))
    return picture.quantize(4) if mode == "P" else picture.convert(mode)


@pytest.mark.parametrize(
    ("mode", "ending", "tolerance"),
    [
        ("RGB", "png", 0),
        ("RGBA", "png", 0),
        ("P", "png", 0),
        ("CMYK", "tif", 1),
        ("RGB", "jpg", 40),
        ("RGB", "webp", 40),
    ],
)
def test_colours_survive_every_mode(tmp_path, mode, ending, tolerance):
    file = tmp_path / f"picture.{ending}"
    two_halves(mode).save(file)
    read = np.asarray(read_picture(file), dtype=int)
    assert read.shape == (6, 8, 3)
    assert np.abs(read[:, 0] - RED).max() <= tolerance
    assert np.abs(read[:, 7] - BLUE).max() <= tolerance


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
@pytest.mark.parametrize(("channels", "wanted"), [(1, "L"), (3, "RGB")])
def test_every_mode_becomes_grey_or_rgb(mode, channels, wanted):
    picture = two_halves("L").convert(mode) if mode == "I;16" else two_halves(mode)
    assert to_channels(picture, channels=channels).mode == wanted


def test_sixteen_bit_grey_is_scaled_by_its_range_and_not_clipped(tmp_path):
    values = np.linspace(1000, 5000, 48).reshape(6, 8).round().astype(np.uint16)  # as of a 12-bit detector
    for ending in ("png", "tif"):
        file = tmp_path / f"scan.{ending}"
        Image.fromarray(values).save(file)
        read = np.asarray(read_picture(file, channels=1))
        expected = np.round((values - 1000.0) * (255 / 4000))
        np.testing.assert_array_equal(read, expected)
        assert len(np.unique(read)) > 40  # clipping would have left one value


def test_wide_grey_of_one_value_is_black_and_what_is_not_finite_is_the_darkest():
    assert np.asarray(to_channels(Image.fromarray(np.full((2, 2), 777, np.uint16)), channels=1)).max() == 0
    values = np.array([[np.nan, 1.0], [np.inf, 3.0]], np.float32)
    np.testing.assert_array_equal(to_channels(Image.fromarray(values), channels=1), [[0, 0], [0, 255]])


def test_exif_orientation_is_applied(tmp_path):
    file = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    two_halves("RGB").save(file, exif=exif, quality=95)
    read = read_picture(file)
    assert read.size == (6, 8)
    top, bottom = np.asarray(read, dtype=int)[[0, -1], 3]
    assert np.abs(top - RED).max() < 40
    assert np.abs(bottom - BLUE).max() < 40


def test_transparent_pixels_are_laid_on_white(tmp_path):
    picture = two_halves("RGBA")
    picture.putpixel((0, 0), (0, 0, 0, 0))
    picture.save(tmp_path / "logo.png")
    assert read_picture(tmp_path / "logo.png").getpixel((0, 0)) == (255, 255, 255)


def test_a_file_that_cannot_be_read_is_named_with_the_cause(tmp_path):
    text = tmp_path / "text.png"
    text.write_text("this is no picture")
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((64, 64), 50).save(whole)
    truncated = tmp_path / "truncated.jpg"
    truncated.write_bytes(whole.read_bytes()[:-200])
    empty = tmp_path / "empty.png"
    empty.touch()
    for file, cause in ((text, "no picture format"), (truncated, "truncated"), (empty, "no picture format")):
        with pytest.raises(UnreadablePictureError, match=cause) as caught:
            read_picture(file)
        assert str(file) in str(caught.value)
    with pytest.raises(UnreadablePictureError, match="There is no picture"):
        read_picture(tmp_path / "missing.png")
    with pytest.raises(UnreadablePictureError, match="cannot be read"):
        read_picture(tmp_path)


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(ValueError, match="channels is 4"):
        to_channels(two_halves("RGB"), channels=4)


@pytest.mark.parametrize("read", [read_picture, read_values])
def test_a_picture_is_not_to_blame_where_no_more_files_can_be_opened(tmp_path, read):
    file = tmp_path / "picture.png"
    two_halves("RGB").save(file)
    read(file, channels=3)  # decoders open files of their own when first needed
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            read(file, channels=3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE


def test_memory_is_short_unless_a_header_asks_for_more_than_any_machine_has():
    with pytest.raises(MemoryError) as absurd:
        np.empty((2**30, 2**30), np.float32)
    assert not machine_is_short(absurd.value)
    assert machine_is_short(MemoryError())
    assert not machine_is_short(OSError("broken data stream"))
