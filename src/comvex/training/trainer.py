"""One training run, from pictures to a summary: it starts, goes on where it was stopped, or reports that it is done."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import comvex
from comvex import run_folder
from comvex.convit.analysis import head_figures
from comvex.convit.weights import load_model
from comvex.data.balance import sampling_weights
from comvex.data.batch_augmentation import BatchAugmentation
from comvex.data.loading import Batch, Sample, StepOrder, TrainingPictures, evaluation_loader, training_loader
from comvex.data.reading import printable
from comvex.data.sources import PictureSet
from comvex.data.training_transforms import training_transform
from comvex.device import choose_device
from comvex.errors import UserError
from comvex.files import is_temporary, write_text
from comvex.inference.evaluate import Evaluation, evaluate
from comvex.training.failure import explain_failures, keep_failure
from comvex.training.plan import Plan, make_plan
from comvex.training.progress import FILE_ONLY, RunProgress, held_messages, log_to
from comvex.training.ranks import joined_ranks
from comvex.training.recipe import Options, Recipe, differences, train_command
from comvex.training.record import EpochSums, RunRecord
from comvex.training.step import Learner, NotFiniteError
from comvex.training.stopping import StoppedError, StopRequest, stop_requests

LOGGER = logging.getLogger(__name__)
NUM_WATCHED = 32
"""Validation pictures on which the attention heads are watched."""


def train(recipe: Recipe, out: Path, *, options: Options | None = None) -> dict[str, Any]:
    """Carry out a recipe in a run folder and return its summary; safe to repeat at any time.

    A new folder starts a run, an unfinished run of the same recipe goes on from its last checkpoint with results
    identical to an uninterrupted one, a finished run gives its summary at once. Started by torchrun, the processes
    train together. SIGTERM, SIGUSR1 and Ctrl-C finish the step, save, and raise ``StoppedError``.

    Raises ``ValueError`` for data or values that do not fit (nothing is written then), a folder that holds something
    else or another recipe, a loss that is no longer finite, memory that does not suffice, or a folder that cannot be
    written to; the last checkpoint is kept.
    """
    options = options or Options()
    device = choose_device(options.device)
    with joined_ranks(device) as ranks:
        check_folder(recipe, out, overwrite=options.overwrite)
        summary = run_folder.read_outcome(out)
        if summary is not None and not options.overwrite:
            return summary
        with machine_settings(options, device):
            with held_messages() as held:
                plan = make_plan(recipe, options, device, ranks)
            ranks.wait()  # everyone has looked at the folder
            with explain_failures(recipe, out), run_folder.locked(out) if ranks.first else nullcontext():
                # Another process may have finished the run meanwhile: its test is not taken twice
                summary = ranks.gather(run_folder.read_outcome(out))[0]
                if summary is not None and not options.overwrite:
                    return summary
                if ranks.first:
                    begin_folder(recipe, plan, out, overwrite=options.overwrite)
                with log_to(out / "log.txt", before=held.records, enabled=ranks.first), stop_requests() as stop:
                    LOGGER.info("command: %s", train_command(recipe.to_dict(), out), extra=FILE_ONLY)
                    return carry_out(plan, out, stop)


@contextmanager
def machine_settings(options: Options, device: torch.device) -> Iterator[None]:
    """Within it PyTorch computes with the threads, and as deterministically, as the options say."""
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn.deterministic
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it PyTorch refuses to be deterministic
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = cudnn
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)


def carry_out(plan: Plan, out: Path, stop: StopRequest) -> dict[str, Any]:
    """The run itself: model, optimiser, resume, loop, evaluation."""
    data, ranks = plan.data, plan.ranks
    LOGGER.info("%s", plan)
    learner = Learner.of(plan)

    # First to resume, then the given weights or from scratch, which the plan's model has
    record = RunRecord(out, plan)
    with closing(record):
        train_steps(plan, learner, record, stop)

        # The test pictures are touched here, once, by the weights that the recipe selects
        if ranks.first:
            record.save_weights(learner, run_folder.LAST_WEIGHTS, record.history[-1])
        ranks.wait()
        best = load_model(out / run_folder.BEST_WEIGHTS).to(plan.device)
        part = "test" if data.test is not None and len(data.test) else "val"
        return record.finish(evaluate_part(best, plan, part), part=part, num_parameters=plan.num_parameters)


def train_steps(plan: Plan, learner: Learner, record: RunRecord, stop: StopRequest) -> None:
    """All steps from the last checkpoint to the last step, or to where patience ends.

    Raises ``StoppedError``, after a checkpoint, if a stop is asked for.
    """
    recipe, options, ranks, num_steps = plan.recipe, plan.options, plan.ranks, plan.num_steps
    step, sums = record.resume(learner)
    order = step_order(plan, start=step)
    watched = watched_pictures(plan) if ranks.first else torch.empty(0)
    if ranks.first and step == 0:
        record.begin(head_figures(learner.evaluated, watched))
    steps_per_validation = plan.epochs_per_validation * order.steps_per_epoch
    progress = RunProgress(
        num_steps, start=step, per_epoch=order.steps_per_epoch, batch_size=recipe.batch_size, enabled=ranks.first
    )
    finished = step == num_steps or record.should_stop()
    last_saved = time.monotonic()
    plan.model.train()
    with closing(training_batches(plan, order)) as batches, progress:
        while not finished:
            step += 1
            with progress.waiting():
                micro_batches = [next(batches) for _ in range(options.accumulate)]
            for batch in micro_batches:
                record.add_unreadable(batch.unreadable)
            # One exchange a step: all processes see the same numbers and decide alike
            num_readable = sum(len(batch.labels) for batch in micro_batches)
            too_long = ranks.first and time.monotonic() - last_saved > 60 * options.checkpoint_minutes
            num_pictures, stopping, saving = ranks.sum([num_readable, bool(stop), too_long])
            if num_pictures:
                try:
                    sums.add(learner.step(step, micro_batches, num_pictures=int(num_pictures)))
                except NotFiniteError as error:
                    raise keep_failure(record.out, error, learner, micro_batches, plan.data.train, step=step) from error
            finished = step == num_steps
            validating = finished or step % steps_per_validation == 0
            if validating:
                evaluation = evaluate_part(learner.evaluated, plan, "val")
                heads = head_figures(learner.evaluated, watched) if ranks.first else []
                epoch = math.ceil(step / order.steps_per_epoch)
                record.end_epoch(learner, sums, evaluation, epoch=epoch, step=step, heads=heads)
                sums = EpochSums()
                finished = finished or record.should_stop()
            if validating or saving or stopping or step % (options.checkpoint_steps or num_steps) == 0:
                record.save_checkpoint(learner, sums, step=step)
                last_saved = time.monotonic()
            if stopping and not finished:
                stopped = StoppedError(step, stop.name or "a signal to another process")
                LOGGER.info("%s", stopped, extra=FILE_ONLY)  # whoever catches it tells it
                ranks.wait()  # torchrun ends all processes when the first one ends
                raise stopped
            progress.show(step, record, sums)


def step_order(plan: Plan, *, start: int) -> StepOrder:
    """Which pictures the steps after ``start`` show, as far as this process has to do with them."""
    recipe, pictures = plan.recipe, plan.data.train
    return StepOrder(
        len(pictures),
        recipe.batch_size,
        seed=recipe.seed,
        start=start,
        stop=plan.num_steps,
        repeats=recipe.repeats,
        weights=sampling_weights(pictures.labels, len(plan.data.classes)) if recipe.balance == "sampling" else None,
        accumulate=plan.options.accumulate,
        rank=plan.ranks.rank,
        num_ranks=plan.ranks.num,
    )


def training_batches(plan: Plan, order: StepOrder) -> Generator[Batch]:
    """Augmented micro-batches for the steps of ``order``."""
    yield from training_loader(
        TrainingPictures(
            plan.data.train,
            training_transform(plan.preprocessing, plan.recipe.augment, mirrored=plan.data.mirrored),
            channels=plan.preprocessing.channels,
            seed=plan.recipe.seed,
            together=BatchAugmentation(plan.preprocessing, plan.recipe.augment, plan.data.mirrored),
        ),
        order,
        workers=num_workers(plan.data.train, plan.options),
        pin_memory=plan.device.type == "cuda",
    )


def part_loader(plan: Plan, part: str, *, batch_size: int = 256) -> DataLoader[Sample]:
    """The pictures of a part, each once over all processes, without anything random."""
    pictures = plan.data.part(part)
    return evaluation_loader(
        pictures,
        plan.preprocessing.transform(),
        channels=plan.preprocessing.channels,
        batch_size=batch_size,
        workers=num_workers(pictures, plan.options),
        pin_memory=plan.device.type == "cuda",
        rank=plan.ranks.rank,
        num_ranks=plan.ranks.num,
    )


def evaluate_part(model: nn.Module, plan: Plan, part: str) -> Evaluation:
    """Evaluate on the training, validation or test pictures, all processes together."""
    return evaluate(
        model, part_loader(plan, part), task=plan.task, num_classes=len(plan.data.classes), device=plan.device
    )


def watched_pictures(plan: Plan) -> torch.Tensor:
    """The validation pictures (B, C, height, width) on which the heads are watched, the same in every epoch."""
    batches = iter(part_loader(plan, "val", batch_size=NUM_WATCHED))
    readable = next((batch.pictures for batch in batches if len(batch.labels)), None)
    if readable is None:
        raise UserError(f"None of the validation pictures of {plan.data.name} can be read.")
    return readable.to(plan.device)


def num_workers(pictures: PictureSet, options: Options) -> int:
    """Loader processes: those asked for, or none for pictures in memory and one per CPU, up to 8, for files."""
    if options.workers is not None:
        return options.workers
    return 0 if pictures.in_memory else min(8, torch.get_num_threads())


def check_folder(recipe: Recipe, out: Path, *, overwrite: bool) -> None:
    """Make sure that a run may use this folder.

    Raises ``ValueError`` if it holds something else (always) or another recipe (without ``overwrite``), or has a name
    that is not UTF-8, which TensorBoard cannot write to.
    """
    if printable(out) != str(out):
        raise UserError(f"The run folder {printable(out)} has a name that is not UTF-8: choose another --out.")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: --out must be a new folder or a run folder.")
    # A run that was killed at its very beginning leaves its lock and a half-written recipe
    if not out.is_dir() or all(run_folder.is_leftover(path) for path in out.iterdir()):
        return
    if not (out / run_folder.RECIPE).exists():
        raise UserError(f"The folder {out} holds something else than a run: choose another --out.")
    if overwrite:
        return
    stored = run_folder.read_recipe(out)
    found = differences(stored, recipe.to_dict())
    if found:
        raise UserError(
            f"The run folder {out} has another recipe ({'; '.join(found)}): choose another --out, or --overwrite to "
            f"start again; the run that is there goes on with {train_command(stored, out)}."
        )


def begin_folder(recipe: Recipe, plan: Plan, out: Path, *, overwrite: bool) -> None:
    """Write the recipe into the run folder, unless it is there; with ``overwrite`` what is there goes first."""
    for path in out.rglob("*"):
        if is_temporary(path) and path.is_file():  # of a process that was killed while writing
            path.unlink()
    if overwrite:
        # At any instant the rest is an unfinished run: it neither counts as finished nor as something else
        (out / run_folder.SUMMARY).unlink(missing_ok=True)
        for path in sorted(out.iterdir(), key=lambda path: path.name == run_folder.RECIPE):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != run_folder.LOCK:
                path.unlink()
    if not (out / run_folder.RECIPE).exists():
        content = {
            "format": run_folder.FORMAT,
            "comvex": comvex.__version__,
            "recipe": recipe.to_dict(),
            "num_steps": plan.num_steps,
            "training_pictures": plan.data.train.fingerprint(),
        }
        write_text(out / run_folder.RECIPE, json.dumps(content, indent=2) + "\n")
