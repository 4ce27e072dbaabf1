"""Time of ConViT as a ratio to timm's plain VisionTransformer of the same width, depth and heads.

Both models run in turn, round by round, on the same pictures; the figure is the median of the rounds' ratios.

    python benchmarks/plain_vit.py --preset ConViT_Ti --size 224 448
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.convit.config import PRESETS


def plain_vit(config: ConViTConfig) -> VisionTransformer:
    model = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.dim,
        depth=config.num_local_layers + config.num_nonlocal_layers,
        num_heads=config.num_heads,
        num_classes=config.num_classes,
    )
    assert type(model) is VisionTransformer
    assert all(block.attn.fused_attn for block in model.blocks)
    return model


def inference(model: nn.Module, pictures: Tensor, labels: Tensor) -> Callable[[], object]:
    model.eval()

    def step() -> None:
        with torch.inference_mode():
            model(pictures)

    return step


def training_step(model: nn.Module, pictures: Tensor, labels: Tensor) -> Callable[[], object]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(pictures), labels).backward()
        optimizer.step()

    return step


MODES = {"inference": inference, "training": training_step}


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="ConViT_Ti")
    parser.add_argument("--size", type=int, nargs="+", default=[224, 448], help="picture sides in pixels")
    parser.add_argument("--batch", type=int, default=16, help="pictures per step")
    parser.add_argument("--rounds", type=int, default=15, help="paired rounds, after two to warm up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    print(
        f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, timm {timm.__version__}, "
        f"{time.strftime('%Y-%m-%d')}, {options.preset}, float32, batch {options.batch}, {options.rounds} paired rounds"
    )
    print("| mode | size | ConViT / plain ViT | quartiles | ConViT ms/picture | plain ViT ms/picture |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in options.size:
        config = ConViTConfig.from_preset(options.preset, image_size=size)
        pictures, labels = torch.randn(options.batch, 3, size, size), torch.randint(1000, (options.batch,))
        for mode, prepare in MODES.items():
            ours = prepare(ConViTWithLinearClassifier(config), pictures, labels)
            theirs = prepare(plain_vit(config), pictures, labels)
            rounds = [(seconds(ours), seconds(theirs)) for _ in range(options.rounds + 2)][2:]
            low, ratio, high = statistics.quantiles([a / b for a, b in rounds], n=4)
            ms = [statistics.median(times) / options.batch * 1000 for times in zip(*rounds, strict=True)]
            print(
                f"| {mode} | {size} | {ratio:.3f} | {low:.3f} to {high:.3f} | {ms[0]:.1f} | {ms[1]:.1f} |", flush=True
            )


if __name__ == "__main__":
    main()
