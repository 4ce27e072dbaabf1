"""What each layer's attention gets in the forward pass, handed on layer by layer so that nothing need be kept.

Shapes: B pictures, T tokens (N = H * W patches, after the class token where there is one), heads, head_dim, dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from comvex.convit.attention import GatedPositionalSelfAttention, SelfAttention
from comvex.convit.model import ConViTBackbone
from comvex.errors import UserError

PICTURES_AT_ONCE = 32
"""A tensor of more pictures than this is passed through the model in pieces."""
LARGEST_MAP = 2**23
"""Attention weights that are held at once: 32 MB in float32, whatever the size of the pictures."""

Batches = Tensor | Iterable[Tensor | tuple[Tensor, ...]]
"""Pictures (num, C, height, width), or batches of them, such as a loader's (pictures, labels)."""


@dataclass(frozen=True)
class LayerInput:
    """What the attention of one layer gets for a batch of pictures."""

    layer: int
    attention: GatedPositionalSelfAttention | SelfAttention
    tokens: Tensor
    """(B, T, dim)."""
    grid: tuple[int, int]

    @property
    def num_prefix(self) -> int:
        """Tokens before those of the patches: 1 where there is a class token, else 0."""
        return self.tokens.shape[1] - self.grid[0] * self.grid[1]

    def query_and_key(self) -> tuple[Tensor, Tensor]:
        """Both (B, heads, T, head_dim), the query scaled, in at least float32."""
        attention = self.attention
        projection = attention.qk if isinstance(attention, GatedPositionalSelfAttention) else attention.qkv
        projected = projection(self.tokens).unflatten(-1, (-1, attention.heads, attention.head_dim))
        query, key, *_ = projected.to(at_least_float32(projected)).permute(2, 0, 3, 1, 4)
        return query * attention.head_dim**-0.5, key

    def score_blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """The scores of content attention piece by piece: which pictures, which queries, and (b, heads, q, T)."""
        query, key = self.query_and_key()
        pictures, heads, num_tokens, _ = key.shape
        at_once = max(1, LARGEST_MAP // (heads * num_tokens * num_tokens))
        queries_at_once = max(1, LARGEST_MAP // (heads * num_tokens))
        for first in range(0, pictures, at_once):
            chosen = slice(first, first + at_once)
            for start in range(0, num_tokens, queries_at_once):
                rows = slice(start, start + queries_at_once)
                yield chosen, rows, query[chosen, :, rows] @ key[chosen].mT


def at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it the model is in evaluation mode; afterwards it and each of its parts is in the mode of before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def visit_attention(model: ConViTBackbone, pictures: Tensor, visit: Callable[[LayerInput], None]) -> None:
    """One forward pass of pictures (B, C, height, width), in which ``visit`` sees the input of each layer's attention.

    Raises ``ValueError`` if that is no ConViT, or the pictures do not fit.
    """
    check_model(model)
    check_pictures(model, pictures)
    device = model.patch_embed.proj.weight.device
    grid = model.patch_embed.grid_of(*pictures.shape[-2:])

    def hook_of(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(attention: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            assert isinstance(attention, GatedPositionalSelfAttention | SelfAttention)
            visit(LayerInput(layer, attention, arguments[0], grid))

        return hook

    hooks = [
        block.get_submodule("attn").register_forward_pre_hook(hook_of(layer))
        for layer, block in enumerate(model.blocks)
    ]
    try:
        with evaluating(model):
            model.forward_features(pictures.to(device))  # not model(...): compiled code would not call the hooks
    finally:
        for hook in hooks:
            hook.remove()


def check_model(model: object) -> None:
    """Raises ``ValueError`` for what is no ConViT, compiled or not."""
    if not isinstance(getattr(model, "_orig_mod", model), ConViTBackbone):
        raise UserError(
            f"The model is a {type(model).__name__}: it must be a ConViTBackbone or one with a classifier, without a "
            "wrapper such as DistributedDataParallel."
        )


def check_pictures(model: ConViTBackbone, pictures: object) -> None:
    """Raises ``ValueError`` for what is no batch (B, C, height, width) of the model's type."""
    wanted = f"a tensor (batch, {model.config.image_channel}, height, width)"
    if not isinstance(pictures, Tensor):
        raise UserError(f"pictures is a {type(pictures).__name__}: it must be {wanted}.")
    if pictures.ndim != 4 or pictures.shape[1] != model.config.image_channel:
        raise UserError(f"pictures has shape {tuple(pictures.shape)}: it must be {wanted}.")
    dtype = model.patch_embed.proj.weight.dtype
    if pictures.dtype != dtype:
        raise UserError(f"pictures is of {pictures.dtype}: it must be of the model's {dtype}.")


def attention_inputs(model: ConViTBackbone, pictures: Tensor) -> list[Tensor]:
    """The tokens (B, T, dim) that each layer's attention gets, first layer first, from one forward pass."""
    return [given.tokens for given in layer_inputs(model, pictures)]


def layer_inputs(model: ConViTBackbone, pictures: Tensor) -> list[LayerInput]:
    """The input of every layer's attention, first layer first."""
    inputs: list[LayerInput] = []
    visit_attention(model, pictures, inputs.append)
    return inputs


def batches_of(pictures: Batches) -> Iterator[Tensor]:
    """Batches (B, C, height, width) of the pictures; empty ones, of which nothing could be read, are left out.

    Raises ``ValueError`` for what is neither a tensor nor begins with one.
    """
    if not isinstance(pictures, Iterable):
        raise UserError(f"pictures is a {type(pictures).__name__}: it must be a tensor, or batches of pictures.")
    for batch in pictures.split(PICTURES_AT_ONCE) if isinstance(pictures, Tensor) else pictures:
        first = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(first, Tensor):
            raise UserError(
                f"A batch of pictures is a {type(batch).__name__}: it must be a tensor (batch, channels, height, "
                "width), or a tuple that begins with one."
            )
        if len(first):
            yield first
