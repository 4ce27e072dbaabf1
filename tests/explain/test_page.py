"""The report's page in a real browser, on a wide screen and on a phone."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from comvex.explain.figures import draw_gates
from comvex.explain.page import Figure, PictureSection, write_page
from comvex.inference.predictor import Prediction

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MEASURED = """() => [...document.images].map(image => [image.getBoundingClientRect().width,
    image.parentElement.clientWidth, image.parentElement.scrollWidth])"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a small figure and one of 6.7 inches, at which a phone is 4 inches wide."""
    folder = tmp_path_factory.mktemp("page")
    figures = []
    for heads in (4, 16):
        file = folder / f"{heads}.png"
        draw_gates(np.full((4, heads), 0.5), file)
        figures.append(Figure(file, "Gates", "What they are."))
    section = PictureSection("x" * 100, [Prediction("label", 0.5)], figures)
    write_page(folder / "report.html", title="y" * 100, about="A model.", model=figures, pictures=[section])
    return folder / "report.html"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
def test_figures_keep_their_size_in_print_on_a_phone_and_are_scrolled_sideways_alone(page):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (390, 1280):
            tab = browser.new_page(viewport={"width": width, "height": 844})
            tab.goto(page.as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") == width  # the page itself stands still
            sizes = tab.evaluate(MEASURED)
            assert len(sizes) == 4
            for (shown, room, scrolled), inches in zip(sizes, (3.6, 6.7, 3.6, 6.7), strict=True):
                assert shown >= 96 * inches - 1  # so 7 points are over 9 pixels
                if shown > room + 1:
                    assert scrolled >= shown - 1  # all of it can be reached
            assert any(shown > room for shown, room, _ in sizes) == (width == 390)
        browser.close()
