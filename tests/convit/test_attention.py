"""GPSA and plain self-attention: equal to the paper's formula, on any grid, and never quadratic in memory."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from comvex.convit import GatedPositionalSelfAttention, SelfAttention
from oracle import dense_torch
from oracle import gpsa as oracle

Grid = tuple[int, int]
NAMED_GRIDS = [(1, 1), (1, 7), (7, 1), (14, 14), (9, 16)]
FLOAT64 = 1e-10  # sums of a few hundred terms, each exact to 1e-16; scores of up to 3e4 lose 3e4 * 2e-16 = 6e-12


def random_gpsa(
    heads: int,
    head_dim: int,
    *,
    positional_scale: float = 0.5,
    gate_scale: float = 3.0,
    attention_dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> GatedPositionalSelfAttention:
    """All weights random; positional ones around the convolutional start, gates even over +-gate_scale."""
    gpsa = GatedPositionalSelfAttention(heads * head_dim, heads=heads, attention_dropout=attention_dropout).double()
    for name, tensor in gpsa.state_dict().items():
        if name.startswith("pos_proj"):
            tensor.add_(positional_scale * torch.randn_like(tensor))
        elif name == "gating_param":
            tensor.uniform_(-gate_scale, gate_scale)
        else:
            tensor.normal_().div_(math.sqrt(gpsa.dim))
    return gpsa.to(dtype)


def separable(module: nn.Module, x: Tensor, grid: Grid, cotangent: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients (of x and every parameter) of the module."""
    x = x.detach().requires_grad_()
    output = module(x, grid)
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(output, (x, *parameters), cotangent.to(output.dtype))
    return output.detach(), dict(zip(("x", *names), gradients, strict=True))


def dense(
    module: nn.Module, x: Tensor, grid: Grid, cotangent: Tensor, drop: nn.Module | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The same of the dense twin, in float64; gradients also of the positional bias."""
    x = x.detach().double().requires_grad_()
    weights = {name: tensor.detach().double().requires_grad_() for name, tensor in module.state_dict().items()}
    output = dense_torch.gpsa(x, weights, grid, drop=drop or nn.Identity())
    gradients = torch.autograd.grad(output, (x, *weights.values()), cotangent.double())
    return output.detach(), dict(zip(("x", *weights), gradients, strict=True))


def assert_same(actual: Tensor, expected: Tensor, tolerance: float, name: str = "output") -> None:
    """Largest difference, relative to the largest entry (or to 1 if all are smaller)."""
    error = (actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1)
    assert error <= tolerance, f"{name}: {error:.1e} > {tolerance:.1e}"


def assert_separable_equals_dense(module: nn.Module, grid: Grid, *, batch: int = 2, dropout_seed: int = 0) -> None:
    """Outputs and every gradient, with the same heads dropped where the module is in training."""
    x = torch.randn(batch, grid[0] * grid[1], module.dim, dtype=torch.float64)
    cotangent = torch.randn_like(x)
    torch.manual_seed(dropout_seed)
    output, gradients = separable(module, x, grid, cotangent)
    torch.manual_seed(dropout_seed)
    expected, expected_gradients = dense(
        module, x, grid, cotangent, drop=nn.Dropout2d(module.attention_dropout.p).train(module.training)
    )
    assert_same(output, expected, FLOAT64)
    assert gradients.keys() == expected_gradients.keys() - {"pos_proj.bias"}
    for name, gradient in gradients.items():
        assert_same(gradient, expected_gradients[name], FLOAT64, name)


def numpy_weights(module: nn.Module) -> dict[str, Any]:
    return {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}


# The references among themselves, and the module against the loops


@pytest.mark.parametrize(
    ("heads", "grid"), [(1, (1, 1)), (4, (1, 7)), (5, (7, 1)), (9, (3, 4)), (2, (14, 14)), (4, (9, 16))]
)
def test_gpsa_and_its_dense_twin_equal_the_oracle_in_loops(heads: int, grid: Grid) -> None:
    gpsa = random_gpsa(heads, 3)
    x = torch.randn(2, grid[0] * grid[1], gpsa.dim, dtype=torch.float64)
    expected = torch.from_numpy(oracle.gpsa(x.numpy(), numpy_weights(gpsa), grid))
    with torch.no_grad():
        assert_same(dense_torch.gpsa(x, gpsa.state_dict(), grid), expected, FLOAT64)
        assert_same(gpsa(x, grid), expected, FLOAT64)


def test_dropped_heads_equal_the_oracle_in_loops_under_the_same_mask() -> None:
    gpsa = random_gpsa(6, 2, attention_dropout=0.5).train()
    x = torch.randn(3, 12, gpsa.dim, dtype=torch.float64)
    torch.manual_seed(1)
    mask = nn.Dropout2d(0.5)(torch.ones(3, 6, 12, 12, dtype=torch.float64))[:, :, 0, 0]
    assert set(mask.flatten().tolist()) == {0.0, 2.0}
    expected = torch.from_numpy(oracle.gpsa(x.numpy(), numpy_weights(gpsa), (3, 4), mask=mask.numpy()))
    with torch.no_grad():
        twin = dense_torch.gpsa(x, gpsa.state_dict(), (3, 4), drop=lambda attention: attention * mask[..., None, None])
        assert_same(twin, expected, FLOAT64)
        torch.manual_seed(1)
        assert_same(gpsa(x, (3, 4)), expected, FLOAT64)


# The module against the dense twin


@given(
    seed=st.integers(0, 2**32),
    heads=st.integers(1, 16),
    head_dim=st.integers(1, 6),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    positional_scale=st.sampled_from([0.0, 1e-4, 0.1, 1.0, 10.0, 100.0]),
    gate_scale=st.sampled_from([0.0, 1.0, 10.0, 40.0]),
    attention_dropout=st.sampled_from([0.0, 0.0, 0.2, 0.7]),
)
def test_separable_path_equals_the_dense_one_with_every_gradient(
    seed: int,
    heads: int,
    head_dim: int,
    grid: Grid,
    positional_scale: float,
    gate_scale: float,
    attention_dropout: float,
) -> None:
    torch.manual_seed(seed)
    gpsa = random_gpsa(
        heads,
        head_dim,
        positional_scale=positional_scale,
        gate_scale=gate_scale,
        attention_dropout=attention_dropout,
    )
    assert_separable_equals_dense(gpsa.train(), grid, dropout_seed=seed)


@pytest.mark.parametrize("grid", NAMED_GRIDS)
@pytest.mark.parametrize("heads", [1, 3, 4, 9, 16])
def test_separable_path_equals_the_dense_one_on_named_grids(heads: int, grid: Grid) -> None:
    assert_separable_equals_dense(random_gpsa(heads, 4), grid)


@pytest.mark.parametrize("grid", [(14, 14), (9, 16)])
@pytest.mark.parametrize("positional_scale", [1e-3, 30.0])
@pytest.mark.parametrize("gate", [-40.0, -5.0, 5.0, 40.0])
def test_separable_path_equals_the_dense_one_at_extreme_weights(
    gate: float, positional_scale: float, grid: Grid
) -> None:
    gpsa = random_gpsa(4, 4, positional_scale=positional_scale, attention_dropout=0.4).train()
    nn.init.constant_(gpsa.gating_param, gate)
    assert_separable_equals_dense(gpsa, grid, dropout_seed=3)


def test_same_seed_drops_the_same_heads_as_dropout_on_the_dense_map() -> None:
    gpsa = random_gpsa(8, 2, attention_dropout=0.5).train()
    gpsa.proj.weight.data.copy_(torch.eye(16))
    gpsa.proj.bias.data.zero_()
    x = torch.randn(4, 15, 16, dtype=torch.float64)
    torch.manual_seed(5)
    dropped = gpsa(x, (3, 5)).unflatten(-1, (8, 2)).eq(0).all(-1).all(1)  # (B, heads)
    torch.manual_seed(5)
    expected = nn.Dropout2d(0.5)(torch.ones(4, 8, 15, 15, dtype=torch.float64)).eq(0).all(-1).all(-1)
    assert torch.equal(dropped, expected)
    assert 0 < dropped.sum() < dropped.numel()


def test_attention_dropout_does_nothing_in_evaluation() -> None:
    gpsa = random_gpsa(4, 4, attention_dropout=0.9).eval()
    assert_separable_equals_dense(gpsa, (3, 5))


def test_gradient_of_the_positional_bias_is_zero_so_that_it_may_be_a_buffer() -> None:
    gpsa = random_gpsa(9, 4)
    x = torch.randn(2, 20, gpsa.dim, dtype=torch.float64)
    _, gradients = dense(gpsa, x, (4, 5), torch.randn_like(x))
    assert gradients["pos_proj.bias"].abs().max() < 1e-13
    assert gradients["pos_proj.weight"].abs().max() > 1e-3


# Lower precisions. Errors are of the whole tensor (norm of the difference over norm), in units of the precision's eps.


def relative_error(actual: Tensor, expected: Tensor) -> float:
    eps = torch.finfo(actual.dtype).eps
    return float((actual.double() - expected).norm() / expected.norm()) / eps


@pytest.mark.parametrize(("heads", "head_dim", "grid"), [(4, 8, (14, 14)), (9, 8, (9, 16)), (4, 48, (14, 14))])
def test_float32_is_exact_to_its_rounding(heads: int, head_dim: int, grid: Grid) -> None:
    gpsa = random_gpsa(heads, head_dim, dtype=torch.float32)
    x = torch.randn(2, grid[0] * grid[1], gpsa.dim)
    cotangent = torch.randn_like(x)
    output, gradients = separable(gpsa, x, grid, cotangent)
    expected, expected_gradients = dense(gpsa, x, grid, cotangent)
    # Rounding walks at random through sums of about 200 terms, sqrt(200) * 0.29 eps = 4 eps each, a few in a row.
    assert relative_error(output, expected) < 12
    for name, gradient in gradients.items():
        # The gate's gradient is one number a head, a sum over all tokens that mostly cancels. Scores of a few hundred
        # are rounded by as many eps / 2, which a head looking far away hands on to the positional gradient.
        bound = {"gating_param": 20, "pos_proj.weight": 100}.get(name, 12)
        assert relative_error(gradient, expected_gradients[name]) < bound, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "head_dim", "grid"), [(4, 8, (14, 14)), (9, 8, (9, 16)), (4, 48, (14, 14))])
def test_half_precision_is_exact_to_its_rounding(heads: int, head_dim: int, grid: Grid, dtype: torch.dtype) -> None:
    gpsa = random_gpsa(heads, head_dim, dtype=dtype)
    x = torch.randn(2, grid[0] * grid[1], gpsa.dim).to(dtype)
    cotangent = torch.randn_like(x)
    output, gradients = separable(gpsa, x, grid, cotangent)
    expected, expected_gradients = dense(gpsa, x, grid, cotangent)
    # Sums run in float32 and only stored tensors are rounded, by 0.29 eps on average (a uniform error in +-eps / 2):
    # value, row and column factor, two mixed pictures, blend, output: 7 in a row give 0.29 * sqrt(7) = 0.76.
    assert relative_error(output, expected) < 0.8
    for name, gradient in gradients.items():
        # Backward doubles the chain: 0.29 * sqrt(15) = 1.1; gradients of gates and scores are sums that mostly cancel.
        bound = {"gating_param": 5, "pos_proj.weight": 5}.get(name, 1.3)
        assert relative_error(gradient, expected_gradients[name]) < bound, name


def test_autocast_to_bfloat16_is_exact_to_its_rounding() -> None:
    gpsa = random_gpsa(4, 8, dtype=torch.float32)
    x = torch.randn(2, 14 * 14, gpsa.dim)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        output = gpsa(x, (14, 14))
    expected, _ = dense(gpsa, x, (14, 14), torch.ones_like(x))
    assert output.dtype == torch.bfloat16
    assert relative_error(output, expected) < 1.1  # as above, and x and four weights are rounded too: 0.29 * sqrt(12)


# The convolutional start, and the two ends of the gate


def test_start_is_the_papers() -> None:
    gpsa = GatedPositionalSelfAttention(36, heads=9, locality_strength=2.0)
    assert torch.equal(gpsa.v.weight, torch.eye(36))
    assert torch.equal(gpsa.gating_param, torch.ones(9))
    expected = [(4.0 * (i - 1), 4.0 * (j - 1), -2.0) for i in range(3) for j in range(3)]
    assert gpsa.pos_proj.weight.tolist() == [list(row) for row in expected]
    assert torch.equal(gpsa.proj.bias, torch.zeros(36))
    for linear in (gpsa.qk, gpsa.proj):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert gpsa.qk.bias is None
    assert gpsa.v.bias is None


def test_reset_gives_the_start_again() -> None:
    gpsa = random_gpsa(4, 4)
    gpsa.reset_parameters()
    assert torch.equal(gpsa.v.weight, torch.eye(16).double())
    assert torch.equal(gpsa.gating_param, torch.ones(4).double())
    start = GatedPositionalSelfAttention(16, heads=4).double()
    assert torch.equal(gpsa.pos_proj.weight, start.pos_proj.weight)
    assert torch.equal(gpsa.pos_proj.bias, torch.zeros(4).double())
    assert torch.equal(gpsa.proj.bias, torch.zeros(16).double())
    assert gpsa.qk.weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_with_large_strength_and_gates_at_one_gpsa_is_a_convolution() -> None:
    heads, head_dim, rows, columns = 9, 4, 5, 7
    gpsa = GatedPositionalSelfAttention(36, heads=heads, locality_strength=1e3).double()
    nn.init.normal_(gpsa.v.weight)
    nn.init.normal_(gpsa.proj.weight)
    nn.init.normal_(gpsa.proj.bias)
    nn.init.constant_(gpsa.gating_param, 100.0)
    x = torch.randn(2, 36, rows, columns, dtype=torch.float64)

    # Head i * 3 + j is the tap at column i, row j of the kernel: its share of proj times its share of v.
    taps = [
        gpsa.proj.weight[:, own] @ gpsa.v.weight[own]
        for own in (slice(head * head_dim, (head + 1) * head_dim) for head in range(heads))
    ]
    kernel = torch.stack(taps, dim=-1).unflatten(-1, (3, 3)).transpose(-2, -1)  # (out, in, row, column)
    expected = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, gpsa.proj.bias)
    output = gpsa(x.flatten(2).transpose(1, 2), (rows, columns))
    assert_same(output.transpose(1, 2).unflatten(-1, (rows, columns)), expected, FLOAT64)


def test_with_gates_at_zero_gpsa_is_plain_attention() -> None:
    gpsa = random_gpsa(4, 4)
    nn.init.constant_(gpsa.gating_param, -100.0)
    plain = SelfAttention(16, heads=4).double()
    plain.qkv.weight.data.copy_(torch.cat([gpsa.qk.weight, gpsa.v.weight]))
    plain.proj.load_state_dict(gpsa.proj.state_dict())
    x = torch.randn(2, 15, 16, dtype=torch.float64)
    assert_same(plain(x), gpsa(x, (3, 5)), FLOAT64)


# Plain self-attention


@pytest.mark.parametrize("attention_dropout", [0.0, 0.5])
@pytest.mark.parametrize("heads", [1, 3, 16])
def test_plain_attention_equals_the_oracle_with_closed_gates(heads: int, attention_dropout: float) -> None:
    dim = 2 * heads
    plain = SelfAttention(dim, heads=heads, attention_dropout=attention_dropout).double()
    for tensor in plain.state_dict().values():
        tensor.normal_()
    x = torch.randn(2, 11, dim, dtype=torch.float64)
    weights = {
        "qk.weight": plain.qkv.weight[: 2 * dim].detach().numpy(),
        "v.weight": plain.qkv.weight[2 * dim :].detach().numpy(),
        "pos_proj.weight": torch.zeros(heads, 3).double().numpy(),
        "pos_proj.bias": torch.zeros(heads).double().numpy(),
        "gating_param": torch.full((heads,), -1000.0).double().numpy(),
        "proj.weight": plain.proj.weight.detach().numpy(),
        "proj.bias": plain.proj.bias.detach().numpy(),
    }
    torch.manual_seed(7)
    mask = nn.Dropout2d(attention_dropout)(torch.ones(2, heads, 11, 11, dtype=torch.float64))[:, :, 0, 0]
    expected = torch.from_numpy(oracle.gpsa(x.numpy(), weights, (1, 11), mask=mask.numpy()))
    torch.manual_seed(7)
    assert_same(plain(x), expected, FLOAT64)


# Memory


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation gives, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


@pytest.mark.parametrize("grid", [(64, 64), (16, 16)])
def test_nothing_of_size_n_by_n_is_made_in_forward_or_backward(grid: Grid) -> None:
    gpsa = random_gpsa(4, 8, dtype=torch.float32)
    tokens = grid[0] * grid[1]
    x = torch.randn(1, tokens, gpsa.dim, requires_grad=True)
    cotangent = torch.ones_like(x)
    with LargestTensor() as largest:
        gpsa(x, grid).backward(cotangent)
    # Queries and keys together are 2 x the activations, and nothing is larger. At 64 x 64 one map of N x N would be
    # 128 x, and 4 heads of it 512 x.
    assert largest.numel == 2 * x.numel()


def test_memory_meter_sees_the_maps_of_the_dense_twin() -> None:
    gpsa = random_gpsa(4, 8, dtype=torch.float32)
    x = torch.randn(1, 16 * 16, gpsa.dim, requires_grad=True)
    weights = {name: tensor.requires_grad_() for name, tensor in gpsa.state_dict(keep_vars=True).items()}
    with LargestTensor() as forward:
        output = dense_torch.gpsa(x, weights, (16, 16))
    with LargestTensor() as backward:
        output.sum().backward()
    for largest in (forward, backward):
        assert largest.numel >= 4 * (16 * 16) ** 2 > 2 * x.numel()


# What a forward leaves behind: nothing


def test_gpsa_trains_after_a_run_in_inference_mode() -> None:
    gpsa = random_gpsa(4, 4)
    x = torch.randn(2, 15, 16, dtype=torch.float64)
    with torch.inference_mode():
        before = gpsa(x, (3, 5))
    output = gpsa(x, (3, 5))
    output.sum().backward()
    assert torch.equal(output, before)
    assert all(parameter.grad is not None for parameter in gpsa.parameters())


@pytest.mark.parametrize("training", [False, True])
def test_forward_never_changes_the_module(
    unchanged: Callable[[nn.Module], AbstractContextManager[None]], training: bool
) -> None:
    gpsa = random_gpsa(4, 4, attention_dropout=0.3).train(training)
    plain = SelfAttention(16, heads=4, attention_dropout=0.3).double().train(training)
    with unchanged(gpsa), unchanged(plain):
        for grid in [(3, 5), (4, 4), (1, 1)]:
            x = torch.randn(2, grid[0] * grid[1], 16, dtype=torch.float64)
            gpsa(x, grid)
            plain(x)


# Grids, heads and rates


def test_grid_left_out_is_a_square() -> None:
    gpsa = random_gpsa(4, 4)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    assert torch.equal(gpsa(x), gpsa(x, (3, 3)))


def test_grid_is_rows_then_columns() -> None:
    gpsa = random_gpsa(4, 4)
    x = torch.randn(1, 12, 16, dtype=torch.float64)
    assert not torch.allclose(gpsa(x, (2, 6)), gpsa(x, (6, 2)))


@pytest.mark.parametrize(
    ("tokens", "grid", "message"),
    [
        (12, None, r"12 tokens are no square: give grid=\(rows, columns\)"),
        (12, (3, 5), "grid is 3 x 5: .* as many patches as there are tokens, 12"),
        (12, (12, 12), "grid is 12 x 12: .* 12"),
        (12, (0, 0), "grid is 0 x 0: .* 12"),
        pytest.param(
            12,
            (-3, -4),
            "grid is -3 x -4",
        ),
        pytest.param(
            12,
            (12,),
            r"grid is \(12,\)",
        ),
    ],
)
def test_grid_that_does_not_fit_is_named(tokens: int, grid: Any, message: str) -> None:
    gpsa = random_gpsa(2, 2)
    with pytest.raises(ValueError, match=message):
        gpsa(torch.randn(1, tokens, 4, dtype=torch.float64), grid)


@pytest.mark.parametrize("attention", [GatedPositionalSelfAttention, SelfAttention])
@pytest.mark.parametrize(
    ("arguments", "heads"),
    [
        ({"heads": 4}, 4),
        ({"head_dim": 6}, 4),
        ({"heads": 4, "head_dim": 6}, 4),
        ({"heads": 1}, 1),
        ({"head_dim": 1}, 24),
    ],
)
def test_heads_follow_from_either_argument(attention: Any, arguments: dict[str, int], heads: int) -> None:
    module = attention(24, **arguments)
    assert (module.heads, module.head_dim) == (heads, 24 // heads)
    assert module(torch.randn(2, 9, 24)).shape == (2, 9, 24)


@pytest.mark.parametrize("attention", [GatedPositionalSelfAttention, SelfAttention])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "heads and head_dim are both None.*dim = 24"),
        ({"heads": 5}, "heads is 5: it must divide dim = 24"),
        ({"head_dim": 7}, "head_dim is 7: it must divide dim = 24"),
        ({"heads": 4, "head_dim": 4}, "heads = 4 and head_dim = 4 disagree.*dim = 24"),
        ({"heads": 0}, "heads is 0: .* at least 1"),
        ({"heads": -4}, "heads is -4: .* at least 1"),
        ({"head_dim": 4.0}, r"head_dim is 4\.0: it must be a whole number"),
        ({"heads": True}, "heads is True: it must be a whole number"),
        ({"heads": 4, "attention_dropout": 1.0}, r"attention_dropout is 1\.0: it must lie in \[0, 1\)"),
        ({"heads": 4, "attention_dropout": -0.1}, r"attention_dropout is -0\.1: it must lie in \[0, 1\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(attention: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(24, **arguments)
