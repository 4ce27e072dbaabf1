"""Arguments that several commands have."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from comvex.errors import UserError

if TYPE_CHECKING:
    from comvex.convit.config import ConViTConfig

Source = Annotated[
    Positional[str],
    arg(
        name="run",
        metavar="RUN",
        help="Run folder of comvex train, a weights file (ours, timm's or the official repository's), "
        "convit_fashion_mnist (part of comvex), a published name such as convit_tiny.fb_in1k, or OWNER/NAME on the "
        "Hugging Face Hub. comvex predict and comvex evaluate take a folder of comvex export too.",
    ),
]

Pictures = Annotated[Positional[tuple[Path, ...]], arg(metavar="PICTURE...", help_behavior_hint="")]

ConfigFile = Annotated[
    Path | None,
    arg(
        metavar="FILE",
        help="JSON file of the architecture (ConViTConfig.to_json), where the shapes in an official or timm's weights "
        "file do not tell it: pictures that are not square, a model without gates.",
        help_behavior_hint="",
    ),
]


def no_such(what: str, name: str, known: Collection[str]) -> UserError:
    """The error for a name that is none of those known, with the nearest of them."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? The" if near else "the"
    return UserError(f"There is no {what} {name!r}: {hint} {what}s are {', '.join(known)}.")


def read_config(file: Path | None) -> ConViTConfig | None:
    """The architecture in a JSON file, if one is given; raises ``ValueError`` if it holds none."""
    from comvex.convit.config import ConViTConfig

    return None if file is None else ConViTConfig.from_json(file)


def given_or_packaged(pictures: tuple[Path, ...], source: str) -> tuple[Path, ...]:
    """The pictures given, those of a folder in its place, or else those that come with a packaged model.

    Raises ``ValueError`` if there are none.
    """
    from comvex.convit.published import hint, packaged_pictures, split_name

    found = tuple(file for given in pictures for file in given_files(given)) or packaged_pictures(source)
    if not found:
        known = Path(source).exists() or split_name(source) is not None
        near = "" if known else hint(source)
        raise UserError(
            f"No picture is given: {near}{'Name' if near else 'name'} at least one picture file, or a folder of them, "
            "after the run folder."
        )
    return found


def given_files(path: Path) -> list[Path]:
    """A picture file, or those of a folder and the folders in it, as training finds them.

    Raises ``ValueError`` for a folder without any.
    """
    if not path.is_dir():
        return [path]
    from comvex.data.folders import index_folder
    from comvex.data.reading import SUFFIXES

    files = [path / file for file in index_folder(path).files]
    if not files:
        raise UserError(f"The folder {path} has no pictures: they must end in {', '.join(sorted(SUFFIXES))}.")
    return files


def says_top5(figures: dict[str, Any]) -> bool:
    """Whether the true class may be missing among the five most probable, in figures of one class a picture."""
    return figures.get("num_classes", 1000) > 5  # summaries of earlier versions do not have the number
