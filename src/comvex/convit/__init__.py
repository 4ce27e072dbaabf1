"""The ConViT model: configuration, attention, layers, backbone, classifier, and its weights."""

from comvex.convit.attention import GatedPositionalSelfAttention, SelfAttention
from comvex.convit.config import ConViTConfig
from comvex.convit.layer import ConViTLayer
from comvex.convit.model import ConViTBackbone, ConViTWithLinearClassifier
from comvex.convit.weights import LoadReport, WeightsInfo, load_model, load_weights, save_weights

__all__ = [
    "ConViTBackbone",
    "ConViTConfig",
    "ConViTLayer",
    "ConViTWithLinearClassifier",
    "GatedPositionalSelfAttention",
    "LoadReport",
    "SelfAttention",
    "WeightsInfo",
    "load_model",
    "load_weights",
    "save_weights",
]
