"""The runs in a folder, read from what they have written, and what their recipes have different; needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from comvex import run_folder
from comvex.errors import UserError
from comvex.files import read_table
from comvex.training.recipe import with_earlier

Order = Literal["name", "date", "val", "test", "loss", "seconds", "pictures_per_second"]

CRITERIA = {"top1": "top1", "map": "mean_average_precision"}
"""What chooses the best weights: val_NAME in metrics.csv, and its name in summary.json."""


@dataclass(frozen=True)
class Run:
    """What a run folder says of its run; None where it does not say it (yet)."""

    name: str
    """Its place in the folder that was listed."""
    problem: str | None = None
    """Why it cannot be read; all else is then None or empty."""
    date: str | None = None
    """When it last wrote down figures, local time."""
    data: str | None = None
    model: str | None = None
    num_parameters: int | None = None
    state: str | None = None
    step: int | None = None
    """Of the last checkpoint."""
    num_steps: int | None = None
    epochs: int | None = None
    """Complete at its last validation."""
    criterion: str | None = None
    """What val and test are: "top1", or for several labels a picture "map", the mean average precision."""
    val: float | None = None
    """Of the best epoch in validation, in percent; of an unfinished run the highest so far."""
    test: float | None = None
    """Of the best weights on the test pictures, in percent."""
    loss: float | None = None
    """Of the best weights on the test pictures (without those, on the validation pictures), in nats."""
    seconds: float | None = None
    pictures_per_second: float | None = None


def list_runs(folder: Path, *, sort: Order = "name") -> list[Run]:
    """Every run anywhere in a folder, a damaged one with its problem; figures that are missing sort last.

    ``sort``: by name, newest first, highest accuracy or rate first, lowest loss or time first. Raises ``ValueError`` if
    there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: give one that holds run folders of comvex train.")
    runs = [read_run(run, name=str(run.relative_to(folder))) for run in find_runs(folder)]
    if not runs:
        raise UserError(f"The folder {folder} holds no run: give one that holds run folders of comvex train.")
    key = sort_key(sort)
    return sorted(runs, key=lambda run: (key(run) is None, key(run) or 0, run.name))


def sort_key(sort: Order) -> Callable[[Run], Any]:
    """What the runs are put in order by, lowest first; None comes last."""
    if sort == "name":
        return lambda run: run.name
    if sort == "date":
        return lambda run: None if run.date is None else -datetime.fromisoformat(run.date).timestamp()
    sign = -1 if sort in ("val", "test", "pictures_per_second") else 1
    return lambda run: None if getattr(run, sort) is None else sign * getattr(run, sort)


def find_runs(folder: Path) -> Iterator[Path]:
    """The folders with a recipe, in the order of their names; nothing inside a run is another one."""
    for directory, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if run_folder.RECIPE in files:
            folders.clear()
            yield Path(directory)


def read_run(run: Path, *, name: str) -> Run:
    """What a run folder says; where a file of it is damaged, that is all that is said."""
    try:
        return Run(name=name, **read_figures(run))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = str(error)
        if not isinstance(error, UserError):
            reason = f"One of its files is not what comvex writes ({type(error).__name__}: {error})."
        return Run(name=name, problem=reason)


def read_figures(run: Path) -> dict[str, Any]:
    """The fields of ``Run``; raises whatever damaged files make of it."""
    recipe = run_folder.read_recipe(run)
    summary = run_folder.read_summary(run)
    metrics, timing = (
        read_table(run / name) if (run / name).exists() else [] for name in (run_folder.METRICS, run_folder.TIMING)
    )
    written = [run / name for name in (run_folder.SUMMARY, run_folder.METRICS, run_folder.RECIPE)]
    last_written = next(file for file in written if file.exists())
    step, num_steps = last_step(run), planned_steps(run)
    return {
        "date": datetime.fromtimestamp(last_written.stat().st_mtime).isoformat(sep=" ", timespec="seconds"),
        "data": recipe["data"],
        "model": describe_model(recipe),
        "state": describe_state(summary is not None, step, num_steps),
        "step": step,
        "num_steps": num_steps,
        "epochs": metrics[-1]["epoch"] if metrics else 0,
        **validation_figures(metrics, summary),
        **(summary_figures(summary) if summary is not None else timing_figures(timing)),
    }


def last_step(run: Path) -> int | None:
    """The step of the newest checkpoint, None if there is none."""
    checkpoints = run_folder.checkpoint_folders(run / run_folder.CHECKPOINTS)
    return run_folder.checkpoint_step(checkpoints[-1]) if checkpoints else None


def planned_steps(run: Path) -> int | None:
    """The steps that the run was to have, None if its folder does not say."""
    return json.loads((run / run_folder.RECIPE).read_text()).get("num_steps")


def describe_state(finished: bool, step: int | None, num_steps: int | None) -> str:
    if finished:
        return "finished"
    if step is None:
        return "no checkpoint"
    return f"at step {step}" if num_steps is None else f"at step {step} of {num_steps}"


def describe_model(recipe: dict[str, Any]) -> str:
    """The size's name, or where the weights come from."""
    model = recipe["model"]
    weights = recipe.get("weights")  # which the first version's recipes did not have
    words = Path(weights).name if weights else model["preset"] or "small ConViT"
    return words if model["use_gpsa"] else f"{words}, plain attention"


def validation_figures(metrics: Sequence[dict[str, Any]], summary: dict[str, Any] | None) -> dict[str, Any]:
    """What is measured, and its value in the best epoch."""
    if not metrics:
        return {}
    criterion = next(name for name in CRITERIA if f"val_{name}" in metrics[0])
    values = {row["epoch"]: float(row[f"val_{criterion}"]) for row in metrics}
    val = values[summary["best_epoch"]] if summary is not None else max(values.values())
    return {"criterion": criterion, "val": val}


def summary_figures(summary: dict[str, Any]) -> dict[str, Any]:
    """What a finished run says at its end."""
    criterion = next(name for name in CRITERIA.values() if name in summary)
    return {
        "num_parameters": int(summary["num_parameters"]),
        "test": float(summary[criterion]) if summary["evaluated_on"] == "test" else None,
        "loss": float(summary["loss"]),
        "seconds": float(summary["seconds"]),
        "pictures_per_second": float(summary["pictures_per_second"]),
    }


def timing_figures(timing: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Time and rate of the epochs so far."""
    seconds = sum(row["seconds"] for row in timing)
    if not seconds:
        return {}
    pictures = sum(row["seconds"] * row["pictures_per_second"] for row in timing)
    return {"seconds": seconds, "pictures_per_second": pictures / seconds}


def recipe_differences(folder: Path, runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """The fields of the recipes that are not the same in all the runs that can be read: field -> run -> value.

    Fields of parts have names with dots, such as model.dim; a run whose recipe lacks a field has None there.
    """
    recipes = {
        run.name: flattened(with_earlier(run_folder.read_recipe(folder / run.name)))
        for run in runs
        if run.problem is None
    }
    fields = dict.fromkeys(name for recipe in recipes.values() for name in recipe)
    table = {field: {run: recipe.get(field) for run, recipe in recipes.items()} for field in fields}
    return {field: values for field, values in table.items() if any(v != w for v, w in pairwise(values.values()))}


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by names with dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
