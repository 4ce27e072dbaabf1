"""Arithmetic of a model, counted: the multiplications and additions of its matrix products and convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from comvex.bench.models import build, make_batch
from comvex.bench.names import Contestant, Mode
from comvex.convit import ConViTConfig


def count_flop(contestant: Contestant, config: ConViTConfig, *, batch_size: int, mode: Mode) -> int:
    """Floating-point operations of one step on a batch, a product of n x m by m x k counting 2 n m k.

    Nothing is computed: the shapes go through on PyTorch's meta device. Attention is counted written out, since the
    fused kernel for CPUs hides its products from the counter; in training that is what the gradient needs, without what
    a fused backward computes a second time. What GPSA mixes again in backward is counted (0.1 % for Ti at 224 pixels);
    norms, softmax, GELU and the optimiser are not.
    """
    training = mode == "training"
    with torch.device("meta"):
        model = build(contestant, config).train(training)
        pictures, labels = make_batch(config, batch_size)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            logits = model(pictures)
            if training:
                F.cross_entropy(logits, labels).backward()
    return counter.get_total_flops()
