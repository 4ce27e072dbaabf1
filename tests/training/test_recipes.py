"""The recipes by name: the paper's figures, how the command line finds them, and what a dry run shows."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from comvex.cli import main, parse
from comvex.commands.train import Train
from comvex.convit import ConViTWithLinearClassifier
from comvex.data.sources import open_data
from comvex.training.build import build_config, build_optimizer, build_schedule
from comvex.training.recipes import RECIPES
from made_pictures import shape_pictures


@pytest.mark.parametrize(
    ("preset", "batch_size", "peak"),
    [
        ("ConViT_Ti", 1024, 1e-3),
        ("ConViT_S", 1024, 1e-3),
        ("ConViT_B", 1024, 1e-3),
        ("ConViT_Ti_plus", 512, 4e-4),
        ("ConViT_S_plus", 512, 4e-4),
        ("ConViT_B_plus", 512, 4e-4),
    ],
)
def test_the_papers_recipe_has_the_papers_figures(preset, batch_size, peak):
    recipe = RECIPES["paper"](preset).recipe
    assert (recipe.model.preset, recipe.batch_size) == (preset, batch_size)
    assert recipe.learning_rate * recipe.batch_scale == pytest.approx(peak)
    assert (recipe.epochs, recipe.warmup_epochs, recipe.cooldown_epochs) == (300, 5, 10)
    assert (recipe.warmup_learning_rate, recipe.min_learning_rate, recipe.weight_decay) == (1e-6, 1e-5, 0.05)
    assert (recipe.label_smoothing, recipe.mixup, recipe.cutmix, recipe.repeats) == (0.1, 0.8, 1.0, 3)
    assert (recipe.model.drop_path, recipe.ema_decay, recipe.clip_norm) == (0.1, None, None)
    augment = recipe.augment
    assert (augment.auto_augment, augment.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert (augment.color_jitter, augment.smallest_crop, augment.erase_with) == (0.4, 0.08, "noise")


def test_the_papers_schedule_warms_up_falls_and_cools_down():
    recipe = RECIPES["paper"](None).recipe
    model = ConViTWithLinearClassifier(build_config(RECIPES["smoke"](None).recipe.model, open_data("digits")))
    optimizer = build_optimizer(model, recipe)
    num_pictures, per_epoch = 10 * recipe.batch_size, 10
    schedule = build_schedule(optimizer, recipe, num_pictures)

    def rate(epoch: float) -> float:
        schedule.step_update(round(epoch * per_epoch))
        return optimizer.param_groups[0]["lr"]

    assert recipe.num_steps(num_pictures) == 310 * per_epoch
    assert rate(0) == pytest.approx(1e-6)
    assert rate(5) == pytest.approx(1e-3)
    assert rate(152.5) == pytest.approx((1e-3 + 1e-5) / 2)
    assert rate(300) == rate(309) == pytest.approx(1e-5)


def test_a_run_of_one_step_has_the_peak_and_no_complaint_of_timms(caplog):
    recipe = dataclasses.replace(RECIPES["small-data"](None).recipe, learning_rate=1e-3, steps=1)
    optimizer = build_optimizer(torch.nn.Linear(2, 2), recipe)
    build_schedule(optimizer, recipe, 100).step_update(0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    assert caplog.messages == []


def test_a_layers_learning_rate_falls_towards_the_pictures():
    recipe = RECIPES["fine-tune"](None).recipe
    model = ConViTWithLinearClassifier(build_config(RECIPES["small-data"](None).recipe.model, open_data("digits")))
    optimizer = build_optimizer(model, recipe)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scale = {names[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scale["head.weight"] == 1
    assert scale["patch_embed.proj.weight"] < scale["blocks.0.attn.v.weight"] < scale["blocks.5.mlp.fc1.weight"] <= 1
    assert scale["blocks.1.attn.v.weight"] == pytest.approx(scale["blocks.0.attn.v.weight"] / 0.75)


@pytest.mark.parametrize(
    "arguments",
    [
        ["paper", "--data", "x", "--epochs", "7"],
        ["--data", "x", "paper", "--epochs", "7"],
        ["--data", "x", "--epochs", "7", "paper"],
        ["--json", "--data", "x", "--epochs", "7", "paper"],
        ["--data", "x", "--epochs", "7", "--json", "paper"],
        ["--data=x", "paper", "--epochs=7"],
        ["--epochs", "7", "--data=x", "paper"],
        ["--data=x", "--epochs", "7", "--model.image-size", "16", "paper"],
        ["--data=x", "--epochs", "7", "--model.image-size=16", "paper"],
    ],
)
def test_a_recipes_name_may_stand_anywhere_and_its_values_be_changed(arguments):
    command = parse(["train", *arguments])
    assert isinstance(command, Train)
    assert (command.name, command.recipe.data, command.recipe.epochs, command.recipe.mixup) == ("paper", "x", 7, 0.8)


def test_the_papers_recipe_follows_the_preset_however_it_is_written():
    for preset in (["--model.preset", "ConViT_S_plus"], ["--model.preset=ConViT_S_plus"]):
        command = parse(["train", "paper", *preset, "--data", "x"])
        assert isinstance(command, Train)
        assert (command.recipe.batch_size, command.recipe.learning_rate) == (512, 4e-4)


def test_without_a_name_it_is_small_data_even_where_a_value_looks_like_one():
    for arguments in ([], ["--out", "paper"], ["--data", "smoke"]):
        command = parse(["train", *arguments])
        assert isinstance(command, Train)
        assert (command.name, command.recipe.mixup, command.recipe.batch_size) == ("small-data", 0.0, 64)


def test_fine_tuning_asks_for_data_in_a_sentence(capsys):
    assert main(["train", "fine-tune"]) == 2
    assert "fine-tune has no data of its own: --data must name" in capsys.readouterr().err


def test_a_dry_run_shows_the_recipe_and_draws_but_trains_nothing(tmp_path, capsys):
    assert main(["train", "smoke", "--dry-run", "--out", str(tmp_path / "run"), "--layer-decay", "0.5"]) == 0
    said = capsys.readouterr().out
    for words in ('"mixup": 0.8', "39,338 parameters", "learning rate", "weight decay 0.05", "1295 training"):
        assert words in said
    assert not (tmp_path / "run").exists()
    for name in ("samples", "schedule"):
        with Image.open(tmp_path / "run.dry-run" / f"{name}.png") as picture:
            assert picture.width > 400
            dark = np.asarray(picture.convert("L")) < 128
            assert dark.mean() > 0.005, name


def test_a_dry_run_says_why_pictures_have_several_labels(tmp_path, capsys):
    table = shape_pictures(tmp_path / "shapes", num=40)
    assert main(["train", "--data", str(table), "--dry-run", "--out", str(tmp_path / "run")]) == 0
    assert f"  {table} is multi-label, because row " in capsys.readouterr().out


def test_smoke_has_every_source_of_randomness_on():
    named = RECIPES["smoke"](None)
    recipe, options = named.recipe, named.options
    assert recipe.augment.auto_augment
    assert recipe.augment.random_erasing
    assert recipe.repeats > 1
    assert min(recipe.mixup, recipe.cutmix, recipe.model.drop_path, recipe.model.attention_dropout) > 0
    assert recipe.ema_decay
    assert options.workers == 2
    json.dumps(recipe.to_dict())
