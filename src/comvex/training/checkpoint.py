"""Checkpoints: safetensors plus JSON with checksums, written whole or not at all, so that any crash can be resumed.

A checkpoint is a folder step-NNNNNNNN with model.safetensors, optimizer.safetensors, ema.safetensors where weights are
averaged, and state.json, which holds the SHA-256 of the others and of itself. It is made under another name and renamed
when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from comvex.convit.weights import file_sha256, save_tensors
from comvex.convit.weights_files import read_safetensors
from comvex.errors import UserError
from comvex.files import write_text
from comvex.run_folder import checkpoint_folders, checkpoint_name, checkpoint_step


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on from a step as if it had never stopped."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    """Named tensors of the model, the optimiser and whatever else learns, each a file."""
    state: dict[str, Any]
    """Plain values of the trainer."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int, spare: int | None = None) -> None:
    """Add a checkpoint to a folder of them and remove the oldest beyond ``keep``, but not that of step ``spare``.

    Raises ``OSError`` if it cannot be written; nothing is removed then, and nothing half-written is left.
    """
    complete = folder / checkpoint_name(checkpoint.step)
    unfinished = folder / f".{complete.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        sums = {
            name: save_tensors(tensors, unfinished / f"{name}.safetensors")
            for name, tensors in checkpoint.tensors.items()
        }
        body = json.dumps({"step": checkpoint.step, "sha256": sums, "state": checkpoint.state})
        sha256 = hashlib.sha256(body.encode()).hexdigest()
        write_text(unfinished / "state.json", json.dumps({"sha256": sha256, "body": body}))
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if complete.exists():  # it was damaged: the run went on from the one before and has come here again
        shutil.rmtree(complete)
    unfinished.rename(complete)
    for old in checkpoint_folders(folder)[:-keep]:
        if checkpoint_step(old) != spare:
            remove(old)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint so that, whenever this ends, it is there as a whole or does not count."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.unfinished")
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed while saving or removing has left."""
    for leftover in folder.glob(".step-*.unfinished"):
        shutil.rmtree(leftover)


def set_damaged_aside(folder: Path, *, after: int) -> None:
    """Rename the checkpoints after a step, all of them damaged, so that they do not count as the newest."""
    for checkpoint in checkpoint_folders(folder):
        if checkpoint_step(checkpoint) > after:
            aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)


def load_checkpoint(checkpoint: Path) -> Checkpoint:
    """One checkpoint, verified; raises ``ValueError`` if a file is missing or is not what was written."""
    try:
        outer = json.loads((checkpoint / "state.json").read_text())
        if hashlib.sha256(outer["body"].encode()).hexdigest() != outer["sha256"]:
            raise UserError(f"{checkpoint / 'state.json'} is damaged.")
        content = json.loads(outer["body"])
        for name, sha256 in content["sha256"].items():
            if file_sha256(checkpoint / f"{name}.safetensors") != sha256:
                raise UserError(f"{checkpoint / f'{name}.safetensors'} is damaged.")
    except (
        OSError,
        json.JSONDecodeError,
        UnicodeDecodeError,
        RecursionError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise UserError(f"The checkpoint {checkpoint} is damaged: {error}.") from error
    tensors = {name: read_safetensors(checkpoint / f"{name}.safetensors")[0] for name in content["sha256"]}
    return Checkpoint(step=content["step"], tensors=tensors, state=content["state"])


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is undamaged, or None, and a message for each that was passed over."""
    problems = []
    for checkpoint in reversed(checkpoint_folders(folder)):
        try:
            return load_checkpoint(checkpoint), problems
        except UserError as error:
            problems.append(str(error))
    return None, problems
