"""``comvex train``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from comvex.training.recipe import Options, Recipe


@dataclass(frozen=True)
class Train:
    """Train a ConViT and report its accuracy on pictures that it has not seen.

    Without any argument: a small ConViT on scikit-learn's handwritten digits, in a minute or two on two cores.

      comvex train --data FOLDER            your own pictures, one folder per class
      comvex train --data FILE.csv          your own pictures, with their paths and labels in a table
      comvex train --data fashion-mnist     60,000 pictures of clothes
      comvex train --model.preset ConViT_S  a size of the paper

    Stop it whenever you like: the same command goes on where it was, and once finished it prints the summary again.
    """

    recipe: Annotated[Recipe, arg(name="")]
    options: Annotated[Options, arg(name="")]
    out: Path | None = None
    """Run folder. Default: runs/DATA-HASH, where the hash stands for the recipe."""
    json: bool = False
    """Print the summary as one JSON object on standard output, and nothing else there."""

    def run(self) -> int:
        from comvex.training.trainer import train

        out = self.out if self.out is not None else default_out(self.recipe)
        summary = train(self.recipe, out, options=self.options)
        if self.json:
            print(json.dumps({"run": str(out), **summary}))
        else:
            print(describe_summary(out, summary))
        return 0


def default_out(recipe: Recipe) -> Path:
    """A run folder whose name depends on the recipe alone, so that repeating a command finds its run again."""
    digest = hashlib.sha256(json.dumps(recipe.to_dict(), sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / f"{Path(recipe.data).resolve().name if '/' in recipe.data else recipe.data}-{digest}"


def describe_summary(out: Path, summary: dict[str, Any]) -> str:
    which = {"test": "test", "val": "validation"}[summary["evaluated_on"]]
    pictures = f"{summary['num_pictures']} {which} pictures"
    if "mean_average_precision" in summary:
        figures = f"mean average precision {summary['mean_average_precision']:.2f} % on {pictures}"
    else:
        low, high = summary["top1_interval"]
        figures = (
            f"top-1 accuracy {summary['top1']:.2f} % on {pictures} "
            f"(95 % interval {low:.1f} to {high:.1f} %), top-5 {summary['top5']:.2f} %"
        )
    lines = [
        f"{figures}, loss {summary['loss']:.4f}",
        f"{summary['num_parameters']:,} parameters, {summary['num_training_pictures']} training pictures, "
        f"{summary['seconds']:.0f} s, {summary['pictures_per_second']:.0f} pictures/s",
    ]
    if which == "validation":
        lines.append(
            "The data have no test pictures: this figure is of the validation pictures, which chose the weights."
        )
    if summary["num_unreadable"]:
        lines.append(
            f"{summary['num_unreadable']} pictures could not be read and were skipped; {out / 'log.txt'} names them."
        )
    lines.append(f"weights {out / 'weights' / 'best.safetensors'}, curves {out / 'curves.png'}")
    return "\n".join(lines)
