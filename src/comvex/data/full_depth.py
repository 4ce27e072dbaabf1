"""Pictures whose values 8 bits of grey or RGB cannot hold: 16 bits, floats, any number of channels.

Their values are kept: integers are divided by the largest of their type, floats are as they are. Arrays are
(height, width, channels) of float32.
"""

from __future__ import annotations

import io
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from comvex.data.reading import (
    CHANNEL_MODES,
    DECODING_ERRORS,
    ORIENTATION,
    WIDE_MODES,
    PictureFile,
    UnreadablePictureError,
    machine_is_short,
    open_picture,
    printable,
    read_picture,
    to_channels,
    unreadable,
)
from comvex.errors import UserError

if TYPE_CHECKING:
    from tifffile import TiffPage, TiffPageSeries

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 6: 3}
"""Channels by the colour type in a PNG's header, without opacity; of transparent grey Pillow can read 8 bits only."""
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little and big endian, classic and BigTIFF
ALPHA, PREMULTIPLIED = (1, 2), 1
"""TIFF's kinds of extra samples that say how opaque a pixel is, and the one by which the others are multiplied."""
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
MIN_IS_WHITE, SIGNED = 0, 2
"""A value of each of the last two of these tags of TIFF."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Shares of red, green and blue in grey (ITU-R 601), as Pillow has them."""


def deep_channels(file: PictureFile) -> int | None:
    """Channels of a picture that 8 bits of grey or RGB cannot hold; None for any other, and for what is unreadable."""
    try:
        with open_picture(file) as stream:
            kind = picture_kind(stream)
            if kind == "png":
                return PNG_CHANNELS.get(stream.read(26)[25])
            if kind == "tiff":
                return tiff_channels(stream)
            with Image.open(stream) as picture:
                return 1 if picture.mode in WIDE_MODES else None
    except (*DECODING_ERRORS, UnreadablePictureError) as error:
        if machine_is_short(error):
            raise
        return None  # it is named when its turn comes


def picture_kind(stream: BinaryIO) -> str:
    """Which decoder keeps the values of a picture: "png" for 16 bits, "tiff", or else "pillow"."""
    start = stream.read(26)
    stream.seek(0)
    if start[:8] == PNG_START and start[24:25] == b"\x10":
        return "png"
    return "tiff" if start[:4] in TIFF_STARTS else "pillow"


def read_values(file: PictureFile, *, channels: int) -> NDArray[np.float32]:
    """The values of a picture file: (height, width, channels), 8-bit ones on the scale from 0 to 1.

    Grey is repeated for more channels, and RGB made grey for one. Transparent pictures are laid on white. What is not
    finite takes the smallest value of its channel.

    Raises ``UnreadablePictureError`` if the file is missing, damaged, or has another number of channels.
    """
    if deep_channels(file) is None:
        values = as_values(np.asarray(read_picture(file, channels=channels if channels in CHANNEL_MODES else 3)))
    else:
        try:
            values = decode_values(file)
        except DECODING_ERRORS as error:
            if machine_is_short(error):
                raise
            raise unreadable(file, error) from error
    try:
        return fit_channels(finite(values), channels)
    except UserError as error:
        raise UnreadablePictureError(f"The picture {printable(file)} cannot be used: {error}") from error


def decode_values(file: PictureFile) -> NDArray[np.float32]:
    """The values of a picture for which ``deep_channels`` has a number, upright: (height, width, its channels)."""
    with open_picture(file) as stream:
        kind = picture_kind(stream)
        if kind == "png":
            return decode_png(stream.read())
        if kind == "tiff":
            return decode_tiff(stream)
        with Image.open(stream) as picture:
            return wide_values(picture)


def decode_png(content: bytes) -> NDArray[np.float32]:
    """The values of a 16-bit PNG, upright: (height, width, 1 or 3).

    Of 16-bit colours Pillow keeps the byte that it takes for the higher one; so it is told both orders of bytes.
    """
    with Image.open(io.BytesIO(content)) as picture:
        if picture.mode in WIDE_MODES:
            return wide_values(picture)
        mode = picture.mode
    high, low = (decode_as(content, f"{mode};16{order}") for order in "BL")
    values = as_values(np.asarray(high).astype(np.uint16) << 8 | np.asarray(low))
    return upright(without_alpha(values) if mode == "RGBA" else values, low)


def decode_as(content: bytes, raw_mode: str) -> Image.Image:
    """A picture whose pixels Pillow unpacks in another way than it would by itself."""
    with Image.open(io.BytesIO(content)) as picture:
        picture.tile = [tile._replace(args=raw_mode) for tile in picture.tile]
        picture.load()
        return picture


# Pillow's pictures


def picture_values(picture: Image.Image, *, channels: int) -> NDArray[np.float32]:
    """The values of any Pillow picture, upright: (height, width, 1 or 3), grey or RGB as ``channels`` wants 8 bits."""
    if picture.mode in WIDE_MODES:
        return wide_values(picture)
    picture = ImageOps.exif_transpose(picture)
    return as_values(np.asarray(to_channels(picture, channels=channels if channels in CHANNEL_MODES else 3)))


def wide_values(picture: Image.Image) -> NDArray[np.float32]:
    """The values of a Pillow picture in one of ``WIDE_MODES``, upright: (height, width, 1).

    Mode I, of 32 bits, stands for the integers that a TIFF's header tells, and else for 16 bits.

    Raises ``ValueError`` if mode I has more than 16 bits that no header tells of.
    """
    picture.load()
    array, inverted = np.asarray(picture), False
    if isinstance(picture, TiffImageFile):
        tags = picture.tag_v2
        if picture.mode == "I":
            kind = "i" if tags.get(SAMPLE_FORMAT) == (SIGNED,) else "u"
            array = array.astype(f"{kind}{tags[BITS_PER_SAMPLE][0] // 8}")
        inverted = tags.get(PHOTOMETRIC) == MIN_IS_WHITE and picture.mode != "F"
    elif picture.mode == "I":
        if array.min() < 0 or array.max() > 65535:
            raise UserError(
                f"It has values from {array.min()} to {array.max()}, but Pillow's mode I stands for 16 bits, 0 to "
                "65535: give an array instead."
            )
        array = array.astype(np.uint16)
    values = as_values(array)
    return upright(1 - values if inverted else values, picture)


def upright(values: NDArray[np.float32], picture: Image.Image) -> NDArray[np.float32]:
    """Values of a picture that has been loaded, turned as its EXIF orientation says (Pillow itself turns TIFFs)."""
    return turn_upright(values, picture.getexif().get(ORIENTATION, 1))


# TIFF


def tiff_channels(stream: BinaryIO) -> int | None:
    """As ``deep_channels``, for a TIFF file."""
    from tifffile import TiffFile

    with TiffFile(stream) as tiff:
        page, series = tiff.pages.first, tiff.series[0]
        if series.dtype in (np.uint8, np.bool_):
            colours = page.samplesperpixel - has_alpha(page)
            # The pages of a file without a word about them are those of a document
            one_picture = "S" in series.axes or series.kind in ("generic", "uniform") or len(kept_axes(series)) == 2
            if page.photometric not in (0, 1, 2) or (colours in CHANNEL_MODES and one_picture):
                return None
        axis = channel_axis(series)
        channels = 1 if axis is None else series.shape[axis]
        return channels - has_alpha(page)


def decode_tiff(stream: BinaryIO) -> NDArray[np.float32]:
    """The picture in a TIFF file, the right way up; pages of one sample are its channels.

    What tifffile has no codec for is read by Pillow if it has one channel. Raises ``ValueError`` for the rest of it.
    """
    from tifffile import COMPRESSION, PREDICTOR, TiffFile

    with TiffFile(stream) as tiff:
        page, series = tiff.pages.first, tiff.series[0]
        axis = channel_axis(series)
        try:
            values = series.asarray()
        except (ValueError, NotImplementedError, ImportError) as error:  # the last one for want of Python's own ZSTD
            if "imagecodecs" not in str(error) and not isinstance(error, ImportError):
                raise
            values = decode_with_pillow(stream) if axis is None else None
            if values is None:
                raise UserError(
                    f"its values (compression {COMPRESSION(page.compression).name}, predictor "
                    f"{PREDICTOR(page.predictor).name}, {page.bitspersample} bits) need the package imagecodecs: pip "
                    "install imagecodecs"
                ) from error
            return values
        shape = [values.shape[kept] for kept in kept_axes(series) if kept != axis]
        if axis is not None:
            values = np.moveaxis(values, axis, -1)
        values = as_values(values.reshape(*shape, -1))
        inverted = page.photometric == MIN_IS_WHITE and series.dtype.kind != "f"
        if has_alpha(page):
            values = without_alpha(
                values, white=0 if inverted else 1, premultiplied=page.extrasamples[-1] == PREMULTIPLIED
            )
        orientation = page.tags.get(ORIENTATION)
        return turn_upright(1 - values if inverted else values, 1 if orientation is None else orientation.value)


def decode_with_pillow(stream: BinaryIO) -> NDArray[np.float32] | None:
    """The values of a compressed TIFF file of one channel, upright; None if Pillow would not give them exactly."""
    stream.seek(0)
    with suppress(Image.UnidentifiedImageError), Image.open(stream) as picture:
        # Of big-endian files Pillow exchanges the bytes of modes I and F, which libtiff has exchanged already
        little_endian = isinstance(picture, TiffImageFile) and picture.tag_v2.prefix == b"II"
        if picture.mode in WIDE_MODES and (little_endian or picture.mode.startswith("I;16")):
            return wide_values(picture)
    return None


def has_alpha(page: TiffPage) -> bool:
    """Whether the last sample of each pixel says how opaque it is."""
    return page.samplesperpixel > 1 and bool(page.extrasamples) and page.extrasamples[-1] in ALPHA


def kept_axes(series: TiffPageSeries) -> list[int]:
    """The axes of a TIFF file's array that a picture can have: rows, columns, samples, and others longer than one."""
    axes = zip(series.axes, series.shape, strict=True)
    return [place for place, (name, size) in enumerate(axes) if name in "YXS" or size > 1]


def channel_axis(series: TiffPageSeries) -> int | None:
    """Which axis is the channels, if any: samples or what is called channels, or else the shortest of three.

    Raises ``ValueError`` if there are more axes than three.
    """
    kept = kept_axes(series)
    if len(kept) > 3:
        raise ValueError(f"its axes are {series.axes} of {series.shape}, more than rows, columns and channels")
    if len(kept) == 2:
        return None
    named = [place for place in kept if series.axes[place] in "SC"]
    return named[0] if named else min(kept, key=lambda place: series.shape[place])


def turn_upright(values: NDArray[np.float32], orientation: int) -> NDArray[np.float32]:
    """Turn and mirror an array (height, width, channels) as TIFF's orientation, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        values = values.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values


# Values


def as_values(array: NDArray[Any]) -> NDArray[np.float32]:
    """An array (height, width) or (height, width, channels) of any type of number, as values with channels.

    Raises ``ValueError`` if it is no picture.
    """
    if array.ndim not in (2, 3) or array.dtype.kind not in "buif" or array.size == 0:
        raise UserError(
            f"An array of shape {array.shape} and type {array.dtype} is no picture: it must be (height, width) or "
            "(height, width, channels) of integers or floats."
        )
    largest = np.iinfo(array.dtype).max if array.dtype.kind in "ui" else 1
    values = array.reshape(*array.shape[:2], -1).astype(np.float32)
    return values if largest == 1 else values / np.float32(largest)


def without_alpha(values: NDArray[np.float32], *, white: int = 1, premultiplied: bool = False) -> NDArray[np.float32]:
    """Values whose last channel is the opacity, with which the others may be multiplied already, laid on white."""
    colours, opacity = values[..., :-1], values[..., -1:]
    return (colours if premultiplied else colours * opacity) + white * (1 - opacity)


def finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values with the smallest finite one of the channel where they are not finite; 0 if there is none."""
    known = np.isfinite(values)
    if known.all():
        return values
    smallest = np.min(values, axis=(0, 1), where=known, initial=np.inf)
    return np.where(known, values, np.where(np.isfinite(smallest), smallest, 0)).astype(np.float32)


def fit_channels(values: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Values with that many channels: grey is repeated, RGB made grey; raises ``ValueError`` for anything else."""
    found = values.shape[-1]
    if found == channels:
        return values
    if found == 1:
        return np.repeat(values, channels, axis=-1)
    if found == 3 and channels == 1:
        return values @ LUMA[:, None]
    raise UserError(f"It has {found} channels, but {channels} are wanted.")
