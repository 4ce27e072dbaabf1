"""``comvex convert``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from comvex.commands.options import ConfigFile, read_config


@dataclass(frozen=True)
class Convert:
    """Write weights in another layout, every number as it is.

    What IN is, is recognised from its content. Pickles are opened as data; one that needs code to be run is refused.

      comvex convert convit_tiny.pth tiny/ --to comvex         an official file, with checksum and preprocessing
      comvex convert runs/mine mine.pth --to official          a run for the official repository's code
      comvex convert runs/mine mine.safetensors --to timm      ... for timm's convit_*
    """

    source: Annotated[Positional[str], arg(name="in", metavar="IN")]
    """A weights file (ours, timm's or the official repository's), a run folder, a packaged or published name, a Hub
    id."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """File to write: .safetensors, or .pth and .bin for timm's and the official layout; for comvex's also a folder."""
    to: Literal["comvex", "timm", "official"]
    """comvex: safetensors with config.json. timm: the bare state dict. official: {"model": state dict}."""
    config: ConfigFile = None
    ema: bool = False
    """Take the averaged weights of a training checkpoint."""
    overwrite: bool = False
    """Replace OUT if it is there."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> int:
        from comvex.convit.weights import convert, preset_name

        file, weights = convert(
            self.source,
            self.out,
            layout=self.to,
            config=read_config(self.config),
            ema=self.ema,
            overwrite=self.overwrite,
        )
        size = preset_name(weights.info.architecture)
        if self.json:
            print(
                json.dumps(
                    {"in": str(weights.file), "from": weights.layout, "out": str(file), "to": self.to, "size": size}
                )
            )
        else:
            print(f"{weights.file} ({weights.layout} layout, {size}) -> {file} ({self.to} layout)")
            for note in weights.notes:
                print(note)
        return 0
