"""The configuration: the seed's arguments, validated and frozen, the paper's sizes, and the way to JSON and back."""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.convit.config import PRESETS

# The contract that the library started from: names, order and defaults (heads and head_dim: one of them is needed).
SEED_ARGUMENTS = {
    "image_size": 224,
    "image_channel": 3,
    "patch_size": 16,
    "num_local_layers": 10,
    "num_nonlocal_layers": 2,
    "dim": 192,
    "num_classes": 1000,
    "locality_strength": 1.0,
    "heads": None,
    "head_dim": None,
    "pre_norm": False,
    "ff_dim": 2048,
    "ff_dropout": 0.0,
    "attention_dropout": 0.0,
    "token_dropout": 0.0,
    "pred_act_fnc_name": "ReLU",
}


def test_arguments_are_the_seeds_and_others_are_keyword_only() -> None:
    parameters = inspect.signature(ConViTConfig).parameters
    seed, others = list(parameters)[: len(SEED_ARGUMENTS)], list(parameters)[len(SEED_ARGUMENTS) :]
    assert {name: parameters[name].default for name in seed} == SEED_ARGUMENTS
    assert seed == list(SEED_ARGUMENTS)
    assert all(parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for name in seed)
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in others)
    assert all(parameters[name].default is not inspect.Parameter.empty for name in others)


def test_example_of_the_seed_builds() -> None:
    config = ConViTConfig(**SEED_ARGUMENTS | {"heads": 4})
    assert config.num_heads == 4
    assert config.grid == (14, 14)


def test_config_is_frozen() -> None:
    config = ConViTConfig(heads=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dim = 64  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_size", 225, "image_size is 225: each side must be a multiple of patch_size = 16"),
        ("image_size", (224, 100), r"image_size is \(224, 100\): each side must be a multiple of patch_size = 16"),
        ("image_size", 0, "image_size is 0: it must be a whole number of at least 1"),
        ("image_size", (-16, 16), "image_size is -16: it must be a whole number of at least 1"),
        ("image_size", (224.0, 224), r"image_size is 224\.0: it must be a whole number of at least 1"),
        ("image_size", (224,), r"image_size is \(224,\): it must be a whole number or \(height, width\)"),
        ("image_size", (3, 224, 224), r"image_size is \(3, 224, 224\): it must be a whole number or \(height, width\)"),
        ("image_size", "224", "image_size is '224': it must be a whole number"),
        ("image_size", None, "image_size is None: it must be a whole number or"),
        ("image_size", 224.0, r"image_size is 224\.0: it must be a whole number or"),
        ("image_channel", 0, "image_channel is 0: it must be a whole number of at least 1"),
        ("image_channel", "3", "image_channel is '3': it must be a whole number of at least 1"),
        ("patch_size", 0, "patch_size is 0: it must be a whole number of at least 1"),
        ("patch_size", 16.0, r"patch_size is 16\.0: it must be a whole number of at least 1"),
        ("patch_size", True, "patch_size is True: it must be a whole number of at least 1"),
        ("num_local_layers", -1, "num_local_layers is -1: it must be a whole number of at least 0"),
        ("num_local_layers", 1.5, r"num_local_layers is 1\.5: it must be a whole number of at least 0"),
        ("num_nonlocal_layers", -1, "num_nonlocal_layers is -1: it must be a whole number of at least 0"),
        ("dim", 0, "dim is 0: it must be a whole number of at least 1"),
        ("dim", None, "dim is None: it must be a whole number of at least 1"),
        ("num_classes", -1, "num_classes is -1: it must be a whole number of at least 0"),
        ("num_classes", 10.0, r"num_classes is 10\.0: it must be a whole number of at least 0"),
        ("locality_strength", 0, "locality_strength is 0: it must be a positive number"),
        ("locality_strength", -1.0, r"locality_strength is -1\.0: it must be a positive number"),
        ("locality_strength", float("inf"), "locality_strength is inf: it must be a positive number"),
        ("locality_strength", float("nan"), "locality_strength is nan: it must be a positive number"),
        ("heads", 5, "heads is 5: it must divide dim = 192"),
        ("heads", 0, "heads is 0: it must be a whole number of at least 1"),
        ("head_dim", 50, "head_dim is 50: it must divide dim = 192"),
        ("head_dim", 24, "heads = 4 and head_dim = 24 disagree: their product must be dim = 192"),
        ("pre_norm", 1, "pre_norm is 1: it must be True or False"),
        ("pre_norm", "False", "pre_norm is 'False': it must be True or False"),
        ("ff_dim", 0, "ff_dim is 0: it must be a whole number of at least 1"),
        ("ff_dropout", 1.0, r"ff_dropout is 1\.0: it must lie in \[0, 1\)"),
        ("ff_dropout", -0.1, r"ff_dropout is -0\.1: it must lie in \[0, 1\)"),
        ("attention_dropout", 1, r"attention_dropout is 1: it must lie in \[0, 1\)"),
        ("attention_dropout", float("nan"), r"attention_dropout is nan: it must lie in \[0, 1\)"),
        ("token_dropout", "0.1", r"token_dropout is '0\.1': it must lie in \[0, 1\)"),
        ("drop_path", None, r"drop_path is None: it must lie in \[0, 1\)"),
        ("drop_path", False, r"drop_path is False: it must lie in \[0, 1\)"),
        ("pred_act_fnc_name", "Relu", "pred_act_fnc_name is 'Relu': .* activation in torch.nn, such as 'ReLU'"),
        ("pred_act_fnc_name", "Linear", "pred_act_fnc_name is 'Linear': it must be None or the name of an activation"),
        ("pred_act_fnc_name", 3, "pred_act_fnc_name is 3: it must be None or the name of an activation"),
        *(
            ("pred_act_fnc_name", name, f"pred_act_fnc_name is {name!r}")
            for name in ("Threshold", "MultiheadAttention", "GLU", "Softmax", "Softmax2d")
        ),
        ("position_embedding", None, "position_embedding is None: it must be True or False"),
        ("norm_eps", 0.0, r"norm_eps is 0\.0: it must be a positive number"),
        ("norm_eps", True, "norm_eps is True: it must be a positive number"),
        ("use_gpsa", 0, "use_gpsa is 0: it must be True or False"),
    ],
)
def test_bad_field_is_named_with_its_value_and_what_is_allowed(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConViTConfig(**{"heads": 4} | {field: value})


def test_heads_and_layers_must_be_there() -> None:
    with pytest.raises(ValueError, match="heads and head_dim are both None: give one of them"):
        ConViTConfig()
    with pytest.raises(ValueError, match="num_local_layers and num_nonlocal_layers are both 0"):
        ConViTConfig(heads=4, num_local_layers=0, num_nonlocal_layers=0)


def test_replaced_field_is_validated_too() -> None:
    config = ConViTConfig(heads=4)
    assert dataclasses.replace(config, dim=64).dim == 64
    with pytest.raises(ValueError, match="heads is 4: it must divide dim = 66"):
        dataclasses.replace(config, dim=66)


@pytest.mark.parametrize(
    ("arguments", "heads"), [({"heads": 4}, 4), ({"head_dim": 48}, 4), ({"heads": 6, "head_dim": 32}, 6)]
)
def test_number_of_heads_follows_from_either_field(arguments: dict[str, int], heads: int) -> None:
    assert ConViTConfig(**arguments).num_heads == heads


def test_grid_is_rows_then_columns() -> None:
    assert ConViTConfig(heads=4, image_size=(256, 128)).grid == (16, 8)
    assert ConViTConfig(heads=4, image_size=224, patch_size=32).grid == (7, 7)


def test_equal_fields_make_equal_configs_with_equal_hashes() -> None:
    one, same = (ConViTConfig(heads=4, image_size=(256, 128)) for _ in range(2))
    from_list = ConViTConfig(heads=4, image_size=[256, 128])  # type: ignore[arg-type]
    assert one == same == from_list
    assert hash(one) == hash(same) == hash(from_list)
    assert one != ConViTConfig(heads=4, image_size=(128, 256))
    assert len({one, same, ConViTConfig(heads=4)}) == 2


# JSON


@st.composite
def configs(draw: st.DrawFn) -> ConViTConfig:
    patch_size, heads, head_dim = (draw(st.integers(1, 32)) for _ in range(3))
    sides = st.integers(1, 20).map(lambda patches: patches * patch_size)
    rates = st.floats(0, 1, exclude_max=True)
    positive = st.floats(0, 100, exclude_min=True)
    heads_given = draw(st.sampled_from([{"heads": heads}, {"head_dim": head_dim}]))
    return ConViTConfig(
        image_size=draw(sides | st.tuples(sides, sides)),
        image_channel=draw(st.integers(1, 9)),
        patch_size=patch_size,
        num_local_layers=draw(st.integers(0, 20)),
        num_nonlocal_layers=draw(st.integers(1, 20)),
        dim=heads * head_dim,
        num_classes=draw(st.integers(0, 2000)),
        locality_strength=draw(positive),
        **heads_given,
        pre_norm=draw(st.booleans()),
        ff_dim=draw(st.integers(1, 4096)),
        ff_dropout=draw(rates),
        attention_dropout=draw(rates),
        token_dropout=draw(rates),
        pred_act_fnc_name=draw(st.sampled_from(["ReLU", "GELU", "Tanh", None])),
        position_embedding=draw(st.booleans()),
        norm_eps=draw(positive),
        drop_path=draw(rates),
        use_gpsa=draw(st.booleans()),
    )


@given(configs())
def test_json_round_trip_gives_the_same_config(config: ConViTConfig) -> None:
    text = config.to_json()
    again = ConViTConfig.from_json(text)
    assert again == config
    assert hash(again) == hash(config)
    assert json.loads(text).keys() == {field.name for field in dataclasses.fields(ConViTConfig)}


@pytest.mark.parametrize("as_string", [False, True])
def test_json_round_trip_through_a_file(tmp_path: Path, as_string: bool) -> None:
    file = tmp_path / "config.json"
    config = ConViTConfig.ConViT_S(image_size=(256, 128), num_classes=7)
    text = config.to_json(str(file) if as_string else file)
    assert file.read_text() == text
    assert ConViTConfig.from_json(str(file) if as_string else file) == config


def test_field_left_out_of_json_has_its_default() -> None:
    assert ConViTConfig.from_json(' {"heads": 4, "image_size": [64, 32]}') == ConViTConfig(heads=4, image_size=(64, 32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"heads": 4, "patchsize": 16}', "no field 'patchsize'; did you mean 'patch_size'"),
        ('{"heads": 4, "qqq": 16}', "no field 'qqq'; the fields are image_size, image_channel, .*use_gpsa"),
        ('{"heads": 4', "The configuration text is not valid JSON"),
        ('{"heads": 5}', "heads is 5: it must divide dim = 192"),
    ],
)
def test_json_that_is_no_config_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConViTConfig.from_json(text)


def test_file_that_is_no_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Cannot read the configuration file .*missing\.json: No such file"):
        ConViTConfig.from_json(tmp_path / "missing.json")
    file = tmp_path / "list.json"
    file.write_text("[1, 2]")
    with pytest.raises(ValueError, match="A configuration is list: it must be an object"):
        ConViTConfig.from_json(file)
    file.write_text("nonsense")
    with pytest.raises(ValueError, match=r"The configuration .*list\.json is not valid JSON"):
        ConViTConfig.from_json(file)


# The paper's sizes


@pytest.mark.parametrize(
    ("name", "dim", "heads", "head_dim"),
    [
        ("ConViT_Ti", 192, 4, 48),
        ("ConViT_Ti_plus", 256, 4, 64),
        ("ConViT_S", 432, 9, 48),
        ("ConViT_S_plus", 576, 9, 64),
        ("ConViT_B", 768, 16, 48),
        ("ConViT_B_plus", 1024, 16, 64),
    ],
)
def test_preset_is_the_papers_architecture(name: str, dim: int, heads: int, head_dim: int) -> None:
    config = getattr(ConViTConfig, name)()
    assert config == ConViTConfig.from_preset(name)
    assert config == ConViTConfig(
        image_size=224,
        image_channel=3,
        patch_size=16,
        num_local_layers=10,
        num_nonlocal_layers=2,
        dim=dim,
        num_classes=1000,
        locality_strength=1.0,
        heads=heads,
        pre_norm=True,
        ff_dim=4 * dim,
        pred_act_fnc_name=None,
        position_embedding=True,
        norm_eps=1e-6,
    )
    assert dim // config.num_heads == head_dim
    assert name in PRESETS
    assert len(PRESETS) == 6


def test_any_field_of_a_preset_can_be_overridden() -> None:
    config = ConViTConfig.ConViT_S(num_classes=10, image_size=(256, 128), drop_path=0.1, pre_norm=False)
    assert (config.num_classes, config.image_size, config.drop_path, config.pre_norm) == (10, (256, 128), 0.1, False)
    assert config == dataclasses.replace(
        ConViTConfig.ConViT_S(), num_classes=10, image_size=(256, 128), drop_path=0.1, pre_norm=False
    )


def test_feed_forward_width_of_a_preset_follows_the_dimension_unless_given() -> None:
    assert ConViTConfig.ConViT_Ti(dim=64).ff_dim == 256
    assert ConViTConfig.ConViT_Ti(ff_dim=100).ff_dim == 100
    assert ConViTConfig.ConViT_Ti(dim=64, ff_dim=100).ff_dim == 100


def test_head_width_given_to_a_preset_replaces_its_number_of_heads() -> None:
    config = ConViTConfig.ConViT_Ti(head_dim=24)
    assert (config.heads, config.head_dim, config.num_heads) == (None, 24, 8)
    assert ConViTConfig.ConViT_Ti(heads=4, head_dim=48).num_heads == 4


def test_head_width_none_given_to_a_preset_keeps_its_number_of_heads() -> None:
    assert ConViTConfig.ConViT_Ti(head_dim=None) == ConViTConfig.ConViT_Ti()


def test_bad_override_of_a_preset_is_named() -> None:
    with pytest.raises(ValueError, match="no field 'classes'; did you mean 'num_classes'"):
        ConViTConfig.ConViT_Ti(classes=10)
    with pytest.raises(ValueError, match="heads is 4: it must divide dim = 66"):
        ConViTConfig.ConViT_Ti(dim=66)


def test_bad_dimension_of_a_preset_is_named() -> None:
    with pytest.raises(ValueError, match="dim is None: it must be a whole number"):
        ConViTConfig.ConViT_Ti(dim=None)


@pytest.mark.parametrize(
    ("name", "near"),
    [("convit_ti", "ConViT_Ti"), ("ConViT_Splus", "ConViT_S_plus"), ("ConViT_B-plus", "ConViT_B_plus")],
)
def test_unknown_preset_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"no preset '{name}': did you mean '{near}'\\?"):
        ConViTConfig.from_preset(name)


def test_preset_unlike_any_lists_them_all() -> None:
    with pytest.raises(ValueError, match="no preset 'resnet50': the presets are " + ", ".join(PRESETS)):
        ConViTConfig.from_preset("resnet50")


def test_model_never_changes_its_config() -> None:
    config = ConViTConfig(image_size=(32, 16), dim=8, head_dim=4, num_local_layers=1, num_nonlocal_layers=1, ff_dim=8)
    before = config.to_json()
    model = ConViTWithLinearClassifier(config)
    assert model.config is config
    assert config.to_json() == before
    assert (config.heads, config.head_dim) == (None, 4)


def test_a_configuration_nested_without_end_is_refused(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"a":' * 200_000)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        ConViTConfig.from_json(file)
