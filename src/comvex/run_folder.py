"""The layout of a run folder: what lies where, and whether a folder is one that this version can read."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from comvex.errors import UserError
from comvex.files import is_temporary

FORMAT = 1
"""Version of the layout; a folder of another one is refused."""

RECIPE = "recipe.json"
SUMMARY = "summary.json"
METRICS = "metrics.csv"
TIMING = "timing.csv"
HEADS = "heads.csv"
BEST_WEIGHTS = Path("weights") / "best.safetensors"
LAST_WEIGHTS = Path("weights") / "last.safetensors"
CHECKPOINTS = "checkpoints"
FAILURE = "failure"
LOCK = ".lock"
EVALUATED = "evaluated.json"
"""The file beside the figures of an evaluation that says of which pictures they are."""
STUDY = "study.json"
"""The file that makes a folder that of a study, with run folders in it."""
HELD: set[Path] = set()
"""Run folders that this process has locked."""
ONE_AT_A_TIME = threading.Lock()
"""For the threads that look into it and add to it."""


def checkpoint_name(step: int) -> str:
    """What the checkpoint of a step is called."""
    return f"step-{step:08d}"


def checkpoint_step(checkpoint: Path) -> int:
    """The step of a checkpoint, from its name."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in a folder of them, oldest first."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))


class BusyError(UserError):
    """Another process is training in the run folder."""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Within it nobody else can train in this run folder, which is made if need be.

    The lock ends with the process, however it ends. Raises ``BusyError``, a ``ValueError``, if another process or
    thread has it, and ``ValueError`` if the folder cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {run} cannot be made ({error.strerror}): choose another --out.") from error
    with held(run.resolve()), (run / LOCK).open("a") as file:
        try:
            lock(file)
        except OSError as error:
            raise BusyError(
                f"Another process is training in the run folder {run}: wait until it has ended, or stop it."
            ) from error
        yield


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Within it no other thread can lock a run folder, as the system's lock does not stop those of one process.

    That would even be lost by opening and closing the file again. Raises ``BusyError`` if another thread has it.
    """
    with ONE_AT_A_TIME:
        if run in HELD:
            raise BusyError(f"This process is training in the run folder {run} already: wait until it has ended.")
        HELD.add(run)
    try:
        yield
    finally:
        HELD.remove(run)


def is_leftover(path: Path) -> bool:
    """Whether this is what a process that was killed before it began to train may have left in a run folder."""
    return path.name == LOCK or is_temporary(path)


def lock(file: IO[str]) -> None:
    """Take the lock of a file without waiting; raises ``OSError`` if another process has it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        # A record lock: loader processes, which outlive a killed run by seconds, do not inherit it
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def read_recipe(run: Path) -> dict[str, Any]:
    """The recipe of a run, as plain values; raises ``ValueError`` as ``read_beginning`` does."""
    return read_beginning(run)["recipe"]


def read_beginning(run: Path) -> dict[str, Any]:
    """What recipe.json says: the recipe, the steps that it comes to, a fingerprint of the training pictures.

    The last two are not there in the folders of earlier versions.

    Raises ``ValueError`` if there is no such folder, it is no run folder, or it was written by another version.
    """
    if not run.is_dir():
        raise UserError(f"There is no run folder {run}: give the --out folder of a comvex train.")
    try:
        content = json.loads((run / RECIPE).read_text())
        if content["format"] != FORMAT:
            raise UserError(
                f"The run folder {run} has format {content['format']!r}, written by comvex {content.get('comvex')}: "
                f"this version reads format {FORMAT}."
            )
        if "recipe" not in content:
            raise KeyError("recipe")
        return content
    except FileNotFoundError as error:
        raise UserError(f"The folder {run} is no run folder: it has no {RECIPE}.") from error
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{run / RECIPE} is damaged or not comvex's: {type(error).__name__} {error}.") from error


def read_summary(run: Path) -> dict[str, Any] | None:
    """The summary of a finished run, or None if the run is not finished; raises ``ValueError`` if it is damaged."""
    file = run / SUMMARY
    if not file.exists():
        return None
    try:
        return json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged: delete it and repeat comvex train, which writes it anew.") from error


def read_outcome(run: Path) -> dict[str, Any] | None:
    """The summary of a run with nothing left to do; None as well if its weights are lost and a checkpoint has them."""
    summary = read_summary(run)
    lost = not (run / BEST_WEIGHTS).exists() and checkpoint_folders(run / CHECKPOINTS)
    return None if lost else summary


def best_weights(run: Path) -> Path:
    """The weights file of a run's best epoch in validation; raises ``ValueError`` if there is none yet."""
    read_recipe(run)
    if not (run / BEST_WEIGHTS).is_file():
        if (run / METRICS).exists():
            raise UserError(f"{run / BEST_WEIGHTS} is missing: the run's comvex train writes it again when repeated.")
        raise UserError(f"The run {run} has no weights yet: it has not come to its first validation.")
    return run / BEST_WEIGHTS
