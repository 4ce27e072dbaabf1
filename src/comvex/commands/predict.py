"""``comvex predict``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Annotated

from comvex.commands.options import ConfigFile, Pictures, Source, given_or_packaged, read_config
from comvex.help import DEFAULT_TOLD


@dataclass(frozen=True)
class Predict:
    """Say what is on pictures: the most probable classes of each, with their probabilities.

    Takes picture files of any size; grey, 16-bit grey, RGB, transparent, CMYK, turned by EXIF. A folder stands for the
    picture files in it and in its folders.

      comvex predict runs/mine photo.jpg
      comvex predict runs/mine holidays/
      comvex predict convit_fashion_mnist     # a model and ten pictures that are part of comvex
    """

    source: Source
    pictures: Pictures
    """Picture files, or folders of them (required, but for convit_fashion_mnist, which has ten of its own)."""
    top: int = 5
    """How many classes to tell for each."""
    image_size: Annotated[int | tuple[int, int] | None, DEFAULT_TOLD] = None
    """Picture side in pixels, or HEIGHT WIDTH, after the pictures. Default: that of the weights."""
    config: ConfigFile = None
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> int:
        from comvex.inference.predictor import predict_files

        predictions, problems = predict_files(
            self.source,
            given_or_packaged(self.pictures, self.source),
            top=self.top,
            image_size=self.image_size,
            config=read_config(self.config),
            device=self.device,
        )
        if self.json:
            print(json.dumps({"predictions": predictions, "unreadable": problems}))
        else:
            for file, classes in predictions.items():
                print(file)
                for entry in classes:
                    print(f"  {100 * entry['probability']:6.2f} %  {entry['label']}")
        for problem in problems:
            print(f"comvex: {problem}", file=sys.stderr)
        return 2 if problems else 0
