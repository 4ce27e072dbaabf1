"""Weights of every layout come in and go out with every number as it is; what differs from the model is adapted."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import adapt_input_conv

from checkpoints import WRITERS, random_model, random_state, small_config, write
from commands import completed
from comvex.cli import main
from comvex.convit import ConViTBackbone, ConViTConfig, ConViTWithLinearClassifier
from comvex.convit.weights import WeightsInfo, convert, load_model, load_weights, read_weights, save_weights

PICTURES = torch.randn(2, 3, 32, 48)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """The same names, the same bits."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


# Reading


@pytest.mark.parametrize("name", list(WRITERS))
def test_every_published_layout_is_recognised_by_its_content_and_gives_the_same_model(name, tmp_path):
    state = random_state()
    file = write(name, state, tmp_path)
    weights = read_weights(file)
    assert weights.layout == WRITERS[name][0]
    assert weights.info.architecture == small_config()
    model = load_model(file)
    assert not model.training
    assert equal(model.state_dict(), state)
    assert torch.equal(model(PICTURES), random_model()(PICTURES))

    other = ConViTWithLinearClassifier(small_config())
    report = load_weights(other, file)
    assert equal(other.state_dict(), state)
    assert (report.layout, report.size) == (WRITERS[name][0], "none of the paper's sizes")


def test_the_averaged_weights_of_a_training_checkpoint_are_taken_on_request_and_told_of_otherwise(tmp_path):
    state = random_state()
    file = write("official-training.pth", state, tmp_path)
    model = ConViTWithLinearClassifier(small_config())
    assert any("averaged weights (model_ema)" in line for line in load_weights(model, file).changes)
    averaged = load_model(file, ema=True).state_dict()
    assert equal(averaged, {name: tensor + 1 for name, tensor in state.items()})
    with pytest.raises(ValueError, match=r"official\.pth has no averaged weights"):
        load_model(write("official.pth", state, tmp_path), ema=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted_and_told_of(dtype, tmp_path):
    state = {name: tensor.to(dtype) for name, tensor in random_state().items()}
    model = ConViTWithLinearClassifier(small_config())
    report = load_weights(model, write("timm.pth", state, tmp_path))
    assert report.changes == (f"precision: {str(dtype)[6:]} converted to the model's",)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name].float())


@pytest.mark.parametrize(
    "size", ["ConViT_Ti", "ConViT_Ti_plus", "ConViT_S", "ConViT_S_plus", "ConViT_B", "ConViT_B_plus"]
)
def test_the_papers_sizes_are_recognised_from_shapes(size):
    from comvex.convit.shapes import infer_config
    from comvex.convit.weights import preset_name

    with torch.device("meta"):
        state = ConViTWithLinearClassifier(ConViTConfig.from_preset(size)).state_dict()
    config = infer_config(state, "The file")
    assert config == ConViTConfig.from_preset(size)
    assert preset_name(config) == size


SEEDS = {"pre_norm": False, "position_embedding": False, "pred_act_fnc_name": "ReLU"}


def test_an_architecture_that_shapes_do_not_tell_needs_its_config_or_a_model_of_it(tmp_path):
    config = small_config(**SEEDS)
    state = random_state(config)
    file = write("timm.pth", state, tmp_path)
    with pytest.raises(ValueError, match="architecture does not show: give it as config="):
        load_model(file)
    assert equal(load_model(file, config=config).state_dict(), state)
    model = ConViTWithLinearClassifier(config)
    load_weights(model, file)
    assert equal(model.state_dict(), state)


def test_a_grid_that_is_no_square_needs_its_config(tmp_path):
    config = small_config(image_size=(32, 16))
    file = write("timm.pth", random_state(config), tmp_path)
    with pytest.raises(ValueError, match="no square grid: give the architecture as config="):
        load_model(file)
    assert load_model(file, config=config).config == config


def test_a_backbone_takes_the_weights_of_a_classifier(tmp_path):
    config = small_config()
    backbone = ConViTBackbone(**config.backbone_arguments())
    report = load_weights(backbone, write("official.pth", random_state(), tmp_path))
    assert report.changes == ("head: left out (that for 5 classes)",)
    assert torch.equal(backbone.eval()(PICTURES), random_model().forward_features(PICTURES))


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ((11,), r"a ConViT_Ti but for its 10 GPSA and 1 self-attention layers instead of 10 and 2: blocks\.11 may be"),
        ((10, 11), "no self-attention layer after the GPSA layers"),
    ],
)
def test_a_published_size_that_lost_its_last_layers_is_no_smaller_model(lost, message, tmp_path):
    whole = ConViTConfig.ConViT_Ti(image_size=32, num_classes=5)
    state = {
        name: tensor
        for name, tensor in random_state(whole).items()
        if not any(name.startswith(f"blocks.{layer}.") for layer in lost)
    }
    file = write("timm.pth", state, tmp_path)
    with pytest.raises(ValueError, match=message):
        load_model(file)
    with pytest.raises(ValueError, match=rf"{11 * len(lost)} missing: blocks\.{lost[0]}\."):
        load_weights(ConViTWithLinearClassifier(whole), file)


def test_a_published_width_of_another_depth_loads_by_its_config(tmp_path):
    config = ConViTConfig.ConViT_Ti(image_size=32, num_classes=5, num_local_layers=2)
    file = write("timm.pth", random_state(config), tmp_path)
    assert load_model(file, config=config).config == config
    model = ConViTWithLinearClassifier(config)
    load_weights(model, file)
    assert equal(model.state_dict(), random_state(config))


# Models that compute something else with the same tensors


@pytest.mark.parametrize(
    ("weights", "model", "line"),
    [
        ({"global_pool": "avg"}, {}, "global_pool: 'avg' in the weights, 'token' in the model"),
        ({"norm_eps": 1e-3}, {}, "norm_eps: 0.001 in the weights, 1e-06 in the model"),
        (
            {"pred_act_fnc_name": "ReLU"},
            {"pred_act_fnc_name": "Tanh"},
            "pred_act_fnc_name: 'ReLU' in the weights, 'Tanh' in the model",
        ),
    ],
)
def test_a_model_of_another_function_is_told_of_and_has_no_figures(weights, model, line, tmp_path):
    source = random_model(small_config(**weights))
    info = WeightsInfo(source.config, {**PREPROCESSING}, figures={"val_top1": 90.0})
    save_weights(source, tmp_path / "model.safetensors", info=info)
    target = ConViTWithLinearClassifier(small_config(**model))
    assert load_weights(target, tmp_path).changes == (line,)
    assert target.info.figures == {}
    assert load_weights(ConViTWithLinearClassifier(source.config), tmp_path).changes == ()
    backbone = ConViTBackbone(**small_config(**model).backbone_arguments())
    changes = load_weights(backbone, tmp_path).changes
    assert [change for change in changes if "head:" not in change] == ([line] if "norm_eps" in line else [])


def test_a_model_with_another_number_of_heads_is_refused(tmp_path, unchanged):
    save_weights(random_model(small_config(use_gpsa=False, heads=4)), tmp_path / "model.safetensors")
    model = random_model(small_config(use_gpsa=False, heads=2), seed=2)
    with unchanged(model), pytest.raises(ValueError, match="heads is 2, and must be 4 as in the weights"):
        load_weights(model, tmp_path)
    with pytest.raises(ValueError, match="heads is 2, and must be 4 as in the weights"):
        load_model(tmp_path, heads=2)


# Round trips


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("first", "layout"), [("official-training.pth", "official"), ("timm.safetensors", "timm"), ("timm.pth", "timm")]
)
def test_round_trips_through_our_layout_are_bit_identical(first, layout, dtype, tmp_path):
    state = {name: tensor.to(dtype) for name, tensor in random_state().items()}
    file = write(first, state, tmp_path)
    ours, _ = convert(file, tmp_path / "ours", layout="comvex")
    assert ours == tmp_path / "ours" / "model.safetensors"
    back, weights = convert(tmp_path / "ours", tmp_path / f"back{file.suffix}", layout=layout)
    assert weights.layout == "comvex"
    again = read_weights(back)
    assert again.layout == layout
    assert equal(again.tensors, state)
    raw = torch.load(back, weights_only=True) if file.suffix == ".pth" else again.tensors
    assert equal(raw["model"] if layout == "official" else raw, state)


def test_saved_weights_carry_what_is_known_of_them(tmp_path):
    model = random_model(small_config(image_size=(32, 16), **SEEDS))
    preprocessing = {"image_size": [32, 16], "channels": 3, "mean": [0.1] * 3, "std": [0.2] * 3, "crop_pct": 0.9}
    info = WeightsInfo(model.config, preprocessing, ("a", "b", "c", "d", "ä"), "mit", {"val_top1": 91.25})
    save_weights(model, tmp_path / "weights.safetensors", info=info)
    loaded = load_model(tmp_path / "weights.safetensors")
    assert loaded.info == info
    assert equal(loaded.state_dict(), model.state_dict())
    save_weights(loaded, tmp_path / "again" / "weights.safetensors")
    assert load_model(tmp_path / "again").info == info


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"pre_norm": False}, "pre_norm"),
        ({"use_gpsa": False}, "use_gpsa"),
        ({"pred_act_fnc_name": "ReLU"}, "pred_act_fnc_name"),
        ({"norm_eps": 1e-5}, "norm_eps"),
        ({"image_size": (32, 16)}, "image_size"),
        ({"num_nonlocal_layers": 0}, "num_nonlocal_layers"),
        ({"num_local_layers": 0, "num_nonlocal_layers": 2}, "num_local_layers"),
        ({"position_embedding": False}, "position_embedding"),
        ({"global_pool": "avg"}, "global_pool"),
    ],
)
def test_what_the_published_code_cannot_run_is_not_written_in_its_layout(arguments, field, tmp_path):
    model = random_model(small_config(**arguments))
    for layout in ("official", "timm"):
        with pytest.raises(ValueError, match=f"{field} is .* which the {layout} layout has no place for"):
            save_weights(model, tmp_path / "x.pth", layout=layout)
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_wrong_kind_for_a_layout_are_refused(tmp_path):
    model = random_model()
    with pytest.raises(ValueError, match=r"x\.pth: in the comvex layout it must end in \.safetensors"):
        save_weights(model, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.safetensors: in the official layout it must end in \.pth or"):
        save_weights(model, tmp_path / "x.safetensors", layout="official")
    with pytest.raises(ValueError, match="The layout is 'keras': it must be one of comvex, timm, official"):
        save_weights(model, tmp_path / "x.pth", layout="keras")  # pyright: ignore
    assert list(tmp_path.iterdir()) == []


# Adapting


def load_adapted(caplog: pytest.LogCaptureFixture, file: Path, **arguments: Any) -> ConViTWithLinearClassifier:
    with caplog.at_level(logging.INFO, logger="comvex"):
        return load_model(file, **arguments)


@pytest.mark.parametrize("image_size", [(288, 160), (448, 448), (96, 96)])
def test_position_embedding_at_another_size_is_timms_and_told_in_one_line(image_size, tmp_path, caplog):
    config = small_config(image_size=224, patch_size=16)
    state = random_state(config)
    model = load_adapted(caplog, write("official.pth", state, tmp_path), image_size=image_size)
    grid = [side // 16 for side in image_size]
    expected = resample_abs_pos_embed(state["pos_embed"], grid, [14, 14], num_prefix_tokens=0)
    torch.testing.assert_close(model.state_dict()["pos_embed"], expected, rtol=0, atol=1e-6)
    told = [record.message for record in caplog.records if record.message.startswith("position embedding")]
    assert told == [
        f"position embedding: 14 x 14 patches (224 x 224 pixels) -> {grid[0]} x {grid[1]} patches "
        f"({image_size[0]} x {image_size[1]} pixels)"
    ]
    # A model of the native size does the same when it gets such pictures.
    pictures = torch.randn(1, 3, *image_size)
    torch.testing.assert_close(model(pictures), random_model(config)(pictures), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("patch_size", [4, 16])
def test_patch_projection_for_another_patch_size_is_timms(patch_size, tmp_path, caplog):
    state = random_state()
    model = load_adapted(
        caplog, write("timm.pth", state, tmp_path), patch_size=patch_size, image_size=4 * patch_size
    )  # fmt: skip
    expected = resample_patch_embed(state["patch_embed.proj.weight"], [patch_size, patch_size])
    assert torch.equal(model.state_dict()["patch_embed.proj.weight"], expected)
    assert [record.message for record in caplog.records] == [f"patch size: 8 -> {patch_size} pixels"]


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_patch_projection_for_other_channels_is_timms(channels, tmp_path, caplog):
    state = random_state()
    model = load_adapted(caplog, write("timm.pth", state, tmp_path), image_channel=channels)
    expected = adapt_input_conv(channels, state["patch_embed.proj.weight"])
    assert torch.equal(model.state_dict()["patch_embed.proj.weight"], expected)
    assert [record.message for record in caplog.records] == [f"input channels: 3 -> {channels}"]
    assert model(torch.randn(1, channels, 32, 32)).shape == (1, 5)
    assert model.info is not None
    assert model.info.preprocessing["channels"] == channels == len(model.info.preprocessing["mean"])


def test_only_one_or_three_channels_can_be_adapted(tmp_path):
    file = write("timm.pth", random_state(small_config(image_channel=4)), tmp_path)
    with pytest.raises(ValueError, match="for 4 input channels and the model for 1: only weights for 1 or 3 channels"):
        load_model(file, image_channel=1)


def test_other_classes_get_a_new_head_and_no_classes_none(tmp_path, caplog):
    state = random_state()
    file = write("timm.pth", state, tmp_path)
    model = load_adapted(caplog, file, num_classes=7)
    assert [record.message for record in caplog.records] == ["head: new, for 7 classes (that for 5 classes)"]
    assert model(PICTURES).shape == (2, 7)
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.3)
    caplog.clear()
    features = load_adapted(caplog, file, num_classes=0)
    assert [record.message for record in caplog.records] == ["head: left out (that for 5 classes)"]
    assert torch.equal(features(PICTURES), random_model().forward_features(PICTURES)[:, 0])

    own = ConViTWithLinearClassifier(small_config(num_classes=7))
    head = own.head.weight.clone()
    load_weights(own, file)
    assert torch.equal(own.head.weight, head)
    assert torch.equal(own.cls_token, state["cls_token"])


def test_all_at_once_each_in_a_line_of_its_own(tmp_path, caplog):
    file = write("official.pth", random_state(), tmp_path)
    changed = {"image_size": (48, 24), "patch_size": 4, "image_channel": 1, "num_classes": 2}
    model = load_adapted(caplog, file, **changed)
    assert model(torch.randn(1, 1, 48, 24)).shape == (1, 2)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "head",
        "input channels",
        "patch size",
        "position embedding",
    ]


# Refusing


def refusal(state: dict[str, torch.Tensor], folder: Path) -> str:
    """What is said of a file, by itself and when it shall go into a model."""
    file = write("timm.pth", state, folder)
    with pytest.raises(ValueError, match=r".") as alone:
        load_model(file)
    with pytest.raises(ValueError, match=r".") as into_model:
        load_weights(random_model(seed=2), file)
    assert str(alone.value) == str(into_model.value) or "give it as config=" in str(alone.value)
    return str(into_model.value)


def counted(told: str) -> dict[str, int]:
    """How many tensors a refusal says are missing, unexpected and of another shape."""
    return {what: int(number) for number, what in re.findall(r"(\d+) (missing|unexpected|of another shape):", told)}


NAMES = list(random_state())
TELLING = ("patch_embed.proj.weight",)
"""Without its shape nothing can be compared; it is named as what is wrong."""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TELLING])
def test_one_tensor_that_is_missing_renamed_or_misshapen_is_named_and_no_other(name, tmp_path):
    state = random_state()
    tensor = state.pop(name)
    assert counted(told := refusal(state, tmp_path)) == {"missing": 1}
    assert f"1 missing: {name}" in told

    told = refusal({**state, f"{name}_": tensor}, tmp_path)
    assert f"1 missing: {name}; 1 unexpected: {name}_" in told

    wrong = tensor.new_zeros([*tensor.shape[:-1], tensor.shape[-1] + 1])
    told = refusal({**state, name: wrong}, tmp_path)
    if name == "head.bias":  # the head's weight may as well be the one
        assert told.endswith(": head.weight (5, 16) and head.bias (6,) are not of one number of classes.")
        return
    assert counted(told) == {"of another shape": 1}
    assert f"1 of another shape: {name} {tuple(wrong.shape)} instead of {tuple(tensor.shape)}" in told


@pytest.mark.parametrize(
    "extra",
    ["mask_token", "blocks.0.attn.qkv.weight", "blocks.2.attn.gating_param", "blocks.999999999.x", "head_.bias"],
)
def test_one_tensor_too_many_is_named_and_no_other(extra, tmp_path):
    told = refusal({**random_state(), extra: torch.zeros(4)}, tmp_path)
    assert told.endswith(f"is no complete ConViT: 1 unexpected: {extra}.")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_whole_layer_that_is_missing_is_named_tensor_by_tensor(layer, tmp_path):
    config = small_config(num_nonlocal_layers=2)
    state = random_state(config)
    missing = [name for name in state if name.startswith(f"blocks.{layer}.")]
    file = write("timm.pth", {name: tensor for name, tensor in state.items() if name not in missing}, tmp_path)
    with pytest.raises(ValueError, match="no complete ConViT") as caught:
        load_model(file)
    for name in missing:
        # Which attention it had shows in a layer before it only if that is not the last one with GPSA.
        assert name in str(caught.value) or (layer == 1 and ".attn." in name)


def test_several_faults_are_all_named_and_the_model_stays_as_it_was(tmp_path, unchanged):
    state = random_state()
    del state["blocks.1.attn.gating_param"], state["blocks.0.norm1.bias"]
    state["blocks.1.attn.qkv.weight"] = torch.zeros(48, 16)
    state["blocks.2.mlp.fc2.bias"] = torch.zeros(17)
    model = random_model(seed=2)
    with unchanged(model), pytest.raises(ValueError, match="no complete ConViT") as caught:
        load_weights(model, write("timm.pth", state, tmp_path))
    assert str(caught.value).endswith(
        "no complete ConViT: 2 missing: blocks.0.norm1.bias, blocks.1.attn.gating_param; "
        "1 unexpected: blocks.1.attn.qkv.weight; 1 of another shape: blocks.2.mlp.fc2.bias (17,) instead of (16,)."
    )


def test_weights_of_another_size_are_refused_by_name(tmp_path, unchanged):
    file = write("timm.pth", random_state(small_config(dim=32)), tmp_path)
    model = random_model()
    with unchanged(model), pytest.raises(ValueError, match=r"do not fit the model: \d+ of another shape: ") as caught:
        load_weights(model, file)
    for name, tensor in model.state_dict().items():
        if tensor.ndim and 16 in tensor.shape and not name.startswith("head"):
            assert name in str(caught.value)


def test_a_model_without_position_embedding_refuses_weights_with_one(tmp_path):
    file = write("timm.pth", random_state(), tmp_path)
    with pytest.raises(ValueError, match="1 unexpected: pos_embed"):
        load_weights(ConViTWithLinearClassifier(small_config(position_embedding=False)), file)


def test_our_weights_without_their_config_are_refused(tmp_path):
    save_weights(random_model(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"belong to a config\.json beside them, which is missing"):
        load_model(tmp_path)


def test_an_edited_config_is_refused(tmp_path):
    save_weights(random_model(), tmp_path / "model.safetensors")
    content = json.loads((tmp_path / "config.json").read_text())
    content["files"]["model.safetensors"]["licence"] = "mine"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="damaged or was edited"):
        load_model(tmp_path)


def test_timms_config_beside_weights_gives_preprocessing_and_labels(tmp_path):
    save_file(random_state(), tmp_path / "model.safetensors")
    config = {
        "architecture": "convit_tiny",
        "num_classes": 5,
        "label_names": list("vwxyz"),
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.9, "license": "apache-2.0"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    info = load_model(tmp_path).info
    assert info is not None
    assert info.labels == tuple("vwxyz")
    assert info.licence == "apache-2.0"
    assert info.preprocessing == {
        "image_size": [32, 32],
        "channels": 3,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "crop_pct": 0.9,
    }


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ({"0": "v", "1": "w", "2": "x", "3": "y", "4": "z"}, ("v", "w", "x", "y", "z")),
        ({"1": "w", "4": "z"}, ("0", "w", "2", "3", "z")),
    ],
)
def test_timms_classes_by_number_are_labels(names, labels, tmp_path):
    save_file(random_state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"label_names": names, "pretrained_cfg": {}}))
    assert load_model(tmp_path).info.labels == labels


@pytest.mark.parametrize(("mean", "expected"), [([0.25], [0.25] * 2), ([0.1, 0.2, 0.6], [0.3] * 2), ([0.1, 0.2], None)])
def test_timms_preprocessing_has_a_number_for_each_channel(mean, expected, tmp_path):
    save_file(random_state(small_config(image_channel=2)), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": mean, "std": [0.5] * len(mean)}}))
    preprocessing = load_model(tmp_path).info.preprocessing
    assert preprocessing["mean"] == pytest.approx(expected or mean)
    assert preprocessing["std"] == [0.5] * 2


# The command line


def test_convert_says_what_it_did_and_overwrites_only_on_request(tmp_path, capsys):
    file = write("official.pth", random_state(), tmp_path)
    out = tmp_path / "ours"
    assert main(["convert", str(file), str(out), "--to", "comvex"]) == 0
    assert "(official layout, none of the paper's sizes)" in capsys.readouterr().out
    assert main(["convert", str(file), str(out), "--to", "comvex"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["convert", str(out), str(tmp_path / "timm.bin"), "--to", "timm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "in": str(out / "model.safetensors"),
        "from": "comvex",
        "out": str(tmp_path / "timm.bin"),
        "to": "timm",
        "size": "none of the paper's sizes",
    }
    assert main(["convert", str(file), str(out), "--to", "comvex", "--overwrite"]) == 0


def test_convert_takes_the_architecture_that_shapes_do_not_tell(tmp_path, capsys):
    config = small_config(**SEEDS)
    file = write("timm.pth", random_state(config), tmp_path)
    assert main(["convert", str(file), str(tmp_path / "ours"), "--to", "comvex"]) == 2
    assert "config=" in capsys.readouterr().err
    config.to_json(tmp_path / "architecture.json")
    arguments = ["--to", "comvex", "--config", str(tmp_path / "architecture.json")]
    assert main(["convert", str(file), str(tmp_path / "ours"), *arguments]) == 0
    assert load_model(tmp_path / "ours").config == config


# Several files in a folder, models that have changed, files that are in the way


def test_each_weights_file_of_a_folder_keeps_what_is_known_of_it(tmp_path):
    first = random_model(small_config(dim=32))
    second = random_model()
    other = WeightsInfo(
        second.config, load_model_info(second, tmp_path).preprocessing | {"crop_pct": 0.5}, tuple("vwxyz")
    )
    save_weights(
        first, tmp_path / "first.safetensors", info=WeightsInfo(first.config, {**PREPROCESSING}, tuple("abcde"))
    )
    save_weights(second, tmp_path / "second.safetensors", info=other)
    assert load_model(tmp_path / "first.safetensors").info.labels == tuple("abcde")
    assert load_model(tmp_path / "first.safetensors").config.dim == 32
    assert load_model(tmp_path / "second.safetensors").info == other


PREPROCESSING = {"image_size": [32, 32], "channels": 3, "mean": [0.1] * 3, "std": [0.2] * 3, "crop_pct": 1.0}


def load_model_info(model: ConViTWithLinearClassifier, tmp_path: Path) -> WeightsInfo:
    save_weights(model, tmp_path / "info" / "model.safetensors")
    info = load_model(tmp_path / "info").info
    assert info is not None
    return info


@pytest.mark.parametrize("name", ["official.pth", "timm.safetensors"])
def test_files_of_other_layouts_are_read_beside_our_config(name, tmp_path):
    save_weights(random_model(small_config(dim=32)), tmp_path / "model.safetensors")
    file = write(name, random_state(), tmp_path)
    assert load_model(file).config == small_config()
    assert load_model(tmp_path / "model.safetensors").config.dim == 32


def test_a_folder_with_a_dot_is_a_folder(tmp_path):
    file = write("official.pth", random_state(), tmp_path)
    out, _ = convert(file, tmp_path / "convit.v1", layout="comvex")
    assert out == tmp_path / "convit.v1" / "model.safetensors"
    (tmp_path / "there.safetensors").mkdir()
    out, _ = convert(file, tmp_path / "there.safetensors", layout="comvex")
    assert out.parent.name == "there.safetensors"


@pytest.mark.parametrize(
    ("out", "layout", "message"),
    [
        (".", "timm", "is a folder: in the timm layout OUT must be a file"),
        ("official.pth/x.pth", "timm", "cannot be written: "),
        ("x.tar", "timm", r"x\.tar: in the timm layout it must end in \.safetensors or \.pth"),
        ("x", "official", "in the official layout it must end in"),
    ],
)
def test_places_that_cannot_be_written_are_refused(out, layout, message, tmp_path):
    file = write("official.pth", random_state(), tmp_path)
    with pytest.raises(ValueError, match=message):
        convert(file, tmp_path / out, layout=layout, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["official.pth"]


def test_a_model_that_was_resized_or_pruned_is_saved_as_it_is_now(tmp_path):
    save_weights(random_model(), tmp_path / "model.safetensors")
    model = load_model(tmp_path)
    model.set_input_size(64, 4)
    save_weights(model, tmp_path / "resized.safetensors")
    again = load_model(tmp_path / "resized.safetensors")
    assert (again.config.image_size, again.config.patch_size) == (64, 4)
    assert equal(again.state_dict(), model.state_dict())
    assert again.info.preprocessing["image_size"] == [64, 64]
    model.prune_intermediate_layers([1], prune_head=False)
    save_weights(model, tmp_path / "pruned.safetensors")
    assert load_model(tmp_path / "pruned.safetensors").config.num_nonlocal_layers == 0
    model.prune_intermediate_layers([0], prune_norm=True)
    with pytest.raises(ValueError, match=r"What is to be saved is no complete ConViT: 3 missing: cls_token, norm"):
        save_weights(model, tmp_path / "no.safetensors")
    assert not (tmp_path / "no.safetensors").exists()


def test_wrapped_models_are_unwrapped_and_others_refused(tmp_path):
    model = random_model()
    save_weights(torch.nn.DataParallel(torch.compile(model)), tmp_path / "model.safetensors")
    assert equal(load_model(tmp_path).state_dict(), model.state_dict())
    fresh = random_model(seed=1)
    load_weights(torch.compile(fresh), tmp_path)
    assert equal(fresh.state_dict(), model.state_dict())
    for use in (save_weights, load_weights):
        with pytest.raises(ValueError, match="A Linear is no ConViT"):
            use(torch.nn.Linear(2, 2), tmp_path / "linear.safetensors")


def test_a_config_that_is_not_ours_is_not_overwritten(tmp_path):
    for text in ("{", '{"architecture": "convit_tiny"}', '{"format": 7, "files": {}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json"):
            save_weights(random_model(), tmp_path / "model.safetensors")
        assert not (tmp_path / "model.safetensors").exists()
        assert (tmp_path / "config.json").read_text() == text


def test_loading_weights_into_a_model_brings_what_is_known_of_them(tmp_path):
    model = random_model()
    info = WeightsInfo(model.config, {**PREPROCESSING}, tuple("abcde"), "mit", {"val_top1": 90.0})
    save_weights(model, tmp_path / "model.safetensors", info=info)
    fresh = ConViTWithLinearClassifier(small_config())
    load_weights(fresh, tmp_path)
    assert fresh.info == info
    assert load_model(tmp_path, drop_path=0.1).info.figures == {"val_top1": 90.0}
    assert load_model(tmp_path, image_size=64).info.figures == {}
    load_weights(fresh, write("timm.pth", random_state(), tmp_path))
    assert fresh.info.labels == ()


def test_tied_tensors_are_written_apart_and_slices_without_what_they_are_of(tmp_path):
    state = random_state()
    state["norm.bias"] = state["norm.weight"]
    state["blocks.0.norm1.bias"] = torch.randn(1_000_000)[:16]
    file = write("official.pth", state, tmp_path)
    for name, layout in (("a.safetensors", "comvex"), ("b.safetensors", "timm"), ("c.pth", "official")):
        out, _ = convert(file, tmp_path / name, layout=layout)
        assert equal(read_weights(out).tensors, state)
        assert out.stat().st_size < 200_000


def test_converting_a_multi_label_model_says_what_is_lost(tmp_path, capsys):
    model = random_model()
    info = WeightsInfo(model.config, {**PREPROCESSING}, multi_label=True)
    save_weights(model, tmp_path / "model.safetensors", info=info)
    assert main(["convert", str(tmp_path), str(tmp_path / "x.pth"), "--to", "timm"]) == 0
    assert "does not say that the model is multi-label" in capsys.readouterr().out


def test_our_own_weights_have_no_averaged_ones(tmp_path):
    save_weights(random_model(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="have no averaged weights beside them"):
        load_model(tmp_path, ema=True)
    with pytest.raises(ValueError, match="has no averaged weights: a safetensors file"):
        load_model(write("timm.safetensors", random_state(), tmp_path), ema=True)


# Places and files that fail


@pytest.mark.parametrize(("name", "to"), [("x.pth", "timm"), ("x.safetensors", "timm"), ("x", "comvex")])
def test_a_file_that_may_not_grow_is_one_sentence_and_leaves_nothing(name, to, tmp_path):
    file = write("timm.pth", random_state(), tmp_path)
    out = tmp_path / "out" / name
    done = completed("convert", file, out, "--to", to, largest_file=8192)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"comvex: {out}")
    assert "cannot be written: " in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_names_that_are_too_long_are_one_sentence(tmp_path, capsys):
    file = write("timm.pth", random_state(), tmp_path)
    assert main(["convert", "x" * 300, str(tmp_path / "y.pth"), "--to", "timm"]) == 2
    assert "cannot be read: File name too long." in capsys.readouterr().err
    assert main(["convert", str(file), str(tmp_path / ("y" * 300 + ".pth")), "--to", "timm"]) == 2
    assert "cannot be written: File name too long." in capsys.readouterr().err


def test_a_file_cannot_be_a_folder_of_weights(tmp_path):
    file = write("timm.pth", random_state(), tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be written: .*timm\.pth is a file"):
        save_weights(random_model(), file / "model.safetensors")


def test_a_file_of_another_layout_takes_the_place_of_one_of_ours(tmp_path):
    file, other = tmp_path / "model.safetensors", tmp_path / "other.safetensors"
    for path in (file, other):
        save_weights(random_model(), path)
    convert(other, file, layout="timm", overwrite=True)
    assert read_weights(file).layout == "timm"
    assert read_weights(other).layout == "comvex"
