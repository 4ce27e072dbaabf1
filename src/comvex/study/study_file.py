"""study.json, what a study's folder says of it: read, compared with what is asked for, and added to."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import comvex
from comvex import run_folder
from comvex.errors import UserError
from comvex.files import write_text
from comvex.study.pictures import StudyPictures, look_through
from comvex.study.plan import Study, command
from comvex.study.results import read_result
from comvex.training.recipe import differences

FORMAT = 2


def begin(study: Study, out: Path) -> tuple[Study, dict[str, Any]]:
    """Make sure that the study may use this folder, and note there what it is.

    Returns the study with the epochs that it left open, and what is noted: of fractions and seeds all that the folder
    was ever asked for. The pictures are looked through unless all runs are finished.

    Raises ``ValueError`` if the folder holds something else or another study, or the pictures are none that a study can
    be made with, or no longer those that it was begun with.
    """
    file = out / run_folder.STUDY
    study, stored = noted_study(study, out)
    pictures = None
    if stored is None or any(read_result(run, out) is None for run in study.runs(stored["num_pictures"])):
        pictures = look_through(study)
        study = study.settled(pictures.num) if stored is None else study
    with alone_in(out):
        if file.exists():  # perhaps only now, of another worker
            stored = read_study(file)
            check_same(study, stored, out)
        if stored is not None and pictures is not None:
            check_same_pictures(study, pictures, stored, out)
        content = merged(study, pictures, stored)
        write_text(file, json.dumps(content, indent=2) + "\n")
    return study, content


def noted_study(study: Study, out: Path) -> tuple[Study, dict[str, Any] | None]:
    """The study as its folder goes on with it, and what is noted there, None if nothing is yet.

    Raises ``ValueError`` if the folder holds something else or another study.
    """
    file = out / run_folder.STUDY
    if not file.exists():
        if out.exists() and (not out.is_dir() or not holds_leftovers_alone(out)):
            raise UserError(f"{out} holds something else than a study: choose another --out.")
        return study, None
    stored = read_study(file)
    study = with_noted_epochs(study, stored)
    check_same(study, stored, out)
    return study, stored


def with_noted_epochs(study: Study, stored: dict[str, Any]) -> Study:
    """A study that leaves its epochs open with those that its folder has noted, which may be another version's."""
    recipe, noted = study.recipe, stored["recipe"]
    if recipe.epochs is not None or recipe.steps is not None or noted["steps"] is not None:
        return study
    return dataclasses.replace(study, recipe=dataclasses.replace(recipe, epochs=noted["epochs"]))


def merged(study: Study, pictures: StudyPictures | None, stored: dict[str, Any] | None) -> dict[str, Any]:
    """What is to be noted of a study: what was, with the fractions, seeds and absent classes of now."""
    known = study
    if stored is not None:
        before = Study.from_dict(stored)
        known = dataclasses.replace(
            study,
            fractions=tuple(sorted({*before.fractions, *study.fractions})),
            seeds=tuple(sorted({*before.seeds, *study.seeds})),
        )
    content = {"format": FORMAT, "comvex": comvex.__version__, **known.to_dict()}
    noted = {} if stored is None else {name: stored[name] for name in ("num_pictures", "pictures") if name in stored}
    absent: dict[str, list[str]] = dict((stored or {}).get("absent_classes", {}))
    if pictures is not None:
        noted = {"num_pictures": pictures.num, "pictures": pictures.hashes}
        for fraction, names in pictures.absent_classes.items():
            absent[fraction] = sorted({*absent.get(fraction, ()), *names})
    return content | noted | {"absent_classes": absent}


def holds_leftovers_alone(folder: Path) -> bool:
    """Whether there is nothing but what a worker that is at it, or was killed at once, has left."""
    return all(run_folder.is_leftover(path) for path in folder.iterdir())


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Within it no other worker reads or writes study.json; waits until none does."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(run_folder.locked(out))
                break
            except run_folder.BusyError:
                time.sleep(0.02)
        yield


def check_same(study: Study, stored: dict[str, Any], out: Path) -> None:
    """Raises ``ValueError`` if the folder has another study."""
    found = differences(settings(stored), settings(study.to_dict()))
    if found:
        raise UserError(
            f"The folder {out} has another study ({'; '.join(found)}): choose another --out; the study that is there "
            f"goes on with {command(Study.from_dict(stored), out)}."
        )


def check_same_pictures(study: Study, pictures: StudyPictures, stored: dict[str, Any], out: Path) -> None:
    """Raises ``ValueError`` if the study was begun with others, as far as numbers, labels and names or pixels tell."""
    changed = [
        f"{part} pictures" for part, value in stored.get("pictures", {}).items() if pictures.hashes.get(part) != value
    ]
    if not changed and pictures.num == stored["num_pictures"]:
        return
    now = f"then {stored['num_pictures']:,} to train on, now {pictures.num:,}"
    raise UserError(
        f"The pictures of {study.recipe.data} are not those that the study in {out} was begun with (changed: "
        f"{', '.join(changed) or 'their number'}; {now}): put them back as they were, or choose another --out."
    )


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
