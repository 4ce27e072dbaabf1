"""Content attention, softmax(Q K^T / sqrt(head_dim)) V: PyTorch's fused operation, or products where that is slow.

In bfloat16 on the CPU PyTorch's fused attention, forward and backward, takes up to twelve times as long as the products
that it consists of, called one by one. So there training writes the attention out: whole where the maps are small, else
a few heads at a time, which computes the weights again in backward and keeps no map either (docs/decisions/0008).

Shapes: B pictures, N tokens, heads, head_dim; G of the B * heads maps of N x N weights.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 2**22
"""Weights whose maps are held at once: 8 MB in bfloat16."""
KEPT = 2**21
"""Weights of all maps of a layer that are kept for backward at most: 12 MB, as float32 and bfloat16."""


def attend(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V over the keys that count: all (B, heads, N, head_dim), ``key_mask`` (B, N)."""
    if is_slow_when_fused(query):
        return attend_in_pieces(query, key, value, key_mask)
    mask = None if key_mask is None else key_mask[:, None, None, :]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def is_slow_when_fused(query: Tensor) -> bool:
    """Training in bfloat16 on the CPU, unless one map is too large or a compiler, which would unroll the pieces, looks.

    Without a backward the fused one has little to lose, and its scores are of float32.
    """
    return (
        torch.is_grad_enabled()
        and query.requires_grad
        and query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and query.shape[-2] ** 2 <= PIECE
    )


def attend_in_pieces(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
    """``attend``, written out: for all of the B * heads maps at once if they are small, else a few at a time."""
    shape = query.shape
    if key_mask is not None:
        key_mask = key_mask[:, None, None, :].expand(-1, shape[1], 1, -1).flatten(0, 1)  # (B * heads, 1, N)
    scaled = query * query.shape[-1] ** -0.5
    query, key, value = (tensor.flatten(0, 1) for tensor in (scaled, key, value))
    if query.shape[0] * shape[-2] ** 2 <= KEPT:
        return (weights(query, key, key_mask) @ value).view(shape)
    return Pieces.apply(query, key, value, key_mask).view(shape)


class Pieces(torch.autograd.Function):
    """softmax(Q K^T) V of (B * heads, N, head_dim) each; keeps these alone and computes the weights again in backward.

    Both ways are made of PyTorch's operations alone, so that vmap sees into them and there is a second derivative.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        return torch.cat([weights(q, k, mask) @ v for q, k, v, mask in pieces(query, key, value, key_mask)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, key_mask = ctx.saved_tensors
        of_query, of_key, of_value = [], [], []
        for q, k, v, mask, gradient in pieces(query, key, value, key_mask, gradients[0].contiguous()):
            weight = weights(q, k, mask)  # (G, N, N)
            of_value.append(weight.mT @ gradient)
            of_score = torch.ops.aten._softmax_backward_data(gradient @ v.mT, weight, -1, weight.dtype)
            of_query.append(of_score @ k)
            of_key.append(of_score.mT @ q)
        return torch.cat(of_query), torch.cat(of_key), torch.cat(of_value), None


def weights(query: Tensor, key: Tensor, key_mask: Tensor | None) -> Tensor:
    """softmax(Q K^T) over the keys that count, (G, N, N); float32 takes less time than short rows of bfloat16."""
    scores = query @ key.mT
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask, -torch.inf)
    return scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)


def pieces(query: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """All tensors (B * heads, ...), so many heads at a time that their maps are one ``PIECE``."""
    num_heads = max(1, PIECE // query.shape[1] ** 2)
    parts = [query.split(num_heads)]
    parts += [[None] * len(parts[0]) if other is None else other.split(num_heads) for other in others]
    yield from zip(*parts, strict=True)
