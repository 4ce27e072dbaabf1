"""What a study trains, and what makes its runs comparable."""

import csv
import dataclasses
from pathlib import Path

import pytest

from comvex.run_folder import read_recipe
from comvex.study.plan import FRACTIONS, STANDARD, VARIANTS, Study
from comvex.training.recipe import Architecture, Recipe, differences

TRIALS = Path(__file__).parents[2] / "docs" / "results" / "small-data"
FASHION = 54_000
RECIPE = Recipe(data="fashion-mnist", batch_size=100, epochs=20)


def study(kind="sample-efficiency", *, recipe=RECIPE, fractions=None, seeds=(0, 1, 2), stretch=1.0):
    return Study(kind, recipe, fractions or FRACTIONS[kind], seeds, stretch)


def test_the_default_studies_are_the_issue_s_and_few_pictures_come_first():
    runs = study().runs(FASHION)
    assert len({run.name for run in runs}) == len(runs) == 2 * 5 * 3
    assert [run.fraction for run in runs if run.seed == 0] == [f for f in (0.01, 0.05, 0.1, 0.3, 1.0) for _ in range(2)]
    assert len(study("ablation").runs(FASHION)) == 7 * 2 * 3


@pytest.mark.parametrize("kind", ["sample-efficiency", "ablation"])
def test_runs_of_one_fraction_and_seed_differ_in_nothing_but_the_switches(kind):
    for seed in (0, 1, 2):
        for fraction in FRACTIONS[kind]:
            alike = [run for run in study(kind).runs(FASHION) if (run.fraction, run.seed) == (fraction, seed)]
            assert [run.architecture for run in alike] == list(VARIANTS[kind])
            assert len({run.recipe for run in alike}) == len(alike)
            assert len({dataclasses.replace(run.recipe, model=Architecture()) for run in alike}) == 1
            assert {(r.recipe.fraction, r.recipe.seed, r.recipe.split_seed) for r in alike} == {(fraction, seed, seed)}


def test_the_rows_of_the_ablation_are_those_of_table_3():
    models = {run.architecture: run.recipe.model for run in study("ablation", seeds=(0,)).runs(FASHION)}
    switches = {
        name: (m.train_gates, m.convolutional_init, not m.freeze_positional, m.use_gpsa) for name, m in models.items()
    }
    assert switches == {
        "convit": (True, True, True, True),
        "gates frozen at 0": (False, True, True, True),
        "no convolutional init": (True, False, True, True),
        "neither": (False, False, True, True),
        "GPSA frozen at convolution": (True, True, False, True),
        "GPSA frozen at random": (True, False, False, True),
        "plain": (True, True, True, False),
    }


def test_epochs_are_multiplied_by_one_over_the_fraction():
    lengths = {run.fraction: (run.recipe.epochs, run.recipe.patience) for run in study(seeds=(0,)).runs(FASHION)}
    assert lengths == {0.01: (2000, None), 0.05: (400, None), 0.1: (200, None), 0.3: (67, None), 1.0: (20, None)}
    own = study(recipe=dataclasses.replace(RECIPE, patience=3), seeds=(0,)).runs(FASHION)
    assert {run.fraction: run.recipe.patience for run in own} == {0.01: 300, 0.05: 60, 0.1: 30, 0.3: 10, 1.0: 3}


def test_by_default_the_runs_are_long():
    for num_pictures, epochs in ((450, 1000), (5_000, 160), (54_000, 15)):  # 800,000 pictures in whole batches of 64
        run = study(recipe=STANDARD, seeds=(0,), fractions=(1.0,)).runs(num_pictures)[0]
        assert run.recipe.epochs == epochs
        assert run.recipe.num_steps(num_pictures) >= 6_000
    assert study(recipe=dataclasses.replace(STANDARD, epochs=3)).runs(FASHION)[-1].recipe.epochs == 3


def test_the_default_recipe_is_that_of_convit_s_best_trial_of_its_grid():
    with (TRIALS / "trials.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["architecture"] == "convit"]
    own_grid = [row for row in rows if "patch_size" not in row["changes"]]
    name = max(own_grid, key=lambda row: float(row["val_top1"]))["trial"]
    [trial] = (TRIALS / name.replace(" ", "-") / "runs").glob("convit-*")
    found = {line.split(": ")[0]: line.split(": ")[1] for line in differences(read_recipe(trial), STANDARD.to_dict())}
    assert found.pop("augment.random_erasing") == "0.25 -> None"  # what it is left open for
    assert found.pop("learning_rate") == "0.002 -> None"
    shape = {f"model.{name}" for name in ("dim", "heads", "num_local_layers", "num_nonlocal_layers")}  # small anyway
    pictures = {"fraction", "val_fraction", "split_seed", "seed", "steps", "test", "precision", "select"}
    assert found.keys() <= shape | pictures


def test_a_study_of_a_size_of_the_paper_has_its_optimizer():
    preset = dataclasses.replace(STANDARD, model=dataclasses.replace(STANDARD.model, preset="ConViT_Ti"))
    assert [recipe.to_dict()["optimizer"] for recipe in (STANDARD, preset)] == ["muon", "adamw"]


@pytest.mark.parametrize("select", ["best", "last"])
def test_the_recipe_says_which_epoch_is_tested(select):
    own = study(recipe=dataclasses.replace(RECIPE, select=select)).runs(FASHION)
    assert {run.recipe.select for run in own} == {select}


def test_steps_are_the_same_at_every_fraction():
    recipe = dataclasses.replace(RECIPE, epochs=None, steps=5400)  # ten epochs of all pictures
    assert {run.recipe.steps for run in study(recipe=recipe, seeds=(0,)).runs(FASHION)} == {5400}


def test_a_smaller_stretch_gives_few_pictures_fewer_steps():
    lengths = {run.fraction: run.recipe.epochs for run in study(seeds=(0,), stretch=0.5).runs(FASHION)}
    assert lengths == {0.01: 200, 0.05: 89, 0.1: 63, 0.3: 37, 1.0: 20}
    recipe = dataclasses.replace(RECIPE, epochs=None, steps=5400)
    runs = study(recipe=recipe, seeds=(0,), stretch=0.5).runs(FASHION)
    # 5400 x fraction / sqrt(fraction)
    assert {run.fraction: run.recipe.steps for run in runs} == {0.01: 540, 0.05: 1207, 0.1: 1708, 0.3: 2958, 1.0: 5400}
    own = study(recipe=dataclasses.replace(recipe, patience=5), seeds=(0,), stretch=0.5).runs(FASHION)
    assert {run.fraction: run.recipe.patience for run in own} == {0.01: 50, 0.05: 23, 0.1: 16, 0.3: 10, 1.0: 5}


def test_warm_up_and_cool_down_are_the_same_share_of_every_run():
    recipe = dataclasses.replace(RECIPE, warmup_epochs=1.5, cooldown_epochs=5)
    for stretch in (0.0, 0.6, 1.0):
        for run in study(recipe=recipe, seeds=(0,), stretch=stretch).runs(FASHION):
            assert run.recipe.warmup_epochs / run.recipe.epochs == pytest.approx(1.5 / 20, rel=0.02)
            assert run.recipe.cooldown_epochs / run.recipe.epochs == pytest.approx(5 / 20, rel=0.03)  # whole epochs


@pytest.mark.parametrize("num_pictures", [100, 432, 1000, 5000])
def test_few_pictures_have_no_more_steps_than_many(num_pictures):
    """Where an epoch is less than a batch it is a step nevertheless."""
    for recipe in (RECIPE, dataclasses.replace(RECIPE, epochs=None)):
        runs = study(recipe=recipe, seeds=(0,)).runs(num_pictures)
        steps = [run.recipe.num_steps(round(run.fraction * num_pictures)) for run in runs]
        assert max(steps) < 1.6 * steps[-1]  # an epoch leaves out up to a batch
        assert min(steps) > 0.6 * steps[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stretch": 1.5}, r"stretch is 1\.5: it must lie in \[0, 1\]"),
        ({"recipe": Recipe(test=False)}, "test is False: the figures of a study are those of the test pictures"),
        ({"fractions": (0.1, 1.5)}, r"fractions has 1\.5: each must lie in \(0, 1\]"),
        ({"fractions": (0.1, 0.1)}, "fractions has 10 % twice"),
        ({"fractions": (1 / 3, 0.333333)}, "fractions has 33.3333 % twice"),
        ({"seeds": (3, 3)}, "seeds has 3 twice"),
        ({"seeds": (0, -1)}, r"seeds has -1: each must lie in \[0, 2\*\*32\)"),
        ({"seeds": ()}, "without seeds has no runs"),
        ({"recipe": Recipe(fraction=0.5)}, "in a study --fractions says it"),
        ({"recipe": Recipe(seed=1)}, "in a study --seeds says it"),
        ({"recipe": Recipe(split_seed=1)}, "in a study --seeds says it"),
        ({"recipe": Recipe(model=Architecture(use_gpsa=False))}, r"model\.use_gpsa is False: a study sets it"),
        ({"recipe": Recipe(weights="convit_tiny.fb_in1k")}, "start from scratch"),
    ],
)
def test_what_the_study_says_itself_cannot_be_said_otherwise(changes, message):
    with pytest.raises(ValueError, match=message):
        study(**changes)
