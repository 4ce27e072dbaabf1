"""One layer of a ConViT: attention and a feed-forward network, each with a residual connection and a norm.

Shapes: B pictures, N tokens, dim.
"""

from torch import Tensor, nn

from comvex.convit.attention import GatedPositionalSelfAttention, SelfAttention, init_linear
from comvex.convit.config import check_integer, check_rate


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drops the whole residual branch of a picture."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * (x.new_empty(x.shape[0], 1, 1).bernoulli_(keep) / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


class FeedForward(nn.Module):
    """Linear, GELU, Linear with dropout after each: x (B, N, dim) -> (B, N, dim)."""

    def __init__(self, dim: int, ff_dim: int, *, dropout: float = 0.0, init_std: float = 0.02) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, ff_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(ff_dim, dim)
        self.dropout = nn.Dropout(dropout)
        init_linear(self.fc1, std=init_std)
        init_linear(self.fc2, std=init_std)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(self.act(self.fc1(x)))))


class ConViTLayer(nn.Module):
    """Attention and feed-forward, post-norm LN(x + f(x)) by default, pre-norm x + f(LN(x)) on request.

    ``layer(x, grid=None)`` maps x (B, N, dim) to the same shape. With ``use_gpsa`` the tokens are the patches of a grid
    of (rows, columns), a square if left out (see ``GatedPositionalSelfAttention``); without it the attention is plain
    and the grid is not looked at. ``key_mask`` (B, N), if given, is true for the tokens that count as keys.

    Raises ``ValueError`` if heads and head_dim do not fit dim, or the grid does not fit the tokens.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int | None = None,
        head_dim: int | None = None,
        locality_strength: float = 1.0,
        pre_norm: bool = False,
        ff_dim: int = 2048,
        ff_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        use_gpsa: bool = True,
        train_gates: bool = True,
        convolutional_init: bool = True,
        init_std: float = 0.02,
        freeze_positional: bool = False,
    ) -> None:
        super().__init__()
        check_integer("ff_dim", ff_dim, at_least=1)
        check_rate("ff_dropout", ff_dropout)
        check_rate("drop_path", drop_path)
        self.pre_norm = pre_norm
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn: GatedPositionalSelfAttention | SelfAttention
        if use_gpsa:
            self.attn = GatedPositionalSelfAttention(
                dim,
                heads=heads,
                head_dim=head_dim,
                locality_strength=locality_strength,
                attention_dropout=attention_dropout,
                train_gates=train_gates,
                convolutional_init=convolutional_init,
                init_std=init_std,
                freeze_positional=freeze_positional,
            )
        else:
            self.attn = SelfAttention(
                dim, heads=heads, head_dim=head_dim, attention_dropout=attention_dropout, init_std=init_std
            )
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = FeedForward(dim, ff_dim, dropout=ff_dropout, init_std=init_std)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None, key_mask: Tensor | None = None) -> Tensor:
        """x (B, N, dim) -> (B, N, dim)."""
        if self.pre_norm:
            x = x + self.drop_path(self._attend(self.norm1(x), grid, key_mask))
            return x + self.drop_path(self.mlp(self.norm2(x)))
        x = self.norm1(x + self.drop_path(self._attend(x, grid, key_mask)))
        return self.norm2(x + self.drop_path(self.mlp(x)))

    def _attend(self, x: Tensor, grid: tuple[int, int] | None, key_mask: Tensor | None) -> Tensor:
        if isinstance(self.attn, GatedPositionalSelfAttention):
            return self.attn(x, grid, key_mask)
        return self.attn(x, key_mask)
