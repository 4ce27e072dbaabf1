"""What a run writes down: metrics, weights, checkpoints, and at the end the summary."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from comvex import run_folder
from comvex.convit.weights import WeightsInfo, add_figures, read_weights, save_weights
from comvex.errors import UserError
from comvex.files import GrowingTable, read_table, write_table, write_text
from comvex.inference.evaluate import Evaluation
from comvex.processor import machine_line
from comvex.training.best_epoch import selected_epoch
from comvex.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_latest,
    remove_unfinished,
    save_checkpoint,
    set_damaged_aside,
)
from comvex.training.curves import draw_curves, draw_heads
from comvex.training.plan import Plan
from comvex.training.ranks import Ranks
from comvex.training.recipe import Recipe
from comvex.training.step import Learner, StepResult

LOGGER = logging.getLogger(__name__)


@dataclass
class EpochSums:
    """What one process sums over the steps of a row of the metrics; in checkpoints too, so that it can be resumed."""

    loss: float = 0.0
    num_pictures: int = 0
    gradient_norm: float = 0.0
    num_steps: int = 0

    def add(self, result: StepResult) -> None:
        self.loss += result.loss_sum.item()
        self.num_pictures += result.num_pictures
        norm = result.gradient_norm.item()
        if math.isfinite(norm):  # float16 skips a step whose gradient overflows
            self.gradient_norm += norm
            self.num_steps += 1

    @property
    def mean_loss(self) -> float:
        """Mean loss of the pictures so far."""
        return self.loss / max(1, self.num_pictures)

    @property
    def mean_gradient_norm(self) -> float:
        """Mean norm of the gradient before clipping, over the steps so far."""
        return self.gradient_norm / max(1, self.num_steps)


class RunRecord:
    """The record of one run, in memory and in its folder; every process has it, the first one writes.

    ``history`` has a row per epoch with a validation (metrics.csv), ``timing`` likewise (timing.csv), ``heads`` one per
    such epoch, layer and head, from epoch 0 on, which is before the first step (heads.csv), ``unreadable`` a message
    for each picture that could not be read. What a resumed run needs of it is in every checkpoint, so that no line is
    lost or doubled.
    """

    def __init__(self, out: Path, plan: Plan) -> None:
        self.out, self.data, self.ranks, self.task = out, plan.data, plan.ranks, plan.task
        self.recipe, self.options, self.preprocessing = plan.recipe, plan.options, plan.preprocessing
        self.device = plan.device
        parts = (plan.data.train, plan.data.val, plan.data.test)
        self.fingerprint = [part.fingerprint() if part is not None else "" for part in parts]
        self.history: list[dict[str, Any]] = []
        self.timing: list[dict[str, Any]] = []
        self.heads = GrowingTable(self.out / run_folder.HEADS)
        self.unreadable: dict[str, None] = {}  # in the order of their first appearance
        self.board: SummaryWriter | None = None
        self.epoch_start = time.perf_counter()

    def resume(self, learner: Learner) -> tuple[int, EpochSums]:
        """Bring everything to the newest undamaged checkpoint; returns the number of steps done and the sums so far.

        Raises ``ValueError`` if the pictures are not those that the run began with.
        """
        checkpoint, problems = load_latest(self.out / run_folder.CHECKPOINTS)
        for problem in problems:
            LOGGER.warning("%s The checkpoint before it is used.", problem)
        step = checkpoint.step if checkpoint else 0
        steps = self.ranks.gather(step)  # and nobody still reads what the first process is about to remove
        if len(set(steps)) > 1:
            raise UserError(
                f"The processes of the run see different checkpoints in {self.out} (of steps "
                f"{', '.join(map(str, steps))}): the run folder must lie on a disk that all machines share."
            )
        if self.ranks.first:
            remove_unfinished(self.out / run_folder.CHECKPOINTS)
            set_damaged_aside(self.out / run_folder.CHECKPOINTS, after=step)
            self.board = SummaryWriter(str(self.out / "tensorboard"), purge_step=step + 1 if step else 0)
        if checkpoint is None:
            if (self.out / run_folder.METRICS).exists():
                LOGGER.warning("The run %s has no checkpoint any more: it starts again from its first step.", self.out)
            return 0, EpochSums()
        state = checkpoint.state
        if state["data"] != self.fingerprint:
            raise UserError(
                f"The pictures of {self.data.name} are not those that the run {self.out} began with: put them back as "
                "they were, choose another --out, or --overwrite to start again."
            )
        self.history, self.timing = state["history"], state["timing"]
        if self.ranks.first and self.history:
            try:
                read_weights(self.out / run_folder.BEST_WEIGHTS)
            except UserError as error:
                self.restore_weights(learner, error)
        learner.load(checkpoint.tensors, state["learner"])
        self.heads = read_heads(self.out / run_folder.HEADS, epochs=self.history[-1]["epoch"] if self.history else 0)
        self.unreadable = dict.fromkeys(state["unreadable"])
        self.epoch_start = time.perf_counter() - state["epoch_seconds"]
        LOGGER.info("resumed at step %d", step)
        if len(state["sums"]) != self.ranks.num:
            LOGGER.warning(
                "The run had %d processes before and has %d now: the order of the pictures is the same, but sums are "
                "rounded otherwise, so the result is not bit-identical to that of an uninterrupted run.",
                len(state["sums"]), self.ranks.num,
            )  # fmt: skip
        return step, share_of_sums([EpochSums(**values) for values in state["sums"]], self.ranks)

    def restore_weights(self, learner: Learner, lost: UserError) -> None:
        """Write lost weights again, from the checkpoint of their epoch, whose state the learner then has.

        Raises ``ValueError`` if that is lost as well.
        """
        row, name = self.selected(), run_folder.BEST_WEIGHTS
        checkpoint = self.out / run_folder.CHECKPOINTS / run_folder.checkpoint_name(row["step"])
        try:
            of_epoch = load_checkpoint(checkpoint)
        except UserError as error:
            raise UserError(
                f"{self.out / name} is missing or damaged and cannot be written again, since {checkpoint} is missing "
                "or damaged: --overwrite starts the run again."
            ) from error
        learner.load(of_epoch.tensors, of_epoch.state["learner"])
        self.save_weights(learner, name, row)
        LOGGER.warning("%s It is written again from the checkpoint of step %d.", lost, row["step"])

    def save_checkpoint(self, learner: Learner, sums: EpochSums, *, step: int) -> None:
        all_sums = self.ranks.gather(dataclasses.asdict(sums))
        self.share_unreadable()
        if not self.ranks.first:
            return
        state = {
            "data": self.fingerprint,
            "history": self.history,
            "timing": self.timing,
            "unreadable": list(self.unreadable),
            "learner": learner.values(),
            "sums": all_sums,
            "epoch_seconds": time.perf_counter() - self.epoch_start,
        }
        spare = self.selected()["step"] if self.history else None
        save_checkpoint(
            self.out / run_folder.CHECKPOINTS,
            Checkpoint(step, learner.tensors(), state),
            keep=self.options.keep_checkpoints,
            spare=spare,
        )

    def add_unreadable(self, messages: list[str]) -> None:
        """Note pictures that could not be read; each is told once."""
        for message in messages:
            if message not in self.unreadable:
                self.unreadable[message] = None
                LOGGER.warning("skipped: %s", message)

    def share_unreadable(self) -> None:
        """Let every process know what the others could not read."""
        for messages in self.ranks.gather(list(self.unreadable)):
            self.add_unreadable(messages)

    def begin(self, heads: list[dict[str, Any]]) -> None:
        """Write down how the heads are before the first step, as epoch 0; only the first process does."""
        self.heads = GrowingTable(self.out / run_folder.HEADS)
        self.heads.write([{"epoch": 0, **head} for head in heads])
        self.show_heads_on_board(heads, step=0)

    def end_epoch(
        self,
        learner: Learner,
        sums: EpochSums,
        evaluation: Evaluation,
        *,
        epoch: int,
        step: int,
        heads: list[dict[str, Any]],
    ) -> None:
        """Write down the epochs since the last row, and the weights if they are selected.

        ``sums`` are of all of them, ``evaluation`` is of after the last; ``heads`` has a row per layer and head.
        """
        loss, num_pictures = self.ranks.sum([sums.loss, sums.num_pictures])
        self.share_unreadable()
        self.add_unreadable(evaluation.unreadable)
        row = {
            "epoch": epoch,
            "step": step,
            "learning_rate": learner.learning_rate,
            "train_loss": loss / max(1, num_pictures),
            "gradient_norm": sums.mean_gradient_norm,
            "val_loss": evaluation.loss,
            **{f"val_{name}": value for name, value in evaluation.scores.figures().items()},
        }
        seconds = time.perf_counter() - self.epoch_start
        self.epoch_start = time.perf_counter()
        self.history.append(row)
        self.timing.append({"epoch": row["epoch"], "seconds": seconds, "pictures_per_second": num_pictures / seconds})
        if not self.ranks.first:
            return
        if row is self.selected():
            self.save_weights(learner, run_folder.BEST_WEIGHTS, row)
        write_table(self.out / run_folder.METRICS, self.history)
        write_table(self.out / run_folder.TIMING, self.timing)
        self.heads.write([{"epoch": row["epoch"], **head} for head in heads])
        self.show_on_board(row)
        self.show_heads_on_board(heads, step=step)
        LOGGER.debug(
            "epoch %d, step %d: training loss %.4f, validation loss %.4f, %s %.2f %%, %.0f pictures/s",
            row["epoch"], step, row["train_loss"], row["val_loss"],
            self.task.criterion_short, row[self.task.criterion], num_pictures / seconds,
        )  # fmt: skip

    def show_on_board(self, row: dict[str, Any]) -> None:
        """Enter an epoch's figures into TensorBoard."""
        assert self.board is not None
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self.board.add_scalar(name, value, row["step"])

    def show_heads_on_board(self, heads: list[dict[str, Any]], *, step: int) -> None:
        """Enter figures of the heads into TensorBoard, as means over each layer."""
        assert self.board is not None
        for layer in sorted({head["layer"] for head in heads}):
            of_layer = [head for head in heads if head["layer"] == layer]
            for name in of_layer[0].keys() - {"layer", "head"}:
                values = [head[name] for head in of_layer if head[name] is not None]
                if values:
                    self.board.add_scalar(f"{name}/layer_{layer}", sum(values) / len(values), step)

    def selected(self) -> dict[str, Any]:
        """The row of the epoch so far whose weights are kept: the best in validation, or the last."""
        return selected_epoch(
            self.history,
            select=self.recipe.select,
            criterion=self.task.criterion,
            num_pictures=len(self.data.val or ()),
        )

    def should_stop(self) -> bool:
        """Whether as many epochs in a row as the recipe has patience for have not been the best."""
        patience = self.recipe.patience
        return bool(patience and self.history and self.history[-1]["epoch"] - self.selected()["epoch"] >= patience)

    def save_weights(self, learner: Learner, name: Path, row: dict[str, Any]) -> None:
        start = learner.model.info
        info = WeightsInfo(
            architecture=learner.model.config,
            preprocessing=self.preprocessing.to_dict(),
            labels=self.data.classes,
            licence=start.licence if start is not None else None,
            figures={
                "data": self.data.name,
                **{key: row[key] for key in ("epoch", "step", self.task.criterion, "val_loss")},
            },
            multi_label=self.task.multi_label,
        )
        save_weights(learner.evaluated, self.out / name, info=info)

    def notes(self, sums: EpochSums, *, pictures_per_second: float, waiting: float) -> list[str]:
        """The latest figures, what matters most first; ``waiting`` is the share of the time spent waiting for data."""
        parts = [f"loss {sums.mean_loss:.3f}"] if sums.num_pictures else []
        if self.history:
            parts.append(f"val {self.task.criterion_short} {self.history[-1][self.task.criterion]:.1f} %")
        parts.append(f"{pictures_per_second:.0f} pictures/s")
        parts.append(f"{100 * waiting:.0f} % waiting for data")
        return parts

    def finish(self, evaluation: Evaluation, *, part: str, num_parameters: int) -> dict[str, Any]:
        """Enter the figures of the kept weights, draw the curves and write the summary, which ends the run."""
        self.add_unreadable(evaluation.unreadable)
        seconds = sum(row["seconds"] for row in self.timing)
        rate = sum(row["pictures_per_second"] * row["seconds"] for row in self.timing) / seconds
        summary = {
            **evaluation.scores.summary(),
            "loss": evaluation.loss,
            "evaluated_on": part,
            "num_pictures": evaluation.num_pictures,
            "num_unreadable": len(self.unreadable),
            "num_training_pictures": len(self.data.train),
            "best_epoch": self.selected()["epoch"],
            "num_parameters": num_parameters,
            "seconds": seconds,
            "pictures_per_second": rate,
            "machine": machine_line(
                f"{torch.get_num_threads()} threads", f"{self.ranks.num} processes", str(self.device)
            ),
        }
        if not self.ranks.first:
            return summary
        if part == "test":  # the figures that the weights' model card tells
            scores = {f"test_{name}": value for name, value in evaluation.scores.figures().items()}
            add_figures(
                self.out / run_folder.BEST_WEIGHTS,
                {**scores, "test_loss": evaluation.loss, "test_pictures": evaluation.num_pictures},
            )
        title = f"{self.out.name}: {self.data.name}"
        draw_curves(
            self.history, self.selected(), self.out / "curves.png", task=self.task, title=title,
            targets=targets_in_words(self.recipe),
        )  # fmt: skip
        if self.heads.rows:
            draw_heads(self.heads.rows, self.out / "heads.png", title=title)
        write_text(self.out / run_folder.SUMMARY, json.dumps(summary, indent=2) + "\n")
        return summary

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def targets_in_words(recipe: Recipe) -> str:
    """How the targets of training differ from the labels, "" if they do not."""
    mixed = ["mixed"] if recipe.mixup or recipe.cutmix else []
    smoothed = ["smoothed"] if recipe.label_smoothing else []
    return f"{', '.join(mixed + smoothed)} labels" if mixed + smoothed else ""


def share_of_sums(sums: list[EpochSums], ranks: Ranks) -> EpochSums:
    """This process's part of what the processes had summed: its own, or with another number of them all or nothing."""
    if len(sums) == ranks.num:
        return sums[ranks.rank]
    same = {"gradient_norm": sums[0].gradient_norm, "num_steps": sums[0].num_steps}
    if not ranks.first:
        return EpochSums(**same)
    return EpochSums(loss=sum(s.loss for s in sums), num_pictures=sum(s.num_pictures for s in sums), **same)


def read_heads(file: Path, *, epochs: int) -> GrowingTable:
    """The rows of heads.csv up to an epoch; the file is written before that epoch's checkpoint."""
    rows = read_table(file) if file.exists() else []
    return GrowingTable(file, [row for row in rows if row["epoch"] is not None and row["epoch"] <= epochs])
