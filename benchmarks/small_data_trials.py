"""The trials that chose the recipe of the sample-efficiency study: ConViT and the plain ViT, a run of each per trial.

No trial sees a test picture: each trains on 5,400 of Fashion-MNIST's training pictures (as many as 10 % leave) and is
judged on 2,700 others of them. Both architectures have the same trials. It can be stopped and repeated, and several
processes share the trials: finished runs are kept, an unfinished one goes on.

    python benchmarks/small_data_trials.py                                     # what is recorded is not trained again
    python benchmarks/small_data_trials.py --out runs/trials --data FOLDER     # the same trials on other pictures
"""

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from comvex.allocator import keep_freed_memory
from comvex.data.augmentation import Augmentation
from comvex.files import write_table, write_text
from comvex.processor import machine_line
from comvex.study.carry_out import attempt
from comvex.study.plan import CONVIT, PLAIN, VARIANTS, PlannedRun
from comvex.study.results import read_result
from comvex.training.recipe import Architecture, Options, Recipe

SEED = 1000
"""None of a study's: other pictures, other initial weights."""
FRACTION, VAL_FRACTION = 0.135, 1 / 3
MODEL: dict[str, Any] = {"dim": 72, "heads": 9, "num_local_layers": 4, "num_nonlocal_layers": 2}
START: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 2e-3, "batch_size": 64}
CHANGED: dict[str, Any] = {"rotation": 10.0, "translation": 0.1, "zoom": 0.1}
"""How the start changes pictures."""
IN_PLACE: dict[str, Any] = {"augment.rotation": 0.0, "augment.zoom": 0.0, "augment.translation": 0.0}
FLIPS = IN_PLACE | {"augment.random_erasing": 0.0}
SHIFTS = FLIPS | {"augment.translation": 0.04}
TEN_BY_TEN: dict[str, Any] = {"model.image_size": (30, 30), "model.patch_size": 3, "precision": "bfloat16"}
"""Patches of 3 x 3 pixels, 10 x 10 of them: the pictures of 28 x 28 pixels are made 30 x 30."""
MUON: dict[str, Any] = {"optimizer": "muon", "precision": "bfloat16"}
REGULARISED: dict[str, Any] = FLIPS | {
    "augment.translation": 0.08,
    "augment.random_erasing": 0.25,
    "model.drop_path": 0.1,
}
"""Flips, shifts twice as large, erasing and drop path."""
TRIALS: dict[str, dict[str, Any]] = {
    "start": {},
    "flips alone": FLIPS,
    "flips and erasing": IN_PLACE,
    "flips and shifts": SHIFTS,
    "flips, learning rate 0.001": FLIPS | {"learning_rate": 1e-3},
    "flips, drop path 0.1": FLIPS | {"model.drop_path": 0.1},
    "shifts, learning rate 0.004": SHIFTS | {"learning_rate": 4e-3},
    "shifts, 4 heads": SHIFTS | {"model.heads": 4},
    "shifts, init 0.02": SHIFTS | {"model.init_std": 0.02},
    "shifts, twice as long": SHIFTS | {"length": 2},
    "shifts, four times as long": SHIFTS | {"length": 4},
    "shifts, patches of 2": SHIFTS | {"model.patch_size": 2, "precision": "bfloat16"},
    "shifts, patches of 3, twice as long": SHIFTS | TEN_BY_TEN | {"length": 2},
    "shifts, patches of 3, four times as long": SHIFTS | TEN_BY_TEN | {"length": 4},
    "shifts, bfloat16": SHIFTS | {"precision": "bfloat16"},
    "Muon": MUON,
    "shifts, Muon": SHIFTS | MUON,
    "shifts, Muon, twice as long": SHIFTS | MUON | {"length": 2},
    "shifts, Muon, four times as long": SHIFTS | MUON | {"length": 4},
    "regularised, Muon, twice as long": REGULARISED | MUON | {"length": 2},
}
"""What each changes of the start; with a length of 2 a run shows twice as many pictures."""


def trial_recipe(changes: dict[str, Any], *, data: str, shown: int) -> Recipe:
    """The start, changed, with a length of so many pictures shown."""
    changes = {"length": 1, **changes}
    length = changes.pop("length")
    settings = START | {name: value for name, value in changes.items() if "." not in name}
    model = {name.removeprefix("model."): value for name, value in changes.items() if name.startswith("model.")}
    augment = {name.removeprefix("augment."): value for name, value in changes.items() if name.startswith("augment.")}
    return Recipe(
        data=data,
        fraction=FRACTION,
        val_fraction=VAL_FRACTION,
        test=False,
        split_seed=SEED,
        seed=SEED,
        model=Architecture(**(MODEL | model)),
        augment=Augmentation(**(CHANGED | augment)),
        steps=length * shown // settings["batch_size"],
        **settings,
    )


def planned(name: str, architecture: str, *, data: str, shown: int) -> PlannedRun:
    """The run of a trial with one of the two architectures."""
    recipe = trial_recipe(TRIALS[name], data=data, shown=shown)
    model = dataclasses.replace(recipe.model, **VARIANTS["sample-efficiency"][architecture])
    return PlannedRun(architecture, FRACTION, SEED, dataclasses.replace(recipe, model=model))


def folder_of(name: str, out: Path) -> Path:
    return out / name.replace(" ", "-")


def rows_of(out: Path, *, data: str, shown: int) -> list[dict[str, Any]]:
    """A line for each finished run; accuracy on the validation pictures, of the epoch that was best there."""
    rows = []
    for name, changes in TRIALS.items():
        for architecture in (CONVIT, PLAIN):
            result = read_result(planned(name, architecture, data=data, shown=shown), folder_of(name, out))
            if result is not None:
                rows.append(
                    {
                        "trial": name,
                        "changes": json.dumps(changes),
                        "architecture": architecture,
                        "num_pictures": result.num_pictures,
                        "steps": result.steps,
                        "val_top1": result.top1,
                        "seconds": result.seconds,
                    }
                )
    return rows


def report_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table in Markdown, with the difference that each trial made."""
    found = {(row["trial"], row["architecture"]): row["val_top1"] for row in rows}
    lines = [
        "| trial | changes | ConViT, % | to the start | plain ViT, % | to the start |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    run = [name for name in TRIALS if any(row["trial"] == name for row in rows)]
    for name in run:
        cells = [name, f"`{json.dumps(TRIALS[name])}`"]
        for architecture in (CONVIT, PLAIN):
            top1, start = found.get((name, architecture)), found.get(("start", architecture))
            cells.append("-" if top1 is None else f"{top1:.2f}")
            cells.append("" if top1 is None or start is None else f"{top1 - start:+.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    hours = sum(row["seconds"] for row in rows) / 3600
    page = f"This page: {machine_line()}, `{shlex.join(['python', *sys.argv])}`"
    lines += ["", f"{hours:.2f} hours of training in all. {page}; without --only the command trains what is missing."]
    missing = [name for name in TRIALS if name not in run]
    return [*lines, f"Not run yet: {'; '.join(missing)}."] if missing else lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/results/small-data"),
        help="folder for trials.csv, trials.md and the runs",
    )
    parser.add_argument("--data", default="fashion-mnist", help="as in comvex train")
    parser.add_argument("--only", nargs="+", choices=list(TRIALS), default=list(TRIALS), help="these trials, in order")
    parser.add_argument("--shown", type=int, default=120_000, help="pictures that a run shows, with repeats")
    parser.add_argument("--threads", type=int, help="CPU threads of this process; 1 with several processes")
    options = parser.parse_args()
    keep_freed_memory()

    for name in options.only:
        for architecture in (CONVIT, PLAIN):
            run, out = planned(name, architecture, data=options.data, shown=options.shown), folder_of(name, options.out)
            if read_result(run, out) is None:
                attempt(
                    run, out, Options(threads=options.threads), announce=lambda name=name, run=run: print(name, run)
                )
    rows = rows_of(options.out, data=options.data, shown=options.shown)
    print("\n".join(report_lines(rows)))
    if rows:
        write_table(options.out / "trials.csv", rows)
        write_text(options.out / "trials.md", "\n".join(report_lines(rows)) + "\n")


if __name__ == "__main__":
    main()
