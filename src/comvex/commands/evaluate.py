"""``comvex evaluate``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from comvex.commands.options import ConfigFile, Source, read_config, says_top5
from comvex.help import DEFAULT_TOLD

MOST_TOLD = 20
"""With more classes than this only the worst are told; per_class.csv has all."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained model on labelled pictures: accuracy, of each class too, calibration, confusion matrix.

    For a model of several labels a picture, the average precision of every class is measured instead. Without --data
    these are the test pictures of the run's own data, which training has not seen; with --data they are other pictures
    of the same classes, or of some of them. To check the published accuracies, with ImageNet in a folder:
    comvex evaluate convit_tiny.fb_in1k --data IMAGENET --part val
    """

    source: Source
    data: Annotated[str | None, DEFAULT_TOLD] = None
    """What comvex train takes as its data: a name, a folder of class folders, a CSV file. Default: what the run was
    trained on."""
    part: Literal["test", "val", "train", "all"] = "test"
    """Which pictures of the data."""
    image_size: Annotated[int | tuple[int, int] | None, DEFAULT_TOLD] = None
    """Picture side in pixels, or HEIGHT WIDTH. Default: that of the weights."""
    crop_pct: Annotated[float | None, DEFAULT_TOLD] = None
    """Share of the resized picture's side that the middle crop keeps. Default: that of the weights."""
    interpolation: Annotated[Literal["bicubic", "bilinear"] | None, DEFAULT_TOLD] = None
    """How pictures are resized. Default: as the weights say."""
    mask_position_embedding: bool = False
    """Evaluate without the position embedding, as in the paper's Table 5."""
    out: Annotated[Path | None, DEFAULT_TOLD] = None
    """Folder for confusion.png (several labels: average_precision.png), reliability.png and per_class.csv. Default:
    RUN/evaluation/DATA-PART."""
    config: ConfigFile = None
    batch_size: int = 256
    """Pictures per forward pass."""
    workers: int = 0
    """Processes that read pictures."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    overwrite: bool = False
    """Replace the files of an earlier evaluation."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> int:
        from comvex.inference.run_evaluation import Changes, evaluate_run

        figures = evaluate_run(
            self.source,
            data=self.data,
            part=self.part,
            changes=Changes(
                image_size=self.image_size,
                crop_pct=self.crop_pct,
                interpolation=self.interpolation,
                mask_position_embedding=self.mask_position_embedding,
            ),
            out=self.out,
            config=read_config(self.config),
            batch_size=self.batch_size,
            workers=self.workers,
            device=self.device,
            overwrite=self.overwrite,
        )
        print(json.dumps(figures) if self.json else describe_evaluation(figures))
        return 0


def describe_evaluation(figures: dict[str, Any]) -> str:
    which = "" if figures["part"] == "all" else f"{figures['part']} "
    lines = [f"{figures['data']}, {figures['num_pictures']} {which}pictures"]
    epoch = figures["unfinished_epoch"]
    if epoch is not None:
        lines.append(f"unfinished  the run is not at its end: these are its best weights so far, of epoch {epoch}")
    multi_label = "mean_average_precision" in figures
    if multi_label:
        lines.append(f"mean AP     {figures['mean_average_precision']:.2f} %")
    else:
        low, high = figures["top1_interval"]
        lines.append(f"top-1       {figures['top1']:.2f} %  (95 % interval {low:.2f} to {high:.2f} %)")
        if says_top5(figures):
            lines.append(f"top-5       {figures['top5']:.2f} %")
        lines.append(f"balanced    {figures['balanced_top1']:.2f} %  (mean of the classes' top-1)")
    lines += [
        f"calibration {figures['calibration_error']:.2f} %  (expected calibration error, 15 bins; 0 is perfect)",
        f"loss        {figures['loss']:.4f}",
        f"throughput  {figures['pictures_per_second']:.0f} pictures/s",
        f"{'picture' if multi_label else 'confusion':<10}  {picture_file(figures)}",
        f"reliability {figures['reliability_picture']}",
        f"per class   {figures['per_class_table']}",
    ]
    if figures["files_kept"]:
        lines.append("            of an earlier evaluation, kept: --overwrite replaces them")
    if figures["num_unreadable"]:
        lines.append(
            f"unreadable  {figures['num_unreadable']} pictures, skipped; the first: {figures['unreadable'][0]}"
        )
    return "\n".join(lines + describe_classes(figures["by_class"], "average_precision" if multi_label else "top1"))


def picture_file(figures: dict[str, Any]) -> str:
    return figures.get("confusion_picture") or figures["average_precision_picture"]


def describe_classes(rows: list[dict[str, Any]], merit: str) -> list[str]:
    """A line for each class in its own order, or for the worst ones if there are many."""
    count = "num_positive" if merit == "average_precision" else "num_pictures"
    lines = []
    if len(rows) > MOST_TOLD:
        known = [row for row in rows if row[merit] is not None]
        rows = sorted(known, key=lambda row: row[merit])[:MOST_TOLD]
        lines.append(f"the {len(rows)} worst classes:")
    for row in rows:
        percent = "     -  " if row[merit] is None else f"{row[merit]:6.2f} %"
        lines.append(f"  {percent}  {row['class']} ({row[count]} pictures)")
    return lines
