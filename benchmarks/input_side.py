"""From a picture file to the model's input: CPU time of several ways, apart from the model, as ratios in one run.

python benchmarks/input_side.py --out docs/results/input-side    all of it, about five minutes on one core
python benchmarks/input_side.py --quick --out /tmp/input-side    seconds, to see that it runs

Ways: what comvex does; Pillow alone (whole pictures resized by Pillow, as comvex trained until 2026-11-24); Pillow with
draft mode (JPEG files decoded at the smallest scale that has the size needed); torchvision's decode_jpeg and
transforms.v2 on 8-bit tensors; timm's create_transform. Pictures are JPEG files of two sizes, cut from scikit-learn's
two photographs and their mirror images set side by side, and small pictures in memory. Ways take turns in every round,
each with one thread. CPU time hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, features
from recording import command
from sklearn.datasets import load_sample_images
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torchvision import io
from torchvision import transforms as T
from torchvision.transforms import v2

from comvex.allocator import keep_freed_memory
from comvex.bench.machine import describe_in_words, describe_machine
from comvex.bench.report import spread, table
from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.data.augmentation import Augmentation
from comvex.data.batch_augmentation import BatchAugmentation
from comvex.data.cover import Cover
from comvex.data.crops import REDUCTIONS, MiddleCrop, RandomCrop, largest_reduction, on_reduced_pixels
from comvex.data.loading import EvaluationPictures, Key, StepOrder, TrainingPictures, collate, training_loader
from comvex.data.picture_set import PictureSet
from comvex.data.reading import ReducibleJpeg, read_picture, read_reducible
from comvex.data.training_transforms import (
    ERASED_SCALE,
    affine_changes,
    erasing_probability,
    flip_probability,
    training_transform,
)
from comvex.data.transforms import Preprocessing, ToNormalizedTensor
from comvex.preprocessing import IMAGENET_CROP_PCT, IMAGENET_MEAN, IMAGENET_STD
from comvex.randomness import seeded
from comvex.training.recipes import RECIPES

SIDE = 224
JPEG_SIZES = ((500, 375), (2000, 1500))
"""(width, height): the usual one of ImageNet, and three million pixels."""
QUALITY, NUM_FILES = 90, 8
SMALL = {"8 x 8, grey": (8, 8), "32 x 32, RGB": (32, 32, 3)}
"""Shapes of pictures in memory, as those of the digits and of CIFAR."""
AUGMENTATIONS = {name: recipe(None).recipe.augment for name, recipe in RECIPES.items() if name != "smoke"}
PREPROCESSING = Preprocessing((SIDE, SIDE), 3, IMAGENET_MEAN, IMAGENET_STD, IMAGENET_CROP_PCT)
BICUBIC, BILINEAR = T.InterpolationMode.BICUBIC, T.InterpolationMode.BILINEAR
OURS, PILLOW = "comvex", "Pillow alone"
BATCH = 16
STAGES = ("read, decode, crop, resize", "change", "tensor, erase")

Way = Callable[[Sequence[Key]], Any]
"""Makes the inputs of pictures."""


def photograph(width: int, height: int, *, number: int) -> Image.Image:
    """A part of the photographs and their mirror images, side by side at their own sharpness, so that none is blown up.

    Its file then has as many bytes a pixel as a photograph of that size would have, and takes as long to decode.
    """
    one, other = load_sample_images().images
    row = np.concatenate([one, other[:, ::-1], one[:, ::-1], other, one], axis=1)
    below = np.concatenate([other[::-1], one, other, one[::-1], other[:, ::-1]], axis=1)
    wall = np.concatenate([row, below, row[::-1], below[::-1], row], axis=0)
    top, left = 53 * number % (len(wall) - height), 131 * number % (wall.shape[1] - width)
    return Image.fromarray(wall[top : top + height, left : left + width])


def write_files(folder: Path, width: int, height: int, *, num: int) -> list[Path]:
    """JPEG files of such pictures."""
    folder.mkdir(parents=True)
    files = [folder / f"{number}.jpg" for number in range(num)]
    for number, file in enumerate(files):
        photograph(width, height, number=number).save(file, quality=QUALITY)
    return files


def one_by_one(tensor: Callable[[int], object], seed_of: Callable[[Key], int]) -> Way:
    """A way of single pictures, each with the seed that comvex gives it."""

    def way(keys: Sequence[Key]) -> list[Any]:
        tensors = []
        for key in keys:
            with seeded(seed_of(key)):
                tensors.append(tensor(key.number))
        return tensors

    return way


def evaluation_ways(files: Sequence[Path]) -> dict[str, Callable[[int], Any]]:
    """What a file becomes for evaluation, by its number."""
    ours = EvaluationPictures(labelled(files), PREPROCESSING.transform(), channels=3)
    theirs: Any = create_transform(
        (3, SIDE, SIDE), is_training=False, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD,
        crop_pct=IMAGENET_CROP_PCT,
    )  # fmt: skip
    needed = math.floor(SIDE / IMAGENET_CROP_PCT)
    on_bytes = v2.Compose([v2.Resize(needed, BICUBIC), v2.CenterCrop(SIDE), *normalised_by_torchvision()])

    def drafted(index: int) -> Tensor:
        with Image.open(files[index]) as picture:
            picture.draft(None, (needed, needed))
            return PREPROCESSING.transform()(picture.convert("RGB"))

    return {
        OURS: ours.tensor,
        "Pillow with draft": drafted,
        "torchvision v2": lambda index: on_bytes(torchvision_decoded(files[index])),
        "timm": lambda index: theirs(timm_decoded(files[index])),
    }


def training_ways(files: Sequence[Path], augmentation: Augmentation) -> tuple[TrainingPictures, dict[str, Way]]:
    """What files become in training; comvex and the ways of Pillow show the same crops with the same changes."""
    transform: Any = training_transform(PREPROCESSING, augmentation, mirrored=True)
    ours = TrainingPictures(labelled(files), transform, channels=3, seed=0)
    whole = T.Compose([*pillow_crop(augmentation), *transform.transforms[1:]])
    drafted = T.Compose([functools.partial(drafted_part, augmentation), *transform.transforms[1:]])
    on_bytes = torchvision_training(augmentation, side=SIDE)
    singles: dict[str, Callable[[int], object]] = {
        PILLOW: lambda index: whole(read_picture(files[index])),
        "Pillow with draft": lambda index: drafted(read_reducible(files[index])),
        "torchvision v2": lambda index: on_bytes(torchvision_decoded(files[index])),
    }
    if not any(affine_changes(augmentation, (SIDE, SIDE))):  # timm's only turns or moves pictures in RandAugment
        theirs = timm_training(augmentation)
        singles["timm"] = lambda index: theirs(timm_decoded(files[index]))
    ways: dict[str, Way] = {name: one_by_one(single, ours.seed_of) for name, single in singles.items()}
    return ours, {OURS: lambda keys: [ours[key] for key in keys], **ways}


def stages(files: Sequence[Path], augmentation: Augmentation) -> dict[str, Way]:
    """comvex's way in training, broken off after each of its stages."""
    ours, ways = training_ways(files, augmentation)
    steps: Any = ours.transform
    crop, *others = steps.transforms
    last = next(place for place, step in enumerate(others) if isinstance(step, ToNormalizedTensor))
    changed = T.Compose([crop, *others[:last]])
    return {
        OURS: ways[OURS],
        STAGES[0]: one_by_one(lambda index: crop(read_reducible(files[index])), ours.seed_of),
        STAGES[1]: one_by_one(lambda index: changed(read_reducible(files[index])), ours.seed_of),
    }


def small_ways(shape: tuple[int, ...]) -> dict[str, Way]:
    """What small pictures in memory become in training."""
    channels = 1 if len(shape) == 2 else 3
    preprocessing = Preprocessing((shape[0], shape[1]), channels, IMAGENET_MEAN[:channels], IMAGENET_STD[:channels])
    pictures = np.random.default_rng(0).integers(0, 256, (NUM_FILES, *shape), dtype=np.uint8)
    augmentation = Augmentation()
    transform = training_transform(preprocessing, augmentation, mirrored=True)
    together = BatchAugmentation(preprocessing, augmentation, mirrored=True)
    ours, alone = (
        TrainingPictures(labelled(pictures), transform, channels=channels, seed=0, together=which)
        for which in (together, None)
    )
    tensors = torch.from_numpy(pictures).view(NUM_FILES, *shape[:2], channels).permute(0, 3, 1, 2).contiguous()
    on_bytes = torchvision_training(augmentation, side=shape[0], mean=preprocessing.mean, std=preprocessing.std)
    return {
        OURS: lambda keys: collate(ours.__getitems__(list(keys))),
        "comvex, one by one": lambda keys: collate(alone.__getitems__(list(keys))),
        "torchvision v2": one_by_one(lambda index: on_bytes(tensors[index]), ours.seed_of),
    }


def labelled(pictures: Sequence[Path] | NDArray[np.uint8]) -> PictureSet:
    return PictureSet(
        pictures if isinstance(pictures, np.ndarray) else list(pictures), np.zeros(len(pictures), np.int64)
    )


def torchvision_decoded(file: Path) -> Tensor:
    """By torchvision's own decoders, which 0.29 calls deprecated: they will move to TorchCodec."""
    decoded = io.decode_jpeg(io.read_file(str(file)), mode=io.ImageReadMode.RGB)
    assert isinstance(decoded, Tensor)  # as of one file; of several it is a list
    return decoded


def timm_decoded(file: Path) -> Image.Image:
    """As timm's ImageDataset does."""
    with file.open("rb") as stream:
        return Image.open(stream).convert("RGB")


def normalised_by_torchvision(
    mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> list[nn.Module]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]


def pillow_crop(augmentation: Augmentation) -> list[Any]:
    """The crop of a whole picture, resized by Pillow."""
    if augmentation.smallest_crop == 1:
        return [Cover(SIDE, SIDE), T.CenterCrop(SIDE)]
    return [T.RandomResizedCrop(SIDE, (augmentation.smallest_crop, 1), augmentation.crop_ratio, BICUBIC)]


def drafted_part(augmentation: Augmentation, picture: ReducibleJpeg) -> Image.Image:
    """The crop of a JPEG file, decoded at the smallest scale at which it has the model's size, resized by Pillow."""
    height, width = picture.size
    if augmentation.smallest_crop == 1:
        smaller = picture.decode(reduction=reduction_to_cover(height, width))
        return T.CenterCrop(SIDE)(Cover(SIDE, SIDE)(smaller))
    scale, ratio = [augmentation.smallest_crop, 1.0], list(augmentation.crop_ratio)
    top, left, height, width = RandomCrop.get_params(torch.empty(()).expand(1, height, width), scale, ratio)
    reduction = reduction_to_cover(height, width)
    box = (left / reduction, top / reduction, (left + width) / reduction, (top + height) / reduction)
    return picture.decode(reduction=reduction).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)


def reduction_to_cover(height: int, width: int) -> int:
    """By how much the part of a file can be divided and still have the model's size."""
    return next((by for by in REDUCTIONS if min(height, width) >= by * SIDE), 1)


def torchvision_training(
    augmentation: Augmentation,
    *,
    side: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Callable[[Tensor], Tensor]:
    """The like on 8-bit tensors. Its RandAugment is torchvision's own: other changes than timm's, but as many."""
    steps: list[nn.Module] = [v2.Resize(side, BICUBIC), v2.CenterCrop(side)]
    if augmentation.smallest_crop < 1:
        steps = [v2.RandomResizedCrop(side, (augmentation.smallest_crop, 1), augmentation.crop_ratio, BICUBIC)]
    affine = affine_changes(augmentation, (side, side))
    if any(affine):
        moved, zoom = (affine.translation,) * 2, (1 - affine.zoom, 1 + affine.zoom)
        steps.append(v2.RandomAffine([-affine.rotation, affine.rotation], moved, zoom, interpolation=BILINEAR))
    steps.append(v2.RandomHorizontalFlip(flip_probability(augmentation, mirrored=True)))
    if augmentation.auto_augment:
        magnitude = int(augmentation.auto_augment.split("-m")[1].split("-")[0])
        steps.append(v2.RandAugment(2, magnitude, num_magnitude_bins=11, interpolation=BILINEAR))
    steps += normalised_by_torchvision(mean, std)
    erase = erasing_probability(augmentation, (side, side))
    value: Any = "random" if augmentation.erase_with == "noise" else 0
    return v2.Compose([*steps, v2.RandomErasing(erase, ERASED_SCALE, value=value)])


def timm_training(augmentation: Augmentation) -> Any:
    return create_transform(
        (3, SIDE, SIDE), is_training=True, scale=(augmentation.smallest_crop, 1.0), ratio=augmentation.crop_ratio,
        hflip=flip_probability(augmentation, mirrored=True), auto_augment=augmentation.auto_augment,
        interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD,
        re_prob=erasing_probability(augmentation, (SIDE, SIDE)),
        re_mode="pixel" if augmentation.erase_with == "noise" else "const",
    )  # fmt: skip


def training_step() -> Way:
    """A step of ConViT-Ti on as many made pictures as there are keys: forward, backward, AdamW."""
    model = ConViTWithLinearClassifier(ConViTConfig.ConViT_Ti())
    optimizer = torch.optim.AdamW(model.parameters())

    def step(keys: Sequence[Key]) -> None:
        logits = model(torch.zeros(len(keys), 3, SIDE, SIDE))
        nn.functional.cross_entropy(logits, torch.zeros(len(keys), dtype=torch.int64)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def time_in_turn(
    ways: Mapping[str, Way], *, rounds: int, pictures: int, files: int = NUM_FILES
) -> dict[str, list[float]]:
    """CPU milliseconds a picture, of every round; another way begins each round, and a round to warm up is left out."""
    names = list(ways)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        keys = [Key(number, index % files, index // files) for index in range(pictures)]
        for place in range(len(names)):
            name = names[(number + place) % len(names)]
            begin = time.process_time()
            ways[name](keys)
            found[name].append(1000 * (time.process_time() - begin) / pictures)
    return {name: values[1:] for name, values in found.items()}


def quartiles(values: Sequence[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive")


def scene_rows(scene: str, transform: str, times: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """A row a way: its milliseconds, its pictures a CPU second, and its time as a multiple of comvex's."""
    return [
        {
            "pictures": scene,
            "transform": transform,
            "way": name,
            "cpu_ms": statistics.median(values),
            "pictures_per_cpu_second": 1000 / statistics.median(values),
            "times_comvex": quartiles([one / ours for one, ours in zip(values, times[OURS], strict=True)]),
        }
        for name, values in times.items()
    ]


def levels_apart(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Largest and mean absolute difference of two normalised tensors, on the scale from 0 to 255."""
    apart = (one.double() - other.double()).abs() * 255 * torch.tensor(IMAGENET_STD).double()[:, None, None]
    return apart.max().item(), apart.mean().item()


def evaluation_differences(scene: str, files: Sequence[Path]) -> list[dict[str, Any]]:
    """How far the tensors of every way of evaluation are from timm's."""
    ways = evaluation_ways(files)
    rows = []
    for name, tensor in ways.items():
        found = [levels_apart(tensor(index), ways["timm"](index)) for index in range(len(files))]
        largest, means = zip(*found, strict=True)
        rows.append({"pictures": scene, "way": name, "largest": max(largest), "mean": statistics.mean(means)})
    return rows


def crop_differences(scene: str, files: Sequence[Path], *, repeats: int) -> list[dict[str, Any]]:
    """How far the crops of training are from the same parts of whole pictures resized by Pillow.

    That of a reduced picture lies on whole pixels of it, so that it is by up to one of them smaller than was drawn.
    """
    rows = []
    for name, augmentation in AUGMENTATIONS.items():
        crop = MiddleCrop((SIDE, SIDE), "bicubic")
        if augmentation.smallest_crop < 1:
            crop = RandomCrop((SIDE, SIDE), (augmentation.smallest_crop, 1), augmentation.crop_ratio, "bicubic")
        found = [
            crop_difference(crop, file, seed=len(files) * repeat + index)
            for index, file in enumerate(files)
            for repeat in range(repeats)
        ]
        for reduction in sorted({one[0] for one in found}):
            _, largest, means = zip(*[one for one in found if one[0] == reduction], strict=True)
            row = {"pictures": scene, "transform": name, "reduction": reduction, "num": len(means)}
            rows.append(row | {"largest": max(largest), "mean": statistics.mean(means), "worst_mean": max(means)})
    return rows


def crop_difference(crop: MiddleCrop | RandomCrop, file: Path, *, seed: int) -> tuple[int, float, float]:
    """By what a file is divided for a crop, and the crop's largest and mean difference from Pillow's, in levels."""
    picture = read_reducible(file)
    assert isinstance(picture, ReducibleJpeg)
    with seeded(seed):
        part, size = crop.drawn(picture.size)
    reduction = largest_reduction(part[2:], size)
    with seeded(seed):
        ours = np.asarray(crop(picture), np.float64)
    top, left, height, width = (reduction * edge for edge in on_reduced_pixels(part, reduction))
    whole = read_picture(file)
    shown = whole.crop((left, top, left + width, top + height)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    apart = np.abs(ours - np.asarray(T.CenterCrop(SIDE)(shown), np.float64))
    return reduction, apart.max(), apart.mean()


def loader_times(scene: str, files: Sequence[Path], *, workers: int, batches: int) -> dict[str, Any]:
    """CPU milliseconds a picture of the fine-tune recipe's loader and its processes, less what starting them costs."""
    dataset, _ = training_ways(files, AUGMENTATIONS["fine-tune"])

    def seconds(stop: int) -> tuple[float, float]:
        order = StepOrder(len(files), len(files), seed=0, start=0, stop=stop)
        begin, clock = cpu_seconds(), time.perf_counter()
        for _ in training_loader(dataset, order, workers=workers, pin_memory=False):
            pass
        return cpu_seconds() - begin, time.perf_counter() - clock

    seconds(2)  # what is loaded and set up once
    short, long = seconds(2), seconds(2 + batches)
    cpu, clock = (max(after - before, 1e-9) / (batches * len(files)) for before, after in zip(short, long, strict=True))
    return {"pictures": scene, "workers": workers, "cpu_ms": 1000 * cpu, "pictures_per_second_by_clock": 1 / clock}


def cpu_seconds() -> float:
    """Of this process and of those of its children that have ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def measure(folder: Path, *, rounds: int, share: float) -> dict[str, Any]:
    """All tables; ``share`` of the pictures that a round usually has."""
    report: dict[str, Any] = {"files": [], "rows": [], "evaluation_differences": [], "crop_differences": []}
    report |= {"stages": [], "loader": [], "step": []}
    step = training_step()
    for width, height in JPEG_SIZES:
        scene = f"{width} x {height} JPEG"
        files = write_files(folder / f"{width}", width, height, num=max(2, round(share * NUM_FILES)))
        kilobytes = statistics.mean(file.stat().st_size for file in files) / 1000
        report["files"].append({"pictures": scene, "kilobytes": kilobytes})
        num = max(2, round(share * (32 if width < 1000 else 16)))
        timed = functools.partial(time_in_turn, rounds=rounds, files=len(files))

        def unseeded(key: Key) -> int:
            return key.number

        for_evaluation = {name: one_by_one(way, unseeded) for name, way in evaluation_ways(files).items()}
        report["rows"] += scene_rows(scene, "evaluation", timed(for_evaluation, pictures=num))
        for name, augmentation in AUGMENTATIONS.items():
            _, ways = training_ways(files, augmentation)
            report["rows"] += scene_rows(scene, name, timed(ways, pictures=num))
            times = timed(stages(files, augmentation), pictures=num)
            ends = [times[stage] for stage in (*STAGES[:2], OURS)]
            begins = [[0.0] * rounds, *ends]
            report["stages"] += [
                {"pictures": scene, "transform": name}
                | {
                    stage: quartiles([later - earlier for earlier, later in zip(begin, end, strict=True)])
                    for stage, begin, end in zip(STAGES, begins, ends, strict=False)
                }
            ]
        _, ways = training_ways(files, AUGMENTATIONS["fine-tune"])
        both = timed({OURS: ways[OURS], "step": step}, pictures=max(2, round(share * BATCH)))
        report["step"] += [
            {"pictures": scene, "cpu_ms": statistics.median(both["step"]),
             "input_share": quartiles([ours / own for ours, own in zip(both[OURS], both["step"], strict=True)])}
        ]  # fmt: skip
        report["evaluation_differences"] += evaluation_differences(scene, files)
        report["crop_differences"] += crop_differences(scene, files, repeats=max(1, round(16 * share)))
        report["loader"] += [
            loader_times(scene, files, workers=workers, batches=max(4, round(share * (40 if width < 1000 else 16))))
            for workers in (0, 1, 2)
        ]
    for scene, shape in SMALL.items():
        times = time_in_turn(small_ways(shape), rounds=rounds, pictures=max(2, round(512 * share)))
        report["rows"] += scene_rows(f"{scene}, in memory", "small-data", times)
    return report


def describe() -> dict[str, Any]:
    """Where and with what it is measured."""
    machine = describe_machine(threads=torch.get_num_threads(), device=torch.device("cpu"))
    decoders = {package: version(package) for package in ("torchvision", "pillow", "numpy")}
    machine["versions"] |= decoders | {"libjpeg-turbo": jpeg_version()}
    return machine | {"load": os.getloadavg()[0], "command": command()}


def jpeg_version() -> str:
    return str(features.version("libjpeg_turbo") or features.version("jpg"))


def in_words(found: Sequence[float]) -> str:
    """Quartiles in a cell of a table."""
    low, median, high = found
    return spread({"median": median, "low": low, "high": high}, form=".2f")


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report for readers: ratios first."""
    machine, rounds = report["machine"], report["rounds"]
    rows = [
        (row["pictures"], row["transform"], row["way"], in_words(row["times_comvex"]), f"{row['cpu_ms']:.3f}",
         f"{row['pictures_per_cpu_second']:.0f}")
        for row in report["rows"]
    ]  # fmt: skip
    evaluation = [
        (row["pictures"], row["way"], f"{row['largest']:.3g}", f"{row['mean']:.2g}")
        for row in report["evaluation_differences"]
    ]
    staged = [
        (row["pictures"], row["transform"], *(in_words(row[stage]) for stage in STAGES)) for row in report["stages"]
    ]
    apart = [
        (row["pictures"], row["transform"], row["reduction"], row["num"], f"{row['largest']:.0f}",
         f"{row['mean']:.3f}", f"{row['worst_mean']:.3f}")
        for row in report["crop_differences"]
    ]  # fmt: skip
    loader = [
        (row["pictures"], row["workers"], f"{row['cpu_ms']:.2f}", f"{1000 / row['cpu_ms']:.0f}",
         f"{row['pictures_per_second_by_clock']:.0f}")
        for row in report["loader"]
    ]  # fmt: skip
    step = [
        (row["pictures"], f"{row['cpu_ms']:.1f}", f"{1000 / row['cpu_ms']:.1f}", in_words(row["input_share"]))
        for row in report["step"]
    ]
    kilobytes = ", ".join(f"{row['pictures']} {row['kilobytes']:.0f} kB" for row in report["files"])
    return "\n\n".join(
        [
            "# The input side, measured",
            f"`{machine['command']}`",
            f"{describe_in_words(machine)} The load at the start was {machine['load']:.1f}.",
            f"CPU time of one process with one thread; medians of {rounds} rounds in turn, quartiles in brackets; "
            f"files of quality {QUALITY}: {kilobytes}; {SIDE} x {SIDE} pixels for the model.",
            "## The ways",
            table(
                ("pictures", "transform", "way", "time, as a multiple of comvex's", "CPU ms a picture",
                 "pictures a CPU second"), rows,
            ),
            "## Where the time goes in comvex's training, CPU ms a picture",
            "Each stage is what the way that ends with it takes longer than the one that ends before it, round by "
            "round: where the quartiles are on both sides of zero, it is less than the rounds scatter.",
            table(("pictures", "transform", *STAGES), staged),
            "## Evaluation: how far from timm's tensors, on the scale from 0 to 255",
            table(("pictures", "way", "largest", "mean"), evaluation),
            "## Training: how far comvex's crops are from the same parts resized by Pillow alone, on the same scale",
            table(
                ("pictures", "crops of", "sides divided by", "crops", "largest", "mean", "mean of the worst"), apart
            ),
            "## Loader processes, fine-tune recipe",
            table(
                ("pictures", "workers", "CPU ms a picture", "pictures a CPU second", "pictures/s by the clock"), loader
            ),
            f"## Beside a training step of ConViT-Ti, batch {BATCH}, one thread",
            table(
                ("pictures", "CPU ms a picture, step", "pictures a CPU second, step",
                 "fine-tune recipe's input, as a share of the step"), step,
            ),
        ]
    ) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for input-side.md and input-side.json")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--share", type=float, default=1.0, help="of the pictures of a round, at least two of each")
    parser.add_argument("--quick", action="store_true", help="two rounds of few pictures: no figures to rely on")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning)
    rounds, share = (2, 0.05) if options.quick else (options.rounds, options.share)
    machine = describe()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Path(folder), rounds=rounds, share=share)
    report = {"machine": machine, "rounds": rounds, **report}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "input-side.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / "input-side.md").write_text(to_markdown(report))
    print(to_markdown(report))


if __name__ == "__main__":
    main()
