"""Carrying out a study: any number of workers, each of which may be stopped at any time and started again."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import comvex
from comvex import run_folder
from comvex.data.sources import open_data
from comvex.errors import UserError
from comvex.files import write_text
from comvex.study.plan import FRACTIONS, Kind, PlannedRun, Study
from comvex.study.report import write_report
from comvex.study.results import RUNS, Result, read_result
from comvex.training.ranks import told_num
from comvex.training.recipe import Options, Recipe, differences
from comvex.training.runs import last_step
from comvex.training.trainer import train

FORMAT = 2
POLL_SECONDS = 5.0
"""How often a worker that has nothing left to do looks whether the others have."""
DRAW_SECONDS = 60.0
"""How long the figures stay as they are while runs go on; the tables are written after each."""


def carry_out(study: Study, out: Path, *, options: Options | None = None, poll: float = POLL_SECONDS) -> dict[str, Any]:
    """Train all runs of a study that are not finished, and report; safe to repeat, alone or by several at once.

    A run that another process trains is passed over and looked at again later, so that every worker ends when all runs
    are finished. The tables are written anew after each run, the figures once a minute. Returns what ``write_report``
    does.

    Raises ``ValueError`` for a folder that holds something else or another study, data that do not fit, and, once all
    others are finished, for runs that failed; and ``StoppedError``, after a checkpoint, if a signal asks for a stop.
    """
    options = options or Options()
    if options.overwrite:
        raise UserError(
            "overwrite is True: a study does not start runs again; remove its folder or take another --out."
        )
    if told_num() > 1:
        raise UserError("A study does not run under torchrun: repeat its command in several terminals instead.")
    known, num_pictures = begin(study, out)
    runs, known_runs = study.runs(num_pictures), known.runs(num_pictures)
    line = partial(progress_line, runs, out, num_pictures=num_pictures)
    failed: dict[str, UserError] = {}
    said, drawn = "", -math.inf
    while waiting := [run for run in runs if run.name not in failed and read_result(run, out) is None]:
        trained = 0
        for run in waiting:
            try:
                if not attempt(run, out, options, announce=lambda run=run: say(line(following=run))):
                    continue
            except UserError as error:
                failed[run.name] = error
                say(f"study: {run} failed: {error}")
                continue
            trained += 1
            draw = time.monotonic() - drawn > DRAW_SECONDS
            write_report(known, known_runs, out, draw=draw)
            drawn = time.monotonic() if draw else drawn
        if not trained:
            waits = line()
            if waits != said:
                say(waits)
                said = waits
            time.sleep(poll)
    report = write_report(known, known_runs, out)
    if failed:
        name, error = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed, the others are finished; the first that did is {name}: {error}"
        )
    return report


def begin(study: Study, out: Path) -> tuple[Study, int]:
    """Make sure that the study may use this folder, and note there what it is.

    Returns the study with all fractions and seeds that the folder was ever asked for, and the number of training
    pictures at a fraction of 1. Raises ``ValueError`` if the folder holds something else or another study.
    """
    file = out / run_folder.STUDY
    if out.exists() and not file.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something else than a study: choose another --out.")
    known = study
    if file.exists():
        stored = read_study(file)
        found = differences(settings(stored), settings(study.to_dict()))
        if found:
            raise UserError(f"The folder {out} has another study ({'; '.join(found)}): choose another --out.")
        before = Study.from_dict(stored)
        known = dataclasses.replace(
            study,
            fractions=tuple(sorted({*before.fractions, *study.fractions})),
            seeds=tuple(sorted({*before.seeds, *study.seeds})),
        )
        num_pictures = stored["num_pictures"]
    else:
        num_pictures = count_pictures(study)
    content = {"format": FORMAT, "comvex": comvex.__version__, **known.to_dict(), "num_pictures": num_pictures}
    write_text(file, json.dumps(content, indent=2) + "\n")
    return known, num_pictures


def settings(study: dict[str, Any]) -> dict[str, Any]:
    """What all runs of a study have in common, of its plain values; fractions and seeds may be added to."""
    own = {name: value for name, value in study.items() if name in ("study", "stretch")}
    return own | study["recipe"]


def read_study(file: Path) -> dict[str, Any]:
    """What a study's folder says of it; raises ``ValueError`` if that is damaged or from another version."""
    try:
        stored = json.loads(file.read_text())
        if stored["format"] != FORMAT:
            raise UserError(f"{file} has format {stored['format']!r}: this version of comvex reads format {FORMAT}.")
        return stored
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged or not comvex's: {type(error).__name__} {error}.") from error


def count_pictures(study: Study) -> int:
    """Training pictures at a fraction of 1; raises ``ValueError`` for data that a study cannot be made with."""
    recipe = study.recipe
    data = open_data(recipe.data, val_fraction=recipe.val_fraction)
    if data.multi_label:
        raise UserError(f"The pictures of {recipe.data} have several labels each: a study compares top-1 accuracies.")
    if data.test is None or not len(data.test):
        raise UserError(
            f"The data set {recipe.data} has no test pictures: a study needs some that chose nothing, in a folder test "
            "beside train, or all pictures in one folder, a fifth of which is then the test."
        )
    smallest = min(study.fractions)
    try:
        open_data(recipe.data, val_fraction=recipe.val_fraction, fraction=smallest)
    except UserError as error:
        raise UserError(f"fractions has {smallest:g}: {error}") from error
    return len(data.train)


def attempt(run: PlannedRun, out: Path, options: Options, *, announce: Callable[[], None]) -> bool:
    """Train a run to its end, unless another process is at it; returns whether it was done here."""
    folder = out / RUNS / run.name
    try:
        with run_folder.locked(folder):
            pass  # nobody is at it, which is worth knowing before the data are opened
        if read_result(run, out) is not None:
            return False
        announce()
        train(run.recipe, folder, options=options)
    except run_folder.BusyError:
        return False
    return True


def fitting_fractions(kind: Kind, recipe: Recipe) -> tuple[float, ...]:
    """The fractions of a study by default, without those that would leave no picture to train on or to validate."""
    open_data(recipe.data, val_fraction=recipe.val_fraction)  # raises what is wrong with the data themselves
    fitting = []
    for fraction in FRACTIONS[kind]:
        try:
            open_data(recipe.data, val_fraction=recipe.val_fraction, fraction=fraction)
        except UserError as error:
            say(f"study: without the fraction {fraction:g}: {error}")
        else:
            fitting.append(fraction)
    return tuple(fitting)


def progress_line(
    runs: Sequence[PlannedRun], out: Path, *, num_pictures: int, following: PlannedRun | None = None
) -> str:
    """How far the whole study is, and the time left for as many workers as are at it now."""
    results = [read_result(run, out) for run in runs]
    finished = [result for result in results if result is not None]
    open_runs = [run for run, result in zip(runs, results, strict=True) if result is None]
    busy = sum(run is not following and is_busy(out / RUNS / run.name) for run in open_runs)
    line = f"study: {len(finished)} of {len(runs)} runs finished"
    seconds = seconds_left(open_runs, finished, out, num_pictures=num_pictures)
    if seconds is not None:
        workers = busy + (following is not None)
        line += f", about {duration(seconds / max(1, workers))} left"
    if busy:
        line += f", {busy} being trained by other workers"
    return line + (f"; next {following}" if following is not None else "; waiting for them")


def is_busy(folder: Path) -> bool:
    """Whether another process is training in a run folder."""
    if not folder.is_dir():
        return False
    try:
        with run_folder.locked(folder):
            return False
    except run_folder.BusyError:
        return True


def seconds_left(
    open_runs: Sequence[PlannedRun], finished: Sequence[Result], out: Path, *, num_pictures: int
) -> float | None:
    """The steps left, each of which takes what those of the finished runs took; None if nothing is finished yet."""
    if not finished:
        return None
    left = 0
    for run in open_runs:
        done = last_step(out / RUNS / run.name) or 0
        left += max(0, run.recipe.num_steps(round(run.fraction * num_pictures)) - done)
    return left * sum(result.seconds for result in finished) / sum(result.steps for result in finished)


def duration(seconds: float) -> str:
    """Words for a time: 40 s, 12 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
