"""What a ConViT's tensors are called and how large they are: what a config demands of a file, and a file tells of one.

Names are those of the published checkpoints, which are the model's own.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from comvex.convit.config import PRESET_DEPTH, ConViTConfig, width_of_preset
from comvex.convit.model import ConViTWithLinearClassifier
from comvex.errors import UserError

CONFIG_HINT = "config= (on the command line --config FILE, as ConViTConfig.to_json writes it)"


class UnknownArchitectureError(UserError):
    """The names and shapes of a file do not tell its architecture; the message asks for ``config=``."""


@functools.lru_cache(maxsize=8)  # a training run asks for the same one whenever it saves its weights
def expected_shapes(config: ConViTConfig) -> Mapping[str, torch.Size]:
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


def infer_config(
    tensors: Mapping[str, Tensor], what: str, *, image_size: tuple[int, int] | None = None, global_pool: str = "token"
) -> ConViTConfig:
    """The config of a checkpoint in the published layout, from its names and shapes.

    A square grid, pre-norm, epsilon 1e-6 and one Linear as head are taken for granted, as in the published models;
    the heads are counted in the GPSA layers. Where tensors disagree the majority decides, so that comparing them with
    the config names the odd one. ``image_size`` and ``global_pool`` are what something beside the file says; a size is
    taken if the position embedding has its number of patches. Raises ``ValueError`` if the tensors do not tell.
    """
    projection = tensors.get("patch_embed.proj.weight")
    if projection is None or projection.ndim != 4 or projection.shape[2] != projection.shape[3]:
        shape = "is missing" if projection is None else f"has shape {tuple(projection.shape)}"
        raise UserError(f"{what} is no ConViT: patch_embed.proj.weight {shape}, not (dim, channels, patch, patch).")
    depth, num_local = count_layers(tensors)
    per_head = lengths(tensors, r"blocks\.\d+\.attn\.(?:gating_param|pos_proj\.weight|pos_proj\.bias)")
    for missing, needed in (
        ("gates of GPSA layers (blocks.0.attn.gating_param)", bool(num_local and per_head)),
        ("self-attention layer after the GPSA layers", depth > num_local),
        ("final norm (norm.weight)", "norm.weight" in tensors),
        ("position embedding (pos_embed)", "pos_embed" in tensors),
        ("head of one Linear", not any(re.match(r"head\.\d", name) for name in tensors)),
    ):
        if not needed:
            raise UnknownArchitectureError(
                f"{what} has no {missing}, so its architecture does not show: give it as {CONFIG_HINT}."
            )
    dim = most_common([len(projection), *lengths(tensors, r"(?:blocks\.\d+\.)?norm\d?\.weight")])
    ff = lengths(tensors, r"blocks\.\d+\.mlp\.fc1\.(?:weight|bias)")
    head = head_tensors(tensors)
    try:
        config = ConViTConfig.from_preset(
            "ConViT_Ti",
            image_size=native_size(tensors["pos_embed"], projection.shape[3], what, image_size),
            global_pool=global_pool,
            image_channel=projection.shape[1],
            patch_size=projection.shape[3],
            num_local_layers=num_local,
            num_nonlocal_layers=depth - num_local,
            dim=dim,
            heads=most_common(per_head),
            ff_dim=most_common(ff) if ff else 4 * dim,
            num_classes=len(next(iter(head.values()))) if head else 0,
        )
    except UnknownArchitectureError:
        raise
    except UserError as error:
        raise UserError(f"{what} is no ConViT: by its shapes {error}") from error
    check_depth(config, what)
    check_head(tensors, config, what)
    return config


def head_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the head's two tensors that are a matrix and a vector, as they must be, and so tell the classes."""
    return {
        name: tensors[name]
        for name, num_axes in (("head.weight", 2), ("head.bias", 1))
        if name in tensors and tensors[name].ndim == num_axes
    }


def check_head(tensors: Mapping[str, Tensor], config: ConViTConfig, what: str) -> None:
    """Raises ``ValueError`` if the head's two tensors are of different numbers of classes: either may be the wrong one.

    Both are named, after all else that is at fault.
    """
    head = head_tensors(tensors)
    if len({len(tensor) for tensor in head.values()}) < 2:
        return
    rest = {name: shape for name, shape in expected_shapes(config).items() if name not in head}
    found = mismatch({name: tensor for name, tensor in tensors.items() if name not in head}, rest)
    shapes = " and ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in head.items())
    raise UserError(
        f"{what} is no complete ConViT: {f'{found}; ' if found else ''}{shapes} are not of one number of classes."
    )


def check_depth(config: ConViTConfig, what: str) -> None:
    """Raises ``ValueError`` if all but the number of layers is that of a published size: some may have been lost."""
    depth = config.num_local_layers, config.num_nonlocal_layers
    size = width_of_preset(config)
    if size is None or config.patch_size != 16 or depth == PRESET_DEPTH:
        return
    gone = [f"blocks.{index}" for index in range(sum(depth), sum(PRESET_DEPTH))]
    lost = f"{', '.join(gone)} may be missing" if gone else "some may be too many"
    raise UnknownArchitectureError(
        f"{what} is a {size} but for its {depth[0]} GPSA and {depth[1]} self-attention layers instead of "
        f"{PRESET_DEPTH[0]} and {PRESET_DEPTH[1]}: {lost}; if it is whole, give its architecture as {CONFIG_HINT}."
    )


def count_layers(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """The number of layers, and of GPSA layers among them, from the names; strays and gaps are not counted out.

    A layer whose number is far beyond how many there are is a stray; one has GPSA if more of its names say so than not.
    """
    names = [found for name in tensors if (found := re.fullmatch(r"blocks\.(\d{1,9})\.(.*)", name, re.ASCII))]
    num_layers = len({found[1] for found in names})
    depth = 1 + max((int(found[1]) for found in names if int(found[1]) < 2 * num_layers), default=-1)
    votes: Counter[int] = Counter()
    for found in names:
        votes[int(found[1])] += bool(re.match(r"attn\.(?:qk|v|pos_proj|gating_param)(?:\.|$)", found[2]))
        votes[int(found[1])] -= found[2].startswith("attn.qkv.")
    return depth, 1 + max((layer for layer in range(depth) if votes[layer] > 0), default=-1)


def lengths(tensors: Mapping[str, Tensor], pattern: str) -> list[int]:
    """The first dimension of every tensor whose name fits a pattern."""
    return [len(tensor) for name, tensor in tensors.items() if tensor.ndim and re.fullmatch(pattern, name, re.ASCII)]


def most_common(values: list[int]) -> int:
    return Counter(values).most_common(1)[0][0]


def native_size(pos_embed: Tensor, patch_size: int, what: str, said: tuple[int, int] | None) -> int | tuple[int, int]:
    """The size in pixels that a position embedding is for: what was said of it if that fits, a square otherwise."""
    if said is not None and pos_embed.ndim == 3 and said[0] != said[1]:
        rows, columns = (side // patch_size for side in said)
        if rows * columns == pos_embed.shape[1] and all(side % patch_size == 0 for side in said):
            return said
    return patch_size * native_side(pos_embed, what)


def native_side(pos_embed: Tensor, what: str) -> int:
    """Patches a side of the square grid that a position embedding (1, N, dim) is for."""
    side = math.isqrt(pos_embed.shape[1]) if pos_embed.ndim == 3 else 0
    if side == 0 or side * side != pos_embed.shape[1]:
        raise UnknownArchitectureError(
            f"{what} has a position embedding of shape {tuple(pos_embed.shape)}, which is no square grid: give the "
            f"architecture as {CONFIG_HINT}."
        )
    return side
