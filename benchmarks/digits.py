"""Test accuracy of the default recipe on scikit-learn's digits beside that of a support vector machine, same splits.

python benchmarks/digits.py --out runs/digits-benchmark
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.svm import SVC

from comvex.allocator import keep_freed_memory
from comvex.processor import machine_line
from comvex.training.recipe import Recipe
from comvex.training.trainer import train


def svc_top1(split_seed: int) -> float:
    pictures, labels = load_digits(return_X_y=True)
    split = StratifiedShuffleSplit(n_splits=1, test_size=0.2, random_state=split_seed)
    train_indices, test_indices = next(split.split(pictures, labels))
    model = SVC(C=10).fit(pictures[train_indices] / 16, labels[train_indices])
    return 100 * float(model.score(pictures[test_indices] / 16, labels[test_indices]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/digits-benchmark"), help="run folders; finished runs are kept"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    keep_freed_memory()

    print(machine_line(f"{torch.get_num_threads()} threads"))
    print("| seed | ConViT top-1, % | SVC(C=10) top-1, % | ConViT training, s |")
    print("| --- | --- | --- | --- |")
    rows = []
    for seed in options.seeds:
        summary = train(Recipe(split_seed=seed, seed=seed), options.out / f"seed-{seed}")
        rows.append((summary["top1"], svc_top1(seed), summary["seconds"]))
        print(f"| {seed} | {rows[-1][0]:.2f} | {rows[-1][1]:.2f} | {rows[-1][2]:.0f} |", flush=True)
    means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
    print(f"| mean | {means[0]:.2f} | {means[1]:.2f} | {means[2]:.0f} |")


if __name__ == "__main__":
    main()
