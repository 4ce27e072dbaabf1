"""What can be asked for, in its short names and those of the tables; imports nothing, for the command's help."""

from __future__ import annotations

from typing import Literal

Contestant = Literal["convit", "plain_vit", "timm_convit"]
Rival = Literal["plain_vit", "timm_convit"]
Mode = Literal["inference", "training"]
Precision = Literal["float32", "bfloat16", "int8", "int8_float32"]
"""int8 is what ``comvex export`` writes; int8_float32 computes what is not quantised in float32, not in bfloat16."""
Runtime = Literal["eager", "compile", "onnxruntime", "openvino"]

CONTESTANT_NAMES: dict[str, str] = {"convit": "ConViT", "plain_vit": "plain ViT", "timm_convit": "timm's ConViT"}
RUNTIME_NAMES: dict[str, str] = {
    "eager": "eager",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
EXPORTED = ("onnxruntime", "openvino")
"""Runtimes that run a file, without PyTorch: they infer on the CPU and train nothing."""
QUANTISED = ("int8", "int8_float32")
"""Precisions of a model that is quantised, once for both, before it is opened."""
GROWING_SIZES = (224, 384, 448, 768, 1024)
"""Picture sides of --grow, in pixels."""
