"""Content attention written out in pieces: equal to the fused one, and taken where that is slow."""

from collections.abc import Iterable
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from comvex.convit import GatedPositionalSelfAttention, SelfAttention, content
from comvex.convit.content import attend, attend_in_pieces

SHAPE = 3, 2, 7, 4  # pictures, heads, tokens, head_dim
FLOAT64 = {"rtol": 0, "atol": 1e-13}  # sums of at most 7 numbers near one


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query, key and value with heads beside each other in a token, as the layers have them."""
    pictures, heads, tokens, head_dim = SHAPE
    parts = [torch.randn(pictures, tokens, heads, head_dim, dtype=torch.float64).to(dtype) for _ in range(3)]
    return [part.transpose(1, 2).requires_grad_() for part in parts]


def some_keys() -> Tensor:
    """A mask with other keys for each picture."""
    return torch.arange(SHAPE[2]) < torch.tensor([[3], [7], [5]])


def dense(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
    """The definition, a number at a time by exponentials."""
    counts = torch.ones(SHAPE[0], SHAPE[2], dtype=torch.bool) if key_mask is None else key_mask
    powers = torch.einsum("bhid,bhjd->bhij", query, key).div(SHAPE[3] ** 0.5).exp() * counts[:, None, None, :]
    return torch.einsum("bhij,bhjd->bhid", powers / powers.sum(dim=-1, keepdim=True), value)


@pytest.fixture(params=["whole", "pieces"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of writing it out: small maps as a whole, and in pieces."""
    if request.param == "pieces":
        monkeypatch.setattr(content, "KEPT", 0)


@pytest.mark.parametrize("maps", [1, 2, 4, 100])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("way")
def test_pieces_of_any_size_have_the_output_and_gradients_of_the_definition(maps, masked):
    parts, key_mask = inputs(), some_keys() if masked else None
    with mock.patch.object(content, "PIECE", maps * SHAPE[2] ** 2):
        output, expected = attend_in_pieces(*parts, key_mask=key_mask), dense(*parts, key_mask=key_mask)
        torch.testing.assert_close(output, expected, **FLOAT64)
        cotangent = torch.randn_like(output)
        found = torch.autograd.grad(output, parts, cotangent)
    for gradient, reference in zip(found, torch.autograd.grad(expected, parts, cotangent), strict=True):
        torch.testing.assert_close(gradient, reference, **FLOAT64)


@pytest.mark.usefixtures("way")
def test_there_is_a_second_derivative():
    assert torch.autograd.gradgradcheck(lambda *parts: attend_in_pieces(*parts, key_mask=some_keys()), inputs())


@pytest.mark.parametrize("fit", [False, True])
def test_no_map_is_kept_for_backward_unless_all_of_a_layer_are_small(fit, monkeypatch):
    monkeypatch.setattr(content, "KEPT", SHAPE[0] * SHAPE[1] * SHAPE[2] ** 2 - (not fit))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        attend_in_pieces(*inputs(torch.bfloat16), key_mask=None)
    assert len(kept) >= 3
    maps = [tensor for tensor in kept if tensor.shape[-2:] == (SHAPE[2], SHAPE[2])]
    assert sum(tensor.nbytes for tensor in maps) == fit * 6 * content.KEPT


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("way")
def test_in_bfloat16_it_is_as_exact_as_its_roundings(masked):
    """Scores, weights and result are rounded to 8 bits: each is off by 2 to the power -9 at most."""
    parts, key_mask = inputs(torch.bfloat16), some_keys() if masked else None
    exact = [part.detach().double().requires_grad_() for part in parts]
    output, expected = attend(*parts, key_mask=key_mask), dense(*exact, key_mask=key_mask)
    cotangent = torch.randn_like(expected)
    found = [output, *torch.autograd.grad(output, parts, cotangent.bfloat16())]
    reference = [expected, *torch.autograd.grad(expected, exact, cotangent)]
    for tensor, double in zip(found, reference, strict=True):
        assert difference([tensor], [double]) < 2**-6


# Where it is taken


def num_fused(module: torch.nn.Module, x: Tensor) -> int:
    """How often a module asks PyTorch's fused attention."""
    with mock.patch.object(F, "scaled_dot_product_attention", side_effect=F.scaled_dot_product_attention) as calls:
        module(x)
    return calls.call_count


@pytest.mark.parametrize("kind", [GatedPositionalSelfAttention, SelfAttention])
def test_training_in_bfloat16_is_written_out_and_all_else_is_fused(kind):
    module, x = kind(8, heads=2), torch.randn(2, 9, 8)
    assert num_fused(module, x) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert num_fused(module, x) == 0
        with torch.no_grad():
            assert num_fused(module, x) == 1
        with mock.patch.object(content, "PIECE", 9 * 9 - 1):
            assert num_fused(module, x) == 1  # a map that is larger than a piece


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", [GatedPositionalSelfAttention, SelfAttention])
def test_gradients_of_each_picture_under_vmap_are_those_of_the_picture_alone(kind):
    module, x = kind(8, heads=2).bfloat16(), torch.randn(3, 9, 8).bfloat16()
    weights = dict(module.named_parameters())

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, weights, (x[None],)).float().square().sum()

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    for index, picture in enumerate(x):
        alone = torch.func.grad(loss)(weights, picture)
        assert difference([together[name][index] for name in alone], list(alone.values())) < 2**-7


def test_a_compiler_sees_one_graph_for_all_batches():
    module = SelfAttention(8, heads=2).bfloat16()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for num_pictures in (2, 5):
        x = torch.randn(num_pictures, 9, 8).bfloat16()
        found, expected = (
            torch.autograd.grad(forward(x).float().square().sum(), list(module.parameters()))
            for forward in (compiled, module)
        )
        assert difference(found, expected) < 2**-6


def difference(tensors: Iterable[Tensor], reference: Iterable[Tensor]) -> float:
    """The norm of the difference of all of them, as a share of the reference's."""
    found, expected = (torch.cat([tensor.flatten().double() for tensor in all_]) for all_ in (tensors, reference))
    return ((found - expected).norm() / expected.norm()).item()
