"""The ConViT model: configuration, attention, layers, backbone, classifier."""

from comvex.convit.attention import GatedPositionalSelfAttention, SelfAttention
from comvex.convit.config import ConViTConfig
from comvex.convit.layer import ConViTLayer
from comvex.convit.model import ConViTBackbone, ConViTWithLinearClassifier

__all__ = [
    "ConViTBackbone",
    "ConViTConfig",
    "ConViTLayer",
    "ConViTWithLinearClassifier",
    "GatedPositionalSelfAttention",
    "SelfAttention",
]
