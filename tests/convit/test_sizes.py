"""Pictures of any size: call by call, padded to whole patches, of different sizes in one batch, compiled, exported."""

from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from checkpoints import random_model, small_config
from comvex.convit import ConViTWithLinearClassifier, GatedPositionalSelfAttention
from comvex.convit.positional import positional_factors, valid_mask
from oracle import dense_torch

FLOAT64 = {"rtol": 0, "atol": 1e-11}  # three layers of sums of at most 64 numbers near one


def model(**arguments: Any) -> ConViTWithLinearClassifier:
    return random_model(small_config(**arguments)).double()


def pictures(*sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.randn(3, height, width, dtype=torch.float64) for height, width in sizes]


def alone(network: ConViTWithLinearClassifier, batch: list[Tensor]) -> Tensor:
    return torch.cat([network(picture[None]) for picture in batch])


# Batches of pictures of different sizes

SIDES = st.integers(1, 6)


@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_each_picture_of_a_mixed_batch_gets_the_logits_that_it_has_alone(grids, use_gpsa, pre_norm):
    network = model(use_gpsa=use_gpsa, pre_norm=pre_norm)
    batch = pictures(*((8 * rows, 8 * columns) for rows, columns in grids))
    torch.testing.assert_close(network(batch), alone(network, batch), **FLOAT64)


def test_a_mixed_batch_in_float32_is_within_rounding_of_one_by_one():
    network = random_model()
    batch = [picture.float() for picture in pictures((32, 32), (8, 64), (48, 16), (8, 8))]
    # Three layers of float32 sums over 48 tokens, 6e-8 each, in another order.
    torch.testing.assert_close(network(batch), alone(network, batch), rtol=1e-5, atol=1e-6)


def test_gradients_of_a_mixed_batch_are_those_of_its_pictures():
    network = model().train()
    batch = pictures((32, 16), (16, 40), (24, 24))
    targets = torch.tensor([0, 3, 4])
    parameters = tuple(network.parameters())
    together = torch.autograd.grad(F.cross_entropy(network(batch), targets), parameters)
    apart = torch.autograd.grad(F.cross_entropy(alone(network, batch), targets), parameters)
    for actual, expected in zip(together, apart, strict=True):
        torch.testing.assert_close(actual, expected, **FLOAT64)


def test_a_mixed_batch_is_one_forward_pass():
    network = model()
    attention = F.scaled_dot_product_attention
    with mock.patch.object(F, "scaled_dot_product_attention", side_effect=attention) as calls:
        network(pictures((32, 32), (8, 48), (48, 8), (16, 16)))
    assert calls.call_count == len(network.blocks) == 3


def test_tokens_of_a_mixed_batch_are_those_alone_at_the_top_left_and_zero_elsewhere():
    network = model()
    batch = pictures((16, 32), (32, 8))
    tokens = network.forward_features(batch)  # a grid of 4 x 4
    assert tokens.shape == (2, 1 + 16, 16)
    for picture, own in zip(batch, tokens, strict=True):
        rows, columns = picture.shape[1] // 8, picture.shape[2] // 8
        expected = network.forward_features(picture[None])[0]
        torch.testing.assert_close(own[0], expected[0], **FLOAT64)
        grid = own[1:].unflatten(0, (4, 4))
        torch.testing.assert_close(grid[:rows, :columns].flatten(0, 1), expected[1:], **FLOAT64)
        assert float(grid.detach().square().sum() - grid[:rows, :columns].detach().square().sum()) == pytest.approx(0)


def test_intermediates_of_a_mixed_batch_are_those_alone_and_zero_elsewhere():
    network = model()
    batch = pictures((16, 32), (32, 8))
    for norm in (False, True):
        maps = network.forward_intermediates(batch, norm=norm, intermediates_only=True)
        assert [tuple(value.shape) for value in maps] == [(2, 16, 4, 4)] * 3
        for number, picture in enumerate(batch):
            own = network.forward_intermediates(picture[None], norm=norm, intermediates_only=True)
            for value, expected in zip(maps, own, strict=True):
                padded = F.pad(expected[0], (0, 4 - expected.shape[3], 0, 4 - expected.shape[2]))
                torch.testing.assert_close(value[number], padded, **FLOAT64)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
def test_masked_factors_are_the_factors_of_the_valid_grid(rows, columns, more_rows, more_columns):
    weight = torch.randn(3, 3, dtype=torch.float64)
    grid = (rows + more_rows, columns + more_columns)
    mask = valid_mask([(rows, columns), grid], grid, device=torch.device("cpu"))
    row_factor, column_factor = positional_factors(weight, grid, mask)
    own = positional_factors(weight, (rows, columns))
    for factor, expected, size in ((row_factor, own[0], rows), (column_factor, own[1], columns)):
        torch.testing.assert_close(factor[0, :, :size, :size], expected, rtol=1e-12, atol=1e-14)
        assert not factor[0, :, :, size:].any()
    for factor, expected in zip((row_factor, column_factor), positional_factors(weight, grid), strict=True):
        torch.testing.assert_close(factor[1], expected)


def test_masked_gpsa_is_the_dense_map_over_the_valid_keys():
    gpsa = GatedPositionalSelfAttention(8, heads=2).double()
    for tensor in gpsa.state_dict().values():
        tensor.normal_()
    grid, valid = (3, 4), [(2, 3), (3, 1)]
    x = torch.randn(2, 12, 8, dtype=torch.float64)
    mask = valid_mask(valid, grid, device=x.device)
    actual = gpsa(x, grid, mask)
    weights = gpsa.state_dict()
    for number, (rows, columns) in enumerate(valid):
        own = x[number, mask[number]][None]  # (1, rows * columns, dim), in row-major order
        expected = dense_torch.gpsa(own, weights, (rows, columns))
        torch.testing.assert_close(actual[number, mask[number]][None], expected, **FLOAT64)


def test_gradient_checkpointing_takes_mixed_batches():
    network = model().train()
    batch = pictures((32, 16), (16, 40))
    expected = torch.autograd.grad(network(batch).sum(), network.cls_token)
    network.set_grad_checkpointing()
    actual = torch.autograd.grad(network(batch).sum(), network.cls_token)
    assert torch.equal(actual[0], expected[0])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([], "The list of pictures is empty"),
        ([torch.zeros(3, 8, 8), torch.zeros(1, 8, 8)], r"Picture 1 of the list has shape \(1, 8, 8\)"),
        ([torch.zeros(3, 8, 8), 3], "Picture 1 of the list is a int: all must be tensors of one type"),
        (
            [torch.zeros(3, 8, 8), torch.zeros(3, 8, 8).half()],
            r"Picture 1 of the list is a torch\.float16: all must be",
        ),
        ([torch.zeros(1, 3, 8, 8)], r"Picture 0 of the list has shape \(1, 3, 8, 8\)"),
        ([torch.zeros(3, 8, 12)], "The pictures are 8 x 12 pixels: each side must be a multiple of the patch size 8"),
        ([torch.zeros(3, 8, 0)], "The pictures are 8 x 0 pixels: they are empty"),
    ],
)
def test_lists_that_do_not_fit_are_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        random_model()(batch)


def test_a_mean_over_patches_is_over_each_pictures_own():
    network = model(global_pool="avg")
    batch = pictures((8, 8), (16, 40), (32, 8))
    torch.testing.assert_close(network(batch), alone(network, batch), **FLOAT64)


# Padding to whole patches


@given(st.integers(1, 40), st.integers(1, 40))
def test_pad_to_patch_takes_every_size_as_zeros_on_the_right_and_bottom(height, width):
    network = model(pad_to_patch=True)
    picture = torch.randn(1, 3, height, width, dtype=torch.float64)
    padded = F.pad(picture, (0, -width % 8, 0, -height % 8))
    assert torch.equal(network(picture), model()(padded))


def test_pad_to_patch_in_a_mixed_batch():
    network = model(pad_to_patch=True)
    batch = pictures((9, 31), (40, 8), (1, 1), (24, 24))
    torch.testing.assert_close(network(batch), alone(network, batch), **FLOAT64)


# Training at sizes that change


def test_one_model_trains_at_sizes_that_change_from_step_to_step():
    network = random_model(small_config(pad_to_patch=True)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    inputs = [torch.randn(2, 3, 32, 32), torch.randn(2, 3, 16, 64), [torch.randn(3, 20, 33), torch.randn(3, 64, 9)]]
    labels, losses = torch.tensor([1, 3]), []
    for _ in range(15):
        for batch in inputs:
            loss = F.cross_entropy(network(batch), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


# Symbolic sizes take PyTorch long to reason about, and its code generator a minute more; both see the same graph. With
# its default layout the generator writes the sizes into the backward of the patches' convolution: a program for each.
@pytest.mark.parametrize(
    ("backend", "options"),
    [("aot_eager", None), pytest.param("inductor", {"layout_optimization": False}, marks=pytest.mark.slow)],
)
def test_one_compiled_program_trains_at_three_sizes_and_equals_eager(backend, options):
    with torch._dynamo.config.patch(error_on_recompile=True):
        compare_compiled_training(dynamic=True, fullgraph=True, backend=backend, options=options)


@pytest.mark.slow
def test_compiling_with_pytorchs_defaults_trains_at_three_sizes_and_equals_eager():
    compare_compiled_training()


def compare_compiled_training(**arguments: Any) -> None:
    """The gradients of a compiled model at three sizes are those of eager; ``arguments`` of ``torch.compile``."""
    network = random_model(small_config(num_local_layers=1)).train()
    parameters = tuple(network.parameters())
    torch.compiler.reset()
    compiled = torch.compile(network, **arguments)
    for height, width in ((16, 48), (32, 32), (64, 24)):  # the native one not first: its equal sides would be assumed
        batch = torch.randn(2, 3, height, width)
        actual = torch.autograd.grad(compiled(batch).square().sum(), parameters)
        expected = torch.autograd.grad(network(batch).square().sum(), parameters)
        for one, other in zip(actual, expected, strict=True):
            # float32 gradients summed over the batch and all tokens in another order
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


# One exported program for every size from two patches a side on.


@pytest.mark.parametrize("traced", [(2, 3, 32, 32), (3, 3, 48, 64)])
def test_one_exported_program_takes_every_batch_height_and_width_the_native_one_too(traced):
    network = random_model()
    batch, rows, columns = (torch.export.Dim(name) for name in ("batch", "rows", "columns"))
    shapes = ({0: batch, 2: 8 * rows, 3: 8 * columns},)
    program = torch.export.export(network, (torch.randn(traced),), dynamic_shapes=shapes).module()
    for shape in [(1, 3, 32, 32), (5, 3, 32, 32), (1, 3, 16, 80), (2, 3, 24, 16), (1, 3, 128, 16), traced]:
        picture = torch.randn(shape)
        torch.testing.assert_close(program(picture), network(picture), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("traced", [(2, 3, 32, 32), (3, 3, 37, 50)])
def test_one_exported_program_pads_every_height_and_width_to_whole_patches(traced):
    network = random_model(small_config(pad_to_patch=True))
    shapes = (dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO),)
    program = torch.export.export(network, (torch.randn(traced),), dynamic_shapes=shapes).module()
    for shape in [(1, 3, 32, 32), (5, 3, 33, 47), (1, 3, 9, 17), (2, 3, 64, 10), (1, 3, 100, 31), traced]:
        picture = torch.randn(shape)
        torch.testing.assert_close(program(picture), network(picture), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alone", [False, True], ids=["model", "convolution alone"])
def test_an_exported_program_refuses_a_side_of_one_patch_as_that_of_its_convolution_alone_does(alone):
    """torch.export asks whether the convolution's result is contiguous, which another rule tells at length one."""
    network = random_model()
    traced: torch.nn.Module = network.patch_embed.proj if alone else network
    rows, columns = (torch.export.Dim(name, min=1) for name in ("rows", "columns"))
    shapes = ({2: 8 * rows, 3: 8 * columns},)
    program = torch.export.export(traced, (torch.randn(1, 3, 32, 32),), dynamic_shapes=shapes).module()
    for height, width in ((8, 32), (32, 8)):
        with pytest.raises(AssertionError, match=r"Guard failed: .* != 1"):
            program(torch.randn(1, 3, height, width))
        assert network(torch.randn(1, 3, height, width)).shape == (1, 5)
