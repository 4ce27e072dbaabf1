"""``comvex explain``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from comvex.commands.options import ConfigFile, Pictures, Source, given_or_packaged, read_config
from comvex.help import DEFAULT_TOLD


@dataclass(frozen=True)
class Explain:
    """Show what a model does and where it looks in pictures: a page of figures that anybody can open.

    Gates, positional kernels and non-locality of every layer and head; for a run folder how they moved over the epochs;
    for each picture its classes, where the class token looks, and where a patch looks.

      comvex explain runs/mine photo.jpg --out report
      comvex explain runs/mine photo.jpg --layer 4 --query 3,7 --out report   # one layer, from column 3, row 7
    """

    source: Source
    pictures: Pictures
    """Picture files, or folders of them (required, but for convit_fashion_mnist, which has ten of its own)."""
    out: Path
    """Folder for report.html, the figures as PNGs and heads.csv."""
    layer: Annotated[tuple[int, ...], DEFAULT_TOLD] = ()
    """Layers to show where a patch looks, counted from 0; of a single one also its content and positional attention.
    Default: all."""
    head: Annotated[tuple[int, ...], DEFAULT_TOLD] = ()
    """Heads to show where a patch looks, counted from 0. Default: all."""
    query: Annotated[str | None, arg(metavar="X,Y"), DEFAULT_TOLD] = None
    """The patch to look from, its column and row counted from 0. Default: the one in the middle."""
    epoch: Annotated[int | None, arg(metavar="EPOCH"), DEFAULT_TOLD] = None
    """For a run folder: the model after this epoch, whose checkpoint must be there still. Default: the best epoch."""
    config: ConfigFile = None
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    overwrite: bool = False
    """Replace a report that is there."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> int:
        from comvex.explain.report import explain

        found = explain(
            self.source,
            given_or_packaged(self.pictures, self.source),
            out=self.out,
            layers=self.layer,
            heads=self.head,
            query=self.query,
            epoch=self.epoch,
            config=read_config(self.config),
            device=self.device,
            overwrite=self.overwrite,
        )
        print(json.dumps(found) if self.json else describe(found))
        for problem in found["unreadable"]:
            print(f"comvex: {problem}", file=sys.stderr)
        return 2 if found["unreadable"] else 0


def describe(found: dict[str, Any]) -> str:
    lines = [
        f"{entry['picture']}: {entry['label']}, {100 * entry['probability']:.2f} %" for entry in found["predictions"]
    ]
    lines.append("non-locality by layer, patches: " + " ".join(f"{value:.2f}" for value in found["nonlocality"]))
    return "\n".join([*lines, f"the page is {found['report']}; beside it are {len(found['figures'])} figures"])
