"""ConViT for timm: importing this module makes ``timm.create_model("comvex_convit_tiny")`` work, and all six sizes.

The names are ours (``comvex_convit_tiny``, ``..._tiny_plus``, ``..._small``, ``..._small_plus``, ``..._base``,
``..._base_plus``); timm's own ``convit_*`` stay what they are. ``pretrained=True`` takes timm's copies of the published
weights, or a local file: ``pretrained_cfg_overlay={"file": "convit_tiny.pth"}``.

``python -m comvex.timm_models train.py ...`` runs one of timm's scripts, or any other, with the names registered.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models import (
    build_model_with_cfg,  # pyright: ignore[reportPrivateImportUsage]
    generate_default_cfgs,  # pyright: ignore[reportPrivateImportUsage]
    register_model,  # pyright: ignore[reportPrivateImportUsage]
    register_notrace_function,  # pyright: ignore[reportPrivateImportUsage]
    register_notrace_module,  # pyright: ignore[reportPrivateImportUsage]
    resolve_pretrained_cfg,  # pyright: ignore[reportPrivateImportUsage]
)
from torch import Tensor, nn

from comvex.convit import ConViTConfig, ConViTWithLinearClassifier, GatedPositionalSelfAttention
from comvex.convit.adapt import PROJECTION, adapt
from comvex.convit.config import as_pair
from comvex.convit.content import attend
from comvex.convit.model import PatchEmbedding
from comvex.convit.position_embedding import resample_position_embedding
from comvex.convit.published import PUBLISHED, WEIGHTS_NAME, not_fetched
from comvex.convit.shapes import mismatch, native_side
from comvex.convit.weights import read_weights
from comvex.convit.weights.info import FUNCTION_FIELDS
from comvex.convit.weights_files import unwrap
from comvex.errors import UserError
from comvex.preprocessing import IMAGENET_CROP_PCT, IMAGENET_MEAN, IMAGENET_STD

LOGGER = logging.getLogger(__name__)

OUT_INDICES = (2, 5, 8, 11)
"""Layers whose maps ``features_only`` gives unless ``out_indices`` is given: the end of each quarter."""

FIELDS = {
    "img_size": "image_size",
    "in_chans": "image_channel",
    "pos_drop_rate": "token_dropout",
    "proj_drop_rate": "ff_dropout",
    "attn_drop_rate": "attention_dropout",
    "drop_path_rate": "drop_path",
}
"""What timm calls some fields of ``ConViTConfig``; the others have one name."""

USAGE = """\
usage: python -m comvex.timm_models SCRIPT [ARGUMENTS ...]

Runs a Python script, such as timm's train.py or validate.py, in which timm knows the models of comvex:
{names}

    python -m comvex.timm_models train.py --model comvex_convit_tiny --data-dir pictures --num-classes 10
    torchrun --nproc-per-node 4 -m comvex.timm_models train.py --model comvex_convit_small ...

A script of your own needs only the line "import comvex.timm_models"."""


def settings(hub_id: str = "") -> dict[str, Any]:
    """What timm keeps of a model beside its architecture: as for its own ConViTs, but any picture size works."""
    return {
        "hf_hub_id": hub_id or None,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": False,
        "crop_pct": IMAGENET_CROP_PCT,
        "interpolation": "bicubic",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs(
    {
        **{f"comvex_{name}.fb_in1k": settings(published.hub_id) for name, published in PUBLISHED.items()},
        **{f"comvex_{name}_plus.untrained": settings() for name in PUBLISHED},
    }
)

# What torch.fx cannot look into: forward depends on sizes, or on what they are computed in.
register_notrace_module(PatchEmbedding)
register_notrace_module(GatedPositionalSelfAttention)
register_notrace_function(attend)
register_notrace_function(resample_position_embedding)


def build(
    preset: str,
    *,
    drop_rate: float = 0.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **arguments: Any,
) -> ConViTWithLinearClassifier:
    """A new model of a preset from timm's arguments; any other field of ``ConViTConfig`` goes by its own name.

    ``drop_rate`` is what the authors' ``--drop`` is, dropout on the tokens and in the feed-forward layers (in timm's
    ConViT it is dropout before the head); ``pos_drop_rate`` and ``proj_drop_rate`` set the two apart.
    ``attn_drop_rate`` drops whole heads. Raises ``ValueError`` for a value that no ConViT has, and ``TypeError`` for an
    argument of another name, which is what timm counts on.
    """
    allowed = [*FIELDS, *sorted({field.name for field in dataclasses.fields(ConViTConfig)} - {*FIELDS.values()})]
    for name in arguments:
        if name not in allowed:
            raise TypeError(f"There is no argument {name!r} for a ConViT: it must be one of {', '.join(allowed)}.")
    fields = {"token_dropout": drop_rate, "ff_dropout": drop_rate}
    fields |= {FIELDS.get(name, name): value for name, value in arguments.items()}
    config = ConViTConfig.from_preset(preset, **fields)
    with torch.device(device or torch.get_default_device()):
        return ConViTWithLinearClassifier(config).to(dtype=dtype)


def create(
    variant: str,
    preset: str,
    pretrained: bool,
    *,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> nn.Module:
    """What ``timm.create_model`` calls: a model, or with ``features_only`` one that gives maps at a stride of a patch.

    Raises ``ValueError`` for arguments that do not fit, and with ``pretrained`` if there are no weights or they are
    damaged.
    """
    overlay = dict(pretrained_cfg_overlay or {})
    hub_id = None
    if pretrained:
        source = resolve_pretrained_cfg(variant, pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=overlay)
        hub_id = source.hf_hub_id
        if source.file and source.source != "local-dir":
            known, fields = describe_file(source.file)
            heads = fields.get("heads")
            if heads and arguments.get("heads", heads) != heads:
                raise UserError(f"heads is {arguments['heads']}: it must be {heads}, as in the weights {source.file}.")
            for name in arguments.keys() & set(FUNCTION_FIELDS) & fields.keys():
                if arguments[name] != fields[name]:
                    LOGGER.info("%s: %r in the weights, %r in the model", name, fields[name], arguments[name])
            overlay, arguments = known | overlay, fields | arguments
        elif not (source.has_weights or source.state_dict):
            raise UserError(
                f"There are no published weights for {variant}: the authors published {', '.join(PUBLISHED)}; weights "
                "of your own are given as pretrained_cfg_overlay={'file': ...}."
            )
    try:
        model: Any = build_model_with_cfg(
            functools.partial(build, preset),
            variant,
            pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=overlay,
            pretrained_filter_fn=fit,
            feature_cfg={"out_indices": OUT_INDICES, "feature_cls": "getter"},
            **arguments,
        )
    except OSError as error:  # of which the errors of the Hub's client are
        if not pretrained or not hub_id:
            raise
        use = f"give pretrained_cfg_overlay={{'file': 'FOLDER/{WEIGHTS_NAME}'}}"
        raise not_fetched(variant, hub_id, error, use=use) from error
    model.pretrained_cfg.pop("state_dict", None)  # the file's tensors have done their service
    return model


def describe_file(file: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What timm must know of a local weights file, its tensors too, and arguments for a model of its sizes.

    For a file of ours these are also what no shape tells: heads, pooling, epsilon and the head's activation.

    timm itself would open the file by its ending.

    Raises ``ValueError`` if the file is missing, damaged or no ConViT.
    """
    weights = read_weights(file)
    info, config = weights.info, weights.info.architecture
    height, width = as_pair(config.image_size)
    known = {
        "state_dict": weights.tensors,
        "input_size": (config.image_channel, height, width),
        "num_classes": config.num_classes,
        "mean": tuple(info.preprocessing["mean"]),
        "std": tuple(info.preprocessing["std"]),
        "crop_pct": info.preprocessing["crop_pct"],
    }
    fields: dict[str, Any] = {"img_size": config.image_size, "patch_size": config.patch_size}
    if weights.layout == "comvex":
        fields |= {name: getattr(config, name) for name in FUNCTION_FIELDS}
        fields["heads"] = config.num_heads
    return known, fields


def fit(state_dict: dict[str, Any], model: ConViTWithLinearClassifier) -> dict[str, Tensor]:
    """The tensors of a published or own weights file for ``model``: patch size, position embedding and head adapted.

    Another number of input channels is left to timm, which does it by the same rule. Raises ``ValueError`` naming every
    tensor that is missing, unexpected or of another shape.
    """
    # What timm fetched from an address that was given as "url" may be a checkpoint, which wraps the tensors.
    tensors = unwrap(state_dict, Path("of pretrained weights"), ema=False).tensors
    own = model.state_dict()
    source = source_config(tensors, model)
    target = model.config
    if source.image_channel == 3:
        target = dataclasses.replace(target, image_channel=3)
    adapted, changes = adapt(tensors, source, target, own)
    shapes = {name: tensor.shape for name, tensor in own.items()}
    dim, _, *patch = shapes[PROJECTION]
    shapes[PROJECTION] = torch.Size((dim, source.image_channel, *patch))
    found = mismatch(adapted, shapes)
    if found is not None:
        raise UserError(f"The pretrained weights do not fit the model: {found}.")
    for change in changes:
        LOGGER.info("Pretrained weights, %s", change)
    return adapted


def source_config(tensors: Mapping[str, Tensor], model: Any) -> ConViTConfig:
    """The config of a model like ``model``, but with the sizes of these tensors."""
    if PROJECTION not in tensors:
        raise UserError(f"The pretrained weights are no ConViT's: {PROJECTION} is missing.")
    _, channels, patch_size, _ = tensors[PROJECTION].shape
    # What timm keeps with weights: the arguments of their model if they were given, and the size of the pictures.
    size = getattr(model, "pretrained_model_args", {}).get("img_size", model.pretrained_cfg["input_size"][1:])
    height, width = as_pair(size)
    embedding = tensors.get("pos_embed")
    if embedding is not None and (height // patch_size) * (width // patch_size) != embedding.shape[1]:
        height = width = patch_size * native_side(embedding, "The pretrained weights")
    return dataclasses.replace(
        model.config,
        image_size=(height, width),
        image_channel=channels,
        patch_size=patch_size,
        num_classes=len(tensors.get("head.bias", ())),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a script as Python would, with our names registered; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(names=", ".join(entry_point.__name__ for entry_point in ENTRY_POINTS)))
        return 0
    script = Path(arguments[0])
    if not script.is_file():
        print(f"comvex.timm_models: there is no script {script}: name a Python file.", file=sys.stderr)
        return 2
    sys.argv = arguments
    sys.path.insert(0, str(script.resolve().parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except UserError as error:
        print(f"comvex.timm_models: {error}", file=sys.stderr)
        return 2
    return 0


def comvex_convit_tiny(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """ConViT-Ti: dim 192, 4 heads, 6 M parameters."""
    return create("comvex_convit_tiny", "ConViT_Ti", pretrained, **arguments)


def comvex_convit_tiny_plus(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """ConViT-Ti+: dim 256, 4 heads, 10 M parameters; no published weights."""
    return create("comvex_convit_tiny_plus", "ConViT_Ti_plus", pretrained, **arguments)


def comvex_convit_small(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """ConViT-S: dim 432, 9 heads, 28 M parameters."""
    return create("comvex_convit_small", "ConViT_S", pretrained, **arguments)


def comvex_convit_small_plus(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """ConViT-S+: dim 576, 9 heads, 49 M parameters; no published weights."""
    return create("comvex_convit_small_plus", "ConViT_S_plus", pretrained, **arguments)


def comvex_convit_base(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """ConViT-B: dim 768, 16 heads, 87 M parameters."""
    return create("comvex_convit_base", "ConViT_B", pretrained, **arguments)


def comvex_convit_base_plus(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """ConViT-B+: dim 1024, 16 heads, 153 M parameters; no published weights."""
    return create("comvex_convit_base_plus", "ConViT_B_plus", pretrained, **arguments)


ENTRY_POINTS = (
    comvex_convit_tiny,
    comvex_convit_tiny_plus,
    comvex_convit_small,
    comvex_convit_small_plus,
    comvex_convit_base,
    comvex_convit_base_plus,
)

if __name__ == "__main__":
    from comvex import timm_models  # registers once, under this module's real name

    sys.exit(timm_models.main())

for entry_point in ENTRY_POINTS:
    register_model(entry_point)
