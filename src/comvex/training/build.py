"""From a recipe and its data to the configuration, the preprocessing, the optimiser and the schedule."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from comvex.convit.config import ConViTConfig, as_pair
from comvex.convit.model import ConViTWithLinearClassifier
from comvex.convit.weights import load_model
from comvex.data.reading import CHANNEL_MODES
from comvex.data.sources import DataSet
from comvex.data.transforms import Preprocessing
from comvex.errors import UserError
from comvex.randomness import derive_seed
from comvex.training.recipe import ADAPTABLE, Architecture, Recipe

if TYPE_CHECKING:
    from timm.data.mixup import Mixup
    from timm.scheduler.cosine_lr import CosineLRScheduler as Schedule
    from timm.utils.model_ema import ModelEmaV3

LOGGER = logging.getLogger(__name__)

INITIAL_WEIGHTS = 11
"""Purpose that a seed is derived for."""

SMALL_DIM = 72
"""Token width of the small model; 9 heads divide it, which start as the 3 x 3 kernel of a convolution."""
SMALL_HEADS = (9, 4, 1)
"""The first of these that divides the width is its number of heads."""
SMALL_DEPTH = {"num_local_layers": 4, "num_nonlocal_layers": 2}
SMALL_LEARNING_RATE, LEARNING_RATE = 2e-3, 1e-3
"""Peak learning rates of the small model, and of presets and given weights."""


OPTIMIZERS: dict[str, dict[str, Any]] = {
    # fused: one pass over all parameters; small models spend a tenth of a step in the loop over them otherwise
    "adamw": {"fused": True},
    "muon": {
        "momentum": 0.9,
        "nesterov": False,
        "ns_steps": 5,
        "ns_coefficients": "quintic",
        "adjust_lr_fn": "match_rms_adamw",
        "betas": (0.9, 0.95),
        "eps": 1e-7,
    },
}
"""Settings of timm's optimisers, by the recipe's name of each; Muon's betas are those of the AdamW beside it."""


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
    if not data.full_depth and given["image_channel"] not in CHANNEL_MODES:
        raise UserError(
            f"channels is {architecture.channels}: pictures of 8 bits are read with 1 (grey) or 3 (RGB) channels."
        )
    given["num_classes"] = len(data.classes)
    if architecture.num_nonlocal_layers == 0:
        given["global_pool"] = "avg"  # the class token would not meet the picture
    if architecture.preset is not None:
        return ConViTConfig.from_preset(architecture.preset, **given)
    dim = architecture.dim if architecture.dim is not None else SMALL_DIM
    small = {
        "image_size": data.image_size,
        "patch_size": data.patch_size,
        "dim": dim,
        "heads": next(heads for heads in SMALL_HEADS if dim % heads == 0),
        **SMALL_DEPTH,
        "init_std": dim**-0.5,
    }
    return ConViTConfig.from_preset("ConViT_Ti", **(small | given))


def build_preprocessing(model: ConViTWithLinearClassifier, data: DataSet) -> Preprocessing:
    """Pictures at the model's native size and channels, normalised as its weights want it or as suits the data.

    Weights of 8-bit pictures that go on with pictures of full depth do so with the mean and deviation of those.
    """
    if model.info is not None:
        known = Preprocessing.from_dict(model.info.preprocessing)
        if known.full_depth or not data.full_depth:
            return known
    config = model.config
    mean, std = data.mean, data.std
    if config.image_channel != len(mean):  # grey pictures for an RGB model, or the other way round
        mean, std = [(sum(values) / len(values),) * config.image_channel for values in (mean, std)]
    return Preprocessing(
        image_size=as_pair(config.image_size),
        channels=config.image_channel,
        mean=mean,
        std=std,
        full_depth=data.full_depth,
    )


def settle(recipe: Recipe, data: DataSet) -> Recipe:
    """The recipe with what it leaves to the data filled in.

    Raises ``ValueError`` for what these data cannot be trained with.
    """
    if data.multi_label and recipe.balance == "sampling":
        raise UserError(
            f"balance is 'sampling', but the pictures of {data.name} have any number of classes each: 'loss' is "
            "possible there."
        )
    if recipe.learning_rate is None:
        recipe = dataclasses.replace(recipe, learning_rate=SMALL_LEARNING_RATE if recipe.small else LEARNING_RATE)
    return recipe


def build_model(recipe: Recipe, data: DataSet) -> ConViTWithLinearClassifier:
    """The model that training starts from: a new one or that of the given weights, with a new head for other classes.

    Raises ``ValueError`` if the weights cannot be had, or something does not fit.
    """
    torch.manual_seed(derive_seed(recipe.seed, INITIAL_WEIGHTS))
    if recipe.weights is None:
        return ConViTWithLinearClassifier(build_config(recipe.model, data))
    asked = dataclasses.asdict(recipe.model)
    names = {"channels": "image_channel"}
    changes = {names.get(name, name): asked[name] for name in ADAPTABLE if asked[name] is not None}
    model = load_model(recipe.weights, num_classes=len(data.classes), **changes)
    if model.info is not None and model.info.labels not in ((), data.classes):
        model.reset_classifier(len(data.classes))  # as many classes, but others
    if model.config.image_channel == 1 and data.channels == 3:
        LOGGER.warning(
            "The weights %s are for grey pictures, so those of %s are read as grey: model.channels = 3 keeps their "
            "colours.", recipe.weights, data.name,
        )  # fmt: skip
    return model


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW or Muon; vectors and the model's ``no_weight_decay`` names are not decayed.

    AdamW is Loshchilov and Hutter's (2019). Muon is Jordan et al.'s (2024) for weight matrices, with steps as large as
    AdamW's (Liu et al. 2025). AdamW takes the rest: vectors, gates, embeddings, the patch projection of grey pictures,
    and matrices with fewer than four rows or columns, such as those of the relative positions.

    With ``layer_decay`` each layer has a learning rate of its own, lower towards the pictures (Clark et al. 2020).
    """
    from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]

    return create_optimizer_v2(
        model,
        opt=recipe.optimizer_name,
        lr=peak_learning_rate(recipe),
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        **OPTIMIZERS[recipe.optimizer_name],
    )


def peak_learning_rate(recipe: Recipe) -> float:
    """The learning rate at its height, for the recipe's batch size."""
    assert recipe.learning_rate is not None
    return recipe.learning_rate * recipe.batch_scale


def build_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, num_pictures: int) -> Schedule:
    """Learning rate as a function of the step alone: linear warm-up, a cosine, then the lowest until the end."""
    from timm.scheduler.cosine_lr import CosineLRScheduler

    peak = peak_learning_rate(recipe)
    per_epoch = recipe.steps_per_epoch(num_pictures)
    num_steps = recipe.num_steps(num_pictures) - (0 if recipe.steps is not None else recipe.cooldown_epochs * per_epoch)
    warmup_steps = round(num_steps / 10 if recipe.warmup_epochs is None else recipe.warmup_epochs * per_epoch)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, num_steps - warmup_steps),
        lr_min=peak / 100 if recipe.min_learning_rate is None else recipe.min_learning_rate,
        warmup_t=warmup_steps,
        warmup_lr_init=peak / 100 if recipe.warmup_learning_rate is None else recipe.warmup_learning_rate,
        warmup_prefix=True,
        cycle_decay=0.5,  # nothing, of the only cycle; without it timm would complain of a run of one step
        t_in_epochs=False,
    )


def build_ema(model: nn.Module, recipe: Recipe) -> ModelEmaV3 | None:
    """The average of the weights over the steps, if the recipe asks for one."""
    if recipe.ema_decay is None:
        return None
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True)


def build_mixup(recipe: Recipe, data: DataSet) -> Mixup | None:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), if the recipe asks for either; they make soft targets."""
    if not recipe.mixup and not recipe.cutmix:
        return None
    from timm.data.mixup import Mixup

    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        label_smoothing=recipe.label_smoothing,
        num_classes=len(data.classes),
        multi_label=data.multi_label,
    )
