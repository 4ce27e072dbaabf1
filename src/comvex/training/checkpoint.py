"""Checkpoints: safetensors plus JSON with checksums, written whole or not at all, so that any crash can be resumed.

A checkpoint is a folder step-NNNNNNNN with model.safetensors, optimizer.safetensors and state.json, which holds the
SHA-256 of the other two and of itself. It is made under another name and renamed when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comvex.convit.weights import file_sha256, save_tensors
from comvex.convit.weights_files import read_safetensors
from comvex.errors import UserError
from comvex.files import write_text

KEEP = 2
"""Checkpoints that are kept: the newest, and the one before in case it is damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on from a step as if it had never stopped."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    """Plain values of the trainer."""


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: "INDEX.NAME" for the parameter at that place."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value) for index, values in state.items() for name, value in values.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of ``optimizer_tensors``; settings such as the learning rate stay those of ``optimizer``."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(
    folder: Path, *, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Add a checkpoint to a folder of them and remove the oldest beyond ``KEEP``."""
    complete = folder / f"step-{step:08d}"
    unfinished = folder / f".{complete.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    sums = {
        "model.safetensors": save_tensors(model.state_dict(), unfinished / "model.safetensors"),
        "optimizer.safetensors": save_tensors(optimizer_tensors(optimizer), unfinished / "optimizer.safetensors"),
    }
    body = json.dumps({"step": step, "sha256": sums, "state": state})
    write_text(
        unfinished / "state.json", json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body})
    )
    if complete.exists():  # it was damaged: the run went on from the one before and has come here again
        shutil.rmtree(complete)
    unfinished.rename(complete)
    for old in checkpoint_folders(folder)[:-KEEP]:
        shutil.rmtree(old)


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*"))


def load_checkpoint(checkpoint: Path) -> Checkpoint:
    """One checkpoint, verified; raises ``ValueError`` if a file is missing or is not what was written."""
    try:
        outer = json.loads((checkpoint / "state.json").read_text())
        if hashlib.sha256(outer["body"].encode()).hexdigest() != outer["sha256"]:
            raise UserError(f"{checkpoint / 'state.json'} is damaged.")
        content = json.loads(outer["body"])
        for name, sha256 in content["sha256"].items():
            if file_sha256(checkpoint / name) != sha256:
                raise UserError(f"{checkpoint / name} is damaged.")
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"The checkpoint {checkpoint} is damaged: {error}.") from error
    return Checkpoint(
        step=content["step"],
        model=read_safetensors(checkpoint / "model.safetensors")[0],
        optimizer=read_safetensors(checkpoint / "optimizer.safetensors")[0],
        state=content["state"],
    )


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is undamaged, or None, and a message for each that was passed over."""
    problems = []
    for checkpoint in reversed(checkpoint_folders(folder)):
        try:
            return load_checkpoint(checkpoint), problems
        except UserError as error:
            problems.append(str(error))
    return None, problems
