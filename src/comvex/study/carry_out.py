"""Carrying out a study: any number of workers, each of which may be stopped at any time and started again."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from comvex import run_folder
from comvex.errors import UserError
from comvex.study.plan import PlannedRun, Study
from comvex.study.report import FIGURE, absent_sentence, write_report
from comvex.study.results import RUNS, Result, read_result
from comvex.study.study_file import alone_in, begin, read_study
from comvex.training.ranks import told_num
from comvex.training.recipe import Options
from comvex.training.runs import last_step
from comvex.training.trainer import train

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
    check_way(options)
    study, noted = begin(study, out)
    tell_absent_classes(study, noted)
    num_pictures = noted["num_pictures"]
    runs = study.runs(num_pictures)
    failed: dict[str, UserError] = {}
    line = partial(progress_line, runs, out, num_pictures=num_pictures, failed=failed)
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
            draw = time.monotonic() - drawn > DRAW_SECONDS or not (out / FIGURE).exists()
            report_all(out, draw=draw)
            drawn = time.monotonic() if draw else drawn
        if not trained and any(run.name not in failed for run in waiting):
            waits = line()
            if waits != said:
                say(waits)
                said = waits
            time.sleep(poll)
    report = report_all(out)
    if failed:
        name, error = next(iter(failed.items()))
        told = (
            f"All {len(runs)} runs failed"
            if len(failed) == len(runs)
            else f"{len(failed)} of {len(runs)} runs failed, the others are finished"
        )
        raise UserError(f"{told}; the first that did is {name}: {error}")
    return report


def check_way(options: Options) -> None:
    """Raises ``ValueError`` for ways to carry out a study that there are not."""
    if options.overwrite:
        raise UserError(
            "overwrite is True: a study does not start runs again; remove its folder or take another --out."
        )
    if told_num() > 1:
        raise UserError("A study does not run under torchrun: repeat its command in several terminals instead.")


def tell_absent_classes(study: Study, noted: dict[str, Any]) -> None:
    """Say at which fractions there are classes that cannot be learnt."""
    for fraction in sorted(study.fractions):
        names = noted["absent_classes"].get(f"{fraction:g}")
        if names:
            say(f"study: {absent_sentence(f'{fraction:g}', names)}")


def report_all(out: Path, *, draw: bool = True) -> dict[str, Any]:
    """Report on all that the folder was ever asked for, perhaps by another worker since this one began.

    One worker at a time, so that none writes over a later one's report what it had read before.
    """
    with alone_in(out):
        stored = read_study(out / run_folder.STUDY)
        study = Study.from_dict(stored)
        return write_report(study, study.runs(stored["num_pictures"]), out, absent=stored["absent_classes"], draw=draw)


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


def progress_line(
    runs: Sequence[PlannedRun],
    out: Path,
    *,
    num_pictures: int,
    failed: Collection[str] = (),
    following: PlannedRun | None = None,
) -> str:
    """How far the whole study is, and the time left for as many workers as are at it now."""
    results = [read_result(run, out) for run in runs]
    finished = [result for result in results if result is not None]
    open_runs = [run for run, result in zip(runs, results, strict=True) if result is None and run.name not in failed]
    busy = sum(run is not following and is_busy(out / RUNS / run.name) for run in open_runs)
    line = f"study: {len(finished)} of {len(runs)} runs finished"
    if failed:
        line += f", {len(failed)} failed"
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
