"""The two attentions of a ConViT: gated positional self-attention and plain self-attention.

Shapes: B pictures, N tokens (for GPSA: N = H * W patches in row-major order), heads, head_dim, dim = heads * head_dim.
"""

import math

import torch
from torch import Tensor, nn

from comvex.convit.blend import blend
from comvex.convit.config import check_rate, resolve_heads
from comvex.convit.content import attend
from comvex.convit.positional import PositionalProjection
from comvex.errors import UserError


def init_linear(linear: nn.Linear, *, std: float = 0.02) -> None:
    """Truncated normal, bias zero; with a standard deviation of 0.02 the paper's (DeiT's) start of every Linear."""
    nn.init.trunc_normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def resolve_grid(num_tokens: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    """(rows, columns) of ``num_tokens`` patches: the grid given, or a square one if it is None."""
    if grid is None:
        side = math.isqrt(num_tokens)
        if side * side != num_tokens:
            raise UserError(f"{num_tokens} tokens are no square: give grid=(rows, columns) with that product.")
        return side, side
    try:
        rows, columns = grid
    except (TypeError, ValueError) as error:
        raise UserError(f"grid is {grid!r}: it must be (rows, columns).") from error
    if isinstance(rows, float) or isinstance(columns, float) or rows < 1 or rows * columns != num_tokens:
        raise UserError(f"grid is {rows} x {columns}: it must have as many patches as there are tokens, {num_tokens}.")
    return rows, columns


class GatedPositionalSelfAttention(nn.Module):
    """GPSA: content attention and positional attention, blended by one learned gate per head (paper, Eq. 7).

    ``gpsa(x, grid=None)`` maps x (B, rows * columns, dim) to the same shape; the patches are in row-major order and the
    grid is a square if left out. Per head, with s = sigmoid(gate):

        GPSA(x) = (1 - s) softmax(Q K^T / sqrt(head_dim)) V + s P V

    where P, the softmax of the positional scores, is applied as its row and column factors (``positional.py``), so
    that the cost is that of plain attention and any grid works.

    Heads 0 ... k * k - 1, k = floor(sqrt(heads)), start as the k x k kernel of a convolution with the gates at 1
    (s = 0.73) and the value matrix at identity. If ``heads`` is no perfect square the remaining heads start with
    random positional weights near zero (truncated normal, standard deviation 0.02): wide kernels that look nowhere in
    particular, nearly uniform on a small grid.

    Three switches make the rows of the paper's ablation (Table 3); none of them changes the names of the weights.
    Without ``train_gates`` the gating parameters are 0 for good (s = 0.5: content and position have equal parts).
    Without ``convolutional_init`` positional weights and value matrix start truncated normal, the former with standard
    deviation 0.02, the latter with ``init_std``, as all other matrices. With ``freeze_positional`` no weight of
    the module is trained. What is frozen has no gradient, so that optimisers and DDP leave it alone.

    ``attention_dropout`` drops the whole attention map of a head, per picture, as ``nn.Dropout2d`` on the map would.

    ``key_mask`` (B, rows * columns) is for pictures of different sizes padded to one grid: true for each picture's own
    patches, which must be a product of rows and columns (a rectangle). What the padded patches get means nothing.

    Raises ``ValueError`` if heads and head_dim do not fit dim, or the grid does not fit the tokens.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int | None = None,
        head_dim: int | None = None,
        locality_strength: float = 1.0,
        attention_dropout: float = 0.0,
        train_gates: bool = True,
        convolutional_init: bool = True,
        init_std: float = 0.02,
        freeze_positional: bool = False,
    ) -> None:
        super().__init__()
        check_rate("attention_dropout", attention_dropout)
        self.train_gates, self.convolutional_init, self.init_std = train_gates, convolutional_init, init_std
        self.dim = dim
        self.heads = resolve_heads(dim, heads=heads, head_dim=head_dim)
        self.head_dim = dim // self.heads
        self.qk = nn.Linear(dim, 2 * dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.pos_proj = PositionalProjection(
            self.heads, locality_strength=locality_strength, convolutional_init=convolutional_init
        )
        self.gating_param = nn.Parameter(torch.empty(self.heads), requires_grad=train_gates)
        self.proj = nn.Linear(dim, dim)
        self.attention_dropout = nn.Dropout2d(attention_dropout)
        self.reset_parameters()
        if freeze_positional:
            self.requires_grad_(False)

    def reset_parameters(self) -> None:
        """The start described above."""
        if self.v.weight.is_meta:
            return  # there is nothing to fill, and eye_ would import PyTorch's compiler: two seconds
        init_linear(self.qk, std=self.init_std)
        init_linear(self.proj, std=self.init_std)
        if self.convolutional_init:
            nn.init.eye_(self.v.weight)
        else:
            init_linear(self.v, std=self.init_std)
        nn.init.constant_(self.gating_param, 1.0 if self.train_gates else 0.0)
        self.pos_proj.reset_parameters()

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None, key_mask: Tensor | None = None) -> Tensor:
        """x (B, rows * columns, dim) -> (B, rows * columns, dim)."""
        grid = resolve_grid(x.shape[1], grid)
        value = self.v(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)  # (B, heads, N, head_dim)
        content = self._attend(x, value, key_mask)  # (B, heads, N, head_dim)
        gate = self.gating_param.sigmoid()[:, None, None]  # (heads, 1, 1)
        row_factor, column_factor = self.pos_proj(grid, key_mask)
        # The position's share rides on the small factor.
        small = (part.to(value.dtype) for part in (1 - gate, gate * row_factor, column_factor))
        # Dropping a head's map drops what it gives: the same mask, without the map.
        blended = self.attention_dropout(blend(content, value, *small))
        return self.proj(blended.transpose(1, 2).flatten(2))

    def _attend(self, x: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        """Content attention (B, heads, N, head_dim), apart so that queries and keys are freed where they can be."""
        query, key = self.qk(x).unflatten(-1, (2, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        return attend(query, key, value, key_mask)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, heads={self.heads}, head_dim={self.head_dim}"


class SelfAttention(nn.Module):
    """Plain multi-head self-attention: x (B, N, dim) -> (B, N, dim), with whole-head dropout as in GPSA.

    ``key_mask`` (B, N), if given, is true for the tokens that count as keys.

    Raises ``ValueError`` if heads and head_dim do not fit dim.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int | None = None,
        head_dim: int | None = None,
        attention_dropout: float = 0.0,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        check_rate("attention_dropout", attention_dropout)
        self.dim, self.init_std = dim, init_std
        self.heads = resolve_heads(dim, heads=heads, head_dim=head_dim)
        self.head_dim = dim // self.heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.attention_dropout = nn.Dropout2d(attention_dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_linear(self.qkv, std=self.init_std)
        init_linear(self.proj, std=self.init_std)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """x (B, N, dim) -> (B, N, dim)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        content = attend(query, key, value, key_mask)  # (B, heads, N, head_dim)
        content = self.attention_dropout(content)
        return self.proj(content.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, heads={self.heads}, head_dim={self.head_dim}"
