"""What the weights alone say of positions: gates, positional kernels, and the position embedding.

Shapes: B pictures, (H, W) rows and columns of patches, heads.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from comvex.convit.analysis.inputs import check_model, check_pictures, evaluating
from comvex.convit.attention import GatedPositionalSelfAttention
from comvex.convit.model import ConViTBackbone, ConViTWithLinearClassifier
from comvex.errors import UserError

Model = TypeVar("Model", bound=ConViTBackbone)


def positional_weights(model: ConViTBackbone) -> NDArray[np.float64]:
    """Every head's gate parameter and weights on (dx, dy, dx^2 + dy^2): (layers, heads, 4); NaN without GPSA.

    Raises ``ValueError`` for what is no ConViT.
    """
    check_model(model)
    values = np.full((len(model.blocks), model.config.num_heads, 4), np.nan)
    for layer, block in enumerate(model.blocks):
        attention = block.get_submodule("attn")
        if isinstance(attention, GatedPositionalSelfAttention):
            columns = torch.cat([attention.gating_param[:, None], attention.pos_proj.weight], dim=1)
            values[layer] = columns.detach().cpu().double().numpy()
    return values


def gates(model: ConViTBackbone) -> NDArray[np.float64]:
    """sigmoid(gate), the share of positional attention: (layers, heads) in [0, 1]; NaN in layers of plain attention."""
    return torch.from_numpy(positional_weights(model)[..., 0]).sigmoid().numpy()


@dataclass(frozen=True)
class PositionalKernels:
    """The Gaussian that each head's positional attention is, away from the borders; all (layers, heads), in patches.

    NaN in layers of plain attention, and for a head whose weight on the squared distance is not negative: its
    attention does not fall off with distance, so that it has no centre.
    """

    dx: NDArray[np.float64]
    """How far to the right of the query the centre lies."""
    dy: NDArray[np.float64]
    """How far below the query the centre lies."""
    width: NDArray[np.float64]
    """Standard deviation along each axis."""


def positional_kernels(model: ConViTBackbone) -> PositionalKernels:
    """Centre and width of every head's positional attention.

    The score w_x dx + w_y dy + w_d (dx^2 + dy^2) is, up to what softmax ignores, -|d - c|^2 / (2 width^2) with
    c = -(w_x, w_y) / (2 w_d) and width = 1 / sqrt(-2 w_d); a locality strength alpha (paper, Eq. 9) is w_d = -alpha.
    """
    weights = positional_weights(model)
    w_x, w_y, w_d = np.moveaxis(weights[..., 1:], -1, 0)
    falling = np.where(w_d < 0, w_d, np.nan)
    return PositionalKernels(-w_x / (2 * falling), -w_y / (2 * falling), 1 / np.sqrt(-2 * falling))


@torch.no_grad()
def position_embedding_similarity(model: ConViTBackbone) -> NDArray[np.float64]:
    """Cosine similarity of every two patches' position embeddings: (H, W, H, W), at the native grid.

    Raises ``ValueError`` if the model has no position embedding.
    """
    unit = F.normalize(embedding_of(model)[0].cpu().double(), dim=-1)  # (N, dim)
    return (unit @ unit.T).numpy().reshape(model.config.grid * 2)


def embedding_of(model: ConViTBackbone) -> Tensor:
    """(1, N, dim); raises ``ValueError`` if there is none."""
    check_model(model)
    if model.pos_embed is None:
        raise UserError("position_embedding is False: the model has none to look at or to mask.")
    return model.pos_embed


def without_position_embedding(model: Model) -> Model:
    """The same model with its position embedding masked; it shares all other weights and changes nothing of ``model``.

    Raises ``ValueError`` if the model has no position embedding.
    """
    embedding_of(model)
    masked = copy.copy(model)
    masked._parameters = model._parameters | {"pos_embed": None}
    return masked


@dataclass(frozen=True)
class PositionEmbeddingEffect:
    """Top-1 accuracy in percent with and without the position embedding (paper, Table 5)."""

    top1: float
    top1_masked: float
    num_pictures: int


@torch.no_grad()
def position_embedding_effect(
    model: ConViTWithLinearClassifier, batches: Iterable[tuple[Tensor, Tensor]]
) -> PositionEmbeddingEffect:
    """What masking the position embedding does to accuracy, over batches of (pictures, labels) in constant memory.

    Pictures (B, C, height, width), labels (B,). The paper's ConViT-Ti falls from 73.1 to 67.1 on ImageNet, DeiT-Ti from
    72.2 to 38.3. Raises ``ValueError`` if there are no pictures or no position embedding.
    """
    check_model(model)
    device, correct, num = model.patch_embed.proj.weight.device, [0, 0], 0
    with evaluating(model):
        models = (model, without_position_embedding(model))
        for batch in batches:
            if not isinstance(batch, tuple | list) or len(batch) < 2:
                raise UserError(f"A batch is a {type(batch).__name__}: it must be a tuple (pictures, labels).")
            pictures, labels, *_ = batch
            if len(labels) == 0:
                continue
            check_pictures(model, pictures)
            num += len(labels)
            for place, asked in enumerate(models):
                answers = asked(pictures.to(device)).argmax(dim=1)
                correct[place] += int((answers.cpu() == labels.cpu()).sum())
    if num == 0:
        raise UserError("There are no pictures: accuracy is a share of at least one.")
    return PositionEmbeddingEffect(100 * correct[0] / num, 100 * correct[1] / num, num)
