"""What a ConViT does with pictures, as numbers: gates, attention, non-locality, position embedding; no figures.

Everything is computed outside the fast path, from each layer's own input in a forward pass, in evaluation mode; the
mode of the model, and of its parts, is put back. Layers and heads are counted from 0, as in ``model.blocks``.

- ``gates``, ``positional_kernels``, ``position_embedding_similarity``: of the weights alone.
- ``nonlocality``, ``head_figures``, ``uniform_nonlocality``: how far each head looks, over any number of pictures
  in constant memory, and how far attention would that is the same everywhere.
- ``attention_maps``, ``class_token_attention``, ``attention_rollout``: where it looks, as maps over the patches.
- ``without_position_embedding``, ``position_embedding_effect``: what the position embedding is worth.
"""

from comvex.convit.analysis.inputs import attention_inputs, evaluating
from comvex.convit.analysis.maps import AttentionMaps, attention_maps, attention_rollout, class_token_attention
from comvex.convit.analysis.nonlocality import Nonlocality, head_figures, nonlocality, uniform_nonlocality
from comvex.convit.analysis.positions import (
    PositionalKernels,
    PositionEmbeddingEffect,
    gates,
    position_embedding_effect,
    position_embedding_similarity,
    positional_kernels,
    without_position_embedding,
)

__all__ = [
    "AttentionMaps",
    "Nonlocality",
    "PositionEmbeddingEffect",
    "PositionalKernels",
    "attention_inputs",
    "attention_maps",
    "attention_rollout",
    "class_token_attention",
    "evaluating",
    "gates",
    "head_figures",
    "nonlocality",
    "position_embedding_effect",
    "position_embedding_similarity",
    "positional_kernels",
    "uniform_nonlocality",
    "without_position_embedding",
]
