"""``comvex evaluate``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained model on labelled pictures and draw its confusion matrix.

    For a model of several labels a picture, the average precision of every class is drawn instead. Without --data these
    are the test pictures of the run's own data, which training has not seen; with --data FOLDER or FILE.csv they are
    other pictures of the same classes.
    """

    source: Annotated[Positional[str], arg(name="run", metavar="RUN")]
    """Run folder of comvex train, a weights file (ours, timm's or the official repository's), a published name such as
    convit_tiny.fb_in1k, or OWNER/NAME on the Hugging Face Hub."""
    data: str | None = None
    """digits, fashion-mnist, a folder of class folders or a CSV file. Default: what the run was trained on."""
    part: Literal["test", "val", "train"] = "test"
    """Which pictures of the data."""
    out: Path | None = None
    """Folder for confusion.png or average_precision.png. Default: RUN/evaluation/DATA-PART."""
    batch_size: int = 256
    """Pictures per forward pass."""
    workers: int = 0
    """Processes that read pictures."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    overwrite: bool = False
    """Replace the picture of an earlier evaluation."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> int:
        from comvex.inference.run_evaluation import evaluate_run

        figures = evaluate_run(
            self.source,
            data=self.data,
            part=self.part,
            out=self.out,
            batch_size=self.batch_size,
            workers=self.workers,
            device=self.device,
            overwrite=self.overwrite,
        )
        print(json.dumps(figures) if self.json else describe_evaluation(figures))
        return 0


def describe_evaluation(figures: dict[str, Any]) -> str:
    lines = [f"{figures['data']}, {figures['num_pictures']} {figures['part']} pictures"]
    if "mean_average_precision" in figures:
        name, picture = "picture", "average_precision_picture"
        lines.append(f"mean AP     {figures['mean_average_precision']:.2f} %")
    else:
        name, picture = "confusion", "confusion_picture"
        low, high = figures["top1_interval"]
        lines.append(f"top-1       {figures['top1']:.2f} %  (95 % interval {low:.2f} to {high:.2f} %)")
        lines.append(f"top-5       {figures['top5']:.2f} %")
    kept = ", kept from an earlier evaluation (--overwrite replaces it)" if figures[f"{picture}_kept"] else ""
    lines += [
        f"loss        {figures['loss']:.4f}",
        f"throughput  {figures['pictures_per_second']:.0f} pictures/s",
        f"{name:<10}  {figures[picture]}{kept}",
    ]
    if figures["num_unreadable"]:
        lines.append(
            f"unreadable  {figures['num_unreadable']} pictures, skipped; the first: {figures['unreadable'][0]}"
        )
    for label, value in figures.get("average_precision", {}).items():
        percent = "     -  " if value is None else f"{value:6.2f} %"
        lines.append(f"  {percent}  {label} ({figures['num_positive'][label]} pictures)")
    return "\n".join(lines)
