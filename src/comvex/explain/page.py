"""The report as one HTML page that holds its figures and asks for nothing from outside."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

import comvex
from comvex.files import write_text
from comvex.inference.predictor import Prediction

STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --soft: #5b6875; --line: #dde3e9; --paper: #ffffff; --bar: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf0; --soft: #a3afba; --line: #33404c; --paper: #151b21; --bar: #56b4e9; }
}
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.2rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 3rem 0 .4rem; padding-top: 1rem; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; }
h3 { font-size: 1.05rem; margin: 2rem 0 .2rem; }
p, figcaption { max-width: 46rem; margin: .2rem 0 .8rem; }
figure { margin: 0; }
figcaption, footer, nav { color: var(--soft); }
.scroll { overflow-x: auto; }
img { height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; box-sizing: border-box; }
nav ul { columns: 2; padding-left: 1.2rem; overflow-wrap: anywhere; }
a { color: inherit; }
table { border-collapse: collapse; margin: .4rem 0 0; }
td { padding: .15rem .8rem .15rem 0; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.bar { width: 12rem; } td.bar div { height: .7rem; background: var(--bar); border-radius: 3px; min-width: 1px; }
footer { margin-top: 4rem; font-size: .9rem; }
"""
SCREEN_PIXELS_AN_INCH = 160
"""How large a figure is on a wide screen: the eye is farther from it than from paper, for which 96 would do."""


@dataclass(frozen=True)
class Figure:
    """A PNG with its heading and what there is to be seen in it."""

    file: Path
    heading: str
    caption: str


@dataclass(frozen=True)
class PictureSection:
    """A picture's classes and figures."""

    name: str
    predictions: Sequence[Prediction]
    figures: Sequence[Figure]


def write_page(
    file: Path, *, title: str, about: str, model: Sequence[Figure], pictures: Sequence[PictureSection]
) -> None:
    """Write the page: first what holds for the model, then each picture."""
    links = "".join(
        f'<li><a href="#picture-{number}">{escape(section.name)}</a></li>' for number, section in enumerate(pictures)
    )
    body = "".join(
        [
            f"<h1>{escape(title)}</h1><p>{escape(about)}</p>",
            f"<nav><ul>{links}</ul></nav>" if len(pictures) > 1 else "",
            '<h2 id="model">The model</h2>',
            *map(figure_html, model),
            *(picture_html(section, number) for number, section in enumerate(pictures)),
            f"<footer>Written by comvex explain, version {escape(comvex.__version__)}. The figures lie beside this "
            "page as PNG files, their numbers in heads.csv.</footer>",
        ]
    )
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style>'
    )
    write_text(file, f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n')


def files_of(page: Path) -> set[str]:
    """The names of the PNG files that belong to a page that was written before; none if there is no such page."""
    if not page.is_file():
        return set()
    return set(re.findall(r'<figure data-file="([^"/]+\.png)">', page.read_text(errors="replace")))


def figure_html(figure: Figure) -> str:
    """As wide as the page; where that is less than the figure is in print, at that size and to be scrolled sideways."""
    content = base64.b64encode(figure.file.read_bytes()).decode()
    with Image.open(figure.file) as image:
        printed = image.width / image.info["dpi"][0]  # inches
    width = f"width: min(100%, {printed * SCREEN_PIXELS_AN_INCH:.0f}px); min-width: {printed:.2f}in"
    name = escape(figure.heading)
    return (
        f'<h3>{name}</h3><figure data-file="{escape(figure.file.name)}">'
        f"<figcaption>{escape(figure.caption)}</figcaption>"
        f'<div class="scroll" role="group" aria-label="{name}" tabindex="0">'
        f'<img alt="{name}" style="{width}" src="data:image/png;base64,{content}"></div></figure>'
    )


def picture_html(section: PictureSection, number: int) -> str:
    rows = "".join(
        f'<tr><td>{escape(entry.label)}</td><td class="number">{100 * entry.probability:.1f} %</td>'
        f'<td class="bar"><div style="width: {100 * entry.probability:.1f}%"></div></td></tr>'
        for entry in section.predictions
    )
    figures = "".join(map(figure_html, section.figures))
    return f'<h2 id="picture-{number}">{escape(section.name)}</h2><table>{rows}</table>{figures}'
