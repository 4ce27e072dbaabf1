"""Everything that decides the outcome of a training run. The docstring of a field is its help on the command line."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from comvex.data.augmentation import Augmentation
from comvex.errors import UserError
from comvex.help import DEFAULT_TOLD

SHOWN = 80_000
"""Pictures that a run shows unless told otherwise, ..."""
FEWEST_EPOCHS, MOST_EPOCHS = 10, 1000
"""... within these limits: of a few dozen pictures an epoch is one step, which its validation outlasts."""
FEWEST_VALIDATIONS, MOST_VALIDATIONS = 100, 1000
"""Of a run that has as many epochs; within these limits validation does not show more pictures than training."""

EARLIER: dict[str, Any] = {"optimizer": "adamw"}
"""What recipes had before they said it."""

ADAPTABLE = ("image_size", "patch_size", "channels", "drop_path", "attention_dropout")
"""What can be chosen of the model when it starts from given weights."""

Balance = Literal["none", "loss", "sampling"]
Optimizer = Literal["adamw", "muon"]
Precision = Literal["float32", "bfloat16", "float16"]
Select = Literal["best", "last"]


@dataclass(frozen=True)
class Architecture:
    """The model: a small pre-norm ConViT unless a preset of the paper is named; what is left out follows from that."""

    preset: Annotated[str | None, DEFAULT_TOLD] = None
    """A size of the paper: ConViT_Ti, ConViT_Ti_plus, ConViT_S, ConViT_S_plus, ConViT_B or ConViT_B_plus."""
    image_size: Annotated[int | tuple[int, int] | None, DEFAULT_TOLD] = None
    """Picture side in pixels, or HEIGHT WIDTH. Default: what suits the data (digits 8, Fashion-MNIST 28, others 64;
    presets 224)."""
    channels: Annotated[int | None, DEFAULT_TOLD] = None
    """1 for grey, 3 for RGB, or as many as the TIFF files have. Default: what the data have; 8-bit files are read as
    RGB."""
    patch_size: Annotated[int | None, DEFAULT_TOLD] = None
    """Patch side in pixels. Default: what suits the data (digits 2, Fashion-MNIST 4, others 8; presets 16)."""
    dim: Annotated[int | None, DEFAULT_TOLD] = None
    """Token width. Default: 72."""
    heads: Annotated[int | None, DEFAULT_TOLD] = None
    """Attention heads; a square number gives every head a place in the convolution kernel. Default: 9, where
    that divides the width."""
    num_local_layers: Annotated[int | None, DEFAULT_TOLD] = None
    """GPSA layers. Default: 4."""
    num_nonlocal_layers: Annotated[int | None, DEFAULT_TOLD] = None
    """Self-attention layers after them. Default: 2."""
    locality_strength: Annotated[float | None, DEFAULT_TOLD] = None
    """How narrow the positional kernels start. Default: 1."""
    drop_path: float = 0.0
    """Stochastic depth: rate of the last layer."""
    attention_dropout: float = 0.0
    """Rate at which whole attention heads are dropped."""
    use_gpsa: Annotated[bool, DEFAULT_TOLD] = True
    """Without GPSA it is a plain vision transformer, the baseline that has no convolutional start."""
    train_gates: Annotated[bool, DEFAULT_TOLD] = True
    """Without training, all gates stay half open: content and position have equal parts of each head's attention."""
    convolutional_init: Annotated[bool, DEFAULT_TOLD] = True
    """Without convolutional initialisation GPSA starts at random."""
    init_std: Annotated[float | None, DEFAULT_TOLD] = None
    """Standard deviation of the matrices' start. Default: 1 / sqrt(dim), with which narrow tokens learn faster;
    presets 0.02 as in the paper."""
    freeze_positional: bool = False
    """GPSA stays as it is initialised: of the local layers only norms and feed-forward are trained."""

    def __post_init__(self) -> None:
        if isinstance(self.image_size, list):  # from JSON, which has no tuples
            object.__setattr__(self, "image_size", tuple(self.image_size))


@dataclass(frozen=True)
class Recipe:
    """What is trained, on which pictures, and how."""

    data: str = "digits"
    """A folder with one folder of pictures per class, optionally inside train, val and test folders; a CSV file with
    the columns path and label, optionally split and group (several labels are separated by semicolons); digits (inside
    scikit-learn), fashion-mnist, cifar10, cifar100, imagenet-1k; hfds/NAME, a Hugging Face data set; wds/PATTERN, tar
    shards such as wds/pets-{000..011}.tar."""
    fraction: float = 1.0
    """Share of the training pictures to use, stratified by class; groups stay whole."""
    val_fraction: float = 0.1
    """Share of the training pictures set aside for validation, unless the data have a val part."""
    test: Annotated[bool, DEFAULT_TOLD] = True
    """Without a test, the test pictures are left alone and the summary is of the validation pictures: for trials that
    choose a recipe, so that the test has chosen nothing."""
    split_seed: int = 0
    """Decides which pictures are kept for training and for validation; the test pictures are always the same."""
    balance: Balance = "none"
    """For classes of uneven size. loss: a rare class counts more in the loss. sampling: its pictures are shown more
    often, so that all classes are seen equally often. Multi-label: loss only."""
    weights: Annotated[str | None, DEFAULT_TOLD] = None
    """Weights to start from: a file (ours, timm's or the official repository's), a run folder, a published name or a
    Hub id. The model is then theirs, with a new head unless its classes are those of the data; --model.image-size,
    --model.patch-size and --model.channels adapt it. Default: none, initialised as the paper says."""
    model: Architecture = field(default_factory=Architecture)
    augment: Augmentation = field(default_factory=Augmentation)
    epochs: Annotated[int | None, DEFAULT_TOLD] = None
    """Passes over the training pictures. Default: as many as show 80,000 pictures (in a study 800,000), at least 10 and
    at most 1,000."""
    steps: Annotated[int | None, DEFAULT_TOLD] = None
    """Training steps; if given they count, and not epochs and cool-down."""
    batch_size: int = 64
    """Pictures per step, over all processes and micro-steps."""
    repeats: int = 1
    """Repeated augmentation: each picture of a batch is there that many times, augmented differently; an epoch then
    shows that share of the pictures."""
    mixup: float = 0.0
    """Strength (alpha) of Mixup, which blends pictures of a batch and their labels; 0 for none."""
    cutmix: float = 0.0
    """Strength (alpha) of CutMix, which pastes a piece of another picture of the batch; 0 for none. With both, each
    batch takes one of them at random."""
    optimizer: Annotated[Optimizer | None, DEFAULT_TOLD] = None
    """adamw, or muon, with which a small model from scratch learns in about half the steps: it makes the steps of
    weight matrices orthogonal, and leaves the rest to AdamW. Learning rate and weight decay mean the same for both.
    Default: muon, with a preset or given weights adamw."""
    learning_rate: Annotated[float | None, DEFAULT_TOLD] = None
    """Peak learning rate; it warms up linearly and falls along a cosine. Default: 0.002, with a preset or given weights
    0.001."""
    base_batch_size: Annotated[int | None, DEFAULT_TOLD] = None
    """Batch size that the learning rate is meant for; another one scales it in proportion. Default: no scaling."""
    layer_decay: Annotated[float | None, DEFAULT_TOLD] = None
    """Each layer's learning rate, as a share of the one above it: for fine-tuning. Default: all the same."""
    warmup_epochs: Annotated[float | None, DEFAULT_TOLD] = None
    """Epochs in which the learning rate warms up. Default: a tenth of the run."""
    warmup_learning_rate: Annotated[float | None, DEFAULT_TOLD] = None
    """Learning rate that the warm-up starts from. Default: a hundredth of the peak."""
    min_learning_rate: Annotated[float | None, DEFAULT_TOLD] = None
    """Learning rate that the cosine ends at. Default: a hundredth of the peak."""
    cooldown_epochs: int = 0
    """Epochs at the lowest learning rate, after all others."""
    weight_decay: float = 0.05
    """Weight decay; norms, biases, gates and embeddings are left alone."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes; multi-label: over yes and no of each class."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient; longer ones are scaled down. None: any."""
    ema_decay: Annotated[float | None, DEFAULT_TOLD] = None
    """Share that the average of the weights keeps at each step; validation, test and the saved weights are then the
    averaged ones. It starts lower and rises. Default: no average."""
    precision: Precision = "float32"
    """Numbers of forward and backward; the weights stay float32. bfloat16 takes about half the time on a CPU
    with instructions for it (AVX-512 BF16). float16 scales its loss."""
    patience: Annotated[int | None, DEFAULT_TOLD] = None
    """Stop when that many epochs in a row were not the best in validation. Default: never."""
    select: Select = "best"
    """Which epoch's weights are kept as the run's and tested: the best in validation (of those whose accuracy is within
    a standard error of the highest the one with the least loss), or the last. Where few pictures are left for
    validation, the best is the luckiest of many epochs; last needs no luck, and no patience."""
    seed: int = 0
    """Seed of initial weights, order, augmentation and dropout."""

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size", "base_batch_size", "repeats", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be at least 1.")
        for name in ("learning_rate", "warmup_learning_rate", "min_learning_rate", "clip_norm"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must be positive.")
        for name in ("mixup", "cutmix", "warmup_epochs", "cooldown_epochs", "weight_decay"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}: it must not be negative.")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing is {self.label_smoothing}: it must lie in [0, 1).")
        for name in ("ema_decay", "layer_decay"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must lie in (0, 1].")
        if self.data and not self.data.startswith(("hfds/", "wds/")):
            object.__setattr__(self, "data", os.path.normpath(self.data))  # pets/ and ./pets are pets
        choices: dict[str, Any] = {"balance": Balance, "precision": Precision, "select": Select}
        if self.optimizer is not None:
            choices["optimizer"] = Optimizer
        for name, values in choices.items():
            *others, last = get_args(values)
            if getattr(self, name) not in (*others, last):
                raise UserError(f"{name} is {getattr(self, name)!r}: it must be {', '.join(others)} or {last}.")
        if self.select == "last" and self.patience is not None:
            raise UserError(
                f"patience is {self.patience}: it waits for the best epoch, so select must be best, not last."
            )
        if self.weights is not None:
            self._check_adaptable()

    def _check_adaptable(self) -> None:
        """Raises ``ValueError`` if the architecture says what the weights to start from have settled."""
        asked, default = dataclasses.asdict(self.model), dataclasses.asdict(Architecture())
        settled = [name for name, value in asked.items() if value != default[name] and name not in ADAPTABLE]
        if settled:
            raise UserError(
                f"model.{settled[0]} is {asked[settled[0]]}, but the weights {self.weights} settle it: with weights, "
                f"{', '.join(ADAPTABLE)} can be chosen."
            )

    def num_steps(self, num_pictures: int) -> int:
        """Training steps of the whole run, for that many training pictures."""
        if self.steps is not None:
            return self.steps
        return (self.num_epochs(num_pictures) + self.cooldown_epochs) * self.steps_per_epoch(num_pictures)

    def num_epochs(self, num_pictures: int, *, shown: int = SHOWN) -> int:
        """Passes over that many training pictures, unless ``steps`` is given; ``shown`` if no epochs are chosen."""
        if self.epochs is not None:
            return self.epochs
        shown_per_epoch = self.steps_per_epoch(num_pictures) * min(self.batch_size, num_pictures)
        return min(max(FEWEST_EPOCHS, round(shown / shown_per_epoch)), MOST_EPOCHS)

    def steps_per_epoch(self, num_pictures: int) -> int:
        return max(1, num_pictures // self.batch_size)

    def epochs_per_validation(self, num_pictures: int, num_validation: int) -> int:
        """Epochs from one validation to the next, for that many training and validation pictures.

        One, unless an epoch has fewer pictures than the validation: then so many that they show about as many, but the
        run still has ``FEWEST_VALIDATIONS``. It has at most ``MOST_VALIDATIONS``. Patience lasts five validations or
        more, if it has as many epochs.
        """
        per_epoch = self.steps_per_epoch(num_pictures)
        num_epochs = math.ceil(self.num_steps(num_pictures) / per_epoch)
        shown = per_epoch * min(self.batch_size, num_pictures)
        balanced = min(math.ceil(num_validation / shown), num_epochs // FEWEST_VALIDATIONS)
        every = max(balanced, math.ceil(num_epochs / MOST_VALIDATIONS))
        return max(1, every if self.patience is None else min(every, self.patience // 5))

    @property
    def small(self) -> bool:
        """A small model from scratch: neither a preset nor given weights."""
        return self.model.preset is None and self.weights is None

    @property
    def optimizer_name(self) -> Optimizer:
        """Which optimiser trains: the one that is asked for, or what suits the model."""
        return self.optimizer or ("muon" if self.small else "adamw")

    @property
    def batch_scale(self) -> float:
        """What the learning rate is multiplied by for the batch size."""
        return 1.0 if self.base_batch_size is None else self.batch_size / self.base_batch_size

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the same after a way through JSON, with the optimiser's name also where it is left open."""
        return json.loads(json.dumps(dataclasses.asdict(self) | {"optimizer": self.optimizer_name}))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of ``to_dict``, also of an earlier version's."""
        parts = {"model": Architecture(**values["model"]), "augment": Augmentation(**values["augment"])}
        return cls(**(with_earlier(values) | parts))


@dataclass(frozen=True)
class Options:
    """How a run is carried out; nothing here changes its outcome, apart from rounding between devices."""

    device: str = "auto"
    """auto, cpu, cuda or mps; auto takes the accelerator that is there."""
    workers: Annotated[int | None, DEFAULT_TOLD] = None
    """Processes that read pictures. Default: none for pictures in memory, else up to 8."""
    threads: Annotated[int | None, DEFAULT_TOLD] = None
    """CPU threads for the model. Default: PyTorch's choice."""
    accumulate: int = 1
    """Micro-steps that a batch is cut into, to save memory. Changes the outcome only through Mixup, CutMix and dropout,
    which are drawn for each micro-step."""
    compile: bool = False
    """Compile the model with torch.compile: slow to start, then faster."""
    grad_checkpointing: bool = False
    """Compute each layer's activations again in backward: less memory, about a third more time."""
    checkpoint_minutes: float = 5.0
    """A checkpoint is saved after each validation, and whenever this much time has passed."""
    checkpoint_steps: Annotated[int | None, DEFAULT_TOLD] = None
    """... and every so many steps. Default: by time and validation alone."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept, besides that of the best epoch; the one before serves when the newest is damaged."""
    deterministic: bool = False
    """On CUDA: deterministic kernels only, so that a resumed run is bit-identical there too. The CPU always is."""
    overwrite: bool = False
    """Start again in a run folder that exists: its content is deleted first."""

    def __post_init__(self) -> None:
        for name, least in (
            ("workers", 0),
            ("threads", 1),
            ("accumulate", 1),
            ("checkpoint_minutes", 0),
            ("checkpoint_steps", 1),
            ("keep_checkpoints", 1),
        ):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UserError(f"{name} is {value}: it must be at least {least}.")


def with_earlier(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe, as plain values, of any version, that says all of ``EARLIER``."""
    return values | {name: value for name, value in EARLIER.items() if name not in values}


def changed_words(values: dict[str, Any], standard: dict[str, Any], prefix: str = "") -> list[str]:
    """What a recipe, as plain values, has other than the standard one, as words of the command line."""
    words = []
    for name, value in values.items():
        option = name.replace("_", "-")
        if name not in standard:  # of another version of comvex, which would have to go on itself
            continue
        if isinstance(value, dict):
            words += changed_words(value, standard[name], f"{prefix}{option}.")
        elif value == standard[name]:
            continue
        elif isinstance(value, bool):
            words.append(f"--{prefix}{'' if value else 'no-'}{option}")
        else:
            words += [f"--{prefix}{option}", *map(str, value if isinstance(value, list) else [value])]
    return words


def recipe_words(values: dict[str, Any], standard: Recipe | None = None) -> list[str]:
    """A recipe, as plain values, as words of the command line: what is not as in ``standard``, by default ``Recipe()``.

    Its data and its optimiser are always named, so that the command stays true if another becomes the default.
    """
    common = (Recipe() if standard is None else standard).to_dict()
    return changed_words(with_earlier(values), common | {"data": None, "optimizer": None})


def train_command(values: dict[str, Any], out: Path) -> str:
    """The ``comvex train`` of a recipe, as plain values, that trains in the folder ``out`` or goes on there."""
    return shlex.join(["comvex", "train", *recipe_words(values), "--out", str(out)])


def differences(
    old: dict[str, Any], new: dict[str, Any], prefix: str = "", default: dict[str, Any] | None = None
) -> list[str]:
    """What two recipes, as plain values, have different: "name: old -> new" for each.

    A setting that a recipe of an earlier version does not have is taken to be ``default``, by default that of
    ``EARLIER`` or of today.
    """
    default = Recipe().to_dict() | EARLIER if default is None else default
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = (recipe.get(name, default.get(name)) for recipe in (old, new))
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, prefix=f"{prefix}{name}.", default=default[name])
        elif before != after:
            found.append(f"{prefix}{name}: {before} -> {after}")
    return found
