"""The models that are compared, of the same width, depth and heads: this ConViT, timm's, and timm's plain ViT."""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models.convit import ConVit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from comvex.bench.names import Contestant
from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.randomness import seeded

SEED = 0
NOISE_SIDES = (1, 4, 16)
"""Independent values along a side of a made picture: its coarse, middling and fine parts, of equal size."""


def build(contestant: Contestant, config: ConViTConfig) -> nn.Module:
    """The model of a contestant with weights of a fixed seed; timm's ConViT gets this ConViT's, so that both agree."""
    with seeded(SEED):
        if contestant == "plain_vit":
            return plain_vit(config)
        ours = ConViTWithLinearClassifier(config)
        if contestant == "convit":
            return ours
        theirs = timm_convit(config)
        theirs.load_state_dict(ours.state_dict(), assign=True)
        return theirs


def plain_vit(config: ConViTConfig, **options: Any) -> VisionTransformer:
    """timm's ``VisionTransformer`` as it comes, with fused attention and biases of q, k and v.

    ``options`` are more of its arguments, such as ``weight_init``.
    """
    model = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=config.image_channel,
        num_classes=config.num_classes,
        embed_dim=config.dim,
        depth=config.num_local_layers + config.num_nonlocal_layers,
        num_heads=config.num_heads,
        mlp_ratio=config.ff_dim / config.dim,
        **options,
    )
    assert type(model) is VisionTransformer
    assert all(block.attn.fused_attn for block in model.blocks)  # pyright: ignore[reportAttributeAccessIssue]
    return model


def timm_convit(config: ConViTConfig) -> ConVit:
    """timm's own ``convit_*``; for the "plus" sizes, which timm does not name, its ``convit_tiny`` widened."""
    model = timm.create_model(
        "convit_tiny",
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=config.image_channel,
        num_classes=config.num_classes,
        embed_dim=config.dim // config.num_heads,  # timm counts the width of a head here
        depth=config.num_local_layers + config.num_nonlocal_layers,
        num_heads=config.num_heads,
        mlp_ratio=config.ff_dim / config.dim,
        local_up_to_layer=config.num_local_layers,
        locality_strength=config.locality_strength,
    )
    assert type(model) is ConVit
    return model


def make_batch(config: ConViTConfig, batch_size: int, *, seed: int = SEED) -> tuple[Tensor, Tensor]:
    """Pictures (B, C, height, width) of noise and labels (B,), the same for all contestants.

    The noise is coarse, middling and fine at once. Of fine noise alone all pictures have nearly the same logits, from
    which a model that does not look at its pictures would hardly differ.
    """
    with seeded(seed):
        assert isinstance(config.image_size, int)
        pictures = torch.zeros(batch_size, config.image_channel, config.image_size, config.image_size)
        for side in NOISE_SIDES:
            noise = torch.randn(*pictures.shape[:2], side, side)
            pictures += F.interpolate(noise, size=pictures.shape[2:], mode="bilinear") / len(NOISE_SIDES) ** 0.5
        return pictures, torch.randint(config.num_classes, (batch_size,))
