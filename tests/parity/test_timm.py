"""Parity with timm's ConViT: the same random weights in both give the same logits and gradients."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.convit import GPSA, ConVit
from torch import Tensor, nn

from comvex.convit import ConViTConfig, ConViTWithLinearClassifier, GatedPositionalSelfAttention

pytestmark = pytest.mark.parity

SIZES = [("convit_tiny", "ConViT_Ti"), ("convit_small", "ConViT_S"), ("convit_base", "ConViT_B")]


def on_meta(name: str, preset: str) -> tuple[ConVit, ConViTWithLinearClassifier]:
    """timm's model and ours, without storage."""
    with torch.device("meta"):
        return timm.create_model(name), ConViTWithLinearClassifier(ConViTConfig.from_preset(preset))


def with_the_same_random_weights(name: str, preset: str) -> tuple[ConVit, ConViTWithLinearClassifier]:
    """Both with every weight random: gates over +-3, positional weights and biases too."""
    theirs, ours = on_meta(name, preset)
    theirs = theirs.to_empty(device="cpu")
    for key, parameter in theirs.named_parameters():
        if key.endswith("gating_param"):
            nn.init.uniform_(parameter, -3, 3)
        elif "pos_proj" in key:
            nn.init.normal_(parameter, std=0.5)
        elif parameter.ndim == 1:  # biases, and the weights of norms around one
            nn.init.normal_(parameter, mean=float("norm" in key and key.endswith("weight")), std=0.2)
        elif "pos_embed" in key or "cls_token" in key:
            nn.init.normal_(parameter, std=0.5)
        else:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    return theirs, ours


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize(("name", "preset"), SIZES)
def test_names_and_shapes_of_weights_are_timms(name: str, preset: str) -> None:
    theirs, ours = on_meta(name, preset)
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == {
        key: tensor.shape for key, tensor in theirs.state_dict().items()
    }


@pytest.mark.parametrize(("name", "preset"), SIZES)
def test_number_of_parameters_is_timms_without_the_positional_biases(name: str, preset: str) -> None:
    theirs, ours = on_meta(name, preset)
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (ours, theirs)]
    assert counts[0] == counts[1] - 10 * ours.config.num_heads


@pytest.mark.parametrize(("name", "preset"), SIZES)
def test_logits_equal_timms(name: str, preset: str) -> None:
    theirs, ours = with_the_same_random_weights(name, preset)
    pictures = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = theirs.eval()(pictures)
        logits = ours.eval()(pictures)
    # Twelve layers of sums over 196 tokens and up to 3072 numbers in float32, 6e-8 each.
    assert relative_error(logits, expected) < 1e-5
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_gradients_equal_timms() -> None:
    theirs, ours = with_the_same_random_weights("convit_tiny", "ConViT_Ti")
    pictures = torch.randn(2, 3, 224, 224)
    gradients: list[dict[str, Tensor]] = []
    for model in (ours, theirs):
        model.requires_grad_()
        model.zero_grad()
        F.cross_entropy(model.train()(pictures), torch.tensor([3, 8])).backward()
        gradients.append({key: parameter.grad.clone() for key, parameter in model.named_parameters()})
    actual, expected = gradients
    assert actual.keys() == {key for key in expected if not key.endswith("pos_proj.bias")}
    for key, gradient in actual.items():
        # As above, twice as far; gates' and positional gradients are sums over all tokens in which most terms cancel.
        bound = 1e-4 if "gating_param" in key or "pos_proj" in key else 1e-5
        assert relative_error(gradient, expected[key]) < bound, key


@pytest.mark.parametrize("heads", [1, 4, 9, 16])
@pytest.mark.parametrize("strength", [0.5, 1.0, 3.0])
def test_convolutional_start_is_timms(heads: int, strength: float) -> None:
    theirs = GPSA(heads * 2, num_heads=heads, locality_strength=strength)
    theirs.local_init()
    ours = GatedPositionalSelfAttention(heads * 2, heads=heads, locality_strength=strength)
    assert torch.equal(ours.pos_proj.weight, theirs.pos_proj.weight)
    assert torch.equal(ours.v.weight, theirs.v.weight)
    assert torch.equal(ours.gating_param, theirs.gating_param)
