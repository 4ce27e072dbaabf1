"""A whole ConViT: patches, local layers, class token, non-local layers, head.

Parameter names are those of the published checkpoints. Shapes: B pictures, C channels, (height, width) in pixels,
(H, W) rows and columns of patches, N = H * W, dim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from comvex.convit.attention import init_linear
from comvex.convit.config import ConViTConfig
from comvex.convit.hub import HubModel
from comvex.convit.layer import ConViTLayer
from comvex.convit.position_embedding import position_embedding_of_each, resample_position_embedding
from comvex.convit.positional import valid_mask
from comvex.errors import UserError

if TYPE_CHECKING:
    from comvex.convit.weights import WeightsInfo


class PatchEmbedding(nn.Module):
    """Cuts pictures (B, C, height, width) into patches and projects each: (B, N, dim) and the grid (H, W).

    With ``pad_to_patch`` the pictures are first padded with zeros on the right and bottom to whole patches.
    """

    def __init__(self, *, image_channel: int, patch_size: int, dim: int, pad_to_patch: bool = False) -> None:
        super().__init__()
        self.image_channel = image_channel
        self.patch_size = patch_size
        self.pad_to_patch = pad_to_patch
        self.proj = nn.Conv2d(image_channel, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, pictures: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if not isinstance(pictures, Tensor):
            raise UserError(f"The pictures are a {type(pictures).__name__}: it must be a tensor or a list of tensors.")
        if pictures.ndim != 4 or pictures.shape[1] != self.image_channel:
            raise UserError(
                f"The pictures have shape {tuple(pictures.shape)}: it must be "
                f"(batch, {self.image_channel}, height, width)."
            )
        if not pictures.is_floating_point():
            raise UserError(
                f"The pictures are of type {str(pictures.dtype).removeprefix('torch.')}: it must be a floating-point "
                "type, normalised as the weights want it."
            )
        height, width = pictures.shape[2:]
        grid = self.grid_of(height, width)
        if self.pad_to_patch:
            pictures = F.pad(pictures, (0, grid[1] * self.patch_size - width, 0, grid[0] * self.patch_size - height))
        # Laid out as tokens: sums keep the layout of their first term, and norms copy what is laid out as pictures.
        return self.proj(pictures).flatten(2).transpose(1, 2).contiguous(), grid

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the patches of a picture; raises ``ValueError`` if it does not come to whole patches."""
        size = self.patch_size
        if height == 0 or width == 0:
            raise UserError(f"The pictures are {height} x {width} pixels: they are empty.")
        if self.pad_to_patch:
            return (height + size - 1) // size, (width + size - 1) // size
        if height % size or width % size:
            raise UserError(
                f"The pictures are {height} x {width} pixels: each side must be a multiple of the patch size {size}, "
                "unless the model is made with pad_to_patch=True."
            )
        return height // size, width // size

    def pad_together(self, pictures: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Pictures (C, height, width) of different sizes as one batch, and the (rows, columns) of each.

        They are padded on the right and bottom with zeros to the largest height and width in whole patches.
        """
        if not pictures:
            raise UserError("The list of pictures is empty: it must have at least one.")
        for number, picture in enumerate(pictures):
            if not isinstance(picture, Tensor) or picture.dtype != pictures[0].dtype:
                what = str(picture.dtype) if isinstance(picture, Tensor) else type(picture).__name__
                raise UserError(f"Picture {number} of the list is a {what}: all must be tensors of one type.")
            if picture.ndim != 3 or picture.shape[0] != self.image_channel:
                raise UserError(
                    f"Picture {number} of the list has shape {tuple(picture.shape)}: it must be "
                    f"({self.image_channel}, height, width)."
                )
        valid = [self.grid_of(*picture.shape[1:]) for picture in pictures]
        height, width = (self.patch_size * max(sizes) for sizes in zip(*valid, strict=True))
        padded = [
            F.pad(picture, (0, width - picture.shape[2], 0, height - picture.shape[1])) for picture in pictures
        ]  # fmt: skip
        return torch.stack(padded), valid


class ConViTBackbone(nn.Module):
    """ConViT without a head: pictures (B, C, height, width) -> tokens (B, 1 + N, dim), the class token first.

    The local layers (GPSA) see the patches only; then the class token is prepended and the non-local layers
    (self-attention) follow. Any height and width that ``patch_size`` divides is taken, call by call, with
    ``pad_to_patch`` any at all; ``image_size`` is the size at which the position embedding, if there is one, is stored.

    A list of pictures (C, height, width) of different sizes is one batch: each gets the tokens that it would get alone,
    at the top left of the largest grid among them; the tokens of the padding are zero.

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
        train_gates: bool = True,
        convolutional_init: bool = True,
        init_std: float = 0.02,
        freeze_positional: bool = False,
        pad_to_patch: bool = False,
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
            train_gates=train_gates,
            convolutional_init=convolutional_init,
            init_std=init_std,
            freeze_positional=freeze_positional,
            pad_to_patch=pad_to_patch,
        )
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbedding(
            image_channel=image_channel, patch_size=patch_size, dim=dim, pad_to_patch=pad_to_patch
        )
        self.cls_token: nn.Parameter | None = nn.Parameter(torch.empty(1, 1, dim))
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
                train_gates=train_gates,
                convolutional_init=convolutional_init,
                init_std=init_std,
                freeze_positional=freeze_positional,
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if pre_norm else nn.Identity()
        for embedding in (self.cls_token, self.pos_embed):
            if embedding is not None:
                nn.init.trunc_normal_(embedding, std=0.02)

    # The way of a picture

    def forward(self, pictures: Tensor | Sequence[Tensor]) -> Tensor:
        """pictures (B, C, height, width), or a list of (C, height, width) -> tokens (B, 1 + N, dim)."""
        return self.forward_features(pictures)

    def forward_features(self, pictures: Tensor | Sequence[Tensor]) -> Tensor:
        """pictures (B, C, height, width) -> tokens (B, 1 + N, dim) after the final norm, the class token first."""
        x, key_mask, _ = self._layers(*self._embed(pictures))
        return self._finish(x, key_mask)

    def _embed(self, pictures: Tensor | Sequence[Tensor]) -> tuple[Tensor, tuple[int, int], Tensor | None]:
        """Patches with their positions (B, N, dim), their grid, and for a list of pictures which of them count."""
        valid = None
        if isinstance(pictures, list | tuple):
            pictures, valid = self.patch_embed.pad_together(pictures)
        x, grid = self.patch_embed(pictures)  # (B, N, dim)
        key_mask = None if valid is None else valid_mask(valid, grid, device=x.device)  # (B, N)
        if self.pos_embed is not None:
            native = self.config.grid
            if valid is None:
                x = x + resample_position_embedding(self.pos_embed, native, grid)
            else:
                x = x + position_embedding_of_each(self.pos_embed, native, valid, grid)
        return self.token_dropout(x), grid, key_mask

    def _layers(
        self, x: Tensor, grid: tuple[int, int], key_mask: Tensor | None, *, keep: Collection[int] = (), depth: int = -1
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """patches (B, N, dim) -> tokens (B, 1 + N, dim) through ``depth`` layers (-1: all), and those tokens kept."""
        kept = []
        num_local = self.config.num_local_layers
        for index, layer in enumerate(self.blocks):
            if index == depth:
                break
            if index == num_local:
                x, key_mask = self._prepend_class_token(x, key_mask)
            x = self._run(layer, x, grid, key_mask)
            if index in keep:
                kept.append(x)
        if len(self.blocks) == num_local or 0 <= depth <= num_local:
            x, key_mask = self._prepend_class_token(x, key_mask)
        return x, key_mask, kept

    def _prepend_class_token(self, x: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.cls_token is None:
            return x, key_mask
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)  # (B, 1 + N, dim)
        return x, None if key_mask is None else F.pad(key_mask, (1, 0), value=True)

    def _run(self, layer: nn.Module, x: Tensor, grid: tuple[int, int], key_mask: Tensor | None) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint(layer, x, grid, key_mask, use_reentrant=False)
        return layer(x, grid, key_mask)

    def _finish(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """The final norm, and zeros where a picture of a list has no patch."""
        x = self.norm(x)
        return x if key_mask is None else x.masked_fill(~key_mask[..., None], 0)

    def forward_intermediates(
        self,
        x: Tensor | Sequence[Tensor],
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The patches after chosen layers, as maps at a stride of ``patch_size`` pixels; arguments as in timm.

        ``indices``: layers, negative ones from the end; a number n means the last n, None all. ``output_fmt``: "NCHW"
        for maps (B, dim, H, W), "NLC" for tokens (B, N, dim). ``norm`` applies the final norm to each.
        ``return_prefix_tokens`` makes each a pair with the class token (B, 1, dim), (B, 0, dim) in local layers.

        Returns (tokens of ``forward_features``, list of intermediates), or the list alone with ``intermediates_only``.
        Raises ``ValueError`` for layers that the model does not have, or another format.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt is {output_fmt!r}: it must be 'NCHW' or 'NLC'.")
        chosen = take_indices(len(self.blocks), indices)
        patches, grid, key_mask = self._embed(x)
        depth = max(chosen) + 1 if stop_early else -1
        tokens, key_mask, kept = self._layers(patches, grid, key_mask, keep=chosen, depth=depth)
        by_layer = dict(zip(sorted(set(chosen)), kept, strict=True))
        intermediates = []
        for index in chosen:
            num_prefix = 1 if index >= self.config.num_local_layers else 0
            mask = key_mask if key_mask is None or num_prefix else key_mask[:, 1:]
            value = by_layer[index]
            if norm:
                value = self._finish(value, mask)
            elif mask is not None:
                value = value.masked_fill(~mask[..., None], 0)
            prefix, value = value[:, :num_prefix], value[:, num_prefix:]  # (B, 0 or 1, dim), (B, N, dim)
            if output_fmt == "NCHW":
                value = value.transpose(1, 2).unflatten(2, grid)  # (B, dim, H, W)
            intermediates.append((value, prefix) if return_prefix_tokens else value)
        if intermediates_only:
            return intermediates
        return self._finish(tokens, key_mask), intermediates

    # What timm's scripts ask of a model

    @property
    def num_features(self) -> int:
        """Width of a token."""
        return self.config.dim

    embed_dim = head_hidden_size = num_features

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before those of the patches: 1, the class token; 0 in a model pruned to local layers."""
        return 0 if self.cls_token is None else 1

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without a head."""
        return self.config.num_classes

    @property
    def in_chans(self) -> int:
        """Number of input channels."""
        return self.config.image_channel

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """For each layer the width and the stride in pixels of its map."""
        reduction = self.config.patch_size
        return [
            {"module": f"blocks.{index}", "num_chs": self.config.dim, "reduction": reduction}
            for index in range(len(self.blocks))
        ]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training computes each layer's activations again in backward: less memory, the same gradients."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the embeddings, which the paper's recipe does not decay."""
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort the parameters by depth, for layer-wise learning rates (timm's ``group_parameters``)."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": r"^blocks\.(\d+)" if coarse else [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers after the last of ``indices`` (as in ``forward_intermediates``), on request norm and head.

        The class token goes with the head if only local layers are left, which never see it: every parameter that stays
        is used. Returns the indices, all counted from the front.
        """
        chosen = take_indices(len(self.blocks), indices)
        depth = max(chosen) + 1
        self.blocks = self.blocks[:depth]
        num_local = min(depth, self.config.num_local_layers)
        self.config = dataclasses.replace(
            self.config, num_local_layers=num_local, num_nonlocal_layers=depth - num_local
        )  # fmt: skip
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
            if num_local == depth:
                self.cls_token = None
        return chosen

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A backbone has no classifier; only 0 classes are possible."""
        if num_classes:
            raise UserError(f"num_classes is {num_classes}: a backbone has no head; take ConViTWithLinearClassifier.")

    @torch.no_grad()
    def set_input_size(
        self, img_size: int | Sequence[int] | None = None, patch_size: int | Sequence[int] | None = None
    ) -> None:
        """Make another picture or patch size the native one: position embedding and patch projection are resampled.

        Other sizes work at each call without this. Raises ``ValueError`` for sizes that do not fit together.
        """
        from comvex.convit.adapt import resample_patch_projection

        if isinstance(patch_size, Sequence):
            if len(set(patch_size)) != 1:
                raise UserError(f"patch_size is {patch_size}: patches must be square.")
            patch_size = patch_size[0]
        old = self.config
        self.config = new = dataclasses.replace(
            old,
            image_size=old.image_size if img_size is None else img_size,  # pyright: ignore[reportArgumentType]
            patch_size=old.patch_size if patch_size is None else patch_size,
        )
        if new.patch_size != old.patch_size:
            weight, bias = self.patch_embed.proj.weight, self.patch_embed.proj.bias
            resampled = resample_patch_projection(weight, new.patch_size)
            self.patch_embed = PatchEmbedding(
                image_channel=new.image_channel,
                patch_size=new.patch_size,
                dim=new.dim,
                pad_to_patch=new.pad_to_patch,
            ).train(self.training)
            self.patch_embed.proj.weight = nn.Parameter(resampled, requires_grad=weight.requires_grad)
            self.patch_embed.proj.bias = bias
        if self.pos_embed is not None and new.grid != old.grid:
            resampled = resample_position_embedding(self.pos_embed, old.grid, new.grid)
            self.pos_embed = nn.Parameter(resampled, requires_grad=self.pos_embed.requires_grad)


class ConViTWithLinearClassifier(ConViTBackbone, HubModel):
    """ConViT for classification: pictures (B, C, height, width) -> logits (B, num_classes), from the class token.

    A list of pictures (C, height, width) of different sizes is one batch; each gets the logits that it would get alone.
    The head is Linear, activation, LayerNorm, Linear, or one Linear if ``config.pred_act_fnc_name`` is None; with
    ``num_classes=0`` there is no head and the class token (B, dim) is returned.

    ``info`` is what is known of the weights: preprocessing, labels, licence, figures; None for new ones.

    Raises ``ValueError`` for pictures that do not fit.
    """

    def __init__(self, config: ConViTConfig) -> None:
        super().__init__(**config.backbone_arguments())
        self.config = config
        self.info: WeightsInfo | None = None
        self.head = build_head(config)

    def forward(self, pictures: Tensor | Sequence[Tensor]) -> Tensor:
        """pictures (B, C, height, width), or a list of (C, height, width) -> logits (B, num_classes)."""
        tokens = self.forward_features(pictures)
        if isinstance(pictures, list | tuple) and self.config.global_pool == "avg":
            # The mean is over each picture's own patches; the tokens of the padding are zero.
            grids = [self.patch_embed.grid_of(*picture.shape[1:]) for picture in pictures]
            sums = tokens[:, self.num_prefix_tokens :].sum(dim=1)  # (B, dim)
            means = [total / (rows * columns) for total, (rows, columns) in zip(sums, grids, strict=True)]
            return self.head(torch.stack(means))
        return self.forward_head(tokens)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """tokens (B, 1 + N, dim) -> logits (B, num_classes), or what the head would see with ``pre_logits``.

        The tokens must be those of a batch of one size: of a list of pictures it cannot be seen here which belong to
        padding, so that with ``global_pool="avg"`` only ``forward`` takes the mean over each picture's own patches.
        """
        if self.config.global_pool == "token":
            x = x[:, 0]  # (B, dim)
        elif self.config.global_pool == "avg":
            x = x[:, self.num_prefix_tokens :].mean(dim=1)  # (B, dim)
        return x if pre_logits else self.head(x)

    @property
    def global_pool(self) -> str:
        """What the head sees: "token", "avg" or "" (all tokens)."""
        return self.config.global_pool

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head with random weights for another number of classes, 0 for none; labels that were known go."""
        pool = self.config.global_pool if global_pool is None else global_pool
        if pool == "token" and self.cls_token is None:
            raise UserError("global_pool is 'token': the class token was pruned, so it must be 'avg' or ''.")
        self.config = dataclasses.replace(self.config, num_classes=num_classes, global_pool=pool)
        self.head = build_head(self.config).to(self.patch_embed.proj.weight).train(self.training)
        if self.info is not None:
            self.info = dataclasses.replace(self.info, architecture=self.config, labels=(), figures={})


def take_indices(depth: int, indices: int | Sequence[int] | None, *, name: str = "indices") -> list[int]:
    """Layers counted from the front: of a list of indices, of the last n for a number n, of all for None.

    ``name`` is that of the argument, for the ``ValueError`` about layers that are not there.
    """
    if indices is None:
        return list(range(depth))
    if isinstance(indices, int):
        if not 1 <= indices <= depth:
            raise UserError(f"{name} is {indices}: a number of last layers must lie between 1 and {depth}.")
        return list(range(depth - indices, depth))
    if not indices or any(not -depth <= index < depth for index in indices):
        raise UserError(f"{name} is {list(indices)}: layers must lie between {-depth} and {depth - 1}.")
    return [index % depth for index in indices]


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


def unwrapped(model: nn.Module) -> ConViTBackbone | None:
    """The ConViT in a model that may be wrapped for compilation or data parallelism; None if there is none."""
    inner: Any = model
    while inner is not None and not isinstance(inner, ConViTBackbone):
        inner = getattr(inner, "_orig_mod", getattr(inner, "module", None))
    return inner
