"""The blend of content and positional attention: its hand-written backward, what it keeps, and what sees into it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from comvex.convit import ConViTLayer, GatedPositionalSelfAttention, SelfAttention
from comvex.convit.blend import blend

GRID = (3, 5)
FLOAT64 = {"rtol": 0, "atol": 1e-12}  # sums of at most 100 numbers near one


def parts(*, own_factors: bool = False) -> list[Tensor]:
    """Content, values, the content's share, row and column factor of 2 pictures, 3 heads of 4; all want a gradient."""
    front = (2,) if own_factors else ()
    shapes = [(2, 15, 3, 4), (2, 15, 3, 4), (3, 1, 1), (*front, 3, 3, 3), (*front, 3, 5, 5)]
    content, value, *small = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    # Heads beside each other in a token, as attention and the value projection leave them.
    return [tensor.requires_grad_() for tensor in (content.transpose(1, 2), value.transpose(1, 2), *small)]


def dense_blend(content: Tensor, value: Tensor, share: Tensor, row_factor: Tensor, column_factor: Tensor) -> Tensor:
    """The same with the map of N x N written out."""
    dense = torch.einsum("...ij,...kl->...ikjl", row_factor, column_factor).flatten(-4, -3).flatten(-2, -1)
    return share * content + dense @ value


@pytest.mark.parametrize("own_factors", [False, True])
def test_blend_and_its_gradients_equal_those_of_the_dense_map(own_factors: bool) -> None:
    inputs = parts(own_factors=own_factors)
    output, expected = blend(*inputs), dense_blend(*inputs)
    torch.testing.assert_close(output, expected, **FLOAT64)
    cotangent = torch.randn_like(output)
    for gradient, reference in zip(
        torch.autograd.grad(output, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent), strict=True
    ):
        torch.testing.assert_close(gradient, reference, **FLOAT64)


@pytest.mark.parametrize("own_factors", [False, True])
def test_gradients_are_the_differences_of_the_blend(own_factors: bool) -> None:
    assert torch.autograd.gradcheck(blend, parts(own_factors=own_factors))


@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [4], [0, 1]])
def test_each_gradient_is_the_same_when_the_others_are_not_wanted(wanted: list[int]) -> None:
    inputs = parts()
    expected = torch.autograd.grad(blend(*inputs).square().sum(), inputs)
    frozen = [tensor.detach().requires_grad_(number in wanted) for number, tensor in enumerate(inputs)]
    alone = torch.autograd.grad(blend(*frozen).square().sum(), [frozen[number] for number in wanted])
    for number, gradient in zip(wanted, alone, strict=True):
        assert torch.equal(gradient, expected[number])


# What is kept for backward


def kept_bytes(module: torch.nn.Module, compute: Callable[[], Tensor]) -> int:
    """Bytes that are kept for backward, each storage once, without the parameters of the module."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = compute()
    assert output.requires_grad
    for parameter in module.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(("grid", "batch"), [((14, 14), 2), ((48, 48), 1)])
def test_gpsa_keeps_one_activation_more_for_backward_than_plain_attention(grid: tuple[int, int], batch: int) -> None:
    gpsa, plain = GatedPositionalSelfAttention(192, heads=4), SelfAttention(192, heads=4)
    x = torch.randn(batch, grid[0] * grid[1], 192, requires_grad=True)
    activation = x.numel() * x.element_size()
    more = kept_bytes(gpsa, lambda: gpsa(x, grid)) - kept_bytes(plain, lambda: plain(x))
    # The blend, which the projection reads. Factors are a tenth at most here; mixed values would be two more.
    assert activation <= more < 1.2 * activation


def test_a_layer_keeps_at_most_eight_hundredths_more_than_a_plain_one() -> None:
    x = torch.randn(1, 48 * 48, 192, requires_grad=True)
    local, plain = (ConViTLayer(192, heads=4, ff_dim=768, pre_norm=True, use_gpsa=gpsa) for gpsa in (True, False))
    assert kept_bytes(local, lambda: local(x)) <= 1.08 * kept_bytes(plain, lambda: plain(x))


# What else goes through it


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of vmap over fused attention
def test_gradients_of_each_picture_by_vmap_equal_those_one_by_one() -> None:
    gpsa = GatedPositionalSelfAttention(8, heads=2).double()
    weights, x = dict(gpsa.named_parameters()), torch.randn(3, 1, 15, 8, dtype=torch.float64)

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(gpsa, weights, (x, GRID)).square().sum()

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    for number, picture in enumerate(x):
        alone = torch.autograd.grad(loss(weights, picture), list(weights.values()))
        for name, gradient in zip(weights, alone, strict=True):
            torch.testing.assert_close(together[name][number], gradient, rtol=1e-10, atol=1e-12)


def test_steps_are_the_same_to_the_last_bit_also_with_activations_computed_twice() -> None:
    gpsa = GatedPositionalSelfAttention(192, heads=4)
    x = torch.randn(4, 196, 192)

    def gradients(forward: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(x).square().sum(), list(gpsa.parameters()))

    first = gradients(gpsa)
    for again in (gradients(gpsa), gradients(lambda x: checkpoint(gpsa, x, use_reentrant=False))):
        assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


def test_gradients_under_autocast_to_bfloat16_are_those_of_float32_to_its_rounding() -> None:
    gpsa = GatedPositionalSelfAttention(32, heads=4)
    x = torch.randn(2, 196, 32)
    cotangent = torch.randn_like(x)
    exact = torch.autograd.grad(gpsa(x), list(gpsa.parameters()), cotangent)
    with torch.autocast("cpu", torch.bfloat16):
        output = gpsa(x)
    rounded = torch.autograd.grad(output, list(gpsa.parameters()), cotangent.to(output.dtype))
    for (name, _), gradient, expected in zip(gpsa.named_parameters(), rounded, exact, strict=True):
        assert gradient.dtype == torch.float32
        # A chain of some fifteen roundings of 0.29 eps each, 1.1 eps of 1/128; sums of gates and scores mostly cancel.
        bound = {"gating_param": 5, "pos_proj.weight": 5}.get(name, 1.5) / 128
        assert (gradient - expected).norm() / expected.norm() < bound, name
