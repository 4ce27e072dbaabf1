"""A whole ConViT: patches, local layers, class token, non-local layers, head.

Parameter names are those of the published checkpoints. Shapes: B pictures, C channels, (height, width) in pixels,
(H, W) rows and columns of patches, N = H * W, dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from comvex.convit.attention import init_linear
from comvex.convit.config import ConViTConfig
from comvex.convit.layer import ConViTLayer
from comvex.convit.position_embedding import resample_position_embedding
from comvex.errors import UserError


class PatchEmbedding(nn.Module):
    """Cuts pictures (B, C, height, width) into patches and projects each: (B, N, dim) and the grid (H, W)."""

    def __init__(self, *, image_channel: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.image_channel = image_channel
        self.patch_size = patch_size
        self.proj = nn.Conv2d(image_channel, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, pictures: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if pictures.ndim != 4 or pictures.shape[1] != self.image_channel:
            raise UserError(
                f"The pictures have shape {tuple(pictures.shape)}: it must be "
                f"(batch, {self.image_channel}, height, width)."
            )
        height, width = pictures.shape[2:]
        if height % self.patch_size or width % self.patch_size or height == 0 or width == 0:
            raise UserError(
                f"The pictures are {height} x {width} pixels: "
                f"each side must be a multiple of the patch size {self.patch_size}."
            )
        patches = self.proj(pictures)  # (B, dim, H, W)
        return patches.flatten(2).transpose(1, 2), (height // self.patch_size, width // self.patch_size)


class ConViTBackbone(nn.Module):
    """ConViT without a head: pictures (B, C, height, width) -> tokens (B, 1 + N, dim), the class token first.

    The local layers (GPSA) see the patches only; then the class token is prepended and the non-local layers
    (self-attention) follow. Any height and width that ``patch_size`` divides is taken, call by call; ``image_size`` is
    the size at which the position embedding, if there is one, is stored.

    The arguments are the fields of ``ConViTConfig``, which documents and checks them.

    Raises ``ValueError`` for arguments or pictures that do not fit.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        image_channel: int = 3,
        patch_size: int = 16,
        num_local_layers: int = 10,
        num_nonlocal_layers: int = 2,
        dim: int = 192,
        locality_strength: float = 1.0,
        heads: int | None = None,
        head_dim: int | None = None,
        pre_norm: bool = False,
        ff_dim: int = 2048,
        ff_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        token_dropout: float = 0.0,
        *,
        position_embedding: bool = False,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
        use_gpsa: bool = True,
    ) -> None:
        super().__init__()
        self.config = config = ConViTConfig(
            image_size=image_size,
            image_channel=image_channel,
            patch_size=patch_size,
            num_local_layers=num_local_layers,
            num_nonlocal_layers=num_nonlocal_layers,
            dim=dim,
            num_classes=0,
            locality_strength=locality_strength,
            heads=heads,
            head_dim=head_dim,
            pre_norm=pre_norm,
            ff_dim=ff_dim,
            ff_dropout=ff_dropout,
            attention_dropout=attention_dropout,
            token_dropout=token_dropout,
            pred_act_fnc_name=None,
            position_embedding=position_embedding,
            norm_eps=norm_eps,
            drop_path=drop_path,
            use_gpsa=use_gpsa,
        )
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbedding(image_channel=image_channel, patch_size=patch_size, dim=dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        rows, columns = config.grid
        self.pos_embed = nn.Parameter(torch.empty(1, rows * columns, dim)) if position_embedding else None
        self.token_dropout = nn.Dropout(token_dropout)
        depth = num_local_layers + num_nonlocal_layers
        self.blocks = nn.ModuleList(
            ConViTLayer(
                dim,
                heads=config.num_heads,
                locality_strength=locality_strength,
                pre_norm=pre_norm,
                ff_dim=ff_dim,
                ff_dropout=ff_dropout,
                attention_dropout=attention_dropout,
                drop_path=drop_path * index / max(depth - 1, 1),
                norm_eps=norm_eps,
                use_gpsa=use_gpsa and index < num_local_layers,
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if pre_norm else nn.Identity()
        for embedding in (self.cls_token, self.pos_embed):
            if embedding is not None:
                nn.init.trunc_normal_(embedding, std=0.02)

    def forward_features(self, pictures: Tensor) -> Tensor:
        """pictures (B, C, height, width) -> tokens (B, 1 + N, dim) after the final norm, the class token first."""
        x, grid = self.patch_embed(pictures)  # (B, N, dim)
        if self.pos_embed is not None:
            x = x + resample_position_embedding(self.pos_embed, self.config.grid, grid)
        x = self.token_dropout(x)
        num_local = self.config.num_local_layers
        for layer in self.blocks[:num_local]:
            x = self._run(layer, x, grid)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)  # (B, 1 + N, dim)
        for layer in self.blocks[num_local:]:
            x = self._run(layer, x)
        return self.norm(x)

    def forward(self, pictures: Tensor) -> Tensor:
        """pictures (B, C, height, width) -> tokens (B, 1 + N, dim), the class token first."""
        return self.forward_features(pictures)

    def _run(self, layer: nn.Module, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint(layer, x, grid, use_reentrant=False)
        return layer(x, grid)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training computes each layer's activations again in backward: less memory, the same gradients."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the embeddings, which the paper's recipe does not decay."""
        return {"pos_embed", "cls_token"}


class ConViTWithLinearClassifier(ConViTBackbone):
    """ConViT for classification: pictures (B, C, height, width) -> logits (B, num_classes), from the class token.

    The head is Linear, activation, LayerNorm, Linear, or one Linear if ``config.pred_act_fnc_name`` is None; with
    ``num_classes=0`` there is no head and the class token (B, dim) is returned.

    Raises ``ValueError`` for pictures that do not fit.
    """

    def __init__(self, config: ConViTConfig) -> None:
        super().__init__(**config.backbone_arguments())
        self.config = config
        self.head = build_head(config)

    def forward_head(self, tokens: Tensor) -> Tensor:
        """tokens (B, 1 + N, dim) -> logits (B, num_classes)."""
        return self.head(tokens[:, 0])

    def forward(self, pictures: Tensor) -> Tensor:
        """pictures (B, C, height, width) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(pictures))


def build_head(config: ConViTConfig) -> nn.Module:
    """The map from the class token (B, dim) to logits (B, num_classes)."""
    if config.num_classes == 0:
        return nn.Identity()
    last = nn.Linear(config.dim, config.num_classes)
    init_linear(last)
    if config.pred_act_fnc_name is None:
        return last
    first = nn.Linear(config.dim, config.dim)
    init_linear(first)
    activation: nn.Module = getattr(nn, config.pred_act_fnc_name)()
    return nn.Sequential(first, activation, nn.LayerNorm(config.dim, eps=config.norm_eps), last)
