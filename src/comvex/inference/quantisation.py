"""Eight-bit integers for an OpenVINO model: NNCF's post-training quantisation, calibrated on pictures."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from comvex.inference.runtimes import Floats, in_own_thread


def quantise(model: Any, batches: Sequence[Floats]) -> Any:
    """An ``openvino.Model`` whose matrix products and convolution take int8, from one in float32.

    ``batches`` of pictures are (B, C, height, width), gone through several times; their values set the ranges of the
    activations. NNCF first shifts what makes a transformer's activations uneven into the weights (SmoothQuant, Xiao et
    al. 2023), and corrects the biases at the end.
    """
    os.environ.setdefault("NNCF_CI", "1")  # or NNCF tells its makers over the network that it is used
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    names = products_in_floats(model)
    # NNCF draws bars on standard output, where a report must stand alone.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        return in_own_thread(
            lambda: nncf.quantize(
                model,
                nncf.Dataset(batches),
                subset_size=len(batches),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(names=names) if names else None,
            )
        )


def products_in_floats(model: Any) -> list[str]:
    """Names of the matrix products that stay in floating point, because int8 would cost more than it gives.

    Those whose left factor depends on the size of the pictures at most, not on what they show: factors of positional
    attention, which are so small that rounding the values for them takes longer than mixing them, and matrices that
    resample the position embedding where the size is open, where rounding would shift every picture alike. The matrices
    of layers stand on the right.
    """
    reached: set[str] = set()
    waiting = [output for parameter in model.get_parameters() for output in parameter.outputs()]
    while waiting:
        for following in waiting.pop().get_target_inputs():
            node = following.get_node()
            if node.get_friendly_name() not in reached and node.get_type_name() != "ShapeOf":
                reached.add(node.get_friendly_name())
                waiting += node.outputs()
    products = (node for node in model.get_ops() if node.get_type_name() == "MatMul")
    return [
        node.get_friendly_name()
        for node in products
        if node.input(0).get_source_output().get_node().get_friendly_name() not in reached
    ]
