"""ConViT and the plain ViT of the same code and recipe on 1 % of Fashion-MNIST: 600 pictures, 1,000 steps of 128.

Takes about four minutes a run on two idle cores. It can be stopped and repeated: finished runs are kept, an unfinished
one goes on.

    python benchmarks/few_pictures.py --out runs/few-pictures
"""

import argparse
import statistics
from pathlib import Path

import torch

from comvex.allocator import keep_freed_memory
from comvex.processor import machine_line
from comvex.training.recipe import Architecture, Recipe
from comvex.training.trainer import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/few-pictures"), help="run folders; finished runs are kept"
    )
    parser.add_argument("--fraction", type=float, default=0.01, help="share of the 60,000 training pictures")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    keep_freed_memory()

    machine = machine_line(f"{torch.get_num_threads()} threads")
    print(f"{machine}, fraction {options.fraction:g}, {options.steps} steps of 128")
    print("| seed | ConViT top-1, % | plain ViT top-1, % | difference | parameters | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    rows = []
    for seed in options.seeds:
        found = []
        for name, use_gpsa in (("convit", True), ("vit", False)):
            recipe = Recipe(
                data="fashion-mnist",
                fraction=options.fraction,
                steps=options.steps,
                batch_size=128,
                model=Architecture(use_gpsa=use_gpsa),
                split_seed=seed,
                seed=seed,
            )
            found.append(train(recipe, options.out / f"{name}-{seed}"))
        convit, vit = found
        rows.append((convit["top1"], vit["top1"], convit["top1"] - vit["top1"]))
        print(
            f"| {seed} | {rows[-1][0]:.2f} | {rows[-1][1]:.2f} | {rows[-1][2]:+.2f} | "
            f"{convit['num_parameters']:,} and {vit['num_parameters']:,} | "
            f"{convit['seconds']:.0f} and {vit['seconds']:.0f} |",
            flush=True,
        )
    columns = list(zip(*rows, strict=True))
    means = [f"{statistics.mean(column):.2f}" for column in columns]
    if len(rows) > 1:
        means = [f"{mean} ± {statistics.stdev(column):.2f}" for mean, column in zip(means, columns, strict=True)]
    print(f"| mean | {' | '.join(means)} | | |")


if __name__ == "__main__":
    main()
