"""The blend of content and positional attention, which keeps nothing for backward but what it is given.

    blend = c C + A_y V A_x^T

C is what content attention gives, V the values, c = 1 - s the content's share per head, A_y and A_x the row and the
column factor of positional attention, with the position's share s in A_y (paper, Eq. 7). Plain attention keeps C and V
for its backward anyway, and mixing is cheap: backward mixes again instead of keeping a copy of the values for each axis
in every layer.

Shapes: B pictures, heads, H rows, W columns of patches, N = H * W tokens, head_dim.
"""

from typing import Any

import torch
from torch import Tensor

from comvex.convit.positional import columns_first, mix_grid, rows_first


def blend(content: Tensor, value: Tensor, content_share: Tensor, row_factor: Tensor, column_factor: Tensor) -> Tensor:
    """c C + A_y V A_x^T, in the shape of content.

    content and value (B, heads, N, head_dim), content_share (heads, 1, 1), row_factor (heads, H, H) with the position's
    share in it, column_factor (heads, W, W); the factors have B in front if every picture has its own.
    """
    inputs = content, value, content_share, row_factor, column_factor
    # Where there is no backward, calling an autograd.Function is half of what the blend of one picture costs.
    return Blend.apply(*inputs) if torch.is_grad_enabled() else Blend.forward(*inputs)


class Blend(torch.autograd.Function):
    """See ``blend``. Both ways are made of PyTorch's operations alone, so that vmap and compilers see into them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        content: Tensor, value: Tensor, content_share: Tensor, row_factor: Tensor, column_factor: Tensor
    ) -> Tensor:
        # One pass over the values, the gates being on the small tensors.
        return torch.addcmul(mix_grid(value, row_factor, column_factor), content, content_share)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        content, value, content_share, row_factor, column_factor = ctx.saved_tensors
        of_content, of_value, of_share, *of_factors = ctx.needs_input_grad
        [gradient] = gradients
        mixing = mixing_gradients(gradient, value, row_factor, column_factor, of_factors=any(of_factors))
        return (
            gradient * content_share if of_content else None,
            mixing[0] if of_value else None,
            (gradient * content).sum_to_size(content_share.shape) if of_share else None,
            *mixing[1:],
        )


def mixing_gradients(
    gradient: Tensor, value: Tensor, row_factor: Tensor, column_factor: Tensor, *, of_factors: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of A_y V A_x^T, whose own is G: A_y^T G A_x of the values, (G A_x) V^T and (A_y V)^T G of the factors.

    Each factor's is the sum over what the factor is shared by: head_dim, the other axis, and the pictures.
    """
    grid = row_factor.shape[-1], column_factor.shape[-1]
    across = columns_first(gradient.unflatten(2, grid))  # (B, heads, W, H * head_dim)
    mixed = rows_first(column_factor.mT @ across, grid)  # (B, heads, H, W * head_dim)
    of_value = (row_factor.mT @ mixed).view(value.shape)
    if not of_factors:
        return of_value, None, None
    rows = value.unflatten(2, grid).flatten(3)  # (B, heads, H, W * head_dim)
    of_row_factor = (mixed @ rows.mT).sum_to_size(row_factor.shape)
    del mixed
    seen = columns_first((row_factor @ rows).unflatten(3, (grid[1], -1)))  # (B, heads, W, H * head_dim)
    return of_value, of_row_factor, (across @ seen.mT).sum_to_size(column_factor.shape)
