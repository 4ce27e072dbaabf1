"""Our models through timm's doors: names, arguments, weights, feature maps, layer groups, tracing, scripts."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.layers.patch_embed import resample_patch_embed
from timm.models import (
    adapt_input_conv,
    create_feature_extractor,
    get_graph_node_names,
    get_pretrained_cfg,
    group_parameters,
    save_for_hf,
)
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import comvex.timm_models
from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.convit.config import as_pair
from comvex.convit.weights import load_model, save_weights
from comvex.errors import UserError

PRESETS = {
    "comvex_convit_tiny": "ConViT_Ti",
    "comvex_convit_tiny_plus": "ConViT_Ti_plus",
    "comvex_convit_small": "ConViT_S",
    "comvex_convit_small_plus": "ConViT_S_plus",
    "comvex_convit_base": "ConViT_B",
    "comvex_convit_base_plus": "ConViT_B_plus",
}
PUBLISHED = [name for name in PRESETS if not name.endswith("plus")]
DEPTH, DIM = 12, 192


def tiny(**arguments: Any) -> Any:
    return timm.create_model("comvex_convit_tiny", **{"img_size": 64} | arguments)


def randomised(model: Any) -> Any:
    """Every weight random, gates, positional weights and biases too: nothing at its start may hide a mistake."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            spread = 0.5 if "gating_param" in name or "pos_" in name else 0.2 if tensor.ndim == 1 else 0.07
            tensor.normal_(mean=float("norm" in name and name.endswith("weight")), std=spread)
    return model


def outputs_of_layers(model: Any, pictures: Tensor) -> list[Tensor]:
    """What each layer gave in one forward pass, seen from outside."""
    outputs: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda _, __, output: outputs.append(output)) for layer in model.blocks]
    with torch.no_grad():
        model(pictures)
    for handle in handles:
        handle.remove()
    return outputs


def as_map(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """The patches among tokens (B, N or 1 + N, dim) as a map (B, dim, H, W)."""
    return tokens[:, -rows * columns :].reshape(len(tokens), rows, columns, -1).permute(0, 3, 1, 2)


def test_six_names_are_registered_and_timms_own_are_untouched() -> None:
    assert set(timm.list_models("comvex_convit_*")) == PRESETS.keys()
    assert set(timm.list_models("comvex_convit_*", pretrained=True)) == {f"{name}.fb_in1k" for name in PUBLISHED}
    program = (
        "import timm\n"
        "from timm.models.convit import ConVit\n"
        "names = timm.list_models('convit_*')\n"
        "before = [(timm.models.model_entrypoint(name), timm.get_pretrained_cfg(name)) for name in names]\n"
        "import comvex.timm_models\n"
        "assert len(names) == 3 and timm.list_models('convit_*') == names\n"
        "assert [(timm.models.model_entrypoint(name), timm.get_pretrained_cfg(name)) for name in names] == before\n"
        "assert all(entry_point.__module__ == 'timm.models.convit' for entry_point, _ in before)\n"
        "assert type(timm.create_model('convit_tiny')) is ConVit\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=120)


@pytest.mark.parametrize("name", PRESETS)
def test_every_size_is_the_preset_with_what_timm_asks_for(name: str) -> None:
    model: Any = timm.create_model(name, device="meta", num_classes=7, in_chans=5, img_size=(64, 96), patch_size=8)
    assert type(model) is ConViTWithLinearClassifier
    expected = ConViTConfig.from_preset(
        PRESETS[name], num_classes=7, image_channel=5, image_size=(64, 96), patch_size=8
    )
    assert model.config == expected
    assert model(torch.zeros(2, 5, 64, 96, device="meta")).shape == (2, 7)
    default: Any = timm.create_model(name, device="meta", dtype=torch.float64)
    assert default.config == ConViTConfig.from_preset(PRESETS[name])
    assert {(tensor.device.type, tensor.dtype) for tensor in default.state_dict().values()} == {("meta", torch.float64)}


def test_rates_reach_the_dropouts_that_they_name() -> None:
    config = tiny(drop_rate=0.1, attn_drop_rate=0.2, drop_path_rate=0.3).config
    assert (config.token_dropout, config.ff_dropout, config.attention_dropout, config.drop_path) == (0.1, 0.1, 0.2, 0.3)
    config = tiny(drop_rate=0.1, pos_drop_rate=0.4, proj_drop_rate=0.5).config
    assert (config.token_dropout, config.ff_dropout) == (0.4, 0.5)


@pytest.mark.parametrize(("pool", "shape"), [("token", (2, DIM)), ("avg", (2, DIM)), ("", (2, 17, DIM))])
def test_without_classes_the_pooled_features_come_out(pool: str, shape: tuple[int, ...]) -> None:
    pictures = torch.randn(2, 3, 64, 64)
    model = tiny(global_pool=pool).eval()
    tokens = model.forward_features(pictures)
    pooled = {"token": tokens[:, 0], "avg": tokens[:, 1:].mean(dim=1), "": tokens}[pool]
    assert torch.equal(model.forward_head(tokens, pre_logits=True), pooled)
    assert torch.equal(model(pictures), model.head(pooled))
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert torch.equal(model(pictures), pooled)
    assert pooled.shape == shape
    assert tiny(global_pool=pool, num_classes=0)(pictures).shape == shape


def test_a_new_classifier_stands_where_the_model_stands() -> None:
    model = tiny(dtype=torch.float64).eval()
    model.reset_classifier(4, "avg")
    assert model.global_pool == "avg"
    assert model.get_classifier().weight.dtype == torch.float64
    assert not any(module.training for module in model.modules())


def test_every_parameter_gets_a_gradient() -> None:
    model = tiny(num_classes=5, drop_rate=0.1, drop_path_rate=0.1)
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 5)
    logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_gradients_with_checkpointing_are_those_without() -> None:
    model = tiny(num_classes=5)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        assert model.grad_checkpointing is enable
        model.zero_grad()
        model(torch.ones(2, 3, 64, 64)).square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize(
    ("arguments", "layers"),
    [({}, [2, 5, 8, 11]), ({"out_indices": (1, -2)}, [1, 10]), ({"out_indices": 3}, [9, 10, 11])],
)
def test_features_only_gives_the_maps_of_its_layers(arguments: dict[str, Any], layers: list[int]) -> None:
    pictures = torch.randn(2, 3, 64, 96)
    whole = randomised(tiny()).eval()
    model = tiny(features_only=True, **arguments).eval()
    assert model.feature_info.channels() == [DIM] * len(layers)
    assert model.feature_info.reduction() == [16] * len(layers)
    missing = model.model.load_state_dict(whole.state_dict(), strict=False).missing_keys
    assert not missing
    outputs = outputs_of_layers(whole, pictures)
    maps = model(pictures)
    assert len(maps) == len(layers)
    for found, layer in zip(maps, layers, strict=True):
        assert torch.equal(found, as_map(outputs[layer], 4, 6))


@pytest.mark.parametrize("layers", [[0], [9], [3, 11]])
def test_features_only_keeps_no_parameter_that_it_does_not_use(layers: list[int]) -> None:
    model = tiny(features_only=True, out_indices=layers)
    assert len(model.model.blocks) == layers[-1] + 1
    sum(found.square().mean() for found in model(torch.randn(2, 3, 64, 64))).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("norm", [False, True])
def test_intermediates_are_what_the_layers_gave(norm: bool) -> None:
    pictures = torch.randn(2, 3, 96, 64)
    model = randomised(tiny()).eval()
    outputs = [model.norm(output) if norm else output for output in outputs_of_layers(model, pictures)]
    tokens, maps = model.forward_intermediates(pictures, norm=norm)
    assert torch.equal(tokens, model.forward_features(pictures))
    assert len(maps) == DEPTH == len(model.feature_info)
    for found, output in zip(maps, outputs, strict=True):
        assert torch.equal(found, as_map(output, 6, 4))
    sequences = model.forward_intermediates(
        pictures, [9, -1], return_prefix_tokens=True, norm=norm, output_fmt="NLC", intermediates_only=True
    )
    assert torch.equal(sequences[0][0], outputs[9])
    assert sequences[0][1].shape == (2, 0, DIM)
    assert torch.equal(sequences[1][0], outputs[11][:, 1:])
    assert torch.equal(sequences[1][1], outputs[11][:, :1])


@pytest.mark.parametrize("last", [0, 9, 10])
def test_stopping_early_runs_no_layer_after_the_last_one_asked_for(last: int) -> None:
    pictures = torch.randn(2, 3, 64, 64)
    model = randomised(tiny()).eval()
    expected = outputs_of_layers(model, pictures)
    called = []
    for index, layer in enumerate(model.blocks):
        layer.register_forward_hook(lambda *_, index=index: called.append(index))
    (found,) = model.forward_intermediates(pictures, [last], stop_early=True, intermediates_only=True)
    assert torch.equal(found, as_map(expected[last], 4, 4))
    assert called == list(range(last + 1))


@pytest.mark.parametrize("last", [2, 9, 10, 11])
def test_a_pruned_model_gives_what_its_layers_gave(last: int) -> None:
    pictures = torch.randn(2, 3, 64, 64)
    model = randomised(tiny()).eval()
    expected = outputs_of_layers(model, pictures)[last]
    pruned = copy.deepcopy(model)
    assert pruned.prune_intermediate_layers([0, last], prune_norm=True) == [0, last]
    has_class_token = last >= 10
    assert pruned.num_prefix_tokens == int(has_class_token)
    assert torch.equal(pruned(pictures), expected)
    assert pruned.num_classes == 0
    pruned.reset_classifier(0, "avg")
    torch.testing.assert_close(pruned(pictures), as_map(expected, 4, 4).mean(dim=(2, 3)))
    if not has_class_token:
        with pytest.raises(UserError, match="the class token was pruned"):
            pruned.reset_classifier(3, "token")


def test_pruning_after_the_last_layer_with_the_head_kept_changes_nothing() -> None:
    pictures = torch.randn(2, 3, 64, 64)
    model = randomised(tiny()).eval()
    expected = model(pictures)
    model.prune_intermediate_layers([11], prune_head=False)
    assert torch.equal(model(pictures), expected)


def test_layer_groups_hold_every_parameter_once_from_the_stem_to_the_head() -> None:
    model = tiny()
    groups = group_parameters(model, model.group_matcher())
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    group_of = {name: number for number, group in groups.items() for name in group}
    stem = {group_of[name] for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")}
    assert stem == {0}
    for index in range(DEPTH):
        of_layer = {number for name, number in group_of.items() if name.startswith(f"blocks.{index}.")}
        assert of_layer == {index + 1}
    assert {group_of[name] for name in ("norm.weight", "norm.bias")} == {DEPTH}  # with the last layer, as in timm's ViT
    assert {group_of[name] for name in ("head.weight", "head.bias")} == {DEPTH + 1}


def test_an_optimiser_with_layer_decay_slows_the_early_layers_and_spares_embeddings_the_weight_decay() -> None:
    model = tiny()
    optimiser = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    found = {
        id(parameter): (group["lr_scale"], group["weight_decay"])
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    assert len(found) == len(list(model.parameters()))
    of_name = {name: found[id(parameter)] for name, parameter in model.named_parameters()}
    assert of_name["head.weight"] == (1.0, 0.05)
    assert of_name["head.bias"] == (1.0, 0.0)
    assert of_name["blocks.11.mlp.fc1.weight"] == (0.5, 0.05)
    assert of_name["blocks.0.attn.qk.weight"] == (0.5**12, 0.05)
    assert of_name["pos_embed"] == of_name["cls_token"] == (0.5**13, 0.0)


def test_another_input_size_is_timms_resampling() -> None:
    model = randomised(tiny()).eval()
    before = model.pos_embed.detach().clone()
    pictures = torch.randn(2, 3, 96, 48)
    logits = model(pictures)  # resampled in the forward pass
    model.set_input_size((96, 48))
    expected = resample_abs_pos_embed(before, [6, 3], old_size=[4, 4], num_prefix_tokens=0)
    torch.testing.assert_close(model.pos_embed, expected, rtol=0, atol=1e-6)  # float32, weights that sum to one
    torch.testing.assert_close(model(pictures), logits, rtol=1e-5, atol=1e-5)
    assert model.config.image_size == (96, 48)


def test_another_patch_size_is_timms_resampling() -> None:
    model = randomised(tiny()).eval()
    weight = model.patch_embed.proj.weight.detach().clone()
    model.set_input_size(patch_size=[8, 8])
    assert torch.equal(model.patch_embed.proj.weight, resample_patch_embed(weight, [8, 8]))
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 1000)
    assert {info["reduction"] for info in model.feature_info} == {8}


def test_frozen_weights_stay_frozen_through_another_input_size() -> None:
    model = tiny().eval().requires_grad_(False)
    model.set_input_size((96, 48), patch_size=8)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == []
    assert not any(module.training for module in model.modules())


def test_fx_extraction_gives_the_layers_and_the_logits() -> None:
    pictures = torch.randn(2, 3, 64, 96)
    model = randomised(tiny()).eval()
    outputs = outputs_of_layers(model, pictures)
    traced = create_feature_extractor(model, {"blocks.3": "local", "blocks.11": "last", "head": "logits"})
    found = traced(pictures)
    assert torch.equal(found["local"], outputs[3])
    assert torch.equal(found["last"], outputs[11])
    assert torch.equal(found["logits"], model(pictures))
    _, names = get_graph_node_names(model)
    assert {"patch_embed", "resample_position_embedding", "blocks.0.attn", "blocks.11.attn.qkv"} <= set(names)
    larger = torch.randn(1, 3, 96, 96)
    assert torch.equal(traced(larger)["logits"], model(larger))  # the trace is not of one size


def test_fx_extraction_trains() -> None:
    with pytest.warns(UserWarning, match="subsequence"):  # training has nodes for drop path
        traced = create_feature_extractor(tiny(num_classes=5, drop_path_rate=0.1).train(), ["head"])
    traced(torch.randn(2, 3, 64, 64))["head"].square().mean().backward()
    assert [name for name, parameter in traced.named_parameters() if parameter.grad is None] == []


# Weights


def assert_same_logits(actual: Tensor, expected: Tensor) -> None:
    """Twelve layers of sums of up to 768 numbers in float32, 6e-8 each."""
    assert (actual - expected).norm() / expected.norm() < 1e-5


def test_logits_are_timms_for_the_same_weights(tmp_path: Path) -> None:
    theirs = randomised(timm.create_model("convit_tiny", img_size=64)).eval()
    file = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), file)
    pictures = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs(pictures)
        ours = tiny().eval()
        ours.load_state_dict(theirs.state_dict())
        assert_same_logits(ours(pictures), expected)
        assert_same_logits(tiny(checkpoint_path=str(file)).eval()(pictures), expected)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_timm_knows_of_published_weights_is_what_it_knows_of_its_own(name: str) -> None:
    ours, theirs = (get_pretrained_cfg(known).to_dict() for known in (name, name.removeprefix("comvex_")))
    assert ours.pop("fixed_input_size") is False
    assert theirs.pop("fixed_input_size") is True
    assert ours.pop("architecture") == name
    assert theirs.pop("architecture") == name.removeprefix("comvex_")
    assert theirs.pop("url") == ""
    assert ours == theirs


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in PUBLISHED])
def test_sizes_without_published_weights_say_so(name: str) -> None:
    with pytest.raises(UserError, match=f"There are no published weights for {name}: .* convit_tiny, convit_small"):
        timm.create_model(name, pretrained=True, device="meta")


def write_timm(model: Any, folder: Path) -> Path:
    save_file(model.state_dict(), folder / "weights.safetensors", metadata={"format": "pt"})
    return folder / "weights.safetensors"


def write_official(model: Any, folder: Path) -> Path:
    torch.save({"model": model.state_dict()}, folder / "weights.pth")
    return folder / "weights.pth"


def write_ours(model: Any, folder: Path) -> Path:
    save_weights(model, folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.fixture(params=[write_timm, write_official, write_ours])
def write(request: pytest.FixtureRequest) -> Callable[[Any, Path], Path]:
    return request.param


def from_file(file: Path, **arguments: Any) -> Any:
    return timm.create_model(
        "comvex_convit_tiny", pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **arguments
    )


def test_a_file_of_each_layout_comes_back_with_its_own_sizes(
    write: Callable[[Any, Path], Path], tmp_path: Path
) -> None:
    source = randomised(tiny(num_classes=10, in_chans=1, patch_size=8)).eval()
    model = from_file(write(source, tmp_path)).eval()
    assert model.config == source.config
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert model.pretrained_cfg["input_size"] == (1, 64, 64)
    assert model.pretrained_cfg["num_classes"] == 10


def test_a_file_of_each_layout_is_adapted_as_timm_would(
    write: Callable[[Any, Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = randomised(tiny()).state_dict()
    file = write(randomised_copy(source), tmp_path)
    caplog.clear()
    model = from_file(file, img_size=(96, 32), in_chans=2, num_classes=5, patch_size=8)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []
    found = model.state_dict()
    expected = resample_abs_pos_embed(source["pos_embed"], [12, 4], old_size=[4, 4], num_prefix_tokens=0)
    torch.testing.assert_close(found["pos_embed"], expected, rtol=0, atol=1e-6)
    projection = adapt_input_conv(2, resample_patch_embed(source["patch_embed.proj.weight"], [8, 8]))
    torch.testing.assert_close(found["patch_embed.proj.weight"], projection, rtol=1e-6, atol=1e-6)
    assert found["head.weight"].shape == (5, DIM)
    same = found.keys() - {"pos_embed", "patch_embed.proj.weight", "head.weight", "head.bias"}
    assert all(torch.equal(found[name], source[name]) for name in same)


def randomised_copy(state_dict: dict[str, Tensor]) -> Any:
    model = tiny()
    model.load_state_dict(state_dict)
    return model


def test_an_own_file_of_no_square_comes_back_with_its_preprocessing(tmp_path: Path) -> None:
    source = randomised(tiny(img_size=(64, 32), num_classes=3)).eval()
    model = from_file(write_ours(source, tmp_path)).eval()
    pictures = torch.randn(2, 3, 64, 32)
    assert torch.equal(model(pictures), source(pictures))
    data = timm.data.resolve_model_data_config(model)
    assert data["input_size"] == (3, 64, 32)
    assert data["mean"] == pytest.approx((0.485, 0.456, 0.406))


def test_an_own_file_brings_what_no_shape_tells(tmp_path: Path) -> None:
    fields = {"global_pool": "avg", "norm_eps": 1e-3, "heads": 2, "use_gpsa": False}
    source = randomised(tiny(**fields, pred_act_fnc_name="Tanh")).eval()
    file = write_ours(source, tmp_path)
    model = from_file(file, use_gpsa=False).eval()
    pictures = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(pictures), source(pictures))
    with pytest.raises(UserError, match=r"heads is 4: it must be 2, as in the weights .*weights\.safetensors"):
        from_file(file, use_gpsa=False, heads=4)


def test_features_only_takes_the_weights_of_a_file(tmp_path: Path) -> None:
    source = randomised(tiny()).eval()
    model = from_file(write_timm(source, tmp_path), features_only=True, out_indices=(4,)).eval()
    pictures = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(pictures)[0], as_map(outputs_of_layers(source, pictures)[4], 4, 4))


def test_the_authors_file_is_taken_from_an_address(tmp_path: Path) -> None:
    source = randomised(tiny(img_size=224))
    address = write_official(source, tmp_path).as_uri()
    where = {"url": address, "hf_hub_id": None}
    model = tiny(pretrained=True, pretrained_cfg_overlay=where, cache_dir=str(tmp_path / "cache"), num_classes=4)
    assert model.config == ConViTConfig.ConViT_Ti(image_size=64, num_classes=4)
    assert torch.equal(model.cls_token, source.cls_token)


def test_a_training_checkpoint_is_taken_from_an_address(tmp_path: Path) -> None:
    source = randomised(tiny())
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "checkpoint.pth")
    where = {"url": (tmp_path / "checkpoint.pth").as_uri(), "hf_hub_id": None}
    model = tiny(pretrained=True, pretrained_cfg_overlay=where, cache_dir=str(tmp_path / "cache"))
    assert torch.equal(model.cls_token, source.cls_token)


def test_weights_of_another_size_are_refused_by_every_name(tmp_path: Path) -> None:
    file = write_timm(tiny(), tmp_path)
    with pytest.raises(UserError, match="do not fit the model") as caught:
        timm.create_model("comvex_convit_small", pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    names = [name for name in tiny().state_dict() if not name.startswith("head.")]  # the head is what may differ
    assert [name for name in names if f" {name} (" not in str(caught.value)] == []


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pth"):
        from_file(tmp_path / "nowhere.pth")
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="no ConViT"):
        from_file(tmp_path / "other.pth")
    two_channels = write_timm(tiny(in_chans=2), tmp_path)
    with pytest.raises(UserError, match="2 input channels and the model for 3"):
        from_file(two_channels, in_chans=3)
    own = write_ours(tiny(), tmp_path)
    content = bytearray(own.read_bytes())
    content[-1000] ^= 1
    own.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        from_file(own)


def test_weights_that_lack_a_tensor_are_refused_although_the_classes_differ() -> None:
    state_dict = tiny().state_dict()
    del state_dict["blocks.3.attn.gating_param"]
    with pytest.raises(UserError, match=r"missing: blocks\.3\.attn\.gating_param"):
        tiny(pretrained=True, pretrained_cfg_overlay={"state_dict": state_dict}, num_classes=5)


def test_a_model_saved_for_the_hub_comes_back(tmp_path: Path) -> None:
    source = randomised(tiny(img_size=(32, 64), in_chans=1, num_classes=3)).eval()
    save_for_hf(source, tmp_path)
    model: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert model.config == source.config
    pictures = torch.randn(1, 1, 32, 64)
    assert torch.equal(model(pictures), source(pictures))


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize(("name", "size"), [("convit_tiny", 32), ("comvex_convit_tiny", (32, 96))])
def test_a_folder_that_timm_saved_gives_its_logits_without_timm(
    name: str, size: int | tuple[int, int], explicit: bool, tmp_path: Path
) -> None:
    arguments = {"global_pool": "avg", "num_classes": 10, "img_size": size}
    theirs = randomised(timm.create_model(name, **arguments)).eval()
    save_for_hf(theirs, tmp_path, model_args=arguments if explicit else None)
    ours = load_model(tmp_path)
    assert (ours.config.global_pool, ours.config.image_size) == ("avg", size)
    pictures = torch.randn(2, 3, *as_pair(size))
    with torch.inference_mode():
        assert_same_logits(ours(pictures), theirs(pictures))


# Arguments that do not fit


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"embed_dim": 48}, TypeError, "no argument 'embed_dim' .* one of img_size, in_chans"),
        ({"image_size": 64}, TypeError, "no argument 'image_size' .* one of img_size, in_chans"),
        ({"img_size": 70}, UserError, "image_size is 70: each side must be a multiple of patch_size = 16"),
        ({"global_pool": "max"}, UserError, "global_pool is 'max': it must be one of 'token', 'avg', ''"),
        ({"drop_path_rate": 1.5}, UserError, "drop_path is 1.5"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny(**arguments)


# Scripts

SCRIPT = """
import json, sys
import timm
import comvex.timm_models  # as in a script that also runs by itself: nothing is registered twice
from neighbour import size
model = timm.create_model(sys.argv[1], pretrained=True, img_size=size)
if __name__ == "__main__":
    print(json.dumps([sys.argv, type(model).__name__, type(model).__module__, model.head.bias[0].item()]))
"""


def run_module(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "comvex.timm_models", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)


def test_a_script_finds_the_models_and_weights_of_the_hubs_cache(tmp_path: Path) -> None:
    folder = tmp_path / "models--timm--convit_tiny.fb_in1k"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    published = timm.create_model("convit_tiny")
    nn.init.constant_(published.head.bias, 0.25)
    write_timm(published, snapshot).rename(snapshot / "model.safetensors")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "neighbour.py").write_text("size = 64")

    where = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = run_module(str(script), "comvex_convit_tiny", "--flag", **where)
    assert done.returncode == 0, done.stderr
    expected = (
        f'[["{script}", "comvex_convit_tiny", "--flag"], "ConViTWithLinearClassifier", "comvex.convit.model", 0.25]'
    )
    assert done.stdout.strip() == expected

    done = run_module(str(script), "comvex_convit_tiny_plus", **where)
    assert done.returncode == 2
    assert done.stderr.startswith("comvex.timm_models: There are no published weights for comvex_convit_tiny_plus")
    assert "Traceback" not in done.stderr


def test_a_script_without_network_is_told_what_to_fetch_and_how_to_give_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import timm\ntimm.create_model('comvex_convit_small', pretrained=True)")
    done = run_module(str(script), HF_HUB_CACHE=str(tmp_path / "cache"), HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    *_, told = done.stderr.strip().splitlines()
    assert told.startswith("comvex.timm_models: comvex_convit_small is neither a file or folder here nor in the local")
    assert "from https://huggingface.co/timm/convit_small.fb_in1k into a folder and give pretrained_cfg_ov" in told
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_script_the_command_explains_itself(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert comvex.timm_models.main(arguments) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m comvex.timm_models SCRIPT")
    assert all(name in text for name in PRESETS)


def test_a_missing_script_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert comvex.timm_models.main(["nowhere/train.py", "--model", "x"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "comvex.timm_models: there is no script nowhere/train.py: name a Python file.\n"
    assert captured.out == ""
