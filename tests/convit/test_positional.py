"""Positional attention: the two small factors are the dense softmax, and the start is a convolution's kernel."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from comvex.convit.positional import (
    PositionalProjection,
    axis_factor,
    local_positional_weight,
    mix_grid,
    positional_factors,
)
from oracle import dense_torch
from oracle import gpsa as oracle

# Sums of a few hundred products of numbers near one, each exact to 1e-16; scores up to 5e4 add 5e4 * 2e-16 = 1e-11.
FLOAT64 = {"rtol": 0, "atol": 1e-10}

any_weight = st.floats(-1e3, 1e3, allow_subnormal=False)
heads_of_weights = st.lists(st.tuples(any_weight, any_weight, any_weight), min_size=1, max_size=3)
grids = st.tuples(st.integers(1, 6), st.integers(1, 6))


def kronecker(row_factor: Tensor, column_factor: Tensor) -> Tensor:
    """The dense map (heads, N, N) whose factors these are."""
    return torch.stack([torch.kron(row, column) for row, column in zip(row_factor, column_factor, strict=True)])


@given(weights=heads_of_weights, grid=grids, bias=st.floats(-10, 10))
def test_product_of_the_factors_equals_the_dense_softmax(
    weights: list[tuple[float, float, float]], grid: tuple[int, int], bias: float
) -> None:
    weight = torch.tensor(weights, dtype=torch.float64)
    expected = oracle.positional_map(weight.numpy(), np.full(len(weights), bias), grid)
    torch.testing.assert_close(kronecker(*positional_factors(weight, grid)), torch.from_numpy(expected), **FLOAT64)


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (7, 1), (14, 14), (9, 16)])
@pytest.mark.parametrize("heads", [4, 9])
def test_product_of_the_factors_equals_the_dense_softmax_at_the_start(heads: int, grid: tuple[int, int]) -> None:
    weight = local_positional_weight(heads, 1.0).double()
    expected = oracle.positional_map(weight.numpy(), np.zeros(heads), grid)
    torch.testing.assert_close(kronecker(*positional_factors(weight, grid)), torch.from_numpy(expected), **FLOAT64)


@given(weights=heads_of_weights, grid=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_rows_of_the_factors_sum_to_one_for_any_weights(
    weights: list[tuple[float, float, float]], grid: tuple[int, int]
) -> None:
    for factor, length in zip(positional_factors(torch.tensor(weights).double(), grid), grid, strict=True):
        assert factor.shape == (len(weights), length, length)
        torch.testing.assert_close(factor.sum(-1), torch.ones(len(weights), length).double(), **FLOAT64)


@given(grid=grids, heads=st.integers(1, 4), seed=st.integers(0, 99))
def test_mixing_by_the_factors_equals_the_dense_product(grid: tuple[int, int], heads: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = grid
    row_factor = torch.rand(heads, rows, rows, dtype=torch.float64, generator=generator)
    column_factor = torch.rand(heads, columns, columns, dtype=torch.float64, generator=generator)
    value = torch.randn(2, heads, rows * columns, 5, dtype=torch.float64, generator=generator)
    expected = kronecker(row_factor, column_factor) @ value
    torch.testing.assert_close(mix_grid(value, row_factor, column_factor), expected, **FLOAT64)


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e4])
def test_gradients_are_finite_for_vanishing_and_huge_weights(scale: float) -> None:
    weight = (scale * torch.randn(4, 3)).requires_grad_()
    row_factor, column_factor = positional_factors(weight, (14, 9))
    (row_factor.square().sum() + column_factor.square().sum()).backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_weights_in_bfloat16_give_factors_in_float32() -> None:
    # 39^2 = 1521 is no bfloat16 number (spacing 8 there): squared in bfloat16, the far offsets would be off.
    weight = torch.tensor([[0.5, -0.25, 0.0625]], dtype=torch.bfloat16)
    exact = positional_factors(weight.double(), (40, 30))
    for factor, expected in zip(positional_factors(weight, (40, 30)), exact, strict=True):
        assert factor.dtype == torch.float32
        # Scores reach 0.0625 * 39^2 + 0.25 * 39 = 105, exact to 105 * 6e-8 = 6e-6 in float32; so are probabilities.
        torch.testing.assert_close(factor.double(), expected, rtol=1e-5, atol=1e-30)


def test_no_entry_of_a_factor_is_subnormal() -> None:
    # The second head's largest score is 100, not near 0: what is negligible is so beside a query's largest.
    linear, quadratic = torch.tensor([[2.0, 20.0], [-1.0, -1.0]])[:, :, None, None]
    factor = axis_factor(linear, quadratic, 40)
    assert factor[factor > 0].min() > torch.finfo(torch.float32).tiny
    assert (factor == 0).any()


@pytest.mark.parametrize("heads", [1, 4, 9, 16])
def test_head_i_k_plus_j_looks_at_its_offset(heads: int) -> None:
    k = math.isqrt(heads)
    c = (k - 1) / 2
    grid = (21, 21)
    dense = dense_torch.positional_map(
        local_positional_weight(heads, 1.0).double(), torch.zeros(heads).double(), grid
    )  # (heads, N, N)
    centre = 10 * 21 + 10
    mean = dense[:, centre] @ dense_torch.offsets(grid)[centre, :, :2]  # (heads, 2): the mean (dx, dy) looked at
    expected = [(i - c, j - c) for i in range(k) for j in range(k)]
    # A sampled Gaussian is symmetric around any multiple of 1/2: only the border, 8 patches away, can move its mean.
    torch.testing.assert_close(mean, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("strength", [0.25, 0.5])
def test_precision_of_a_kernel_is_twice_the_locality_strength(strength: float) -> None:
    grid = (31, 31)
    dense = dense_torch.positional_map(
        local_positional_weight(9, strength).double(), torch.zeros(9).double(), grid
    )  # (9, N, N)
    centre = 15 * 31 + 15
    offset = dense_torch.offsets(grid)[centre, :, :2]
    variance = dense[:, centre] @ offset.square() - (dense[:, centre] @ offset).square()
    # Sampling a Gaussian of variance v at whole numbers changes its variance by about exp(-2 pi^2 v) <= 3e-9.
    torch.testing.assert_close(1 / variance, torch.full((9, 2), 2 * strength).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("heads", [1, 9, 25])
def test_with_large_strength_and_odd_k_the_positional_map_is_exactly_a_shift(heads: int) -> None:
    k = math.isqrt(heads)
    c = k // 2
    rows, columns = 5, 7
    factors = positional_factors(local_positional_weight(heads, 1e3), (rows, columns))
    dense = kronecker(*factors)
    assert torch.equal(dense, F.one_hot(dense.argmax(-1), rows * columns).float())

    picture = torch.randn(1, 1, rows, columns)
    looked_at = mix_grid(picture.flatten(2)[..., None].expand(1, heads, -1, 1), *factors).reshape(heads, rows, columns)
    # Beyond the border a head sees the nearest patch: the picture continued by its edge.
    padded = F.pad(picture, (c, c, c, c), mode="replicate")[0, 0]
    for i in range(k):
        for j in range(k):
            assert torch.equal(looked_at[i * k + j], padded[j : j + rows, i : i + columns])


def test_with_large_strength_and_even_k_a_head_averages_the_four_patches_around_it() -> None:
    factors = positional_factors(local_positional_weight(4, 1e3), (6, 6))
    dense = kronecker(*factors).reshape(4, 6, 6, 6, 6)
    for head, (left, top) in enumerate([(1, 1), (1, 2), (2, 1), (2, 2)]):  # dx = -1/2 before +1/2, then dy
        expected = torch.zeros(6, 6)
        expected[top : top + 2, left : left + 2] = 0.25
        assert torch.equal(dense[head, 2, 2], expected)


@pytest.mark.parametrize("heads", [2, 3, 5, 8, 12, 15])
def test_heads_beyond_the_square_start_near_uniform(heads: int) -> None:
    local = math.isqrt(heads) ** 2
    projection = PositionalProjection(heads, locality_strength=10.0)
    assert torch.equal(projection.weight[:local], local_positional_weight(heads, 10.0))
    rest = projection.weight[local:].detach()
    assert rest.abs().max() < 0.1  # five standard deviations of 0.02
    assert (rest != 0).all()
    dense = kronecker(*positional_factors(rest, (3, 3)))
    torch.testing.assert_close(dense, torch.full_like(dense, 1 / 9), rtol=0.6, atol=0)


def test_positional_bias_is_kept_but_never_trained() -> None:
    projection = PositionalProjection(4, locality_strength=1.0)
    assert [name for name, _ in projection.named_parameters()] == ["weight"]
    assert set(projection.state_dict()) == {"weight", "bias"}
    before = projection((3, 4))
    projection.bias.fill_(7.0)
    for factor, expected in zip(projection((3, 4)), before, strict=True):
        assert torch.equal(factor, expected)


def test_reset_gives_the_start_again() -> None:
    projection = PositionalProjection(9, locality_strength=0.5)
    with torch.no_grad():
        projection.weight.normal_()
        projection.bias.normal_()
    projection.reset_parameters()
    assert torch.equal(projection.weight, local_positional_weight(9, 0.5))
    assert torch.equal(projection.bias, torch.zeros(9))
