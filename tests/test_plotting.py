"""Names in any script on the figures."""

import logging
import warnings

import pytest
from PIL import Image

import comvex.plotting
from comvex.plotting import new_figure

SCRIPT_A = "\U0001d49c"
"""Of matplotlib's fonts STIXGeneral has it, DejaVu Sans has not."""


def test_characters_that_no_font_has_are_told_of_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(comvex.plotting, "CJK_FONTS", ())
    with new_figure(tmp_path / "x.png", size=(2, 1)) as figure:
        text = figure.suptitle(2 * SCRIPT_A + "\U0010ff00")
        text.get_window_extent()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith(f"{tmp_path / 'x.png'} has boxes for characters that neither")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (300, 150)


def test_a_font_of_the_list_writes_what_matplotlibs_own_lacks(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(comvex.plotting, "CJK_FONTS", ("No Such Font", "STIXGeneral"))
    with new_figure(tmp_path / "x.png", size=(2, 1)) as figure:
        figure.suptitle(SCRIPT_A + ", Äpfel, κλάση, Класс")
    assert caplog.records == []


def test_other_warnings_stay_also_of_a_drawing_that_fails(tmp_path):
    def draw() -> None:
        with new_figure(tmp_path / "x.png", size=(2, 1)):
            warnings.warn("another", stacklevel=1)
            raise KeyError

    with pytest.warns(UserWarning, match="another"), pytest.raises(KeyError):
        draw()
    assert list(tmp_path.iterdir()) == []


def test_a_dollar_sign_in_a_name_is_no_mathematics(tmp_path):
    """``_$`` would be a formula that cannot be read, and other pairs of dollar signs would vanish."""
    with new_figure(tmp_path / "x.png", size=(2, 1)) as figure:
        axes = figure.subplots()
        axes.set(title="lr$1_$2", xlabel="$5 to $10")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (300, 150)
