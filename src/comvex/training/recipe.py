"""Everything that decides the outcome of a training run. The docstring of a field is its help on the command line."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from comvex.data.augmentation import Augmentation
from comvex.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """The model: a small pre-norm ConViT unless a preset of the paper is named; what is left out follows from that."""

    preset: str | None = None
    """A size of the paper: ConViT_Ti, ConViT_Ti_plus, ConViT_S, ConViT_S_plus, ConViT_B or ConViT_B_plus."""
    image_size: int | tuple[int, int] | None = None
    """Picture side in pixels, or HEIGHT WIDTH. Default: what suits the data (digits 8, Fashion-MNIST 28, others 64;
    presets 224)."""
    channels: int | None = None
    """1 for grey or 3 for RGB. Default: what the data have; files are read as RGB."""
    patch_size: int | None = None
    """Patch side in pixels. Default: what suits the data (digits 2, Fashion-MNIST 4, others 8; presets 16)."""
    dim: int | None = None
    """Token width. Default: 96, digits 72."""
    heads: int | None = None
    """Attention heads; a square number gives every head a place in the convolution kernel. Default: 4, digits 9, where
    that divides the width."""
    num_local_layers: int | None = None
    """GPSA layers. Default: 5."""
    num_nonlocal_layers: int | None = None
    """Self-attention layers after them. Default: 1."""
    locality_strength: float | None = None
    """How narrow the positional kernels start. Default: 1."""
    drop_path: float = 0.0
    """Stochastic depth: rate of the last layer."""
    attention_dropout: float = 0.0
    """Rate at which whole attention heads are dropped."""
    use_gpsa: bool = True
    """False trains a plain vision transformer instead, the baseline without the convolutional start."""

    def __post_init__(self) -> None:
        if isinstance(self.image_size, list):  # from JSON, which has no tuples
            object.__setattr__(self, "image_size", tuple(self.image_size))


@dataclass(frozen=True)
class Recipe:
    """What is trained, on which pictures, and how."""

    data: str = "digits"
    """digits (inside scikit-learn), fashion-mnist, a folder with one folder of pictures per class, optionally inside
    train, val and test folders, or a CSV file with the columns path and label, optionally split and group; several
    labels of a picture are separated by semicolons."""
    fraction: float = 1.0
    """Share of the training pictures to use, stratified by class; groups stay whole."""
    val_fraction: float = 0.1
    """Share of the training pictures set aside for validation, unless the data have a val part."""
    split_seed: int = 0
    """Decides which pictures are kept for training, validation and, where the data leave it open, the test."""
    model: Architecture = field(default_factory=Architecture)
    augment: Augmentation = field(default_factory=Augmentation)
    epochs: int | None = None
    """Passes over the training pictures. Default: as many as show 80,000 pictures, at least 10."""
    steps: int | None = None
    """Training steps, instead of epochs."""
    batch_size: int = 64
    """Pictures per step."""
    learning_rate: float | None = None
    """Peak learning rate of AdamW; it warms up linearly and falls along a cosine. Default: 0.001, digits 0.002."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate warms up."""
    weight_decay: float = 0.05
    """Weight decay; norms, biases, gates and embeddings are left alone."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes; multi-label: over yes and no of each class."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; longer ones are scaled down."""
    seed: int = 0
    """Seed of initial weights, order, augmentation and dropout."""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise UserError(f"epochs = {self.epochs} and steps = {self.steps} are both given: give one of them.")
        for name in ("epochs", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be at least 1.")
        for name in ("learning_rate", "clip_norm"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must be positive.")
        for name in ("warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must lie in [0, 1).")
        if self.weight_decay < 0:
            raise UserError(f"weight_decay is {self.weight_decay}: it must not be negative.")

    def num_steps(self, num_pictures: int) -> int:
        """Training steps of the whole run, for that many training pictures."""
        if self.steps is not None:
            return self.steps
        epochs = self.epochs if self.epochs is not None else max(10, round(80_000 / num_pictures))
        return epochs * max(1, num_pictures // self.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the same after a way through JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclass(frozen=True)
class Options:
    """How a run is carried out; nothing here changes its outcome, apart from rounding between devices."""

    device: str = "auto"
    """auto, cpu, cuda or mps; auto takes the accelerator that is there."""
    workers: int | None = None
    """Processes that read pictures. Default: none for pictures in memory, else up to 8."""
    threads: int | None = None
    """CPU threads for the model. Default: PyTorch's choice."""
    checkpoint_seconds: float = 60.0
    """Time between checkpoints."""
    overwrite: bool = False
    """Start again in a run folder that exists: its content is deleted first."""

    def __post_init__(self) -> None:
        for name, least in (("workers", 0), ("threads", 1), ("checkpoint_seconds", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value}: it must be at least {least}.")


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """What two recipes, as plain values, have different: "name: old -> new" for each."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, prefix=f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name}: {before} -> {after}")
    return found
