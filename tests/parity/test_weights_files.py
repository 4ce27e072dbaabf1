"""Files in the official and in timm's layout, of all six sizes, give the logits of timm's own code.

timm registers three of the sizes; its class builds the other three from their width and heads.
"""

import argparse

import pytest
import torch
from safetensors.torch import save_file
from timm.models.convit import ConVit
from torch import nn

from comvex.convit.config import PRESETS
from comvex.convit.weights import load_model, preset_name

pytestmark = pytest.mark.parity


def timms_model(preset: str, *, image_size: int) -> ConVit:
    """timm's model of that size, every weight random: gates over +-3, positional weights and biases too."""
    dim, heads = PRESETS[preset]
    with torch.device("meta"):
        model = ConVit(img_size=image_size, embed_dim=dim // heads, num_heads=heads, local_up_to_layer=10)
    model = model.to_empty(device="cpu").eval()
    for key, parameter in model.named_parameters():
        if key.endswith("gating_param"):
            nn.init.uniform_(parameter, -3, 3)
        elif "pos_proj" in key or "pos_embed" in key or "cls_token" in key:
            nn.init.normal_(parameter, std=0.5)
        elif parameter.ndim == 1:  # biases, and the weights of norms around one
            nn.init.normal_(parameter, mean=float("norm" in key and key.endswith("weight")), std=0.2)
        else:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


@pytest.mark.parametrize("layout", ["official", "timm"])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_file_of_a_published_layout_gives_timms_logits(preset, layout, tmp_path):
    size = 224 if preset == "ConViT_Ti" else 64
    theirs = timms_model(preset, image_size=size)
    state = theirs.state_dict()
    if layout == "official":
        file = tmp_path / "checkpoint.pth"
        ddp = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"model": ddp, "optimizer": {}, "epoch": 1, "args": argparse.Namespace(lr=1.0)}, file)
    else:
        file = tmp_path / "model.safetensors"
        save_file(state, file)
    ours = load_model(file)
    assert preset_name(ours.config) == preset
    pictures = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected, logits = theirs(pictures), ours(pictures)
    # Twelve layers of sums over up to 4096 numbers in float32, 6e-8 each.
    assert float((logits - expected).norm() / expected.norm()) < 1e-5
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
