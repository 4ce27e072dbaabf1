"""What a run writes down: metrics, weights, checkpoints, and at the end the summary."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from comvex import run_folder
from comvex.convit.config import ConViTConfig
from comvex.convit.weights import WeightsInfo, add_figures, save_weights
from comvex.data.sources import DataSet
from comvex.data.transforms import Preprocessing
from comvex.errors import UserError
from comvex.files import write_text
from comvex.inference.evaluate import Evaluation
from comvex.inference.task import choose_task
from comvex.training.best_epoch import best_epoch
from comvex.training.checkpoint import load_latest, load_optimizer_tensors, save_checkpoint
from comvex.training.curves import draw_curves

LOGGER = logging.getLogger(__name__)


@dataclass
class EpochSums:
    """What is summed over the steps of an epoch; in checkpoints too, so that an epoch can be resumed in its middle."""

    loss: Tensor
    num_pictures: int = 0

    def add(self, loss: Tensor, num_pictures: int) -> None:
        self.loss += loss.detach() * num_pictures
        self.num_pictures += num_pictures

    def mean_loss(self) -> float:
        """Mean loss of the epoch so far; raises ``ValueError`` if it is no longer finite."""
        mean = float(self.loss) / self.num_pictures if self.num_pictures else 0.0
        if not math.isfinite(mean):
            raise UserError(
                f"The training loss has become {mean}: a smaller --learning-rate or --clip-norm helps; "
                "the last checkpoint is kept."
            )
        return mean


class RunRecord:
    """The record of one run, in memory and in its folder.

    ``history`` has a row per epoch (metrics.csv), ``timing`` likewise (timing.csv), ``unreadable`` a message for each
    training picture that could not be read. All of it is in every checkpoint, so that no line is lost or doubled.
    """

    def __init__(self, out: Path, *, data: DataSet, config: ConViTConfig, preprocessing: Preprocessing) -> None:
        self.out, self.data, self.config, self.preprocessing = out, data, config, preprocessing
        self.task = choose_task(multi_label=data.multi_label)
        parts = (data.train, data.val, data.test)
        self.fingerprint = [part.fingerprint() if part is not None else "" for part in parts]
        self.history: list[dict[str, Any]] = []
        self.timing: list[dict[str, Any]] = []
        self.unreadable: dict[str, None] = {}  # in the order of their first appearance
        self.board: SummaryWriter | None = None
        self.epoch_start = time.perf_counter()

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer, sums: EpochSums) -> int:
        """Bring everything to the newest undamaged checkpoint; returns the number of steps done.

        Raises ``ValueError`` if the pictures are not those that the run began with.
        """
        checkpoint, problems = load_latest(self.out / run_folder.CHECKPOINTS)
        for problem in problems:
            LOGGER.warning("%s The checkpoint before it is used.", problem)
        step = checkpoint.step if checkpoint else 0
        self.board = SummaryWriter(str(self.out / "tensorboard"), purge_step=step + 1)
        if checkpoint is None:
            return 0
        state = checkpoint.state
        if state["data"] != self.fingerprint:
            raise UserError(
                f"The pictures of {self.data.name} are not those that the run {self.out} began with: put them back as "
                "they were, choose another --out, or --overwrite to start again."
            )
        model.load_state_dict(checkpoint.model)
        load_optimizer_tensors(optimizer, checkpoint.optimizer)
        self.history, self.timing = state["history"], state["timing"]
        self.unreadable = dict.fromkeys(state["unreadable"])
        sums.loss += state["epoch_loss"]
        sums.num_pictures = state["epoch_pictures"]
        self.epoch_start = time.perf_counter() - state["epoch_seconds"]
        LOGGER.info("resumed at step %d", step)
        return step

    def save_checkpoint(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, sums: EpochSums, *, step: int
    ) -> None:
        sums.mean_loss()  # a run whose loss is not finite keeps the checkpoint from before
        state = {
            "data": self.fingerprint,
            "history": self.history,
            "timing": self.timing,
            "unreadable": list(self.unreadable),
            "epoch_loss": float(sums.loss),
            "epoch_pictures": sums.num_pictures,
            "epoch_seconds": time.perf_counter() - self.epoch_start,
        }
        save_checkpoint(self.out / run_folder.CHECKPOINTS, step=step, model=model, optimizer=optimizer, state=state)

    def add_unreadable(self, messages: list[str]) -> None:
        """Note training pictures that could not be read; each is told once."""
        for message in messages:
            if message not in self.unreadable:
                self.unreadable[message] = None
                LOGGER.warning("skipped: %s", message)

    def end_epoch(
        self, model: nn.Module, sums: EpochSums, evaluation: Evaluation, *, step: int, learning_rate: float
    ) -> None:
        """Write down an epoch, and its weights if they are the best so far."""
        row = {
            "epoch": len(self.history) + 1,
            "step": step,
            "learning_rate": learning_rate,
            "train_loss": sums.mean_loss(),
            "val_loss": evaluation.loss,
            **{f"val_{name}": value for name, value in evaluation.scores.figures().items()},
        }
        seconds = time.perf_counter() - self.epoch_start
        self.epoch_start = time.perf_counter()
        self.history.append(row)
        self.timing.append(
            {"epoch": row["epoch"], "seconds": seconds, "pictures_per_second": sums.num_pictures / seconds}
        )
        if row is self.best():
            self.save_weights(model, run_folder.BEST_WEIGHTS, row)
        write_table(self.out / "metrics.csv", self.history)
        write_table(self.out / "timing.csv", self.timing)
        assert self.board is not None
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self.board.add_scalar(name, value, step)
        LOGGER.debug(
            "epoch %d, step %d: training loss %.4f, validation loss %.4f, %s %.2f %%",
            row["epoch"], step, row["train_loss"], row["val_loss"],
            self.task.criterion_short, row[self.task.criterion],
        )  # fmt: skip

    def best(self) -> dict[str, Any]:
        """The row of the best epoch so far."""
        return best_epoch(self.history, criterion=self.task.criterion, num_pictures=len(self.data.val or ()))

    def save_weights(self, model: nn.Module, name: Path, row: dict[str, Any]) -> None:
        info = WeightsInfo(
            architecture=self.config,
            preprocessing=self.preprocessing.to_dict(),
            labels=self.data.classes,
            figures={
                "data": self.data.name,
                **{key: row[key] for key in ("epoch", "step", self.task.criterion, "val_loss")},
            },
            multi_label=self.task.multi_label,
        )
        save_weights(model, self.out / name, info=info)

    def note(self, sums: EpochSums) -> str:
        """The latest figures, for the progress bar."""
        parts = [f"loss {sums.mean_loss():.3f}"] if sums.num_pictures else []
        if self.history:
            last = self.history[-1]
            parts.append(f"val {self.task.criterion_short} {last[self.task.criterion]:.1f} %")
            parts.append(f"{self.timing[-1]['pictures_per_second']:.0f} pictures/s")
        return ", ".join(parts)

    def finish(self, evaluation: Evaluation, *, part: str, num_parameters: int) -> dict[str, Any]:
        """Enter the figures of the best weights, draw the curves and write the summary, which ends the run."""
        seconds = sum(row["seconds"] for row in self.timing)
        rate = sum(row["pictures_per_second"] * row["seconds"] for row in self.timing) / seconds
        summary = {
            **evaluation.scores.summary(),
            "loss": evaluation.loss,
            "evaluated_on": part,
            "num_pictures": evaluation.num_pictures,
            "num_unreadable": len(self.unreadable) + len(evaluation.unreadable),
            "num_training_pictures": len(self.data.train),
            "best_epoch": self.best()["epoch"],
            "num_parameters": num_parameters,
            "seconds": seconds,
            "pictures_per_second": rate,
        }
        if part == "test":  # the figures that the weights' model card tells
            scores = {f"test_{name}": value for name, value in evaluation.scores.figures().items()}
            add_figures(
                self.out / run_folder.BEST_WEIGHTS,
                {**scores, "test_loss": evaluation.loss, "test_pictures": evaluation.num_pictures},
            )
        title = f"{self.out.name}: {self.data.name}"
        draw_curves(self.history, self.best(), self.out / "curves.png", task=self.task, title=title)
        write_text(self.out / run_folder.SUMMARY, json.dumps(summary, indent=2) + "\n")
        return summary

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def write_table(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of the same columns as CSV; floats in full, so that equal files mean equal figures."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())
