"""What training made of the layers of a study's runs: how far each looks, and how open its gates are.

Says whether the plain ViT came to look near by itself, and whether ConViT went on doing so.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comvex import run_folder
from comvex.files import read_table
from comvex.study.plan import PlannedRun
from comvex.study.results import RUNS


@dataclass(frozen=True)
class LayerFigures:
    """One layer of a run after an epoch, means over its heads, on a few validation pictures."""

    architecture: str
    fraction: float
    seed: int
    epoch: int
    """0 is before the first step."""
    layer: int
    gate: float | None
    """Share of the positional attention; None in layers of plain attention."""
    nonlocality: float
    """Distance from a patch to what it attends to, in patches (see ``comvex.convit.analysis.nonlocality``)."""


def read_layers(run: PlannedRun, out: Path) -> list[LayerFigures]:
    """The layers of a finished run of the study in ``out``, before its first step and after the epoch that was tested.

    Empty if the run is not finished, or its folder has no figures of the heads.
    """
    folder = out / RUNS / run.name
    summary, file = run_folder.read_summary(folder), folder / run_folder.HEADS
    if summary is None or not file.exists():
        return []
    heads: dict[tuple[int, int], list[dict[str, float]]] = {}
    for row in read_table(file):
        if row["epoch"] in (0, summary["best_epoch"]):
            heads.setdefault((row["epoch"], row["layer"]), []).append(row)  # pyright: ignore[reportArgumentType]
    return [
        LayerFigures(
            run.architecture,
            run.fraction,
            run.seed,
            epoch,
            layer,
            gate=None if rows[0]["gate"] is None else statistics.mean(row["gate"] for row in rows),
            nonlocality=statistics.mean(row["nonlocality_blended"] for row in rows),
        )
        for (epoch, layer), rows in sorted(heads.items())
    ]


def over_seeds(layers: Sequence[LayerFigures], name: str, *, begun: bool) -> dict[tuple[str, float], dict[int, float]]:
    """For an architecture and a fraction the mean of one figure over the seeds, by layer; absent where there is none.

    ``name`` is ``gate`` or ``nonlocality``. Without ``begun`` it is that before the first step, of all fractions alike.
    """
    found: dict[tuple[str, float], dict[int, list[float]]] = {}
    for each in layers:
        value = getattr(each, name)
        if value is not None and (each.epoch > 0) == begun:
            key = each.architecture, each.fraction if begun else 0.0
            found.setdefault(key, {}).setdefault(each.layer, []).append(value)
    return {key: {layer: statistics.mean(values) for layer, values in by.items()} for key, by in found.items()}
