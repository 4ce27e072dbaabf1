"""Weights on disk: the official repository's files, timm's, and our own, which vouch for themselves.

Our own are safetensors with a config.json beside it: architecture, preprocessing, labels, licence, measured figures,
and the SHA-256 of the weights and of itself. One config.json has an entry for each weights file of its folder.
"""

from comvex.convit.weights.info import WeightsInfo, default_preprocessing, preset_name
from comvex.convit.weights.reading import LoadReport, Weights, load_model, load_weights, read_weights
from comvex.convit.weights.writing import LAYOUTS, add_figures, convert, save_weights
from comvex.convit.weights_files import file_sha256, save_tensors

__all__ = [
    "LAYOUTS",
    "LoadReport",
    "Weights",
    "WeightsInfo",
    "add_figures",
    "convert",
    "default_preprocessing",
    "file_sha256",
    "load_model",
    "load_weights",
    "preset_name",
    "read_weights",
    "save_tensors",
    "save_weights",
]
