"""A run's model as it was after one of its epochs."""

from __future__ import annotations

from pathlib import Path

from comvex import run_folder
from comvex.convit.config import ConViTConfig
from comvex.errors import UserError
from comvex.files import read_table
from comvex.inference.predictor import Predictor, load
from comvex.training.checkpoint import load_checkpoint


def load_at(
    source: str | Path, *, epoch: int | None = None, config: ConViTConfig | None = None, device: str = "auto"
) -> Predictor:
    """As ``load``; with an epoch, a run's model as its checkpoint of that epoch has it, with averaged weights if any.

    Raises ``ValueError`` if there is no such model, an epoch is asked for of what is no run, or the run has no
    checkpoint of that epoch or a damaged one.
    """
    run = Path(source)
    if epoch is not None:
        if not run.is_dir():
            raise UserError(f"epoch is {epoch}, but {source} is no run folder: only a run has epochs to choose from.")
        run_folder.read_recipe(run)
    predictor = load(source, config=config, device=device)
    if epoch is None:
        return predictor
    epochs = epochs_by_step(run)
    kept = {
        epochs[step]: path
        for path in run_folder.checkpoint_folders(run / run_folder.CHECKPOINTS)
        if (step := run_folder.checkpoint_step(path)) in epochs
    }
    if epoch not in kept:
        there = ", ".join(map(str, sorted(kept))) or "none"
        raise UserError(
            f"epoch is {epoch}: it must be one whose checkpoint the run {run} has kept ({there}); comvex train keeps "
            "more with --keep-checkpoints."
        )
    tensors = load_checkpoint(kept[epoch]).tensors
    predictor.model.load_state_dict(tensors.get("ema", tensors["model"]))
    return predictor


def epochs_by_step(run: Path) -> dict[int, int]:
    """The epoch that each step at the end of one ended."""
    rows = read_table(run / run_folder.METRICS)
    return {int(row["step"] or 0): int(row["epoch"] or 0) for row in rows}


def title_of(source: str | Path, epoch: int | None) -> str:
    """What to call a model in a title."""
    name = Path(source).resolve().name
    return name if epoch is None else f"{name} after epoch {epoch}"
