"""How far attention looks: the non-locality of every layer and head.

The paper defines it as the distance from query to key, in patches, averaged over keys with the attention as weights,
then over queries and pictures:

    D = 1/N sum over queries q, sum over keys k of A[q, k] * |place(k) - place(q)|

Each layer gets its own input, as in the forward pass; the official repository's script feeds the raw patch embeddings
to every layer (its issue 23), so that its figures of all layers but the first are of inputs that these never see.

Shapes: B pictures, T tokens (N = H * W patches, after the class token where there is one), heads.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comvex.convit.analysis.inputs import Batches, LayerInput, batches_of, check_model, visit_attention
from comvex.convit.analysis.positions import gates
from comvex.convit.attention import GatedPositionalSelfAttention
from comvex.convit.model import ConViTBackbone
from comvex.convit.positional import positional_factors
from comvex.errors import UserError


@dataclass(frozen=True)
class Nonlocality:
    """Mean attention-weighted distance in patches, all (layers, heads); NaN where a layer does not have it.

    In layers with a class token only the patches count, as queries and, renormalised, as keys.
    """

    content: NDArray[np.float64]
    positional: NDArray[np.float64]
    """Of the positional attention; NaN in layers of plain attention."""
    blended: NDArray[np.float64]
    """Of what the layer does: (1 - s) content + s positional, s = sigmoid(gate); of plain attention its content."""
    class_token_share: NDArray[np.float64]
    """Share in [0, 1] of the patches' attention that goes to the class token; NaN in layers that have none."""
    num_pictures: int


def nonlocality(model: ConViTBackbone, pictures: Batches) -> Nonlocality:
    """How far every layer and head looks, in patches, on the mean over pictures (definition: top of this module).

    ``pictures`` (num, C, height, width), or an iterable of such batches (or of tuples that begin with one), which may
    differ in size; memory does not grow with their number. Raises ``ValueError`` if there are none, or they do not fit.
    """
    check_model(model)
    sums = Sums(model)
    for batch in batches_of(pictures):
        visit_attention(model, batch, sums.add)
    return sums.means(model)


def head_figures(model: ConViTBackbone, pictures: Batches) -> list[dict[str, int | float | None]]:
    """A row for each layer and head: its gate in [0, 1] and its non-locality in patches; None where it has none.

    The rows have layer, head, gate, nonlocality_content, nonlocality_positional and nonlocality_blended. Meant to be
    called during training, on the same few pictures (num, C, height, width) each time.
    """
    found = nonlocality(model, pictures)
    columns = {
        "gate": gates(model),
        "nonlocality_content": found.content,
        "nonlocality_positional": found.positional,
        "nonlocality_blended": found.blended,
    }
    return [
        {"layer": layer, "head": head}
        | {
            name: None if math.isnan(value[layer, head]) else float(value[layer, head])
            for name, value in columns.items()
        }
        for layer, head in np.ndindex(found.content.shape)
    ]


class Sums:
    """What is summed over the pictures, for each layer and head."""

    def __init__(self, model: ConViTBackbone) -> None:
        shape = len(model.blocks), model.config.num_heads
        self.distance = np.zeros(shape)
        self.class_token_share = np.zeros(shape)
        self.has_class_token = np.zeros(shape, dtype=bool)
        self.pictures_by_grid: Counter[tuple[int, int]] = Counter()

    def add(self, given: LayerInput) -> None:
        """Take in one layer's input for a batch."""
        if given.layer == 0:
            self.pictures_by_grid[given.grid] += len(given.tokens)
        prefix, num_patches = given.num_prefix, given.grid[0] * given.grid[1]
        self.has_class_token[given.layer] = prefix > 0
        for _, queries, score in given.score_blocks():
            skip = max(0, prefix - queries.start)  # the class token is no place to look from
            score = score[:, :, skip:]
            distance = patch_distance(given.grid, slice(queries.start + skip - prefix, queries.stop - prefix))
            looked = torch.einsum("bhqk,qk->bhq", score[..., prefix:].softmax(dim=-1), distance.to(score))
            self.distance[given.layer] += sum_of_heads(looked) / num_patches
            if prefix:
                share = score.softmax(dim=-1)[..., :prefix].sum(dim=-1)
                self.class_token_share[given.layer] += sum_of_heads(share) / num_patches

    def means(self, model: ConViTBackbone) -> Nonlocality:
        """Raises ``ValueError`` if there was no picture."""
        num = self.pictures_by_grid.total()
        if num == 0:
            raise UserError("There are no pictures: non-locality is a mean over at least one.")
        content, gate = self.distance / num, gates(model)
        by_grid = [count * positional_distance(model, grid) for grid, count in self.pictures_by_grid.items()]
        positional = np.sum(by_grid, axis=0) / num
        return Nonlocality(
            content=content,
            positional=positional,
            blended=np.where(np.isnan(gate), content, (1 - gate) * content + gate * positional),
            class_token_share=np.where(self.has_class_token, self.class_token_share / num, np.nan),
            num_pictures=num,
        )


def sum_of_heads(values: Tensor) -> NDArray[np.float64]:
    """(b, heads, q) -> (heads,), summed in float64."""
    return values.cpu().double().sum(dim=(0, 2)).numpy()


def patch_distance(grid: tuple[int, int], queries: slice) -> Tensor:
    """Distance in patches from each of the queries, patches in row-major order, to every patch: (q, N)."""
    rows, columns = grid
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double().view(-1, 2)  # (N, 2)
    offset = place[queries, None] - place[None]
    return torch.hypot(offset[..., 0], offset[..., 1])


def positional_distance(model: ConViTBackbone, grid: tuple[int, int]) -> NDArray[np.float64]:
    """Non-locality of positional attention on a grid: (layers, heads), NaN in layers of plain attention.

    The map is a product of two factors, so that the weight of an offset (dy, dx), summed over the queries, is the
    product of two sums over diagonals: nothing of size N x N is needed.
    """
    distance = np.full((len(model.blocks), model.config.num_heads), np.nan)
    lengths = [torch.arange(1 - length, length).double() for length in grid]
    between = torch.hypot(lengths[0][:, None], lengths[1])  # (2 H - 1, 2 W - 1)
    for layer, block in enumerate(model.blocks):
        attention = block.get_submodule("attn")
        if isinstance(attention, GatedPositionalSelfAttention):
            factors = positional_factors(attention.pos_proj.weight.detach().cpu().double(), grid)
            by_row, by_column = (sum_of_diagonals(factor) for factor in factors)
            distance[layer] = torch.einsum("hy,hx,yx->h", by_row, by_column, between).numpy() / (grid[0] * grid[1])
    return distance


def uniform_nonlocality(grid: tuple[int, int]) -> float:
    """The non-locality of attention that is the same everywhere, in patches: what to compare with on a grid."""
    lengths = [np.arange(1 - length, length) for length in grid]
    num_rows, num_columns = (length - np.abs(offsets) for length, offsets in zip(grid, lengths, strict=True))
    distance = np.hypot(lengths[0][:, None], lengths[1])  # (2 H - 1, 2 W - 1)
    return float(num_rows @ distance @ num_columns / (grid[0] * grid[1]) ** 2)


def sum_of_diagonals(factor: Tensor) -> Tensor:
    """(heads, length, length) -> (heads, 2 length - 1): the sum for every offset from query to key, lowest first."""
    length = factor.shape[-1]
    diagonals = [factor.diagonal(offset, dim1=1, dim2=2).sum(dim=1) for offset in range(1 - length, length)]
    return torch.stack(diagonals, dim=1)
