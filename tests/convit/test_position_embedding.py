"""The position embedding at another grid: timm's bicubic resampling, and exactly itself at its own grid."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed

from comvex.convit.position_embedding import cubic_matrix, resample_position_embedding

Grid = tuple[int, int]


# Square and not, larger and smaller, and both at once.
CASES = [
    ((14, 14), (24, 24)),
    ((14, 14), (7, 7)),
    ((14, 14), (5, 23)),
    ((14, 14), (15, 14)),
    ((16, 8), (8, 16)),
    ((16, 8), (32, 24)),
    ((9, 16), (3, 5)),
    ((7, 5), (1, 1)),
    ((1, 1), (4, 6)),
    ((2, 3), (64, 50)),
    ((40, 30), (3, 29)),
]


@pytest.mark.parametrize(("native", "grid"), CASES)
def test_resampling_equals_timms(native: Grid, grid: Grid) -> None:
    embedding = torch.randn(1, native[0] * native[1], 12)
    expected = resample_abs_pos_embed(embedding, list(grid), list(native), num_prefix_tokens=0)
    error = (resample_position_embedding(embedding, native, grid) - expected).norm() / expected.norm()
    # In float32 a place among 14 patches is exact to 14 * 6e-8 = 8e-7; both sides are, in ways of their own.
    assert error < 1e-6


@given(
    native=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    grid=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 99),
)
def test_resampling_is_antialiased_bicubic_interpolation(native: Grid, grid: Grid, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(1, native[0] * native[1], 3, dtype=torch.float64, generator=generator)
    # Channels last: torch 2.14 interpolates a contiguous picture that is one pixel wide wrongly.
    picture = embedding.reshape(1, *native, 3).permute(0, 3, 1, 2)
    expected = F.interpolate(picture, size=grid, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(resample_position_embedding(embedding, native, grid), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grid", [(1, 1), (14, 14), (9, 16), (37, 3)])
def test_at_the_native_grid_it_is_exactly_itself(grid: Grid, dtype: torch.dtype) -> None:
    embedding = torch.randn(1, grid[0] * grid[1], 8).to(dtype)
    resampled = resample_position_embedding(embedding, grid, grid)
    assert resampled.dtype == dtype
    assert resampled is embedding  # multiplying by the identity twice is what a batch of one would feel
    assert torch.equal(multiplied(embedding, grid), embedding)
    assert torch.equal(cubic_matrix(grid[0], grid[0], dtype=torch.float64), torch.eye(grid[0]).double())


def multiplied(embedding: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The embedding at its own grid by a program for all sizes, which has no branch for that one."""
    with mock.patch("comvex.convit.position_embedding.is_native", return_value=False):
        return resample_position_embedding(embedding, grid, grid)


def test_a_program_leaves_the_embedding_alone_only_where_it_is_for_one_size() -> None:
    class Model(torch.nn.Module):
        def forward(self, pictures: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
            grid = pictures.shape[2], pictures.shape[3]
            return 2 * resample_position_embedding(embedding, (4, 6), grid)

    inputs = torch.zeros(1, 1, 4, 6), torch.randn(1, 24, 3)
    open_sizes = ({2: torch.export.Dim("rows", min=2), 3: torch.export.Dim("columns", min=2)}, None)
    for shapes, num_products in ((None, 0), (open_sizes, 2)):
        program = torch.export.export(Model(), inputs, dynamic_shapes=shapes)
        assert sum("matmul" in str(node.target) for node in program.graph.nodes) == num_products
        assert torch.equal(program.module()(*inputs), 2 * inputs[1])


@given(size=st.integers(1, 50), new_size=st.integers(1, 50))
def test_resampling_keeps_a_constant(size: int, new_size: int) -> None:
    matrix = cubic_matrix(size, new_size, dtype=torch.float64)
    assert matrix.shape == (new_size, size)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(new_size).double(), rtol=0, atol=1e-14)


def test_bfloat16_embedding_is_resampled_in_float32() -> None:
    embedding = torch.randn(1, 14 * 14, 8).bfloat16()
    exact = resample_position_embedding(embedding.double(), (14, 14), (20, 9))
    resampled = resample_position_embedding(embedding, (14, 14), (20, 9))
    # Only the result is rounded, by half a spacing: 2^-8 of the value. Rounding the weights too would triple that.
    torch.testing.assert_close(resampled.double(), exact, rtol=2**-8, atol=5e-6)


def test_autocast_leaves_resampling_in_float32() -> None:
    embedding = torch.randn(1, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = resample_position_embedding(embedding, (3, 3), (5, 4))
        assert (embedding @ embedding.mT).dtype == torch.bfloat16  # so that autocast does something here
    assert torch.equal(found, resample_position_embedding(embedding, (3, 3), (5, 4)))


def test_resampling_is_differentiable() -> None:
    embedding = torch.randn(1, 12, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda e: resample_position_embedding(e, (3, 4), (5, 2)), (embedding,))
