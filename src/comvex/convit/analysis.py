"""What a model looks at, computed outside its forward pass from each layer's own input.

Shapes: B pictures, heads, (H, W) rows and columns of patches, N = H * W.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from comvex.convit.attention import SelfAttention
from comvex.convit.model import ConViTBackbone
from comvex.errors import UserError


@torch.inference_mode()
def attention_inputs(model: ConViTBackbone, pictures: Tensor) -> list[Tensor]:
    """The tokens that each layer's attention gets, first layer first, from one forward pass in evaluation mode."""
    inputs: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs.append(arguments[0])

    hooks = [layer.get_submodule("attn").register_forward_pre_hook(keep) for layer in model.blocks]
    was_training = model.training
    model.eval()
    try:
        model(pictures)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return inputs


@torch.inference_mode()
def class_token_attention(model: ConViTBackbone, pictures: Tensor) -> Tensor:
    """Where the class token looks in each of the non-local layers.

    ``pictures`` (B, C, height, width); returns (num_nonlocal_layers, B, heads, H, W), the share of each patch in the
    class token's attention over all patches (its attention to itself is left out, so that each map sums to one).

    Raises ``ValueError`` if the model has no non-local layers, or the pictures do not fit.
    """
    if model.config.num_nonlocal_layers == 0:
        raise UserError("num_nonlocal_layers is 0: the class token attends to patches in non-local layers only.")
    num_local, patch_size = model.config.num_local_layers, model.config.patch_size
    rows, columns = pictures.shape[-2] // patch_size, pictures.shape[-1] // patch_size
    maps = []
    for layer, tokens in zip(model.blocks[num_local:], attention_inputs(model, pictures)[num_local:], strict=True):
        attention = layer.attn
        assert isinstance(attention, SelfAttention)
        query, key, _ = attention.qkv(tokens).unflatten(-1, (3, attention.heads, attention.head_dim)).unbind(2)
        score = torch.einsum("bhd,bnhd->bhn", query[:, 0], key) * attention.head_dim**-0.5  # (B, heads, 1 + N)
        maps.append(score[..., 1:].softmax(dim=-1).unflatten(-1, (rows, columns)))
    return torch.stack(maps)
