"""A recipe brought together with its data and the machine, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from comvex.convit.model import ConViTWithLinearClassifier
from comvex.data.sources import DataSet, open_data
from comvex.data.transforms import Preprocessing
from comvex.inference.task import Task, choose_task
from comvex.training.build import build_model, build_preprocessing, settle
from comvex.training.ranks import Ranks
from comvex.training.recipe import Options, Recipe


@dataclass(frozen=True)
class Plan:
    """What a run does with what, all of it checked."""

    recipe: Recipe
    options: Options
    data: DataSet
    task: Task
    model: ConViTWithLinearClassifier
    """With the weights that training starts from."""
    preprocessing: Preprocessing
    num_steps: int
    device: torch.device
    ranks: Ranks

    def __str__(self) -> str:
        data = self.data
        height, width = self.preprocessing.image_size
        channels = {1: "grey", 3: "RGB"}.get(self.preprocessing.channels, f"{self.preprocessing.channels} channels")
        kind = " (multi-label)" if data.multi_label else ""
        processes = f", {self.ranks.num} processes" if self.ranks.num > 1 else ""
        return (
            f"{data.name}: {len(data.classes)} classes{kind}, {len(data.train)} training, {len(data.val or ())} "
            f"validation, {len(data.test or ())} test pictures; {self.num_parameters} parameters, {height} x {width} "
            f"pixels, {channels}; {self.num_steps} steps on {self.device}{processes}{self.validated}"
        )

    @property
    def num_parameters(self) -> int:
        """Trained and frozen numbers of the model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def epochs_per_validation(self) -> int:
        """Epochs from one row of the metrics to the next."""
        return self.recipe.epochs_per_validation(len(self.data.train), len(self.data.val or ()))

    @property
    def validated(self) -> str:
        """How often, where that is not after each epoch."""
        return f", validated every {self.epochs_per_validation} epochs" if self.epochs_per_validation > 1 else ""


def make_plan(recipe: Recipe, options: Options, device: torch.device, ranks: Ranks) -> Plan:
    """Open the data and settle what the recipe leaves open; raises ``ValueError`` for whatever does not fit."""
    data = open_data(
        recipe.data, split_seed=recipe.split_seed, fraction=recipe.fraction, val_fraction=recipe.val_fraction
    )
    if not recipe.test:
        data = replace(data, test=None)
    model = build_model(recipe, data)
    preprocessing = build_preprocessing(model, data)
    return Plan(
        recipe=settle(recipe, data),
        options=options,
        data=data.read_at(full_depth=preprocessing.full_depth),
        task=choose_task(multi_label=data.multi_label),
        model=model,
        preprocessing=preprocessing,
        num_steps=recipe.num_steps(len(data.train)),
        device=device,
        ranks=ranks,
    )
