"""What a run would do, without doing it: recipe, model and steps in words, its pictures and its schedule as figures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comvex.device import choose_device
from comvex.files import check_writable
from comvex.plotting import BLUE, new_figure
from comvex.training.build import build_optimizer, build_schedule
from comvex.training.plan import Plan, make_plan
from comvex.training.ranks import Ranks
from comvex.training.recipe import Options, Recipe
from comvex.training.trainer import step_order, training_batches

NUM_SAMPLES = 32
"""Augmented pictures that are drawn."""


def dry_run(recipe: Recipe, folder: Path, *, options: Options) -> str:
    """Describe a run and draw samples.png and schedule.png into ``folder``; nothing is trained.

    Raises ``ValueError`` for whatever would keep the run from starting, and if ``folder`` cannot be written to.
    """
    check_writable(folder)
    plan = make_plan(recipe, options, choose_device(options.device), Ranks())
    draw_samples(plan, folder / "samples.png")
    draw_schedule(plan, folder / "schedule.png")
    data, config = plan.data, plan.model.config
    per_epoch = plan.recipe.steps_per_epoch(len(data.train))
    return "\n".join(
        [
            "Recipe:",
            *(f"  {line}" for line in json.dumps(plan.recipe.to_dict(), indent=2).splitlines()[1:-1]),
            "Model:",
            f"  {config}",
            f"  {plan.num_parameters:,} parameters",
            "Parameter groups (the largest learning rate of each):",
            *group_lines(plan),
            "Data:",
            f"  {data.name}: {len(data.classes)} classes, {len(data.train)} training, "
            f"{len(data.val or ())} validation, {len(data.test or ())} test pictures",
            *(f"  {note}" for note in data.notes),
            f"  {plan.num_steps} steps in {plan.num_steps / per_epoch:.4g} epochs{plan.validated}, on {plan.device}",
            f"Figures: {folder / 'samples.png'}, {folder / 'schedule.png'}",
        ]
    )


def group_lines(plan: Plan) -> list[str]:
    """A line for each parameter group of the optimiser."""
    recipe = plan.recipe
    groups = build_optimizer(plan.model, recipe).param_groups
    lines = []
    for group in groups:
        num = sum(parameter.numel() for parameter in group["params"])
        rate = group["lr"] * group.get("lr_scale", 1.0)
        lines.append(
            f"  {len(group['params']):4d} tensors, {num:11,d} parameters, learning rate {rate:.3g}, "
            f"weight decay {group['weight_decay']:.3g}"
        )
    return lines


def draw_samples(plan: Plan, file: Path) -> None:
    """A grid of the first pictures of the first step, as training sees them."""
    plan = dataclasses.replace(plan, options=dataclasses.replace(plan.options, workers=0, accumulate=1))
    recipe = dataclasses.replace(plan.recipe, batch_size=min(NUM_SAMPLES, len(plan.data.train)))
    plan = dataclasses.replace(plan, recipe=recipe)
    batch = next(iter(training_batches(plan, step_order(plan, start=0))))
    pictures = [as_shown(picture, plan) for picture in batch.pictures]
    columns = 8
    rows = max(1, -(-len(pictures) // columns))
    with new_figure(file, size=(1.2 * columns, 1.3 * rows + 0.5)) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis in axes:
            axis.set_axis_off()
        for axis, picture, label in zip(axes, pictures, batch.labels, strict=False):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axis.set_title(names(label, plan.data.classes), fontsize=7)
        figure.suptitle(f"{plan.data.name}: pictures as training sees them", x=0.01, ha="left")


def as_shown(picture: Tensor, plan: Plan) -> NDArray[np.float32]:
    """A normalised tensor as values in [0, 1]: grey (height, width) or RGB (height, width, 3)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (plan.preprocessing.mean, plan.preprocessing.std))
    values = (picture * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
    return values if values.shape[2] == 3 else values.mean(axis=2)


def names(label: Tensor, classes: tuple[str, ...]) -> str:
    """The classes of a label, one or several."""
    numbers = [int(label)] if label.ndim == 0 else torch.nonzero(label).flatten().tolist()
    return ", ".join(classes[number] for number in numbers)[:20]


def draw_schedule(plan: Plan, file: Path) -> None:
    """The learning rate over the steps."""
    recipe, num_pictures = plan.recipe, len(plan.data.train)
    optimizer = build_optimizer(plan.model, recipe)
    schedule = build_schedule(optimizer, recipe, num_pictures)
    steps = np.unique(np.linspace(0, plan.num_steps - 1, 400).astype(int))
    rates = []
    for step in steps:
        schedule.step_update(int(step))
        rates.append(max(group["lr"] for group in optimizer.param_groups))
    with new_figure(file, size=(6, 3)) as figure:
        axes = figure.subplots()
        axes.plot(steps / recipe.steps_per_epoch(num_pictures), rates, color=BLUE)
        axes.set(title="Learning rate", xlabel="epoch", ylabel="learning rate", ylim=(0, None))
