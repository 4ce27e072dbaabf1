"""``comvex predict``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from comvex.commands.options import ConfigFile, Pictures, read_config
from comvex.errors import UserError


@dataclass(frozen=True)
class Predict:
    """Say what is on pictures: the most probable classes of each, with their probabilities.

    Takes picture files of any size; grey, 16-bit grey, RGB, transparent, CMYK, turned by EXIF.
    """

    source: Annotated[Positional[str], arg(name="run", metavar="RUN")]
    """Run folder of comvex train, a weights file (ours, timm's or the official repository's), a published name such as
    convit_tiny.fb_in1k, or OWNER/NAME on the Hugging Face Hub."""
    pictures: Pictures
    """Picture files."""
    top: int = 5
    """How many classes to tell for each."""
    config: ConfigFile = None
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> int:
        from comvex.inference.predictor import predict_files

        if not self.pictures:
            raise UserError("No picture is given: name at least one picture file after the run folder.")
        predictions, problems = predict_files(
            self.source, self.pictures, top=self.top, config=read_config(self.config), device=self.device
        )
        if self.json:
            print(json.dumps({"predictions": predictions, "unreadable": problems}))
        else:
            for file, classes in predictions.items():
                print(file)
                for entry in classes:
                    print(f"  {100 * entry['probability']:6.2f} %  {entry['label']}")
        for problem in problems:
            print(problem, file=sys.stderr)
        return 2 if problems else 0
