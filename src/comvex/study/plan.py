"""Which runs a study consists of; needs no torch."""

from __future__ import annotations

import dataclasses
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from comvex.data.augmentation import Augmentation
from comvex.errors import UserError
from comvex.training.recipe import Architecture, Recipe, recipe_words

Kind = Literal["sample-efficiency", "ablation"]

CONVIT, PLAIN = "convit", "plain"

VARIANTS: dict[str, dict[str, dict[str, bool]]] = {
    "sample-efficiency": {CONVIT: {}, PLAIN: {"use_gpsa": False}},
    # d'Ascoli et al. 2021, Table 3
    "ablation": {
        CONVIT: {},
        "gates frozen at 0": {"train_gates": False},
        "no convolutional init": {"convolutional_init": False},
        "neither": {"train_gates": False, "convolutional_init": False},
        "GPSA frozen at convolution": {"freeze_positional": True},
        "GPSA frozen at random": {"freeze_positional": True, "convolutional_init": False},
        PLAIN: {"use_gpsa": False},
    },
}
"""The architectures of each study: what each changes of the recipe's model."""

FRACTIONS: dict[str, tuple[float, ...]] = {
    "sample-efficiency": (0.01, 0.05, 0.1, 0.3, 1.0),
    "ablation": (0.1, 1.0),
}

STANDARD = Recipe(
    data="fashion-mnist",
    model=Architecture(drop_path=0.1),
    augment=Augmentation(rotation=0.0, translation=0.08, zoom=0.0),
    select="last",
)
"""What a study starts from: of the trials in docs/results/small-data the best for ConViT, in which the plain ViT was
0.8 points below its own best.

Shifts and drop path instead of turns and zoom. The last epoch is tested: of the few pictures that a fraction leaves for
validation the best would be the luckiest of many.
"""

SHOWN = 800_000
"""Pictures that a run of all pictures shows unless told otherwise, in at least ten epochs: where there are up to 8,000
ten times what comvex train does, for in shorter runs ConViT's lead may be in part that it learns faster. Of
Fashion-MNIST that is 12,645 steps; in runs as long the plain ViT's loss had ceased to fall, with up to 10 % of it."""

SWITCHES = ("use_gpsa", "train_gates", "convolutional_init", "freeze_positional")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study."""

    architecture: str
    """A name in ``VARIANTS``."""
    fraction: float
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.architecture.replace(' ', '-')}-{100 * self.fraction:g}pc-seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.architecture}, {100 * self.fraction:g} % of the pictures, seed {self.seed}"


@dataclass(frozen=True)
class Study:
    """What is compared, with which recipe, on which shares of the pictures, with which seeds."""

    kind: Kind
    recipe: Recipe
    """For all runs alike; the study sets fraction, seeds and the switches of the architecture."""
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    stretch: float = 1.0
    """Epochs of a fraction are multiplied by (1 / fraction) to this power: 1, as in the paper, gives every fraction as
    many steps; less saves time where few pictures are learnt sooner."""

    def __post_init__(self) -> None:
        if not 0 <= self.stretch <= 1:
            raise UserError(f"stretch is {self.stretch:g}: it must lie in [0, 1].")
        if not self.fractions or not self.seeds:
            raise UserError("A study without fractions or without seeds has no runs: give at least one of each.")
        for fraction in self.fractions:
            if not 0 < fraction <= 1:
                raise UserError(f"fractions has {fraction:g}: each must lie in (0, 1].")
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise UserError(f"seeds has {seed}: each must lie in [0, 2**32).")
        shares = [f"{100 * fraction:g} %" for fraction in self.fractions]  # as the folders of runs are named
        for name, values in (("fractions", shares), ("seeds", list(map(str, self.seeds)))):
            twice = [value for value in values if values.count(value) > 1]
            if twice:
                raise UserError(f"{name} has {twice[0]} twice: each must be there once.")
        self._check_recipe()

    def _check_recipe(self) -> None:
        """Raises ``ValueError`` if the recipe says what the study says itself."""
        standard = Recipe()
        for name, instead in (("fraction", "--fractions"), ("seed", "--seeds"), ("split_seed", "--seeds")):
            if getattr(self.recipe, name) != getattr(standard, name):
                raise UserError(f"{name} is {getattr(self.recipe, name)}: in a study {instead} says it.")
        for name in SWITCHES:
            if getattr(self.recipe.model, name) != getattr(Architecture(), name):
                raise UserError(
                    f"model.{name} is {getattr(self.recipe.model, name)}: a study sets it for each architecture itself."
                )
        if not self.recipe.test:
            raise UserError("test is False: the figures of a study are those of the test pictures.")
        if self.recipe.weights is not None:
            raise UserError(f"weights is {self.recipe.weights}: the runs of a study start from scratch.")

    @property
    def architectures(self) -> list[str]:
        """Names of what is compared, ConViT first."""
        return list(VARIANTS[self.kind])

    def settled(self, num_pictures: int) -> Study:
        """With the epochs that the recipe leaves open, for data with that many training pictures at a fraction of 1."""
        if self.recipe.epochs is not None or self.recipe.steps is not None:
            return self
        epochs = self.recipe.num_epochs(num_pictures, shown=SHOWN)
        return dataclasses.replace(self, recipe=dataclasses.replace(self.recipe, epochs=epochs))

    def runs(self, num_pictures: int) -> list[PlannedRun]:
        """All runs, for data with that many training pictures at a fraction of 1.

        A seed after the other and few pictures first, so that a study that was stopped has whole comparisons. All
        architectures of a fraction and a seed have the same pictures, order and augmentation.
        """
        return [
            PlannedRun(name, fraction, seed, self.run_recipe(name, fraction, seed, num_pictures))
            for seed in self.seeds
            for fraction in sorted(self.fractions)
            for name in self.architectures
        ]

    def run_recipe(self, architecture: str, fraction: float, seed: int, num_pictures: int) -> Recipe:
        """The recipe of one run: with fewer pictures it takes more epochs, as ``stretch`` says."""
        changes: dict[str, Any] = {"fraction": fraction, "seed": seed, "split_seed": seed}
        changes |= length(self.recipe, fraction, num_pictures, stretch=self.stretch)
        model = dataclasses.replace(self.recipe.model, **VARIANTS[self.kind][architecture])
        return dataclasses.replace(self.recipe, model=model, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the same after a way through JSON."""
        return {
            "study": self.kind,
            "recipe": self.recipe.to_dict(),
            "fractions": list(self.fractions),
            "seeds": list(self.seeds),
            "stretch": self.stretch,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Study:
        """The inverse of ``to_dict``; what else is there is passed over."""
        return cls(
            values["study"],
            Recipe.from_dict(values["recipe"]),
            tuple(values["fractions"]),
            tuple(values["seeds"]),
            values["stretch"],
        )


def length(recipe: Recipe, fraction: float, num_pictures: int, *, stretch: float) -> dict[str, Any]:
    """Epochs (or steps, if the recipe counts those), patience, warm-up and cool-down of a run on some of the pictures.

    All are meant for all pictures, and multiplied by (1 / fraction) to the power ``stretch``: if that is 1, every
    fraction has about as many steps. So an epoch of less than a batch, which is a step too, counts for part of one.
    """
    longer = fraction**-stretch
    more_epochs = longer * min(1, fraction * num_pictures / recipe.batch_size)
    scaled: dict[str, Any] = {
        "patience": None if recipe.patience is None else max(1, math.ceil(recipe.patience * more_epochs)),
        "cooldown_epochs": round(recipe.cooldown_epochs * more_epochs),
        "warmup_epochs": None if recipe.warmup_epochs is None else recipe.warmup_epochs * more_epochs,
    }
    if recipe.steps is not None:
        return {"steps": max(1, round(recipe.steps * fraction * longer)), **scaled}
    return {"epochs": max(1, round(recipe.num_epochs(num_pictures, shown=SHOWN) * more_epochs)), **scaled}


def command(study: Study, out: Path) -> str:
    """The command that does the study again, or goes on with it."""
    words = ["comvex", "study", study.kind, "--fractions", *map(number, study.fractions)]
    words += ["--seeds", *map(str, study.seeds)]
    if study.stretch != 1:
        words += ["--stretch", number(study.stretch)]
    return shlex.join([*words, *recipe_words(study.recipe.to_dict(), STANDARD), "--out", str(out)])


def number(value: float) -> str:
    """All its digits, without those that say nothing: 0.1, 1, 0.3333333333333333."""
    return repr(float(value)).removesuffix(".0")
