"""Where attention looks, as maps over the patches, for chosen queries only.

Shapes: B pictures, T tokens (N = H * W patches, after the class token where there is one), heads, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import torch
from torch import Tensor

from comvex.convit.analysis.inputs import LayerInput, check_model, check_pictures, layer_inputs, visit_attention
from comvex.convit.attention import GatedPositionalSelfAttention
from comvex.convit.model import ConViTBackbone, take_indices
from comvex.errors import UserError


@dataclass(frozen=True)
class AttentionMaps:
    """Where the patches that were asked for look in one layer; every map sums to one over the patches."""

    layer: int
    content: Tensor
    """(B, heads, Q, H, W); in layers with a class token without its share, renormalised."""
    positional: Tensor | None
    """(heads, Q, H, W), the same for every picture; None in layers without positional attention."""
    blended: Tensor
    """(B, heads, Q, H, W): (1 - s) content + s positional with s = sigmoid(gate); content where that is all."""
    class_token_share: Tensor | None
    """(B, heads, Q): what goes to the class token; None in layers that have none."""


def attention_maps(
    model: ConViTBackbone,
    pictures: Tensor,
    *,
    queries: Sequence[tuple[int, int]],
    layers: int | Sequence[int] | None = None,
) -> list[AttentionMaps]:
    """Where each of the ``queries``, (row, column) of patches, looks in ``layers``, from one forward pass.

    ``pictures`` (B, C, height, width). ``layers``: as in ``forward_intermediates``, None for all; the answer has one
    entry each, first layer first. Only the rows of the maps that are asked for are computed.

    Raises ``ValueError`` for a layer or patch that is not there, or pictures that do not fit.
    """
    check_model(model)
    check_pictures(model, pictures)
    chosen = chosen_layers(len(model.blocks), layers)
    places = chosen_patches(queries, model.patch_embed.grid_of(*pictures.shape[-2:]))
    maps: list[AttentionMaps] = []

    def visit(given: LayerInput) -> None:
        if given.layer in chosen:
            maps.append(maps_of_layer(given, places))

    visit_attention(model, pictures, visit)
    return maps


def chosen_layers(depth: int, layers: int | Sequence[int] | None) -> set[int]:
    """The layers counted from the front; raises ``ValueError`` for one that is not there."""
    if layers is not None and not isinstance(layers, int):
        try:
            layers = [index(layer) for layer in layers]
        except TypeError as error:
            raise UserError(
                f"layers is {layers!r}: it must be a number of last layers, or a list of layers."
            ) from error
    return set(take_indices(depth, layers, name="layers"))


def chosen_patches(queries: Sequence[tuple[int, int]], grid: tuple[int, int]) -> list[tuple[int, int]]:
    """The queries as plain numbers; raises ``ValueError`` if there is none, or one that is no patch of the grid."""
    rows, columns = grid
    try:
        places = [(index(row), index(column)) for row, column in queries]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"queries is {queries!r}: it must be a list of patches (row, column), two whole numbers each."
        ) from error
    if not places:
        raise UserError("queries is empty: it must name at least one patch (row, column).")
    for row, column in places:
        if not (0 <= row < rows and 0 <= column < columns):
            raise UserError(
                f"The patch ({row}, {column}) lies outside the grid: rows go from 0 to {rows - 1}, columns to "
                f"{columns - 1}."
            )
    return places


def maps_of_layer(given: LayerInput, queries: Sequence[tuple[int, int]]) -> AttentionMaps:
    prefix, grid, attention = given.num_prefix, given.grid, given.attention
    row, column = torch.tensor(queries, device=given.tokens.device).unbind(1)
    query, key = given.query_and_key()
    score = query[:, :, prefix + row * grid[1] + column] @ key.mT  # (B, heads, Q, T)
    content = score[..., prefix:].softmax(dim=-1).unflatten(-1, grid)
    share = score.softmax(dim=-1)[..., :prefix].sum(dim=-1) if prefix else None
    if not isinstance(attention, GatedPositionalSelfAttention):
        return AttentionMaps(given.layer, content, None, content, share)
    row_factor, column_factor = attention.pos_proj(grid)
    positional = row_factor[:, row, :, None] * column_factor[:, column, None, :]  # (heads, Q, H, W)
    gate = attention.gating_param.to(content.dtype).sigmoid()[:, None, None, None]
    return AttentionMaps(given.layer, content, positional, (1 - gate) * content + gate * positional, share)


def class_token_attention(model: ConViTBackbone, pictures: Tensor) -> Tensor:
    """Where the class token looks in each of the non-local layers.

    ``pictures`` (B, C, height, width); returns (num_nonlocal_layers, B, heads, H, W), the share of each patch in the
    class token's attention over all patches (its attention to itself is left out, so that each map sums to one).

    Raises ``ValueError`` if the model has no non-local layers, or the pictures do not fit.
    """
    check_model(model)
    if model.config.num_nonlocal_layers == 0:
        raise UserError("num_nonlocal_layers is 0: the class token attends to patches in non-local layers only.")
    maps: list[Tensor] = []

    def visit(given: LayerInput) -> None:
        if given.num_prefix:
            query, key = given.query_and_key()
            score = torch.einsum("bhd,bhnd->bhn", query[:, :, 0], key[:, :, 1:])  # (B, heads, N)
            maps.append(score.softmax(dim=-1).unflatten(-1, given.grid))

    visit_attention(model, pictures, visit)
    return torch.stack(maps)


@torch.no_grad()
def attention_rollout(model: ConViTBackbone, pictures: Tensor) -> Tensor:
    """How much of each patch reaches the head through all layers, by attention rollout (Abnar & Zuidema 2020).

    Each layer passes on (A + I) / 2, A its attention averaged over the heads; the product is taken from the head's
    side, a vector per picture, so that no N x N map is made. That side is the class token, or with
    ``global_pool="avg"`` the mean of the patches; what stays in the class token itself is left out.

    ``pictures`` (B, C, height, width); returns (B, H, W), each map summing to one. Raises ``ValueError`` if the class
    token sees no patch because there are no non-local layers, or the pictures do not fit.
    """
    check_model(model)
    of_token = model.config.global_pool != "avg"
    if of_token and model.config.num_nonlocal_layers == 0:
        raise UserError("num_nonlocal_layers is 0: the class token attends to patches in non-local layers only.")
    inputs = layer_inputs(model, pictures)
    last = inputs[-1]
    share = torch.zeros(last.tokens.shape[:2], device=last.tokens.device, dtype=last.query_and_key()[0].dtype)
    share[:, 0 if of_token else slice(last.num_prefix, None)] = 1  # (B, T)
    for given in reversed(inputs):
        share = share[:, share.shape[1] - given.tokens.shape[1] :]  # local layers do not have the class token
        share = (share + passed_back(given, share)) / 2
    patches = share[:, inputs[0].num_prefix :]
    return (patches / patches.sum(dim=1, keepdim=True)).unflatten(1, inputs[0].grid)


def passed_back(given: LayerInput, share: Tensor) -> Tensor:
    """share (B, T) of the outputs of an attention -> that of its inputs (B, T): times its map, averaged over heads."""
    attention, grid = given.attention, given.grid
    content = share.new_zeros(len(share), attention.heads, share.shape[1])
    for pictures, queries, score in given.score_blocks():
        content[pictures] += torch.einsum("bq,bhqk->bhk", share[pictures, queries], score.softmax(dim=-1))
    if not isinstance(attention, GatedPositionalSelfAttention):
        return content.mean(dim=1)
    row_factor, column_factor = (factor.to(share.dtype) for factor in attention.pos_proj(grid))
    positional = torch.einsum("byx,hyj,hxi->bhji", share.unflatten(1, grid), row_factor, column_factor).flatten(2)
    gate = attention.gating_param.to(share.dtype).sigmoid()[:, None]
    return ((1 - gate) * content + gate * positional).mean(dim=1)
