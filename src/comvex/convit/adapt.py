"""Fitting the tensors of one ConViT to another: grid, patch size, channels, classes."""

from __future__ import annotations

import torch
from torch import Tensor

from comvex.convit.config import ConViTConfig, as_pair
from comvex.convit.position_embedding import resample_position_embedding
from comvex.errors import UserError

PROJECTION = "patch_embed.proj.weight"


def resample_patch_projection(weight: Tensor, patch_size: int) -> Tensor:
    """A patch projection (dim, C, patch, patch) for patches of another size (FlexiViT, Beyer et al. 2023, by timm)."""
    from timm.layers.patch_embed import resample_patch_embed

    return resample_patch_embed(weight.detach(), [patch_size, patch_size])


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """A patch projection of one or three channels for another number of them, by timm's rule.

    One channel gets the sum of the three; more repeat what there is, scaled so that the sum stays what it was. Raises
    ``ValueError`` if it has another number of channels.
    """
    if weight.shape[1] == 1:
        return weight.repeat(1, channels, 1, 1) / channels
    if weight.shape[1] != 3:
        raise UserError(
            f"The weights are for {weight.shape[1]} input channels and the model for {channels}: only weights for 1 or "
            "3 channels can be adapted to another number."
        )
    from timm.models import adapt_input_conv  # pyright: ignore[reportPrivateImportUsage]

    return adapt_input_conv(channels, weight)


def head_shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items() if name.startswith("head.")}


def adapt(
    tensors: dict[str, Tensor], source: ConViTConfig, target: ConViTConfig, own: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a ``source`` model for a ``target`` model whose tensors are ``own``, and a line for each change.

    Of ``own`` only the head is looked at: it stays where the classes differ. Raises ``ValueError`` if the channels
    cannot be adapted; what differs otherwise is left as it is, for the caller to find.
    """
    adapted, changes = dict(tensors), []
    heads = head_shapes(tensors), head_shapes(own)
    if heads[0] != heads[1]:
        adapted = {name: tensor for name, tensor in adapted.items() if not name.startswith("head.")}
        adapted |= {name: tensor for name, tensor in own.items() if name.startswith("head.")}
        was = f"that for {source.num_classes} classes" if heads[0] else "there was none"
        changes.append(
            f"head: new, for {target.num_classes} classes ({was})" if heads[1] else f"head: left out ({was})"
        )
    if source.image_channel != target.image_channel and PROJECTION in adapted:
        adapted[PROJECTION] = adapt_channels(adapted[PROJECTION], target.image_channel)
        changes.append(f"input channels: {source.image_channel} -> {target.image_channel}")
    if source.patch_size != target.patch_size and PROJECTION in adapted:
        adapted[PROJECTION] = resample_patch_projection(adapted[PROJECTION], target.patch_size)
        changes.append(f"patch size: {source.patch_size} -> {target.patch_size} pixels")
    if source.grid != target.grid and source.position_embedding and target.position_embedding:
        adapted["pos_embed"] = resample_position_embedding(adapted["pos_embed"], source.grid, target.grid)
        changes.append(f"position embedding: {_patches(source)} -> {_patches(target)}")
    return adapted, changes


def _patches(config: ConViTConfig) -> str:
    rows, columns = config.grid
    height, width = as_pair(config.image_size)
    return f"{rows} x {columns} patches ({height} x {width} pixels)"
