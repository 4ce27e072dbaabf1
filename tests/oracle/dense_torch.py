"""GPSA with its N x N maps written out in torch, for gradients and large grids; itself checked against ``gpsa.py``.

Shapes: B pictures, N = rows * columns patches in row-major order, heads, dim = heads * head_dim.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def offsets(grid: tuple[int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    """r = (dx, dy, dx^2 + dy^2) from every query to every key: (N, N, 3)."""
    rows, columns = grid
    token = torch.arange(rows * columns)
    row, column = token // columns, token % columns
    dx = column[None, :] - column[:, None]
    dy = row[None, :] - row[:, None]
    return torch.stack([dx, dy, dx**2 + dy**2], dim=-1).to(dtype)


def positional_map(weight: Tensor, bias: Tensor, grid: tuple[int, int]) -> Tensor:
    """weight (heads, 3), bias (heads,) -> (heads, N, N)."""
    scores = torch.einsum("qkr,hr->hqk", offsets(grid, weight.dtype), weight) + bias[:, None, None]
    return scores.softmax(dim=-1)


def gpsa(
    x: Tensor,
    weights: Mapping[str, Tensor],
    grid: tuple[int, int],
    *,
    drop: Callable[[Tensor], Tensor] = lambda attention: attention,
) -> Tensor:
    """x (B, N, dim) -> (B, N, dim); ``drop`` is applied to the blended map (B, heads, N, N)."""
    pictures, tokens, dim = x.shape
    heads = len(weights["gating_param"])

    def split(y: Tensor) -> Tensor:
        return y.reshape(pictures, tokens, heads, dim // heads).permute(0, 2, 1, 3)  # (B, heads, N, head_dim)

    query, key = (split(y) for y in (x @ weights["qk.weight"].T).chunk(2, dim=-1))
    value = split(x @ weights["v.weight"].T)
    content = (query @ key.transpose(-2, -1) / (dim // heads) ** 0.5).softmax(dim=-1)
    positional = positional_map(weights["pos_proj.weight"], weights["pos_proj.bias"], grid)
    s = weights["gating_param"].sigmoid()[:, None, None]
    attention = (1 - s) * content + s * positional
    attention = drop(attention / attention.sum(dim=-1, keepdim=True))
    mixed = (attention @ value).permute(0, 2, 1, 3).reshape(pictures, tokens, dim)
    return mixed @ weights["proj.weight"].T + weights["proj.bias"]
