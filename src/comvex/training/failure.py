"""What a run says, and keeps, when it cannot go on."""

from __future__ import annotations

import errno
import json
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from comvex import run_folder
from comvex.convit.weights import save_tensors
from comvex.data.loading import Batch
from comvex.data.picture_set import PictureSet
from comvex.errors import UserError
from comvex.files import write_text
from comvex.training.recipe import Recipe
from comvex.training.step import Learner, NotFiniteError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CANNOT_WRITE = (*NO_ROOM, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
OUT_OF_MEMORY = ("DefaultCPUAllocator", "bad_alloc", os.strerror(errno.ENOMEM))
TOO_MANY_FILES = (os.strerror(errno.EMFILE), "items of ancdata")
"""How the system says it, and PyTorch where a loader's tensors cannot be taken over."""
LOADER_IS_GONE = re.compile(r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)")
"""How PyTorch says that a loader process has been killed."""
RECEIVING = "torch.multiprocessing.reductions"
"""The module that takes a loader process's tensors over; PyTorch passes its errors on while that process is dying."""


def keep_failure(
    out: Path,
    error: NotFiniteError,
    learner: Learner,
    batches: Sequence[Batch],
    pictures: PictureSet,
    *,
    step: int,
) -> UserError:
    """Write down the state before a step whose loss was not finite, with its batch; returns what to tell.

    The folder RUN/failure/step-N-rank-R holds the weights, the optimiser's state, the batch as tensors, and the names
    of its pictures in failure.json.
    """
    folder = out / run_folder.FAILURE / f"{run_folder.checkpoint_name(step)}-rank-{learner.ranks.rank}"
    names = [pictures.name(int(index)) for batch in batches for index in batch.indices]
    for name, tensors in learner.tensors().items():
        save_tensors(tensors, folder / f"{name}.safetensors")
    whole = [batch for batch in batches if len(batch.labels)]
    if whole:
        batch = {name: torch.cat([getattr(part, name) for part in whole]) for name in ("pictures", "labels", "indices")}
        save_tensors(batch, folder / "batch.safetensors")
    figures = {"loss": repr(error.loss), "gradient_norm": repr(error.gradient_norm)}
    write_text(folder / "failure.json", json.dumps({"step": step, **figures, "pictures": names}, indent=2) + "\n")
    first = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return UserError(
        f"The loss of step {step} is {error.loss} and its gradient {error.gradient_norm}, on the pictures {first}: "
        f"a smaller --learning-rate or --clip-norm helps; {folder} holds the state before that step and its batch, and "
        f"{what_is_kept(out)}."
    )


@contextmanager
def explain_failures(recipe: Recipe, out: Path) -> Iterator[None]:
    """Within it memory, disk, open files or loaders that give out become one sentence each, as a ``ValueError``."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, EOFError, SafetensorError) as error:
        explanation = explain(error, recipe, out)
        if explanation is None:
            raise
        raise UserError(explanation) from error


def explain(error: Exception, recipe: Recipe, out: Path) -> str | None:
    """What to tell of an error for which the machine is to blame; None for any other.

    Errors of loader processes, and those of safetensors, have the system's number in their words alone.
    """
    words = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in words for sign in OUT_OF_MEMORY):
        return out_of_memory(recipe, out)
    if any(sign in words for sign in TOO_MANY_FILES):
        return out_of_files(out)
    if (isinstance(error, RuntimeError) and LOADER_IS_GONE.match(words)) or came_through(error, RECEIVING):
        return loader_is_gone(out)
    if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
        return cannot_write(out, error.errno)
    reason = re.search(r"\(os error (\d+)\)", words) if isinstance(error, SafetensorError) else None
    return None if reason is None else cannot_write(out, int(reason[1]))


def came_through(error: Exception, module: str) -> bool:
    """Whether a function of that module called what raised this error of the system or of a connection."""
    frames = [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, OSError | EOFError) and module in frames


def out_of_memory(recipe: Recipe, out: Path) -> str:
    return (
        f"Out of memory with batches of {recipe.batch_size} pictures: --accumulate 2 or more, --grad-checkpointing, "
        "--precision bfloat16, a smaller --batch-size or a smaller --model.image-size needs less; "
        f"{what_is_kept(out)}."
    )


def loader_is_gone(out: Path) -> str:
    return (
        "A process that reads pictures was killed, most likely for want of memory: fewer --workers or a smaller "
        f"--batch-size needs less; {what_is_kept(out)}, and the same command goes on."
    )


def out_of_files(out: Path) -> str:
    return (
        f"Too many files are open: a higher limit (ulimit -n 4096) or fewer --workers helps; {what_is_kept(out)}, and "
        "the same command goes on."
    )


def cannot_write(out: Path, number: int) -> str:
    """``number`` is the system's for its reason."""
    remedy = "make room" if number in NO_ROOM else "make it writable"
    if run_folder.checkpoint_folders(out / run_folder.CHECKPOINTS):
        remedy += " and repeat the command, which goes on from there"
    else:
        remedy += " or choose another --out"
    return f"The run folder {out} cannot be written to ({os.strerror(number)}): {what_is_kept(out)}; {remedy}."


def what_is_kept(out: Path) -> str:
    """Up to where nothing is lost."""
    kept = run_folder.checkpoint_folders(out / run_folder.CHECKPOINTS)
    if not kept:
        return "there is no checkpoint yet"
    return f"the checkpoint of step {run_folder.checkpoint_step(kept[-1])} is kept"
