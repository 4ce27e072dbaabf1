"""The demo runs as documented, from another folder, with nothing but installed packages."""

import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.convit.analysis import class_token_attention

ROOT = Path(__file__).parents[1]


def run(cwd: Path, script: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / script), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demo_goes_from_nothing_to_a_figure(tmp_path):
    printed = run(tmp_path, "examples/ConViT/demo.py", "--epochs", "2")
    assert "1000 logits" in printed
    assert "digits that it had not seen" in printed
    with Image.open(tmp_path / "demo.png") as figure:
        assert figure.width > 1000
    assert [file.name for file in tmp_path.iterdir()] == ["demo.png"]


def test_class_token_attention_is_that_of_the_layer():
    """Against the attention map of torch's own reference, computed densely from the layer's weights."""
    model = ConViTWithLinearClassifier(ConViTConfig.ConViT_Ti(image_size=32, dim=24, num_classes=3)).eval()
    pictures = torch.randn(2, 3, 48, 64)
    maps = class_token_attention(model, pictures)
    assert maps.shape == (2, 2, 4, 3, 4)

    tokens = model.patch_embed(pictures)[0]
    with torch.no_grad():
        from comvex.convit.position_embedding import resample_position_embedding

        x = tokens + resample_position_embedding(model.pos_embed, (2, 2), (3, 4))
        for layer in model.blocks[:10]:
            x = layer(x, (3, 4))
        x = torch.cat([model.cls_token.expand(2, -1, -1), x], dim=1)
        for layer, found in zip(model.blocks[10:], maps, strict=True):
            query, key, _ = layer.attn.qkv(layer.norm1(x)).reshape(2, 13, 3, 4, 6).permute(2, 0, 3, 1, 4)
            dense = (query @ key.transpose(-1, -2) / 6**0.5).softmax(-1)[:, :, 0, 1:]
            expected = (dense / dense.sum(-1, keepdim=True)).reshape(2, 4, 3, 4)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # float32 rounding of two orders
            x = layer(x)
