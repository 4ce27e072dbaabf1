"""From a recipe and its data to the configuration, the preprocessing, the optimiser and the schedule."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from comvex.convit.config import ConViTConfig, as_pair
from comvex.data.reading import CHANNEL_MODES
from comvex.data.sources import DataSet
from comvex.data.transforms import Preprocessing
from comvex.errors import UserError
from comvex.training.recipe import Architecture, Recipe


def build_config(architecture: Architecture, data: DataSet) -> ConViTConfig:
    """The model's configuration: what the recipe says, then the preset or the small model, then what suits the data.

    Raises ``ValueError`` for an unknown preset or values that do not fit together.
    """
    given = {
        name: value
        for name, value in dataclasses.asdict(architecture).items()
        if value is not None and name not in ("preset", "channels")
    }
    given["image_channel"] = architecture.channels if architecture.channels is not None else data.channels
    if given["image_channel"] not in CHANNEL_MODES:
        raise UserError(f"channels is {architecture.channels}: pictures are read with 1 (grey) or 3 (RGB) channels.")
    given["num_classes"] = len(data.classes)
    if architecture.preset is not None:
        return ConViTConfig.from_preset(architecture.preset, **given)
    dim = architecture.dim if architecture.dim is not None else data.dim
    small = {
        "image_size": data.image_size,
        "patch_size": data.patch_size,
        "dim": dim,
        "heads": next(heads for heads in (data.heads, 4, 1) if dim % heads == 0),
        "num_local_layers": 5,
        "num_nonlocal_layers": 1,
    }
    return ConViTConfig.from_preset("ConViT_Ti", **(small | given))


def build_preprocessing(config: ConViTConfig, data: DataSet) -> Preprocessing:
    """Pictures at the model's native size and channels, normalised with the data's mean and deviation."""
    mean, std = data.mean, data.std
    if config.image_channel != len(mean):  # grey pictures for an RGB model, or the other way round
        mean, std = [(sum(values) / len(values),) * config.image_channel for values in (mean, std)]
    return Preprocessing(image_size=as_pair(config.image_size), channels=config.image_channel, mean=mean, std=std)


def settle(recipe: Recipe, data: DataSet) -> Recipe:
    """The recipe with what it leaves to the data filled in."""
    if recipe.learning_rate is None:
        recipe = dataclasses.replace(recipe, learning_rate=data.learning_rate)
    return recipe


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); vectors and the model's ``no_weight_decay`` names are not decayed."""
    from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]

    # fused: one pass over all parameters; small models spend a tenth of a step in the loop over them otherwise
    return create_optimizer_v2(
        model, opt="adamw", lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )


def build_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, num_steps: int):
    """Learning rate as a function of the step alone: linear warm-up, then a cosine to a hundredth of the peak."""
    from timm.scheduler.cosine_lr import CosineLRScheduler

    assert recipe.learning_rate is not None
    warmup_steps = round(recipe.warmup * num_steps)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, num_steps - warmup_steps),
        lr_min=recipe.learning_rate / 100,
        warmup_t=warmup_steps,
        warmup_lr_init=recipe.learning_rate / 100,
        warmup_prefix=True,
        t_in_epochs=False,
    )
