"""The recipes that ``comvex train`` knows by name: starting points whose every value can be changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from comvex.data.augmentation import Augmentation
from comvex.training.recipe import Architecture, Options, Recipe


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe and the options that go with it."""

    recipe: Recipe
    options: Options = field(default_factory=Options)


def small_data(preset: str | None) -> NamedRecipe:
    """A small ConViT from scratch, for a small data set; without any other word the digits."""
    return NamedRecipe(Recipe(model=Architecture(preset=preset)))


def fine_tune(preset: str | None) -> NamedRecipe:
    """Published or own weights, with a new head, on a data set of your own: the first thing to try."""
    del preset  # the weights have their own size
    return NamedRecipe(
        Recipe(
            data="",
            weights="convit_tiny.fb_in1k",
            model=Architecture(drop_path=0.1),
            augment=Augmentation(
                rotation=0.0, translation=0.0, zoom=0.0, smallest_crop=0.35, auto_augment="rand-m5-mstd0.5-inc1"
            ),
            epochs=20,
            optimizer="adamw",
            learning_rate=5e-4,
            layer_decay=0.75,
            label_smoothing=0.1,
        )
    )


PLUS_SIZES = ("ConViT_Ti_plus", "ConViT_S_plus", "ConViT_B_plus")


def paper(preset: str | None) -> NamedRecipe:
    """The paper's, for ImageNet-1k (d'Ascoli et al. 2021, section 3; DeiT's, Touvron et al. 2021, table 9)."""
    preset = preset or "ConViT_S"
    plus = preset in PLUS_SIZES
    return NamedRecipe(
        Recipe(
            data="imagenet-1k",
            model=Architecture(preset=preset, drop_path=0.1),
            augment=Augmentation(
                rotation=0.0,
                translation=0.0,
                zoom=0.0,
                smallest_crop=0.08,
                auto_augment="rand-m9-mstd0.5-inc1",
                color_jitter=0.4,
                random_erasing=0.25,
                erase_with="noise",
            ),
            epochs=300,
            batch_size=512 if plus else 1024,
            repeats=3,
            mixup=0.8,
            cutmix=1.0,
            optimizer="adamw",
            learning_rate=4e-4 if plus else 5e-4,
            base_batch_size=512,
            warmup_epochs=5,
            warmup_learning_rate=1e-6,
            min_learning_rate=1e-5,
            cooldown_epochs=10,
            weight_decay=0.05,
            label_smoothing=0.1,
            clip_norm=None,
        ),
        Options(workers=10),
    )


def smoke(preset: str | None) -> NamedRecipe:
    """Half a minute with everything on that is random, to see that all of it works on a machine."""
    return NamedRecipe(
        Recipe(
            model=Architecture(
                preset=preset,
                image_size=16,
                patch_size=4,
                dim=32,
                num_local_layers=2,
                num_nonlocal_layers=1,
                drop_path=0.1,
                attention_dropout=0.1,
            ),
            augment=Augmentation(
                smallest_crop=0.5, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25, erase_with="noise"
            ),
            epochs=5,
            learning_rate=6e-3,
            repeats=3,
            mixup=0.8,
            cutmix=1.0,
            ema_decay=0.99,
        ),
        Options(workers=2),
    )


RECIPES: dict[str, Callable[[str | None], NamedRecipe]] = {
    "small-data": small_data,
    "fine-tune": fine_tune,
    "paper": paper,
    "smoke": smoke,
}
"""Each by its name, as a function of the preset asked for (None: the recipe's own)."""
