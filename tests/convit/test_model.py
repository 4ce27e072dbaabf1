"""Backbone and classifier: what they compute, from which pictures, and that they compile, export and checkpoint."""

import inspect
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from checkpoints import SMALL
from comvex.convit import (
    ConViTBackbone,
    ConViTConfig,
    ConViTWithLinearClassifier,
    GatedPositionalSelfAttention,
    SelfAttention,
)

DROPOUTS = {"ff_dropout": 0.3, "attention_dropout": 0.3, "token_dropout": 0.3, "drop_path": 0.3}
FLOAT64 = {"rtol": 0, "atol": 1e-11}  # three layers of sums of at most 64 numbers near one


def classifier(**arguments: Any) -> ConViTWithLinearClassifier:
    return ConViTWithLinearClassifier(ConViTConfig(**SMALL | {"num_classes": 5} | arguments))


def randomised(model: Any) -> Any:
    """Every weight random, in float64, so that no identity or zero of the start hides a mistake."""
    for tensor in model.double().state_dict().values():
        tensor.normal_(std=0.5)
    return model


def recomputed_tokens(model: ConViTBackbone, pictures: Tensor) -> Tensor:
    """The backbone in evaluation, from its parts."""
    patch = model.config.patch_size
    rows, columns = pictures.shape[2] // patch, pictures.shape[3] // patch
    weight, bias = model.patch_embed.proj.weight.flatten(1), model.patch_embed.proj.bias
    tokens = [
        pictures[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch].flatten(1) @ weight.T
        + bias
        for row in range(rows)
        for column in range(columns)
    ]
    x = torch.stack(tokens, dim=1)  # (B, N, dim)
    if model.pos_embed is not None:
        # timm's resampling is in float32, so that grids other than the native are exact to 1e-6 only.
        x = x + resample_abs_pos_embed(model.pos_embed, [rows, columns], list(model.config.grid), num_prefix_tokens=0)
    for layer in model.blocks[: model.config.num_local_layers]:
        x = layer(x, (rows, columns))
    x = torch.cat([model.cls_token.repeat(len(x), 1, 1), x], dim=1)
    for layer in model.blocks[model.config.num_local_layers :]:
        x = layer(x)
    if model.config.pre_norm:
        x = F.layer_norm(x, [x.shape[-1]], model.norm.weight, model.norm.bias, model.config.norm_eps)
    return x


# Contracts


def test_backbone_arguments_are_the_seeds_and_others_are_keyword_only() -> None:
    seed = {
        "image_size": 224,
        "image_channel": 3,
        "patch_size": 16,
        "num_local_layers": 10,
        "num_nonlocal_layers": 2,
        "dim": 192,
        "locality_strength": 1.0,
        "heads": None,
        "head_dim": None,
        "pre_norm": False,
        "ff_dim": 2048,
        "ff_dropout": 0.0,
        "attention_dropout": 0.0,
        "token_dropout": 0.0,
    }
    parameters = inspect.signature(ConViTBackbone).parameters
    names = list(parameters)
    assert names[: len(seed)] == list(seed)
    assert {name: parameters[name].default for name in seed} == seed
    assert all(parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for name in seed)
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in names[len(seed) :])
    config = inspect.signature(ConViTConfig).parameters
    assert set(names) == set(config) - {"num_classes", "pred_act_fnc_name", "global_pool"}
    assert all(parameters[name].default == config[name].default for name in names)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("ConViT_Ti", 5_710_472),
        ("ConViT_Ti_plus", 9_972_872),
        ("ConViT_S", 27_777_232),
        ("ConViT_S_plus", 48_979_792),
        ("ConViT_B", 86_539_880),
        ("ConViT_B_plus", 153_134_696),
    ],
)
def test_preset_has_its_number_of_parameters(preset: str, parameters: int) -> None:
    with torch.device("meta"):
        model = ConViTWithLinearClassifier(ConViTConfig.from_preset(preset))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


LOCAL_KEYS = {"qk.weight", "v.weight", "pos_proj.weight", "pos_proj.bias", "gating_param", "proj.weight", "proj.bias"}
NONLOCAL_KEYS = {"qkv.weight", "proj.weight", "proj.bias"}
REST_KEYS = {f"{part}.{kind}" for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")}
MODEL_KEYS = {"cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias"} | {
    f"blocks.{index}.{key}"
    for index, attention in enumerate([LOCAL_KEYS, LOCAL_KEYS, NONLOCAL_KEYS])
    for key in {f"attn.{key}" for key in attention} | REST_KEYS
}


def test_names_of_weights_are_those_of_published_checkpoints() -> None:
    preset = ConViTConfig.ConViT_Ti(**SMALL)
    published = MODEL_KEYS | {"pos_embed", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert set(ConViTWithLinearClassifier(preset).state_dict()) == published


def test_names_of_weights_of_a_direct_model() -> None:
    head = {f"head.{index}.{kind}" for index in (0, 2, 3) for kind in ("weight", "bias")}
    assert set(classifier().state_dict()) == MODEL_KEYS | head
    assert set(ConViTBackbone(**SMALL).state_dict()) == MODEL_KEYS


def test_only_the_positional_biases_are_not_trained() -> None:
    model = classifier()
    buffers = {name for name in model.state_dict() if name.endswith("pos_proj.bias")}
    assert set(model.state_dict()) - {name for name, _ in model.named_parameters()} == buffers
    assert len(buffers) == 2


def test_embeddings_are_exempt_from_weight_decay() -> None:
    model = classifier(position_embedding=True)
    assert model.no_weight_decay() == {"pos_embed", "cls_token"}
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}


# The forward


@pytest.mark.parametrize("size", [(32, 32), (64, 24)])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"pre_norm": True},
        {"pre_norm": True, "position_embedding": True, "norm_eps": 0.1},
        {"position_embedding": True, "image_size": (64, 24)},
        {"use_gpsa": False},
        {"num_local_layers": 0, "image_channel": 1},
        {"num_nonlocal_layers": 0, "pre_norm": True},
    ],
)
def test_backbone_is_the_composition_of_its_parts(arguments: dict[str, Any], size: tuple[int, int]) -> None:
    model = randomised(ConViTBackbone(**SMALL | arguments)).eval()
    pictures = torch.randn(2, model.config.image_channel, *size, dtype=torch.float64)
    tokens = model(pictures)
    assert tokens.shape == (2, 1 + size[0] * size[1] // 64, 16)
    native = size == (model.config.grid[0] * 8, model.config.grid[1] * 8)
    tolerance = FLOAT64 if native or model.pos_embed is None else {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(tokens, recomputed_tokens(model, pictures), **tolerance)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_class_token_comes_first(pre_norm: bool) -> None:
    # With no layer after it, the class token is still itself and the same for every picture.
    model = randomised(ConViTBackbone(**SMALL | {"num_nonlocal_layers": 0, "pre_norm": pre_norm})).eval()
    pictures = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    tokens = model(pictures)
    assert torch.equal(tokens[:, :1], model.norm(model.cls_token).expand(3, 1, 16))
    model.cls_token.data += 1
    assert torch.equal(model(pictures)[:, 1:], tokens[:, 1:])


def test_local_layers_see_the_patches_only_and_the_others_the_class_token_first() -> None:
    model = randomised(ConViTBackbone(**SMALL)).eval()
    seen: list[Tensor] = []
    for layer in model.blocks:
        layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model(torch.randn(2, 3, 32, 40, dtype=torch.float64))
    assert [x.shape for x in seen] == [(2, 20, 16), (2, 20, 16), (2, 21, 16)]
    assert torch.equal(seen[2][:, 0], model.cls_token[0].expand(2, 16))


def test_logits_come_from_the_class_token() -> None:
    model = randomised(classifier(pred_act_fnc_name=None)).eval()
    tokens = torch.randn(2, 17, 16, dtype=torch.float64)
    logits = model.forward_head(tokens)
    assert logits.shape == (2, 5)
    torch.testing.assert_close(logits, tokens[:, 0] @ model.head.weight.T + model.head.bias, **FLOAT64)
    pictures = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(model(pictures), model.forward_head(model.forward_features(pictures)))


@pytest.mark.parametrize(("name", "function"), [("ReLU", F.relu), ("GELU", F.gelu), ("Tanh", torch.tanh)])
def test_head_is_linear_activation_norm_linear(name: str, function: Callable[[Tensor], Tensor]) -> None:
    model = randomised(classifier(pred_act_fnc_name=name, norm_eps=0.1)).eval()
    tokens = torch.randn(2, 17, 16, dtype=torch.float64)
    first, _, norm, last = model.head
    hidden = function(tokens[:, 0] @ first.weight.T + first.bias)
    hidden = F.layer_norm(hidden, [16], norm.weight, norm.bias, 0.1)
    torch.testing.assert_close(model.forward_head(tokens), hidden @ last.weight.T + last.bias, **FLOAT64)


def test_without_classes_the_class_token_is_returned() -> None:
    model = classifier(num_classes=0).eval()
    pictures = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(pictures), model.forward_features(pictures)[:, 0])
    assert not any(name.startswith("head") for name in model.state_dict())


def test_any_size_that_the_patch_divides_is_taken_call_by_call() -> None:
    model = classifier(position_embedding=True).eval()
    for height, width in [(32, 32), (8, 8), (64, 24), (8, 80), (32, 32)]:
        pictures = torch.randn(2, 3, height, width)
        assert model.forward_features(pictures).shape == (2, 1 + height * width // 64, 16)
        assert model(pictures).shape == (2, 5)


def test_position_embedding_is_stored_at_the_native_grid() -> None:
    assert classifier(position_embedding=True, image_size=(64, 24)).pos_embed.shape == (1, 8 * 3, 16)
    assert classifier().pos_embed is None


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 30, 32), "30 x 32 pixels: each side must be a multiple of the patch size 8"),
        ((2, 3, 32, 33), "32 x 33 pixels: each side must be a multiple of the patch size 8"),
        ((2, 3, 0, 32), "0 x 32 pixels: they are empty"),
        ((2, 1, 32, 32), r"shape \(2, 1, 32, 32\): it must be \(batch, 3, height, width\)"),
        ((2, 32, 32, 3), r"shape \(2, 32, 32, 3\): it must be \(batch, 3, height, width\)"),
        ((3, 32, 32), r"shape \(3, 32, 32\): it must be \(batch, 3, height, width\)"),
    ],
)
def test_pictures_that_do_not_fit_are_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier()(torch.randn(shape))


def test_pictures_of_whole_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="The pictures are of type uint8: it must be a floating-point type"):
        classifier()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_arguments_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="heads is 5: it must divide dim = 16"):
        ConViTBackbone(**SMALL | {"heads": 5})
    with pytest.raises(ValueError, match="image_size is 30: each side must be a multiple of patch_size = 8"):
        ConViTBackbone(**SMALL | {"image_size": 30})


# How the configuration reaches the parts


def test_local_layers_have_gpsa_and_the_others_plain_attention() -> None:
    kinds = [type(layer.attn) for layer in classifier().blocks]
    assert kinds == [GatedPositionalSelfAttention, GatedPositionalSelfAttention, SelfAttention]
    kinds = [type(layer.attn) for layer in classifier(use_gpsa=False).blocks]
    assert kinds == [SelfAttention] * 3


def test_every_rate_and_strength_reaches_its_place() -> None:
    model = classifier(
        **{"heads": None, "head_dim": 8, "num_local_layers": 3, "num_nonlocal_layers": 2},
        **{"ff_dropout": 0.1, "attention_dropout": 0.2, "token_dropout": 0.3, "drop_path": 0.4},
        **{"locality_strength": 5.0, "norm_eps": 0.01, "pre_norm": True},
    )
    assert [layer.drop_path.rate for layer in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert {layer.mlp.dropout.p for layer in model.blocks} == {0.1}
    assert {layer.attn.attention_dropout.p for layer in model.blocks} == {0.2}
    assert {layer.attn.heads for layer in model.blocks} == {2}
    assert model.token_dropout.p == 0.3
    assert {layer.attn.pos_proj.locality_strength for layer in model.blocks[:3]} == {5.0}
    assert {part.eps for part in model.modules() if isinstance(part, nn.LayerNorm)} == {0.01}
    assert model.blocks[0].mlp.fc1.out_features == 24


def test_token_dropout_falls_on_the_patches_with_their_positions() -> None:
    model = randomised(classifier(token_dropout=0.5, position_embedding=True)).train()
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    pictures = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.manual_seed(2)
    model(pictures)
    tokens = model.patch_embed(pictures)[0] + model.pos_embed
    torch.manual_seed(2)
    mask = F.dropout(torch.ones_like(tokens), 0.5)  # alike in memory layout too, which is the order of the draws
    torch.testing.assert_close(seen[0], tokens * mask, **FLOAT64)


def test_embeddings_and_head_start_at_the_papers_normal() -> None:
    model = ConViTWithLinearClassifier(
        ConViTConfig.ConViT_Ti(num_local_layers=1, num_nonlocal_layers=0, num_classes=100)
    )
    for tensor in (model.pos_embed, model.head.weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.25)  # 192 numbers: 5 % is one deviation
    assert torch.equal(model.head.bias, torch.zeros(100))
    # torch's own start of a convolution: even over +-1 / sqrt(inputs).
    bound = 1 / math.sqrt(3 * 16 * 16)
    assert model.patch_embed.proj.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


# Training


@pytest.mark.parametrize("arguments", [{}, {"pre_norm": True, "position_embedding": True, "pred_act_fnc_name": None}])
def test_every_parameter_gets_a_gradient(arguments: dict[str, Any]) -> None:
    model = randomised(classifier(**arguments)).train()
    F.cross_entropy(model(torch.randn(4, 3, 32, 48, dtype=torch.float64)), torch.tensor([0, 1, 2, 3])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


def test_model_trains_after_a_run_in_inference_mode() -> None:
    model = classifier(position_embedding=True)
    pictures = torch.randn(2, 3, 48, 32)
    with torch.inference_mode():
        before = model.eval()(pictures)
    after = model.train()(pictures)
    torch.testing.assert_close(after, before)
    after.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_forward_never_changes_the_module(
    unchanged: Callable[[nn.Module], AbstractContextManager[None]], training: bool, checkpointing: bool
) -> None:
    model = classifier(position_embedding=True, pre_norm=True, **DROPOUTS).train(training)
    model.set_grad_checkpointing(checkpointing)
    with unchanged(model):
        for size in [(32, 32), (48, 16)]:
            model(torch.randn(2, 3, *size))


@pytest.mark.parametrize("rates", [{}, DROPOUTS])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_gradient_checkpointing_gives_identical_gradients(rates: dict[str, float], pre_norm: bool) -> None:
    model = classifier(pre_norm=pre_norm, position_embedding=True, **rates).train()
    pictures = torch.randn(4, 3, 48, 32)
    runs = [0]
    model.blocks[0].register_forward_pre_hook(lambda *_: runs.append(runs.pop() + 1))

    def step(checkpointing: bool) -> tuple[Tensor, ...]:
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(3)
        loss = model(pictures).square().sum()
        return loss, *torch.autograd.grad(loss, tuple(model.parameters()))

    plain = step(False)
    assert runs == [1]
    checkpointed = step(True)
    assert runs == [3]  # forward, and once more in backward
    for name, expected, actual in zip(["loss", *dict(model.named_parameters())], plain, checkpointed, strict=True):
        assert torch.equal(actual, expected), name


# Compilation and export. Kernels are fused and sums reordered: float32's 1e-7 a step, over some tens of steps.


def test_model_compiles_in_one_graph_and_equals_eager_with_gradients() -> None:
    model = classifier(
        **{"dim": 8, "heads": 1, "ff_dim": 8, "num_local_layers": 1},
        **{"pre_norm": True, "position_embedding": True, "pred_act_fnc_name": None},
    ).train()
    pictures = torch.randn(2, 3, 32, 48)

    def step(forward: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        logits = forward(pictures)
        return logits, *torch.autograd.grad(logits.square().sum(), tuple(model.parameters()))

    torch.compiler.reset()
    compiled = step(torch.compile(model, fullgraph=True))
    for actual, expected in zip(compiled, step(model), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arguments", [{}, {"pre_norm": True, "position_embedding": True, "pred_act_fnc_name": None}])
def test_exported_program_equals_eager_at_any_batch_and_size(arguments: dict[str, Any]) -> None:
    model = classifier(**arguments).eval()
    pictures = torch.randn(2, 3, 32, 48)
    fixed = torch.export.export(model, (pictures,)).module()
    torch.testing.assert_close(fixed(pictures), model(pictures), rtol=1e-5, atol=1e-6)

    batch, rows, columns = (torch.export.Dim(name, min=1, max=64) for name in ("batch", "rows", "columns"))
    shapes = ({0: batch, 2: 8 * rows, 3: 8 * columns},)
    dynamic = torch.export.export(model, (pictures,), dynamic_shapes=shapes).module()
    for shape in [(2, 3, 32, 48), (3, 3, 32, 32), (1, 3, 64, 16)]:
        pictures = torch.randn(shape)
        torch.testing.assert_close(dynamic(pictures), model(pictures), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pictures", [None, np.zeros((1, 3, 32, 32), dtype=np.float32)])
def test_pictures_that_are_no_tensor_are_refused(pictures):
    model = ConViTWithLinearClassifier(ConViTConfig.ConViT_Ti(image_size=32))
    with pytest.raises(ValueError, match=r"The pictures are a (?:NoneType|ndarray): it must be a tensor or a list"):
        model(pictures)


@pytest.mark.parametrize("position_embedding", [False, True])
def test_tokens_are_laid_out_as_tokens_in_every_layer(position_embedding):
    """Laid out as the convolution of the patches leaves them, norms would copy them and sums stride through them."""
    network = classifier(position_embedding=position_embedding)
    layouts = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, inputs, output: layouts.append(inputs[0].is_contiguous()))
    network(torch.randn(2, 3, 32, 32))
    assert layouts == [True] * len(network.blocks)
