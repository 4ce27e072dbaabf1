"""Reading picture files of every kind that people have."""

import errno
import io
import pickle
import resource

import numpy as np
import pytest
from PIL import Image

from comvex.data.full_depth import read_values
from comvex.data.reading import (
    ReducibleJpeg,
    UnreadablePictureError,
    machine_is_short,
    read_picture,
    read_reducible,
    to_channels,
)

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
    for file, cause in ((text, "no picture format"), (truncated, "truncated"), (empty, "it is empty")):
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


def test_a_jpeg_file_can_be_had_whole_or_at_a_half_a_quarter_and_an_eighth(tmp_path):
    down, right = np.mgrid[:93, :150]
    smooth = Image.fromarray(np.stack([right, 2 * down, right + down], axis=2).astype(np.uint8))
    for mode, options in (("RGB", {}), ("RGB", {"progressive": True}), ("L", {}), ("CMYK", {})):
        file = tmp_path / "picture.jpg"
        smooth.convert(mode).save(file, quality=95, **options)
        picture = read_reducible(file)
        assert isinstance(picture, ReducibleJpeg)
        assert picture.size == (93, 150)
        np.testing.assert_array_equal(picture.decode(), read_picture(file))
        for reduction in (2, 4, 8):
            reduced = picture.decode(reduction=reduction)
            assert reduced.size == (-(-150 // reduction), -(-93 // reduction))
            means = np.asarray(read_picture(file).reduce(reduction), int)
            assert np.abs(np.asarray(reduced, int) - means)[:-1, :-1].max() <= 4  # blocks at the edges are filled up


def test_what_is_no_jpeg_is_read_at_once(tmp_path):
    for ending in ("png", "webp", "tif", "gif", "bmp"):
        file = tmp_path / f"picture.{ending}"
        two_halves("RGB").save(file)
        read = read_reducible(file)
        assert isinstance(read, Image.Image)
        np.testing.assert_array_equal(read, read_picture(file))


def test_a_jpeg_inside_something_larger_is_read_once(tmp_path):
    stream = io.BytesIO()
    two_halves("L").save(stream, "JPEG")

    class Member:
        asked = 0

        def content(self) -> bytes:
            self.asked += 1
            return stream.getvalue()

    member = Member()
    picture = read_reducible(member, channels=1)
    assert isinstance(picture, ReducibleJpeg)
    assert np.asarray(picture.decode(reduction=2)).shape == (3, 4)
    picture.decode()
    assert member.asked == 1


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "webp", "tif", "bmp", "ppm"])
def test_a_picture_outlives_its_file(tmp_path, ending):
    """Those of several frames too, of which the first counts."""
    file = tmp_path / f"picture.{ending}"
    several = {"save_all": True, "append_images": [two_halves("RGB").rotate(180)]} if ending in ("gif", "webp") else {}
    two_halves("RGB").save(file, **several)
    read = read_picture(file)
    file.unlink()
    expected = np.asarray(read).copy()
    assert np.asarray(read.resize((4, 3))).shape == (3, 4, 3)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(read)), expected)
    np.testing.assert_array_equal(read.crop((0, 0, 8, 6)), expected)
    assert np.abs(expected[0, 0].astype(int) - RED).max() < 50
