"""What is known of weights beside their numbers, and what of it stays true when they are adapted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from comvex.convit.config import PRESET_DEPTH, ConViTConfig, as_pair, width_of_preset
from comvex.preprocessing import IMAGENET_CROP_PCT, IMAGENET_MEAN, IMAGENET_STD

Layout = Literal["comvex", "timm", "official"]

SHAPING_FIELDS = (
    "image_size",
    "image_channel",
    "patch_size",
    "num_classes",
    "num_local_layers",
    "num_nonlocal_layers",
)  # fmt: skip
"""Fields of a config that may differ between weights and the model they go into, and by which tensors then differ."""

FUNCTION_FIELDS = ("norm_eps", "global_pool", "pred_act_fnc_name")
"""Fields of a config that change what a model computes and that no tensor's shape tells."""


@dataclass(frozen=True)
class WeightsInfo:
    """What is known of weights beside their numbers."""

    architecture: ConViTConfig
    preprocessing: dict[str, Any]
    """``image_size``, ``channels``, ``mean``, ``std``, ``crop_pct``: see ``comvex.data.transforms.Preprocessing``."""
    labels: tuple[str, ...] = ()
    """The classes in the order of the logits; empty if they are not known."""
    licence: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    """What was measured of these weights, such as ``val_top1`` in percent."""
    multi_label: bool = False
    """Whether a picture may be of none or several of the classes: each logit then is one class's yes or no."""


def preset_name(config: ConViTConfig) -> str:
    """Which of the paper's sizes a config is, whatever its pictures and classes."""
    depth = config.num_local_layers, config.num_nonlocal_layers
    name = width_of_preset(config) if depth == PRESET_DEPTH else None
    return name or "none of the paper's sizes"


def default_preprocessing(config: ConViTConfig) -> dict[str, Any]:
    """What pictures are put through where nothing else is known: ImageNet's figures for RGB, 0.5 for other channels."""
    known = config.image_channel == 3
    half = [0.5] * config.image_channel
    return {
        "image_size": list(as_pair(config.image_size)),
        "channels": config.image_channel,
        "mean": list(IMAGENET_MEAN) if known else half,
        "std": list(IMAGENET_STD) if known else half,
        "crop_pct": IMAGENET_CROP_PCT if known else 1.0,
    }


def info_for(architecture: ConViTConfig, info: WeightsInfo) -> WeightsInfo:
    """What is known of weights after they were adapted to another architecture; figures were those of the old one."""
    old = info.architecture
    if architecture == old:
        return info
    preprocessing = dict(info.preprocessing)
    if architecture.image_size != old.image_size:
        preprocessing["image_size"] = list(as_pair(architecture.image_size))
    if architecture.image_channel != old.image_channel:
        mean = {name: sum(preprocessing[name]) / len(preprocessing[name]) for name in ("mean", "std")}
        preprocessing |= {name: [value] * architecture.image_channel for name, value in mean.items()}
        preprocessing["channels"] = architecture.image_channel
    same = all(getattr(architecture, name) == getattr(old, name) for name in (*SHAPING_FIELDS, *FUNCTION_FIELDS))
    return dataclasses.replace(
        info,
        architecture=architecture,
        preprocessing=preprocessing,
        labels=info.labels if architecture.num_classes == old.num_classes else (),
        figures=info.figures if same else {},
    )
