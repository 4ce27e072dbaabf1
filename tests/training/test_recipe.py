"""Recipes: checked when made, compared in words."""

import json
from pathlib import Path

import pytest

from comvex.convit import ConViTWithLinearClassifier
from comvex.data.sources import open_data
from comvex.training.build import build_config, build_optimizer, build_preprocessing, build_schedule, settle
from comvex.training.recipe import Architecture, Options, Recipe, differences, train_command
from comvex.training.recipes import RECIPES


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"warmup_epochs": -1.0}, r"warmup_epochs is -1\.0"),
        ({"label_smoothing": -0.1}, r"label_smoothing is -0\.1"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"precision": "half"}, "precision is 'half': it must be float32, bfloat16 or float16"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd': it must be adamw or muon"),
        ({"balance": "weights"}, "balance is 'weights': it must be none, loss or sampling"),
    ],
)
def test_values_out_of_range_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**values)


def test_options_out_of_range_are_refused_by_name():
    with pytest.raises(ValueError, match="workers is -1"):
        Options(workers=-1)
    with pytest.raises(ValueError, match="threads is 0"):
        Options(threads=0)


def test_a_recipe_is_the_same_after_a_way_through_json_and_differences_are_named():
    recipe = Recipe(model=Architecture(dim=64))
    values = recipe.to_dict()
    assert json.loads(json.dumps(values)) == values
    assert differences(values, values) == []
    other = Recipe(seed=3, model=Architecture(dim=32)).to_dict()
    assert differences(values, other) == ["model.dim: 64 -> 32", "seed: 0 -> 3"]


def test_a_setting_that_an_earlier_version_did_not_record_has_its_default():
    values = Recipe(model=Architecture(drop_path=0.2)).to_dict()
    for name, part in ((None, "select"), ("model", "drop_path"), ("augment", "zoom")):
        earlier = Recipe(model=Architecture(drop_path=0.2)).to_dict()
        del (earlier if name is None else earlier[name])[part]
        expected = ["model.drop_path: 0.0 -> 0.2"] if part == "drop_path" else []
        assert differences(earlier, values) == expected
    assert differences({"stretch": 1.0}, {"stretch": 0.5}) == ["stretch: 1.0 -> 0.5"]


def test_a_recipe_from_before_there_was_a_choice_of_optimizer_has_adamw():
    presets = {"model": Architecture(preset="ConViT_Ti")}
    for given, found in (({}, ["optimizer: adamw -> muon"]), (presets, []), ({"optimizer": "adamw"}, [])):
        today = Recipe(**given).to_dict()
        earlier = {name: value for name, value in today.items() if name != "optimizer"}
        assert Recipe.from_dict(earlier).optimizer == "adamw"
        assert differences(earlier, today) == found
    assert train_command(earlier, Path("runs/old")) == "comvex train --data digits --optimizer adamw --out runs/old"


def test_small_models_from_scratch_have_muon_and_a_learning_rate_of_their_own():
    digits, weights = open_data("digits"), {"weights": "convit_fashion_mnist"}
    for values, optimizer, learning_rate in (
        ({}, "muon", 2e-3),
        ({"optimizer": "adamw"}, "adamw", 2e-3),
        ({"model": Architecture(preset="ConViT_Ti")}, "adamw", 1e-3),
        (weights, "adamw", 1e-3),
        (weights | {"optimizer": "muon", "learning_rate": 0.01}, "muon", 0.01),
    ):
        recipe = settle(Recipe(**values), digits)
        assert (recipe.optimizer_name, recipe.learning_rate) == (optimizer, learning_rate)
        assert Recipe.from_dict(recipe.to_dict()).optimizer == optimizer  # whatever a later default is
    assert settle(Recipe(learning_rate=0.5), digits).learning_rate == 0.5
    assert Recipe().to_dict()["learning_rate"] is None
    assert [RECIPES[name](None).recipe.optimizer for name in ("paper", "fine-tune")] == ["adamw", "adamw"]


def test_steps_follow_from_epochs_or_from_the_number_of_pictures():
    assert Recipe(steps=123, epochs=7, cooldown_epochs=2).num_steps(50) == 123
    assert Recipe(epochs=4, cooldown_epochs=2, batch_size=64).num_steps(1000) == 6 * 15
    assert Recipe(epochs=4, batch_size=64).num_steps(1000) == 4 * 15
    assert Recipe(epochs=4, batch_size=64).num_steps(10) == 4
    assert Recipe(batch_size=100).num_steps(1000) == 80 * 10
    assert Recipe(batch_size=64).num_steps(127) == 1000  # a step an epoch shows 64 of them: 1,250 would be 80,000
    assert Recipe(batch_size=64).num_steps(191) == 2 * 625
    assert Recipe(batch_size=64).num_steps(3) == 1000
    assert Recipe(batch_size=100).num_steps(60_000) == 10 * 600


@pytest.mark.parametrize(
    ("values", "num_pictures", "num_validation", "every"),
    [
        ({}, 1293, 144, 1),  # the digits, as comvex train has them
        ({"epochs": 334}, 540, 60, 1),  # 1 % of Fashion-MNIST, of which a tenth is for validation
        ({"epochs": 6250}, 45, 5, 7),  # 1 % of 5,000 pictures: 893 validations
        ({"epochs": 6250}, 50, 1000, 20),  # the same of data with a val part: as many pictures as are trained on
        ({"epochs": 2000}, 50, 10_000, 20),  # never less than a hundred times
        ({"epochs": 100}, 50, 10_000, 1),
        ({"epochs": 3}, 50, 10_000, 1),
        ({"epochs": 300, "cooldown_epochs": 100}, 50, 10_000, 4),
        ({"steps": 1000}, 640, 1280, 1),  # a hundred epochs of ten steps
        ({"steps": 4000}, 640, 1280, 2),
        ({"steps": 4000}, 640, 1281, 3),
        ({"steps": 4000}, 700, 1280, 2),  # an epoch shows 640 of them
        ({}, 50, 0, 1),
        ({"epochs": 6250, "patience": 79}, 50, 1000, 15),  # so that patience is five validations at least
        ({"epochs": 6250, "patience": 1000}, 50, 1000, 20),
        ({"epochs": 6250, "patience": 3}, 50, 1000, 1),
    ],
)
def test_validation_takes_no_more_pictures_than_training_where_it_is_often_enough(
    values, num_pictures, num_validation, every
):
    recipe = Recipe(batch_size=64, **values)
    assert recipe.epochs_per_validation(num_pictures, num_validation) == every


def test_the_model_follows_the_data_unless_told_otherwise():
    digits = open_data("digits")
    config = build_config(Architecture(), digits)
    assert (config.image_size, config.image_channel, config.num_classes) == (8, 1, 10)
    assert (config.pre_norm, config.position_embedding, config.ff_dim) == (True, True, 4 * config.dim)
    assert config.init_std == config.dim**-0.5
    config = build_config(Architecture(preset="ConViT_S", image_size=64), digits)
    assert config.init_std == 0.02
    assert config.global_pool == "token"
    assert build_config(Architecture(num_nonlocal_layers=0), digits).global_pool == "avg"  # nothing reaches the token
    assert (config.dim, config.heads, config.patch_size, config.image_channel) == (432, 9, 16, 1)
    preprocessing = build_preprocessing(
        ConViTWithLinearClassifier(build_config(Architecture(channels=3), digits)), digits
    )
    assert preprocessing.channels == len(preprocessing.mean) == len(preprocessing.std) == 3
    with pytest.raises(ValueError, match="did you mean 'ConViT_Ti'"):
        build_config(Architecture(preset="ConViT_T"), digits)
    with pytest.raises(ValueError, match="multiple of patch_size"):
        build_config(Architecture(image_size=9), digits)
    with pytest.raises(ValueError, match="channels"):
        build_config(Architecture(channels=2), digits)


def test_vectors_and_embeddings_are_not_decayed():
    model = ConViTWithLinearClassifier(build_config(Architecture(), open_data("digits")))
    groups = build_optimizer(model, Recipe(learning_rate=0.1)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    free = {names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    assert free | decayed == set(names.values())
    assert {"cls_token", "pos_embed", "blocks.0.attn.gating_param", "norm.weight", "head.bias"} <= free
    matrices = ("proj.weight", "qk.weight", "v.weight", "qkv.weight", "fc1.weight", "fc2.weight", "head.weight")
    assert all(name.endswith(matrices) for name in decayed)


def test_the_learning_rate_warms_up_and_falls_and_is_a_function_of_the_step():
    model = ConViTWithLinearClassifier(build_config(Architecture(), open_data("digits")))
    recipe = Recipe(learning_rate=0.1, epochs=10, batch_size=10)

    def rates(steps):
        optimizer = build_optimizer(model, recipe)
        schedule = build_schedule(optimizer, recipe, 100)
        found = []
        for step in steps:
            schedule.step_update(step)
            found.append(optimizer.param_groups[0]["lr"])
        return found

    whole = rates(range(100))
    assert whole[:11] == sorted(whole[:11])
    assert whole[10] == max(whole) == pytest.approx(0.1)
    assert whole[10:] == sorted(whole[10:], reverse=True)
    assert whole[-1] < 0.01 * max(whole) + 1e-4
    assert rates(range(60, 100)) == whole[60:]


def test_a_size_of_height_and_width_is_the_same_after_a_way_through_json():
    recipe = Recipe(model=Architecture(image_size=(16, 8)))
    stored = json.loads(json.dumps(recipe.to_dict()))
    assert differences(stored, recipe.to_dict()) == []
    assert differences(stored, Recipe(model=Architecture(image_size=(8, 16))).to_dict()) == [
        "model.image_size: [16, 8] -> [8, 16]"
    ]
    assert Recipe(model=Architecture(**stored["model"])) == recipe
    config = build_config(recipe.model, open_data("digits"))
    assert (config.image_size, config.grid) == ((16, 8), (8, 4))
    assert build_preprocessing(ConViTWithLinearClassifier(config), open_data("digits")).image_size == (16, 8)


def test_the_heads_follow_the_width():
    digits = open_data("digits")
    config = build_config(Architecture(), digits)
    assert (config.dim, config.num_heads) == (72, 9)
    assert build_config(Architecture(dim=32), digits).num_heads == 4  # 9 does not divide it
    assert build_config(Architecture(dim=30), digits).num_heads == 1
