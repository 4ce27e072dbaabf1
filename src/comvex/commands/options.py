"""Arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
        "Hugging Face Hub.",
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


def read_config(file: Path | None) -> ConViTConfig | None:
    """The architecture in a JSON file, if one is given; raises ``ValueError`` if it holds none."""
    from comvex.convit.config import ConViTConfig

    return None if file is None else ConViTConfig.from_json(file)


def given_or_packaged(pictures: tuple[Path, ...], source: str) -> tuple[Path, ...]:
    """The pictures given, else those that come with a packaged model; raises ``ValueError`` if there are none."""
    from comvex.convit.published import hint, packaged_pictures, split_name

    found = pictures or packaged_pictures(source)
    if not found:
        known = Path(source).exists() or split_name(source) is not None
        raise UserError(
            f"No picture is given: {'' if known else hint(source)}Name at least one picture file after the run folder."
        )
    return found
