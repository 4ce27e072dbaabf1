"""``comvex data check``: read every picture of a data set once, and say what is in it and what is wrong with it."""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from comvex.data.depth import settle_depth
from comvex.data.examine import Finding, examine_all
from comvex.data.picture_set import DataSet
from comvex.data.sources import read_source, set_aside, with_validation
from comvex.errors import UserError
from comvex.terminal import progress_bar

FEWEST = 5
"""Training pictures below which a class counts as too small."""
UNEVEN = 3.0
"""Largest class by smallest from which balancing is suggested."""
LARGEST_SUGGESTED = 224


@dataclass(frozen=True)
class CheckedPicture:
    """A picture of a data set: where it is, what it shows, and what was found."""

    name: str
    part: str
    label: str
    finding: Finding


def check_data(name: str, *, split_seed: int = 0, workers: int | None = None) -> dict[str, Any]:
    """Read everything of a data set (see ``open_data``) and report it as plain values.

    The parts are those that training with this ``split_seed`` would have; where training would refuse them, ``refused``
    says why. The second time, only what has changed is read. ``workers`` is the number of processes; by default one per
    CPU, up to 8.

    Raises ``ValueError`` if there is no such data set.
    """
    started = time.perf_counter()
    data, refused = divided(name, split_seed=split_seed)
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    pictures, num_known = checked_pictures(data, kept_as=kept_name(name), workers=workers)
    readable = [picture for picture in pictures if not picture.finding.problem]
    duplicates = find_duplicates(readable)
    parts = count_parts(data, pictures)
    return {
        "data": name,
        "num_pictures": len(pictures),
        "multi_label": data.multi_label,
        "full_depth": data.full_depth,
        "notes": list(data.notes),
        "refused": refused,
        "parts": parts,
        "sizes": describe_sizes(readable),
        "modes": dict(Counter(picture.finding.mode for picture in readable).most_common()),
        "unreadable": [
            picture.finding.problem
            for picture in sorted(pictures, key=lambda picture: picture.name)
            if picture.finding.problem
        ],
        "duplicates": duplicates,
        "num_duplicates_across_parts": sum(group["across_parts"] for group in duplicates),
        "num_labelled_differently": sum(group["labelled_differently"] for group in duplicates),
        "small_classes": small_classes(parts),
        "absent_classes": absent_classes(parts),
        "suggestions": suggest(data, readable, parts),
        "num_known_before": num_known,
        "seconds": time.perf_counter() - started,
    }


def divided(name: str, *, split_seed: int) -> tuple[DataSet, list[str]]:
    """The data in the parts that training would have, and the sentences with which it would refuse them."""
    data = read_source(name)
    refused = list(data.problems)
    try:
        data = set_aside(data, name, split_seed=split_seed)
    except UserError as error:
        refused.append(str(error))
        data = with_validation(data, split_seed=split_seed)
    try:
        return settle_depth(data), refused
    except UserError as error:
        return data, [*refused, str(error)]


def kept_name(name: str) -> str:
    """The name under which findings are kept: the same however a folder or file is addressed."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def checked_pictures(data: DataSet, *, kept_as: str, workers: int) -> tuple[list[CheckedPicture], int]:
    """Every picture of every part with what was found, and how many of them were known before."""
    named = {"train": data.train, "val": data.val, "test": data.test}
    parts = {name: part for name, part in named.items() if part is not None}
    everything = [picture for part in parts.values() for picture in part.pictures]
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with progress_bar(*columns, transient=True) as progress:
        task = progress.add_task("reading pictures", total=len(everything))
        findings, num_known = examine_all(
            kept_as, everything, workers=workers, advance=lambda count: progress.advance(task, count)
        )
    remaining = iter(findings)
    checked = [
        CheckedPicture(part.name(index), name, label_text(data, part.labels[index]), next(remaining))
        for name, part in parts.items()
        for index in range(len(part))
    ]
    return checked, num_known


def label_text(data: DataSet, label: Any) -> str:
    """The class of a picture, or its classes separated by semicolons."""
    if data.multi_label:
        return ";".join(data.classes[index] for index in np.flatnonzero(label))
    return data.classes[label]


def count_parts(data: DataSet, pictures: Iterable[CheckedPicture]) -> dict[str, Any]:
    """For each part the number of pictures, of unreadable ones, and of readable ones of each class."""
    parts: dict[str, Any] = {
        name: {"num_pictures": 0, "num_unreadable": 0, "classes": dict.fromkeys(data.classes, 0)}
        for name, part in (("train", data.train), ("val", data.val), ("test", data.test))
        if part is not None
    }
    for picture in pictures:
        counts = parts[picture.part]
        counts["num_pictures"] += 1
        if picture.finding.problem:
            counts["num_unreadable"] += 1
            continue
        for label in picture.label.split(";") if data.multi_label else [picture.label]:
            if label:
                counts["classes"][label] += 1
    return parts


def describe_sizes(pictures: list[CheckedPicture]) -> dict[str, Any]:
    """Smallest, median and largest height, width and shorter side, in pixels; empty without pictures."""
    if not pictures:
        return {}
    sizes = np.array([(picture.finding.height, picture.finding.width) for picture in pictures])
    sides = {"height": sizes[:, 0], "width": sizes[:, 1], "shorter_side": sizes.min(axis=1)}
    return {
        name: {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}
        for name, values in sides.items()
    }


def find_duplicates(pictures: list[CheckedPicture]) -> list[dict[str, Any]]:
    """Groups of pictures that show the same pixels, those across parts first.

    ``same`` is "bytes" if their files are equal too, else "pixels".
    """
    groups: dict[str, list[CheckedPicture]] = defaultdict(list)
    for picture in pictures:
        groups[picture.finding.pixels].append(picture)
    found = [
        {
            "same": "bytes" if len({picture.finding.content for picture in group}) == 1 else "pixels",
            "across_parts": len({picture.part for picture in group}) > 1,
            "labelled_differently": len({picture.label for picture in group}) > 1,
            "pictures": [
                {"name": picture.name, "part": picture.part, "label": picture.label} for picture in group
            ],
        }
        for group in groups.values()
        if len(group) > 1
    ]  # fmt: skip
    return sorted(found, key=lambda group: not group["across_parts"])


def small_classes(parts: dict[str, Any]) -> dict[str, int]:
    """The classes with few training pictures that can be read, and how many they have."""
    return {name: count for name, count in parts["train"]["classes"].items() if count < FEWEST}


def absent_classes(parts: dict[str, Any]) -> dict[str, list[str]]:
    """The classes that training has and validation, or the test, has not, by part."""
    trained = {name for name, count in parts["train"]["classes"].items() if count}
    found = {
        part: [name for name, count in counts["classes"].items() if name in trained and not count]
        for part, counts in parts.items()
        if part != "train" and counts["num_pictures"]
    }
    return {part: names for part, names in found.items() if names}


def suggest(data: DataSet, pictures: list[CheckedPicture], parts: dict[str, Any]) -> list[str]:
    """Settings of ``comvex train`` that fit these pictures."""
    suggestions = []
    if pictures:
        shorter = [min(picture.finding.height, picture.finding.width) for picture in pictures]
        size = min(LARGEST_SUGGESTED, int(np.median(shorter)))
        size = max(data.patch_size, size // data.patch_size * data.patch_size)
        if size != data.image_size and not data.train.in_memory:
            suggestions.append(f"--model.image-size {size}")
    counts = [count for count in parts["train"]["classes"].values() if count]
    if counts and max(counts) > UNEVEN * min(counts):
        suggestions.append("--balance loss")
    return suggestions


def has_problems(report: dict[str, Any]) -> bool:
    """Whether something should be put right before training: refused, unreadable, in several parts, labelled twice."""
    return bool(
        report["refused"]
        or report["unreadable"]
        or report["num_duplicates_across_parts"]
        or report["num_labelled_differently"]
    )


def describe_check(report: dict[str, Any], *, most: int = 20) -> str:
    """The report as text; of long lists the first ``most`` entries."""
    lines = [f"{report['data']}: {report['num_pictures']} pictures"]
    lines += [f"note         {note}" for note in report["notes"]]
    lines += shorten([f"refused      {reason}" for reason in report["refused"]], most)
    for name, part in report["parts"].items():
        counts = sorted(part["classes"].items(), key=lambda entry: -entry[1])
        lines.append(f"{name:<12} {part['num_pictures']} pictures of {sum(count > 0 for _, count in counts)} classes")
        lines += shorten([f"  {count:>8}  {label}" for label, count in counts], most)
    for name, side in report["sizes"].items():
        text = f"{side['min']} to {side['max']} pixels, median {side['median']:g}"
        lines.append(f"{name.replace('_', ' '):<12} {text}")
    lines.append("modes        " + ", ".join(f"{mode} ({count})" for mode, count in report["modes"].items()))
    if report["full_depth"]:
        lines.append("depth        read with all bits and channels")
    lines.append(f"unreadable   {len(report['unreadable'])}")
    lines += shorten([f"  {problem}" for problem in report["unreadable"]], most)
    lines.append(
        f"duplicates   {len(report['duplicates'])} groups, {report['num_duplicates_across_parts']} of them across "
        f"parts, {report['num_labelled_differently']} labelled differently"
    )
    lines += shorten([f"  {describe_group(group)}" for group in report["duplicates"]], most)
    if report["small_classes"]:
        few = ", ".join(f"{label} ({count})" for label, count in report["small_classes"].items())
        lines.append(f"too small    {few}: fewer than {FEWEST} training pictures")
    for part, names in report["absent_classes"].items():
        lines.append(
            f"absent       {part} has no picture of {', '.join(names[:most])}" + " and others" * (len(names) > most)
        )
    if report["suggestions"] and not report["refused"]:
        lines.append(
            f"suggested    comvex train --data {shlex.quote(report['data'])} {' '.join(report['suggestions'])}"
        )
    return "\n".join(lines)


def describe_group(group: dict[str, Any], *, most: int = 4) -> str:
    names = [f"{picture['name']} ({picture['part']}, {picture['label']})" for picture in group["pictures"]]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"same {group['same']}: {', '.join(names[:most])}{more}"


def shorten(lines: list[str], most: int) -> list[str]:
    """The first lines, and how many more there are."""
    return lines if len(lines) <= most else [*lines[:most], f"  ... and {len(lines) - most} more (--json has all)"]
