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


@dataclass(frozen=True)
class Runs:
    """List the runs in a folder with their figures, and what their recipes have different."""

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
        console.print(figures_table(readable))
    if differences:
        console.print(differences_table(differences))
    for run in runs:
        if run.problem is not None:
            console.print(f"{run.name}: damaged. {run.problem}", markup=False, highlight=False, soft_wrap=True)


def figures_table(runs: Sequence[Run]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("run", "data", "model", "state"):
        table.add_column(name, overflow="fold")
    for name in ("parameters", "epochs", "best val, %", "test, %", "loss", "seconds", "pictures/s"):
        table.add_column(name, justify="right")
    table.add_column("date")
    for run in runs:
        unit = UNITS[run.criterion or "top1"]
        table.add_row(
            *(escape(text or "-") for text in (run.name, run.data, run.model, run.state)),
            figure(run.num_parameters, ",d"),
            figure(run.epochs, "d"),
            figure(run.val, ".2f", unit),
            figure(run.test, ".2f", unit),
            figure(run.loss, ".4f"),
            figure(run.seconds, ".0f"),
            figure(run.pictures_per_second, ".0f"),
            run.date,
        )
    return table


def figure(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def differences_table(differences: dict[str, dict[str, Any]]) -> Table:
    """A row for each run, a column for each field in which they differ."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        box=None, padding=(0, 2, 0, 0), header_style="bold", title="\nWhat the recipes have different",
        title_justify="left", title_style="bold",
    )  # fmt: skip
    table.add_column("run", overflow="fold")
    for field in differences:
        table.add_column(field, overflow="fold")
    for run in next(iter(differences.values())):
        cells = (values[run] for values in differences.values())
        table.add_row(escape(run), *(escape("-" if cell is None else str(cell)) for cell in cells))
    return table
