"""The learned position embedding at any grid: cubic resampling as two small matrices, one for rows, one for columns."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def cubic_matrix(size: int, new_size: int, *, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """The (new_size, size) matrix of antialiased cubic resampling (Keys 1981, a = -0.5) along one axis.

    At ``new_size == size`` it is exactly the identity, so that a program for all sizes needs no branch.
    """
    scale = size / new_size
    stretch: Any = torch.sym_max(scale, 1.0)
    centre = (torch.arange(new_size, device=device, dtype=dtype) + 0.5) * scale
    distance = (torch.arange(size, device=device, dtype=dtype) + 0.5 - centre[:, None]).abs() / stretch
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weight = torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
    return weight / weight.sum(dim=-1, keepdim=True)


def resample_position_embedding(embedding: Tensor, native: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """A position embedding (1, H * W, dim) of the grid ``native`` at another grid (rows, columns).

    Equal to bicubic interpolation with antialiasing, in at least float32; returns (1, rows * columns, dim) in the dtype
    of the embedding, at the native grid the embedding itself.
    """
    if is_native(native, grid):
        return embedding
    dtype = torch.promote_types(embedding.dtype, torch.float32)
    rows = cubic_matrix(native[0], grid[0], dtype=dtype, device=embedding.device)
    columns = cubic_matrix(native[1], grid[1], dtype=dtype, device=embedding.device)
    picture = embedding.to(dtype).unflatten(1, native)  # (1, H, W, dim)
    with without_autocast(embedding.device):
        picture = columns @ picture  # (1, H, columns, dim)
        picture = rows @ picture.flatten(2)  # (1, rows, columns * dim)
    return picture.reshape(1, grid[0] * grid[1], -1).to(embedding.dtype)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Where products keep their dtype: autocast would round both factors. Nothing where it is off, nor in a program."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):  # "meta" is asked the first alone
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def is_native(native: tuple[int, int], grid: tuple[int, int]) -> bool:
    """Whether a grid is known to be the native one; where sizes are open it is not, so that a program is for all."""
    if not torch.compiler.is_compiling():
        return all(isinstance(length, int) for length in grid) and tuple(grid) == native  # torch.jit's are tensors
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # which imports the compiler

    return all(statically_known_true(length == own) for length, own in zip(grid, native, strict=True))


def position_embedding_of_each(
    embedding: Tensor, native: tuple[int, int], valid: Sequence[tuple[int, int]], grid: tuple[int, int]
) -> Tensor:
    """For each picture the embedding at its own (rows, columns), at the top left of ``grid``, zero elsewhere.

    Returns (B, rows * columns, dim) for the rows and columns of ``grid``, as each picture would have it alone.
    """
    placed: dict[tuple[int, int], Tensor] = {}
    for rows, columns in set(valid):
        own = resample_position_embedding(embedding, native, (rows, columns)).unflatten(1, (rows, columns))
        placed[rows, columns] = F.pad(own, (0, 0, 0, grid[1] - columns, 0, grid[0] - rows)).flatten(1, 2)
    return torch.cat([placed[size] for size in valid])
