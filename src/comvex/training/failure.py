"""What a run says, and keeps, when it cannot go on."""

from __future__ import annotations

import errno
import json
import re
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

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


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
        "the last checkpoint is kept."
    )


@contextmanager
def explain_failures(recipe: Recipe, out: Path) -> Iterator[None]:
    """Within it memory or disk that do not suffice become one sentence each, as a ``ValueError``."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UserError(out_of_memory(recipe)) from error
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error) or "bad_alloc" in str(error):
            raise UserError(out_of_memory(recipe)) from error
        raise
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise UserError(cannot_write(out, error.strerror or str(error))) from error
    except SafetensorError as error:  # its own kind, which has the system's number in its words alone
        reason = re.search(r"([\w ]+) \(os error \d+\)", str(error))
        if reason is None:
            raise
        raise UserError(cannot_write(out, reason[1].strip())) from error


def out_of_memory(recipe: Recipe) -> str:
    return (
        f"Out of memory with batches of {recipe.batch_size} pictures: --accumulate 2 or more, --grad-checkpointing, "
        "--precision bfloat16, a smaller --batch-size or a smaller --model.image-size needs less; the last checkpoint "
        "is kept."
    )


def cannot_write(out: Path, reason: str) -> str:
    kept = run_folder.checkpoint_folders(out / run_folder.CHECKPOINTS)
    last = (
        f"the checkpoint of step {run_folder.checkpoint_step(kept[-1])} is kept"
        if kept
        else "there is no checkpoint yet"
    )
    return (
        f"The run folder {out} cannot be written to ({reason}): {last}; make room and repeat the command, which goes "
        "on from there."
    )
