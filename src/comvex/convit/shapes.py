"""What a ConViT's tensors are called and how large they are: what a config demands of a file, and a file tells of one.

Names are those of the published checkpoints, which are the model's own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from comvex.convit.config import ConViTConfig
from comvex.convit.model import ConViTWithLinearClassifier
from comvex.errors import UserError

CONFIG_HINT = "config= (on the command line --config FILE, as ConViTConfig.to_json writes it)"


class UnknownArchitectureError(UserError):
    """The names and shapes of a file do not tell its architecture; the message asks for ``config=``."""


def expected_shapes(config: ConViTConfig) -> dict[str, torch.Size]:
    """The name and shape of every tensor of a model, in the model's order."""
    with torch.device("meta"):
        model = ConViTWithLinearClassifier(config)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def mismatch(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> str | None:
    """Every name that is missing, unexpected or of another shape, in words, counted; None if all fits."""
    missing = [name for name in shapes if name not in tensors]
    unexpected = [name for name in tensors if name not in shapes]
    misshapen = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(shapes[name])}"
        for name, tensor in tensors.items()
        if name in shapes and tensor.shape != shapes[name]
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    return "; ".join(f"{len(names)} {what}: {', '.join(names)}" for what, names in found if names) or None


def check_shapes(tensors: Mapping[str, Tensor], config: ConViTConfig, what: str) -> None:
    """Raises ``ValueError`` with every name at fault unless the tensors are exactly those of the config."""
    found = mismatch(tensors, expected_shapes(config))
    if found is not None:
        raise UserError(f"{what} is no complete ConViT: {found}.")


def infer_config(tensors: Mapping[str, Tensor], what: str) -> ConViTConfig:
    """The config of a checkpoint in the published layout, from its names and shapes.

    A square grid, pre-norm, epsilon 1e-6 and one Linear as head are taken for granted, as in the published models;
    the heads are counted in the gates. Raises ``ValueError`` if the tensors do not tell.
    """
    projection = tensors.get("patch_embed.proj.weight")
    if projection is None or projection.ndim != 4 or projection.shape[2] != projection.shape[3]:
        shape = "is missing" if projection is None else f"has shape {tuple(projection.shape)}"
        raise UserError(f"{what} is no ConViT: patch_embed.proj.weight {shape}, not (dim, channels, patch, patch).")
    dim, channels, patch_size, _ = projection.shape
    blocks = numbered(tensors, r"blocks\.(\d+)\..*")
    gates = numbered(tensors, r"blocks\.(\d+)\.attn\.gating_param")
    if blocks != list(range(len(blocks))) or gates != list(range(len(gates))):
        raise UserError(
            f"{what} is no complete ConViT: it has the layers {blocks}, GPSA in {gates}, which leave some out."
        )
    for missing, needed in (
        ("gates of GPSA layers (blocks.0.attn.gating_param)", bool(gates)),
        ("self-attention layer after the GPSA layers", len(blocks) > len(gates)),
        ("final norm (norm.weight)", "norm.weight" in tensors),
        ("position embedding (pos_embed)", "pos_embed" in tensors),
        ("head of one Linear", not any(re.match(r"head\.\d", name) for name in tensors)),
    ):
        if not needed:
            raise UnknownArchitectureError(
                f"{what} has no {missing}, so its architecture does not show: give it as {CONFIG_HINT}."
            )
    ff = tensors.get("blocks.0.mlp.fc1.weight")
    head = tensors.get("head.weight", tensors.get("head.bias"))
    try:
        return ConViTConfig.from_preset(
            "ConViT_Ti",
            image_size=patch_size * native_side(tensors["pos_embed"], what),
            image_channel=channels,
            patch_size=patch_size,
            num_local_layers=len(gates),
            num_nonlocal_layers=len(blocks) - len(gates),
            dim=dim,
            heads=tensors["blocks.0.attn.gating_param"].numel(),
            ff_dim=4 * dim if ff is None else len(ff),
            num_classes=0 if head is None else len(head),
        )
    except UnknownArchitectureError:
        raise
    except (UserError, TypeError) as error:
        raise UserError(f"{what} is no ConViT: by its shapes {error}") from error


def numbered(tensors: Mapping[str, Tensor], pattern: str) -> list[int]:
    """The numbers that a pattern finds in the names, in order."""
    return sorted({int(found[1]) for name in tensors if (found := re.fullmatch(pattern, name, re.ASCII))})


def native_side(pos_embed: Tensor, what: str) -> int:
    """Patches a side of the square grid that a position embedding (1, N, dim) is for."""
    side = math.isqrt(pos_embed.shape[1]) if pos_embed.ndim == 3 else 0
    if side == 0 or side * side != pos_embed.shape[1]:
        raise UnknownArchitectureError(
            f"{what} has a position embedding of shape {tuple(pos_embed.shape)}, which is no square grid: give the "
            f"architecture as {CONFIG_HINT}."
        )
    return side
