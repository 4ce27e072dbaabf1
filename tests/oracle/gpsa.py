"""GPSA in NumPy float64, in loops from the paper's formula (d'Ascoli et al. 2021, Eq. 6 to 8): slow, plain, no torch.

Shapes: B pictures, N = rows * columns patches in row-major order, heads, dim = heads * head_dim.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(scores: Array) -> Array:
    """Over the one axis of ``scores``."""
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def positional_map(weight: Array, bias: Array, grid: tuple[int, int]) -> Array:
    """softmax over keys of v_pos . r, r = (dx, dy, dx^2 + dy^2): weight (heads, 3), bias (heads,) -> (heads, N, N)."""
    rows, columns = grid
    places = [(row, column) for row in range(rows) for column in range(columns)]
    heads, tokens = len(weight), len(places)
    attention = np.empty((heads, tokens, tokens))
    for head in range(heads):
        w_x, w_y, w_d = (float(w) for w in weight[head])
        for query, (query_row, query_column) in enumerate(places):
            scores = np.empty(tokens)
            for key, (key_row, key_column) in enumerate(places):
                dx = key_column - query_column
                dy = key_row - query_row
                scores[key] = w_x * dx + w_y * dy + w_d * (dx**2 + dy**2) + bias[head]
            attention[head, query] = softmax(scores)
    return attention


def content_map(queries: Array, keys: Array) -> Array:
    """softmax(q k^T / sqrt(head_dim)) of one head: queries and keys (N, head_dim) -> (N, N)."""
    tokens, head_dim = queries.shape
    attention = np.empty((tokens, tokens))
    for query in range(tokens):
        attention[query] = softmax(keys @ queries[query] / math.sqrt(head_dim))
    return attention


def blend(content: Array, positional: Array, gate: float) -> Array:
    """(1 - s) content + s positional with s = sigmoid(gate), renormalised over keys: all (N, N)."""
    s = sigmoid(gate)
    mixed = (1 - s) * content + s * positional
    for query in range(len(mixed)):
        mixed[query] = mixed[query] / mixed[query].sum()
    return mixed


def gpsa(x: Array, weights: Mapping[str, Array], grid: tuple[int, int], *, mask: Array | None = None) -> Array:
    """x (B, N, dim) -> (B, N, dim).

    ``weights`` carry the names of published checkpoints: qk.weight (queries above keys), v.weight, pos_proj.weight,
    pos_proj.bias, gating_param, proj.weight, proj.bias. ``mask`` (B, heads) multiplies the map of a whole head.
    """
    pictures, tokens, dim = x.shape
    heads = len(weights["gating_param"])
    head_dim = dim // heads
    positional = positional_map(weights["pos_proj.weight"], weights["pos_proj.bias"], grid)
    output = np.empty_like(x)
    for picture in range(pictures):
        queries = x[picture] @ weights["qk.weight"][:dim].T
        keys = x[picture] @ weights["qk.weight"][dim:].T
        values = x[picture] @ weights["v.weight"].T
        mixed = np.empty((tokens, dim))
        for head in range(heads):
            own = slice(head * head_dim, (head + 1) * head_dim)
            content = content_map(queries[:, own], keys[:, own])
            attention = blend(content, positional[head], float(weights["gating_param"][head]))
            if mask is not None:
                attention = mask[picture, head] * attention
            for query in range(tokens):
                mixed[query, own] = attention[query] @ values[:, own]
        output[picture] = mixed @ weights["proj.weight"].T + weights["proj.bias"]
    return output
