"""Arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from comvex.convit.config import ConViTConfig

DEFAULT_TOLD = arg(help_behavior_hint="")
"""For an argument whose text says what its default is: the help would say "(default: None)" after it."""

Pictures = Annotated[Positional[tuple[Path, ...]], arg(metavar="PICTURE...", help_behavior_hint="(required)")]

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
