"""``comvex runs``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from comvex.training.runs import Order, Run, list_runs, recipe_differences

if TYPE_CHECKING:
    from rich.table import Table

UNITS = {"top1": "", "map": " mAP"}
"""What stands behind val and test figures that are not top-1 accuracies."""
COLUMNS = (
    "run", "data", "model", "state", "params", "epochs", "val, %", "test, %", "loss", "seconds", "img/s", "date",
)  # fmt: skip
WIDE = 120
"""Characters a line from which there is room for all of them."""
IN_80 = ("run", "data", "state", "epochs", "val, %", "test, %")
"""Those of a narrower terminal."""


@dataclass(frozen=True)
class Runs:
    """List the runs in a folder with their figures, and what their recipes have different.

    val is the figure of the best epoch in validation, test that of its weights on the test pictures: top-1 accuracy, or
    where it says mAP, for several labels a picture, mean average precision.
    """

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")] = Path("runs")
    """Folder that holds run folders, at any depth."""
    sort: Order = "name"
    """What the runs are put in order by; the best, or newest, first."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> int:
        runs = list_runs(self.folder, sort=self.sort)
        differences = recipe_differences(self.folder, runs)
        if self.json:
            answer = {"folder": str(self.folder), "runs": [asdict(run) for run in runs], "differences": differences}
            print(json.dumps(answer))
        else:
            print_runs(runs, differences)
        return 0


def print_runs(runs: Sequence[Run], differences: dict[str, dict[str, Any]]) -> None:
    """Print the tables; where no terminal says how wide it is, a line is as long as it needs to be."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)
    readable = [run for run in runs if run.problem is None]
    if readable:
        console.print(figures_table(readable, COLUMNS if console.width >= WIDE else IN_80))
    if differences:
        console.print("\nWhat the recipes have different:\n")
        console.print(differences_table(differences))
    for run in runs:
        if run.problem is not None:
            console.print(f"{run.name} cannot be read: {run.problem}", markup=False, highlight=False, soft_wrap=True)


def figures_table(runs: Sequence[Run], columns: Sequence[str]) -> Table:
    """A line for each run."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in columns:
        if name in ("run", "data", "model"):
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="left" if name in ("state", "date") else "right", no_wrap=True)
    for run in runs:
        unit = UNITS[run.criterion or "top1"]
        cells = {
            "run": run.name,
            "data": run.data,
            "model": run.model,
            "state": run.state,
            "params": figure(run.num_parameters, ",d"),
            "epochs": figure(run.epochs, "d"),
            "val, %": figure(run.val, ".2f", unit),
            "test, %": figure(run.test, ".2f", unit),
            "loss": figure(run.loss, ".4f"),
            "seconds": figure(run.seconds, ".0f"),
            "img/s": figure(run.pictures_per_second, ".0f"),
            "date": (run.date or "-")[:16],  # without seconds
        }
        table.add_row(*(escape(cells[name] or "-") for name in columns))
    return table


def figure(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def differences_table(differences: dict[str, dict[str, Any]]) -> Table:
    """The fields in which the runs differ, by run; on its side if there are more fields than runs."""
    from rich.markup import escape
    from rich.table import Table

    runs = list(next(iter(differences.values())))
    cells = {run: {field: values[run] for field, values in differences.items()} for run in runs}
    corner, columns, rows = "run", list(differences), cells
    if len(differences) > len(runs):
        corner, columns, rows = "field", runs, differences
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in (corner, *columns):
        table.add_column(escape(name), overflow="fold")
    for name, row in rows.items():
        table.add_row(escape(name), *(escape(cell(row[column])) for column in columns))
    return table


def cell(value: Any) -> str:
    """A value of a recipe: "-" for none, quotation marks for an empty text."""
    return "-" if value is None else str(value) or '""'
