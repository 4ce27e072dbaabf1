"""Where each millisecond of a whole step goes, inference and training, of ConViT and of a plain ViT: torch.profiler.

python benchmarks/step_profile.py
python benchmarks/step_profile.py --preset ConViT_S --size 448:8 --mode training

The kinds are those of PyTorch's operations, eager float32: matrix products with the rate that they reach, and that of
the best square product of the same minutes; what is no product; and what is between operations. Medians of steps of one
model and the other in turn. The profiler itself takes time, between operations most of all: how long a step takes is
what ``speed.py eager`` measures. What is recorded is not measured again.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import recording
import torch
from layer_profile import BLEND, WARM_UP, operations
from speed import parse_size

from comvex.bench.gemm import SIDES, fastest_side, flop_of_product, square_product
from comvex.bench.names import Contestant
from comvex.bench.plan import Form, preset_configs
from comvex.bench.run import seconds as seconds_of
from comvex.bench.run import shuffled
from comvex.bench.steps import Job, Step, make_step
from comvex.convit.config import check_integer

PRODUCTS, ATTENTION, MIXING, GELU, NORMS = "products", "attention", "mixing by positions", "GELU", "norms"
OPTIMISER, OTHERS, BETWEEN = "optimiser", "sums, copies, others", "between operations"
KINDS = (PRODUCTS, ATTENTION, MIXING, GELU, NORMS, OPTIMISER, OTHERS, BETWEEN)
KIND_OF_OPERATION = {
    "mm": PRODUCTS,
    "addmm": PRODUCTS,
    "bmm": PRODUCTS,
    "convolution": PRODUCTS,
    "convolution_backward": PRODUCTS,
    "_scaled_dot_product_flash_attention_for_cpu": ATTENTION,
    "_scaled_dot_product_flash_attention_for_cpu_backward": ATTENTION,
    "gelu": GELU,
    "gelu_backward": GELU,
    "native_layer_norm": NORMS,
    "native_layer_norm_backward": NORMS,
}
"""What an operation of PyTorch counts as, with all that it calls."""
CONTESTANTS: tuple[Contestant, ...] = ("convit", "plain_vit")


@dataclass
class Call:
    """What the profiler saw of one step."""

    milliseconds: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(KINDS, 0.0)))
    flop: int = 0
    """Of the matrix products that it counts, all of kind ``PRODUCTS`` but the convolution of the patches."""
    counted: float = 0
    """Milliseconds of these."""


def profiled(step: Step) -> Call:
    """One step under the profiler."""
    call = Call()
    for event, above in operations(step, with_flops=True):
        kind = kind_of(event.name, above)
        call.milliseconds[kind] += event.self_cpu_time_total / 1000
        if kind == PRODUCTS and event.flops:
            call.flop += event.flops
            call.counted += event.self_cpu_time_total / 1000
    return call


def kind_of(name: str, above: list[str]) -> str:
    """What the time of an operation itself counts as, given the names of what it is within, from the inside."""
    if not name.startswith("aten::"):
        return BETWEEN
    if any(outer == BLEND or outer.startswith("BlendBackward") for outer in above):
        return MIXING
    if any(outer.startswith("Optimizer.step") for outer in above):
        return OPTIMISER
    for outer in above:
        kind = KIND_OF_OPERATION.get(outer.removeprefix("aten::"))
        if kind is not None:
            return kind
    return OTHERS


def measure(key: recording.Key, *, threads: int) -> dict[str, Any]:
    """The kinds of each contestant's step, and the rate of its products beside the best square one."""
    [config] = preset_configs([key["model"]], [key["image_size"]])[key["model"]]
    steps = {}
    for contestant in CONTESTANTS:
        form = Form(contestant, "eager", "float32")
        steps[contestant] = make_step(Job(form, config, key["batch_size"], key["mode"], threads, "cpu"))
    device = torch.device("cpu")
    side = fastest_side(device=device, sides=SIDES)
    product, products = square_product(side, device=device), []
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    calls: dict[Contestant, list[Call]] = defaultdict(list)
    for number in range(key["repeats"]):
        for contestant in shuffled(list(steps), number):
            calls[contestant].append(profiled(steps[contestant]))
        products.append(seconds_of(product, repeats=1, device=device))
    return {
        "gemm_peak_gflops": flop_of_product(side) / min(products) / 1e9,
        "contestants": {contestant: figures(calls[contestant]) for contestant in CONTESTANTS},
    }


def figures(calls: list[Call]) -> dict[str, Any]:
    return {
        "kinds_ms": {kind: statistics.median(call.milliseconds[kind] for call in calls) for kind in KINDS},
        "products_gflops": statistics.median(call.flop / call.counted for call in calls) / 1e6,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = recording.new_parser(__doc__)
    parser.add_argument("--preset", nargs="+", default=["ConViT_Ti", "ConViT_S"])
    parser.add_argument("--size", nargs="+", metavar="SIDE:BATCH", default=["224:16"])
    parser.add_argument("--mode", nargs="+", choices=["inference", "training"], default=["inference", "training"])
    parser.add_argument("--repeats", type=int, default=20, help="steps of each model (%(default)s)")
    options = parser.parse_args(arguments)
    check_integer("repeats", options.repeats, at_least=1)
    keys = [
        {"model": preset, "image_size": side, "batch_size": batch, "mode": mode, "repeats": options.repeats}
        for preset in options.preset
        for side, batch in map(parse_size, options.size)
        for mode in options.mode
    ]
    preset_configs(options.preset, [key["image_size"] for key in keys])
    record = recording.open_record("step_profile", options)
    record.measure(keys, lambda key: measure(key, threads=options.threads))


if __name__ == "__main__":
    recording.run(main)
