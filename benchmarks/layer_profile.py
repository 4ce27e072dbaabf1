"""Where each millisecond of a GPSA layer and of a plain layer goes, in eager float32 inference, by torch.profiler.

python benchmarks/layer_profile.py
python benchmarks/layer_profile.py --preset ConViT_S --size 448:8

Both layers are the model's own and get the same tokens. The parts are the times of PyTorch's operations, with what is
between them, the medians of calls of one layer and the other in turn: they say where a layer's time goes. What compares
the layers are their whole times, forward and backward, which are measured apart, without the profiler and in paired
rounds, with those of the positional factors for their share in a layer.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import recording
import torch
from speed import parse_size
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.hooks import RemovableHandle

from comvex.bench.figures import Spread
from comvex.bench.models import build
from comvex.bench.plan import FEWEST_ROUNDS, preset_configs
from comvex.bench.run import shuffled, time_in_turn
from comvex.convit.attention import GatedPositionalSelfAttention
from comvex.convit.blend import Blend
from comvex.convit.config import check_integer
from comvex.convit.layer import ConViTLayer

PART_OF_MODULE = {
    "norm1": "norms",
    "norm2": "norms",
    "attn.qk": "projections",
    "attn.v": "projections",
    "attn.qkv": "projections",
    "attn.proj": "projections",
    "attn.pos_proj": "positional factors",
    "mlp": "MLP",
}
PART_OF_OPERATION = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "aten::bmm": "mixing: products",
    "aten::addcmul": "mixing: blend with content",
    "aten::sigmoid": "positional factors",
    "aten::mul": "positional factors",
    "aten::rsub": "positional factors",
    "aten::sub": "positional factors",
    "aten::add": "residual sums",
}
"""Where an operation belongs that is in none of the modules above; the gates ride on the positional factors."""
COPIES = ("aten::copy_", "aten::clone", "aten::contiguous", "aten::reshape")
PARTS = (
    "projections", "attention", "mixing: products", "mixing: copies", "mixing: blend with content",
    "positional factors", "copies of heads", "MLP", "norms", "residual sums", "other operations", "between operations",
)  # fmt: skip
CALL, BLEND, WARM_UP = "call", "blend", 3


@dataclass(frozen=True)
class Example:
    """A layer with tokens (B, N, dim) of a picture's grid."""

    layer: ConViTLayer
    tokens: Tensor
    grid: tuple[int, int]

    def forward(self) -> Tensor:
        return self.layer(self.tokens, self.grid)

    def infer(self) -> None:
        with torch.inference_mode():
            self.forward()

    def learn(self) -> None:
        """Forward and backward, to the parameters and the tokens, as in the middle of a model."""
        self.layer.zero_grad()
        tokens = self.tokens.detach().requires_grad_()
        self.layer(tokens, self.grid).sum().backward()

    def factors(self) -> None:
        """All that GPSA computes of positions and gates alone, as in its forward."""
        attention = self.layer.attn
        assert isinstance(attention, GatedPositionalSelfAttention)
        with torch.inference_mode():
            gate = attention.gating_param.sigmoid()[:, None, None]
            row_factor, column_factor = attention.pos_proj(self.grid)
            _ = (1 - gate).to(self.tokens), (gate * row_factor).to(self.tokens), column_factor.to(self.tokens)


def examples(preset: str, *, image_size: int, batch_size: int) -> dict[str, Example]:
    """The first layer and the last of a model, on the same random tokens."""
    [config] = preset_configs([preset], [image_size])[preset]
    model = build("convit", config).eval()
    tokens = torch.randn(batch_size, config.grid[0] * config.grid[1], config.dim)
    blocks: Any = model.blocks
    return {name: Example(blocks[index], tokens, config.grid) for name, index in (("GPSA", 0), ("plain", -1))}


def name_modules(layer: nn.Module) -> list[RemovableHandle]:
    """Let the profiler see in which module an operation is; returns the hooks, to be removed."""
    hooks = []
    for name, module in layer.named_modules():
        if name in PART_OF_MODULE:
            region = record_function(name)

            def enter(*_: object, region: record_function = region) -> None:
                region.__enter__()

            def leave(*_: object, region: record_function = region) -> None:
                region.__exit__(None, None, None)

            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    return hooks


def parts(examples: dict[str, Example], *, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each layer's forward in each of ``PARTS``, medians of some calls, one of each layer in turn."""
    hooks = [hook for example in examples.values() for hook in name_modules(example.layer)]
    calls: dict[str, list[Counter[str]]] = {name: [] for name in examples}
    try:
        for _ in range(WARM_UP):
            for example in examples.values():
                example.infer()
        for number in range(repeats):
            for name in shuffled(list(examples), number):
                calls[name].append(parts_of_call(examples[name]))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: {part: statistics.median(call[part] for call in calls[name]) for part in PARTS} for name in calls}


def parts_of_call(example: Example) -> Counter[str]:
    """Milliseconds of one call in each part."""
    milliseconds: Counter[str] = Counter(dict.fromkeys(PARTS, 0))
    for event, above in operations(example.infer):
        milliseconds[part_of(event.name, above)] += event.self_cpu_time_total / 1000
    return milliseconds


def operations(call: Callable[[], object], *, with_flops: bool = False) -> Iterator[tuple[Any, list[str]]]:
    """What the profiler sees of one call, each event with the names of what it is within; the blend's forward is named.

    ``with_flops``: events of matrix products have their operations in ``flops``.
    """
    named = staticmethod(record_function(BLEND)(Blend.forward))
    with (
        patch.object(Blend, "forward", named),
        profile(activities=[ProfilerActivity.CPU], with_flops=with_flops) as profiler,
        record_function(CALL),
    ):
        call()
    for event in profiler.events() or ():
        above = names_above(event)
        if CALL in above:
            yield event, above


def names_above(event: Any) -> list[str]:
    """Names of the event and of all that it is within, from the inside."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names


def part_of(name: str, above: list[str]) -> str:
    """The part to which the time of an operation itself counts, given the names of what it is within."""
    if not name.startswith("aten::"):
        return "between operations"
    for outer in above:
        if outer in PART_OF_MODULE:
            return PART_OF_MODULE[outer]
    for outer in above:
        if outer in PART_OF_OPERATION:
            return PART_OF_OPERATION[outer]
    if any(outer in COPIES for outer in above):
        return "mixing: copies" if BLEND in above else "copies of heads"
    return "other operations"


def measure(key: recording.Key) -> dict[str, Any]:
    """Parts of both layers, and times of the whole ones with the shares and ratios of each round."""
    both = examples(key["model"], image_size=key["image_size"], batch_size=key["batch_size"])
    steps: dict[str, Callable[[], None]] = {"factors": both["GPSA"].factors}
    for name, example in both.items():
        steps |= {f"{name} forward": example.infer, f"{name} forward and backward": example.learn}
    seconds = time_in_turn(steps, rounds=key["rounds"], device=torch.device("cpu"), tell=lambda text: None)

    def spread(above: str, below: str) -> dict[str, float]:
        return vars(Spread.of(a / b for a, b in zip(seconds[above], seconds[below], strict=True)))

    return {
        "parts_ms": parts(both, repeats=key["repeats"]),
        "whole_ms": {name: 1000 * statistics.median(times) for name, times in seconds.items()},
        "factors_over_layer": spread("factors", "GPSA forward"),
        "gpsa_over_plain": spread("GPSA forward", "plain forward"),
        "gpsa_over_plain_with_backward": spread("GPSA forward and backward", "plain forward and backward"),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = recording.new_parser(__doc__)
    parser.add_argument("--preset", nargs="+", default=["ConViT_Ti", "ConViT_S"])
    parser.add_argument("--size", nargs="+", metavar="SIDE:BATCH", default=["224:16", "448:8"])
    parser.add_argument("--rounds", type=int, default=21, help="paired rounds of the whole layers (%(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="calls of a layer under the profiler (%(default)s)")
    options = parser.parse_args(arguments)
    check_integer("rounds", options.rounds, at_least=FEWEST_ROUNDS)
    check_integer("repeats", options.repeats, at_least=1)
    keys = [
        {
            "model": preset,
            "image_size": side,
            "batch_size": batch_size,
            "rounds": options.rounds,
            "repeats": options.repeats,
        }
        for preset in options.preset
        for side, batch_size in map(parse_size, options.size)
    ]
    preset_configs(options.preset, [key["image_size"] for key in keys])
    record = recording.open_record("layer_profile", options)
    record.measure(keys, measure)


if __name__ == "__main__":
    recording.run(main)
