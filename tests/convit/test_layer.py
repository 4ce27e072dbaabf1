"""One layer: where the norms stand, what the feed-forward network computes, and what drop path drops."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comvex.convit import ConViTLayer, GatedPositionalSelfAttention, SelfAttention
from comvex.convit.layer import DropPath, FeedForward

FLOAT64 = {"rtol": 0, "atol": 1e-12}  # a few sums of at most 64 numbers near one


def random_layer(**arguments: Any) -> ConViTLayer:
    layer = ConViTLayer(16, heads=4, ff_dim=24, **arguments).double()
    for tensor in layer.state_dict().values():
        tensor.normal_()
    return layer


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def feed_forward(mlp: FeedForward, x: Tensor) -> Tensor:
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2  # the exact GELU
    return hidden @ mlp.fc2.weight.T + mlp.fc2.bias


@pytest.mark.parametrize("use_gpsa", [True, False])
def test_post_norm_is_the_norm_of_the_sum_and_is_the_default(use_gpsa: bool) -> None:
    layer = random_layer(use_gpsa=use_gpsa)
    x = torch.randn(2, 15, 16, dtype=torch.float64)
    attended = layer.attn(x, (3, 5)) if use_gpsa else layer.attn(x)
    expected = layer_norm(layer.norm1, x + attended)
    expected = layer_norm(layer.norm2, expected + feed_forward(layer.mlp, expected))
    torch.testing.assert_close(layer(x, (3, 5)), expected, **FLOAT64)


@pytest.mark.parametrize("use_gpsa", [True, False])
def test_pre_norm_adds_the_branch_of_the_norm(use_gpsa: bool) -> None:
    layer = random_layer(pre_norm=True, use_gpsa=use_gpsa)
    x = torch.randn(2, 15, 16, dtype=torch.float64)
    normed = layer_norm(layer.norm1, x)
    expected = x + (layer.attn(normed, (3, 5)) if use_gpsa else layer.attn(normed))
    expected = expected + feed_forward(layer.mlp, layer_norm(layer.norm2, expected))
    torch.testing.assert_close(layer(x, (3, 5)), expected, **FLOAT64)


def test_norms_take_the_epsilon_given() -> None:
    layer = ConViTLayer(16, heads=4, norm_eps=0.125)
    assert layer.norm1.eps == layer.norm2.eps == 0.125
    assert ConViTLayer(16, heads=4).norm1.eps == 1e-6


def test_local_layers_take_gpsa_and_others_plain_attention() -> None:
    gpsa = ConViTLayer(16, head_dim=8, locality_strength=3.0, attention_dropout=0.25).attn
    assert isinstance(gpsa, GatedPositionalSelfAttention)
    assert (gpsa.heads, gpsa.pos_proj.locality_strength, gpsa.attention_dropout.p) == (2, 3.0, 0.25)
    plain = ConViTLayer(16, head_dim=8, attention_dropout=0.25, use_gpsa=False).attn
    assert isinstance(plain, SelfAttention)
    assert (plain.heads, plain.attention_dropout.p) == (2, 0.25)


def test_grid_left_out_is_a_square_for_gpsa_and_not_looked_at_by_plain_attention() -> None:
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    local = random_layer()
    assert torch.equal(local(x), local(x, (3, 3)))
    with pytest.raises(ValueError, match="10 tokens are no square"):
        local(torch.randn(2, 10, 16, dtype=torch.float64))
    plain = random_layer(use_gpsa=False)
    assert torch.equal(plain(x[:, :7]), plain(x[:, :7], (40, 2)))


def test_linears_start_at_the_papers_normal_and_norms_at_the_identity() -> None:
    layer = ConViTLayer(192, heads=4, ff_dim=256)
    for linear in (layer.mlp.fc1, layer.mlp.fc2):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert torch.equal(linear.bias, torch.zeros_like(linear.bias))
    for norm in (layer.norm1, layer.norm2):
        assert torch.equal(norm.weight, torch.ones(192))
        assert torch.equal(norm.bias, torch.zeros(192))


def test_feed_forward_drops_the_hidden_and_the_output() -> None:
    mlp = FeedForward(3, 4, dropout=0.5).double().train()
    x = torch.randn(2000, 3, dtype=torch.float64)
    torch.manual_seed(4)
    output = mlp(x)
    torch.manual_seed(4)
    hidden_mask = nn.Dropout(0.5)(torch.ones(2000, 4, dtype=torch.float64))
    output_mask = nn.Dropout(0.5)(torch.ones(2000, 3, dtype=torch.float64))
    hidden = nn.functional.gelu(mlp.fc1(x)) * hidden_mask
    torch.testing.assert_close(output, mlp.fc2(hidden) * output_mask, **FLOAT64)
    torch.testing.assert_close(mlp.eval()(x), feed_forward(mlp, x), **FLOAT64)


# Drop path


def test_drop_path_is_the_identity_in_evaluation_and_at_rate_zero() -> None:
    x = torch.randn(4, 5, 6)
    assert torch.equal(DropPath(0.7).eval()(x), x)
    assert torch.equal(DropPath(0.0).train()(x), x)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_drop_path_drops_whole_pictures_and_keeps_the_expectation(rate: float) -> None:
    pictures = 40_000
    x = torch.ones(pictures, 2, 3, dtype=torch.float64)
    output = DropPath(rate).train()(x)
    factor = output[:, :1, :1]
    assert torch.equal(output, factor.expand_as(output))  # one draw a picture
    kept = factor != 0
    torch.testing.assert_close(factor[kept], torch.full_like(factor[kept], 1 / (1 - rate)))
    # The mean of n such draws has the standard deviation sqrt(rate / (1 - rate) / n) = 0.005 at most: five of them.
    assert factor.mean().item() == pytest.approx(1, abs=0.025)


def test_drop_path_scales_the_gradient_as_it_scales_the_branch() -> None:
    x = torch.ones(64, 1, 1, requires_grad=True)
    output = DropPath(0.6).train()(x)
    output.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, output.detach())


@pytest.mark.parametrize("pre_norm", [False, True])
def test_dropped_branches_leave_the_residual(pre_norm: bool) -> None:
    layer = random_layer(pre_norm=pre_norm, drop_path=0.6).train()
    x = torch.randn(64, 4, 16, dtype=torch.float64)
    without_branches = x if pre_norm else layer_norm(layer.norm2, layer_norm(layer.norm1, x))
    dropped = (layer(x) - without_branches).abs().amax(dim=(1, 2)) < 1e-12
    assert dropped.sum() in range(8, 39)  # both branches: 0.36 of 64 = 23, give or take four deviations of 3.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 5}, "heads is 5: it must divide dim = 16"),
        ({}, "heads and head_dim are both None"),
        ({"heads": 4, "ff_dim": 0}, "ff_dim is 0: .* at least 1"),
        ({"heads": 4, "ff_dropout": 1}, r"ff_dropout is 1: it must lie in \[0, 1\)"),
        ({"heads": 4, "drop_path": -0.5}, r"drop_path is -0\.5: it must lie in \[0, 1\)"),
        ({"heads": 4, "attention_dropout": 2}, r"attention_dropout is 2: it must lie in \[0, 1\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConViTLayer(16, **arguments)
