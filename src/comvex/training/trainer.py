"""One training run, from pictures to a summary: it starts, goes on where it was stopped, or reports that it is done."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import comvex
from comvex import run_folder
from comvex.convit.config import ConViTConfig
from comvex.convit.model import ConViTWithLinearClassifier
from comvex.convit.weights import load_model
from comvex.data.loading import Batch, Sample, StepOrder, TrainingPictures, evaluation_loader, training_loader
from comvex.data.sources import DataSet, PictureSet, open_data
from comvex.data.transforms import Preprocessing
from comvex.device import choose_device
from comvex.errors import UserError
from comvex.files import write_text
from comvex.inference.evaluate import Evaluation, evaluate
from comvex.inference.task import Task, choose_task
from comvex.randomness import derive_seed
from comvex.training.build import build_config, build_optimizer, build_preprocessing, build_schedule, settle
from comvex.training.progress import log_to, training_progress
from comvex.training.recipe import Options, Recipe, differences
from comvex.training.record import EpochSums, RunRecord

LOGGER = logging.getLogger(__name__)
INITIAL_WEIGHTS, STEP = 11, 12
"""Purposes that a seed is derived for."""


@dataclass(frozen=True)
class Plan:
    """A recipe brought together with its data and the machine, all of it checked."""

    recipe: Recipe
    options: Options
    data: DataSet
    task: Task
    config: ConViTConfig
    preprocessing: Preprocessing
    num_steps: int
    device: torch.device


def make_plan(recipe: Recipe, options: Options) -> Plan:
    """Open the data and settle what the recipe leaves open; raises ``ValueError`` for whatever does not fit."""
    data = open_data(
        recipe.data, split_seed=recipe.split_seed, fraction=recipe.fraction, val_fraction=recipe.val_fraction
    )
    config = build_config(recipe.model, data)
    return Plan(
        recipe=settle(recipe, data),
        options=options,
        data=data,
        task=choose_task(multi_label=data.multi_label),
        config=config,
        preprocessing=build_preprocessing(config, data),
        num_steps=recipe.num_steps(len(data.train)),
        device=choose_device(options.device),
    )


def train(recipe: Recipe, out: Path, *, options: Options | None = None) -> dict[str, Any]:
    """Carry out a recipe in a run folder and return its summary; safe to repeat at any time.

    A new folder starts a run, an unfinished run of the same recipe goes on from its last checkpoint with results
    identical to an uninterrupted one, a finished run gives its summary at once.

    Raises ``ValueError`` for data or values that do not fit (nothing is written then), a folder that holds something
    else or another recipe, or a loss that is no longer finite.
    """
    options = options or Options()
    check_folder(recipe, out, overwrite=options.overwrite)
    summary = run_folder.read_summary(out)
    if summary is not None and not options.overwrite:
        return summary
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    plan = make_plan(recipe, options)
    begin_folder(recipe, out, overwrite=options.overwrite)
    with log_to(out / "log.txt"):
        return carry_out(plan, out)


def carry_out(plan: Plan, out: Path) -> dict[str, Any]:
    """The run itself: model, optimiser, resume, loop, evaluation."""
    recipe, data, device, num_steps = plan.recipe, plan.data, plan.device, plan.num_steps

    torch.manual_seed(derive_seed(recipe.seed, INITIAL_WEIGHTS))
    model = ConViTWithLinearClassifier(plan.config).to(device)
    optimizer = build_optimizer(model, recipe)
    schedule = build_schedule(optimizer, recipe, num_steps)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    LOGGER.info(
        "%s: %d classes%s, %d training, %d validation, %d test pictures; %d parameters, %d x %d pixels; %d steps on %s",
        data.name, len(data.classes), " (multi-label)" if data.multi_label else "",
        len(data.train), len(data.val or ()), len(data.test or ()),
        num_parameters, *plan.preprocessing.image_size, num_steps, device,
    )  # fmt: skip

    # First to resume, then from scratch
    record = RunRecord(out, data=data, config=plan.config, preprocessing=plan.preprocessing)
    sums = EpochSums(torch.zeros((), device=device))
    start = record.resume(model, optimizer, sums)

    order = StepOrder(len(data.train), recipe.batch_size, seed=recipe.seed, start=start, stop=num_steps)
    num_epochs = math.ceil(num_steps / order.steps_per_epoch)
    model.train()
    last_saved, last_shown = time.monotonic(), -math.inf
    with closing(record), training_progress() as progress:
        task = progress.add_task("training", total=num_steps, completed=start, note="")
        for step, batch in enumerate(training_batches(plan, order), start=start + 1):
            schedule.step_update(step - 1)
            record.add_unreadable(batch.unreadable)
            if len(batch.labels):
                torch.manual_seed(derive_seed(recipe.seed, STEP, step))
                sums.add(training_step(model, optimizer, batch, plan), len(batch.labels))
            finished = step == num_steps
            if finished or step % order.steps_per_epoch == 0:
                evaluation = evaluate_part(model, plan, "val")
                record.end_epoch(model, sums, evaluation, step=step, learning_rate=optimizer.param_groups[0]["lr"])
                sums = EpochSums(torch.zeros((), device=device))
            if finished or time.monotonic() - last_saved > plan.options.checkpoint_seconds:
                record.save_checkpoint(model, optimizer, sums, step=step)
                last_saved = time.monotonic()
            if finished or time.monotonic() - last_shown > 0.5:
                description = f"epoch {math.ceil(step / order.steps_per_epoch)}/{num_epochs}"
                progress.update(task, completed=step, description=description, note=record.note(sums))
                last_shown = time.monotonic()

    # The test pictures are touched here, once, by the weights that were best in validation
    record.save_weights(model, run_folder.LAST_WEIGHTS, record.history[-1])
    best = load_model(out / run_folder.BEST_WEIGHTS).to(device)
    part = "test" if data.test is not None and len(data.test) else "val"
    return record.finish(evaluate_part(best, plan, part), part=part, num_parameters=num_parameters)


def training_batches(plan: Plan, order: StepOrder) -> DataLoader[Sample]:
    """Augmented batches for the steps of ``order``."""
    transform = plan.preprocessing.training_transform(plan.recipe.augment, mirrored=plan.data.mirrored)
    channels, seed = plan.preprocessing.channels, plan.recipe.seed
    pictures = TrainingPictures(plan.data.train, transform, channels=channels, seed=seed)
    workers = num_workers(plan.data.train, plan.options)
    return training_loader(pictures, order, workers=workers, pin_memory=plan.device.type == "cuda")


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, plan: Plan) -> Tensor:
    """Forward, backward and one step of the optimiser; returns the mean loss of the batch."""
    pictures = batch.pictures.to(plan.device, non_blocking=True)
    labels = batch.labels.to(plan.device, non_blocking=True)
    loss = plan.task.loss(model(pictures), labels, smoothing=plan.recipe.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), plan.recipe.clip_norm)
    optimizer.step()
    return loss


def evaluate_part(model: nn.Module, plan: Plan, part: str) -> Evaluation:
    """Evaluate on the training, validation or test pictures."""
    pictures = plan.data.part(part)
    transform, channels = plan.preprocessing.transform(), plan.preprocessing.channels
    workers = num_workers(pictures, plan.options)
    loader = evaluation_loader(pictures, transform, channels=channels, batch_size=256, workers=workers)
    return evaluate(model, loader, task=plan.task, num_classes=len(plan.data.classes), device=plan.device)


def num_workers(pictures: PictureSet, options: Options) -> int:
    """Loader processes: those asked for, or none for pictures in memory and one per CPU, up to 8, for files."""
    if options.workers is not None:
        return options.workers
    return 0 if pictures.in_memory else min(8, torch.get_num_threads())


def check_folder(recipe: Recipe, out: Path, *, overwrite: bool) -> None:
    """Make sure that a run may use this folder.

    Raises ``ValueError`` if it holds something else (always) or another recipe (without ``overwrite``).
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: --out must be a new folder or a run folder.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / run_folder.RECIPE).exists():
        raise UserError(f"The folder {out} holds something else than a run: choose another --out.")
    if overwrite:
        return
    found = differences(run_folder.read_recipe(out), recipe.to_dict())
    if found:
        raise UserError(
            f"The run folder {out} has another recipe ({'; '.join(found)}): choose another --out, or --overwrite to "
            "start again."
        )


def begin_folder(recipe: Recipe, out: Path, *, overwrite: bool) -> None:
    """Make the run folder and write its recipe, unless it is there; with ``overwrite`` what is there goes first."""
    if overwrite and out.is_dir():
        shutil.rmtree(out)
    if not (out / run_folder.RECIPE).exists():
        content = {"format": run_folder.FORMAT, "comvex": comvex.__version__, "recipe": recipe.to_dict()}
        write_text(out / run_folder.RECIPE, json.dumps(content, indent=2) + "\n")
