"""Positional attention of GPSA, which separates exactly into a softmax over rows and one over columns.

For head h the score of key patch k at query patch q, with dx = column(k) - column(q) and dy = row(k) - row(q), is
(paper, Eq. 6 and 8)

    w_x dx + w_y dy + w_d (dx^2 + dy^2)  =  (w_x dx + w_d dx^2) + (w_y dy + w_d dy^2)

so that its softmax over a full rows x columns grid is the product of two small ones, and mixing values by it is mixing
along the columns and then along the rows. Nothing of size N x N is ever made, for any weights and any grid.

A rectangle of valid patches inside a larger grid is a product too, of valid rows and valid columns: pictures of
different sizes, padded to one grid, keep their exact maps with factors of their own.

Shapes: B pictures, heads, H rows, W columns of patches, N = H * W tokens, head_dim.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEGLIGIBLE = 1e-28
"""Shares up to this count as nothing, which is beyond rounding even in float64.

Without this the tails of a kernel are subnormal numbers, which processors multiply many times slower.
"""


def local_positional_weight(heads: int, locality_strength: float) -> Tensor:
    """Weights that make each head a Gaussian kernel looking at one neighbour: the convolutional start (paper, Eq. 9).

    With k = floor(sqrt(heads)) and c = (k - 1) / 2, head i * k + j looks at the offset dx = i - c, dy = j - c, in
    patches; the kernel's precision is 2 * ``locality_strength``.

    Returns (k * k, 3): the weights on (dx, dy, dx^2 + dy^2).
    """
    side = math.isqrt(heads)
    offset = torch.arange(side) - (side - 1) / 2
    dx, dy = torch.meshgrid(offset, offset, indexing="ij")  # both (k, k); head i * k + j is entry [i, j]
    return locality_strength * torch.stack([2 * dx, 2 * dy, -torch.ones_like(dx)], dim=-1).flatten(0, 1)


def axis_factor(linear: Tensor, quadratic: Tensor, length: int, valid: Tensor | None = None) -> Tensor:
    """softmax over keys k of ``linear * (k - q) + quadratic * (k - q)^2``, for every query q on one axis of the grid.

    Takes two weights per head, (heads, 1, 1) each; returns (heads, length, length), rows summing to one. With ``valid``
    (B, length), true for the keys that count in each picture, it returns (B, heads, length, length).
    """
    # Few operations: they work on small tensors, once a layer, where each costs more to call than to compute.
    position = torch.arange(length, device=linear.device, dtype=linear.dtype)
    offset = position - position[:, None]  # (query, key)
    score = torch.addcmul(linear, quadratic, offset) * offset
    if valid is not None:
        score = score.masked_fill(~valid[:, None, None, :], -math.inf)  # (B, heads, query, key)
    return F.threshold(score.softmax(dim=-1), NEGLIGIBLE, 0.0)


def positional_factors(weight: Tensor, grid: tuple[int, int], key_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The two factors of positional attention on a grid of (rows, columns).

    ``weight`` is (heads, 3) on (dx, dy, dx^2 + dy^2). Returns the factor over rows (heads, H, H) and the one over
    columns (heads, W, W); the dense map would be their Kronecker product. At least float32 throughout: squared
    offsets beyond 16 patches are not exact in bfloat16.

    ``key_mask`` (B, N), true for the patches that count, must be a product of rows and columns in each picture (a
    rectangle is one); the factors then have B in front.
    """
    rows, columns = grid
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    w_x, w_y, w_d = weight[:, :, None, None].unbind(dim=1)  # (heads, 1, 1) each
    if key_mask is None:
        return axis_factor(w_y, w_d, rows), axis_factor(w_x, w_d, columns)
    mask = key_mask.unflatten(1, grid)  # (B, H, W)
    return axis_factor(w_y, w_d, rows, mask.any(dim=2)), axis_factor(w_x, w_d, columns, mask.any(dim=1))


def valid_mask(valid: Sequence[tuple[int, int]], grid: tuple[int, int], *, device: torch.device) -> Tensor:
    """Which patches of a grid lie in each picture's own (rows, columns), at its top left: (B, N).

    The sizes are compared as numbers: a tensor of them would be a copy to the GPU, which the host waits for.
    """
    row, column = (torch.arange(length, device=device) for length in grid)
    own_rows = torch.stack([row < rows for rows, _ in valid])  # (B, H)
    own_columns = torch.stack([column < columns for _, columns in valid])  # (B, W)
    return (own_rows[:, :, None] & own_columns[:, None, :]).flatten(1)


def mix_grid(value: Tensor, row_factor: Tensor, column_factor: Tensor) -> Tensor:
    """Apply the dense positional map to the values without making it: along the columns, then along the rows.

    value (B, heads, N, head_dim), row_factor (heads, H, H), column_factor (heads, W, W), both with B in front if every
    picture has its own; returns the shape of value.
    The axis that is mixed stands before all that it is mixed for, so that each factor meets one large matrix per
    picture and head; the other way round, PyTorch would copy the column factor for every row.
    """
    grid = row_factor.shape[-1], column_factor.shape[-1]
    mixed = rows_first(column_factor @ columns_first(value.unflatten(2, grid)), grid)  # (B, heads, H, W * head_dim)
    return (row_factor @ mixed).view(value.shape)


def columns_first(pictures: Tensor) -> Tensor:
    """(B, heads, H, W, head_dim) -> (B, heads, W, H * head_dim): a matrix per picture and head, for a column factor."""
    return pictures.transpose(2, 3).flatten(3)


def rows_first(columns: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, heads, W, H * head_dim) -> (B, heads, H, W * head_dim), for a row factor."""
    return columns.unflatten(3, (grid[0], -1)).transpose(2, 3).flatten(3)


class PositionalProjection(nn.Module):
    """The positional weights of GPSA, under the names that published checkpoints give them.

    ``weight`` (heads, 3) is trained. ``bias`` (heads,) is the same for every key, so that softmax ignores it: it is
    kept for round trips of checkpoints, as a buffer that no optimiser touches. Without ``convolutional_init`` all
    weights start random and near zero.
    """

    def __init__(self, heads: int, *, locality_strength: float, convolutional_init: bool = True) -> None:
        super().__init__()
        self.locality_strength = locality_strength
        self.convolutional_init = convolutional_init
        self.weight = nn.Parameter(torch.empty(heads, 3))
        self.bias: Tensor
        self.register_buffer("bias", torch.zeros(heads))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if self.weight.is_meta:
            return  # there is nothing to fill, and torch.arange would import PyTorch's compiler: two seconds
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)
        if self.convolutional_init:
            local = local_positional_weight(len(self.weight), self.locality_strength)
            self.weight[: len(local)] = local.to(self.weight)

    def forward(self, grid: tuple[int, int], key_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return positional_factors(self.weight, grid, key_mask)

    def extra_repr(self) -> str:
        return f"heads={len(self.weight)}, locality_strength={self.locality_strength}"
