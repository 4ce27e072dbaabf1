"""Names in any script on the figures."""

import logging
import warnings

from PIL import Image

from comvex.plotting import new_figure


def test_characters_that_no_font_has_are_told_of_once_and_other_warnings_stay(tmp_path, caplog):
    unknown = "".join(map(chr, range(0x10FF00, 0x10FF04)))  # of the private area: no font can have them
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        with new_figure(tmp_path / "x.png", size=(2, 1)) as figure:
            figure.suptitle(unknown)
            warnings.warn("another", stacklevel=1)
    assert [str(warning.message) for warning in others] == ["another"]
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith(f"{tmp_path / 'x.png'} has boxes for characters that no font")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (300, 150)


def test_names_that_can_be_written_are_told_of_by_nothing(tmp_path, caplog):
    with new_figure(tmp_path / "x.png", size=(2, 1)) as figure:
        figure.suptitle("Äpfel, κλάση, Класс")
    assert caplog.records == []
