"""The largest picture and the largest batch that fit into a given memory: ConViT, a plain ViT and timm's ConViT.

python benchmarks/memory_limit.py --memory 4GB
python benchmarks/memory_limit.py --memory 4GB --mode training --side 448 896

Each step runs in a process of its own, which may ask for that much memory beside what its libraries take. One picture
grows (--growing), and at each --side a batch grows by factors of two, until the memory is out. Eager mode, float32.
What is recorded is not measured again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import get_args

import recording

from comvex.bench.names import Contestant
from comvex.bench.peak_memory import peak_memory
from comvex.bench.plan import Form, preset_configs
from comvex.bench.steps import Job
from comvex.errors import UserError

UNITS = {"GB": 10**9, "MB": 10**6}
LARGEST_BATCH = 256


def parse_memory(text: str) -> int:
    """Bytes of "4GB" or "500MB", units of 10^9 and 10^6."""
    amount, unit = text[:-2], UNITS.get(text[-2:].upper())
    if unit is None or not amount.isdecimal() or int(amount) == 0:
        raise UserError(f"memory is {text!r}: it must be a whole number of GB or MB, as in 4GB.")
    return int(amount) * unit


def climb(record: recording.Record, keys: Sequence[recording.Key], *, threads: int) -> None:
    """Measure from the least to the most, until the memory is out: more would not fit either."""
    for key in keys:
        found = record.find(key)
        if found is None:
            recording.tell(", ".join(f"{name} {value}" for name, value in key.items()))
            [config] = preset_configs([key["model"]], [key["image_size"]])[key["model"]]
            form = Form(key["contestant"], "eager", "float32")
            job = Job(form, config, key["batch_size"], key["mode"], threads, "cpu")
            peak = peak_memory(job, limit=key["memory"])
            found = {"peak_memory_mb": None if peak is None else peak / 1e6, "is_last": key == keys[-1]}
            record.add(key, found)
        if found["peak_memory_mb"] is None:
            return


def main(arguments: list[str] | None = None) -> None:
    parser = recording.new_parser(__doc__)
    parser.add_argument("--memory", default="4GB", help="what a process may have beside its libraries (%(default)s)")
    parser.add_argument("--preset", nargs="+", default=["ConViT_Ti"])
    parser.add_argument("--mode", nargs="+", choices=["inference", "training"], default=["inference", "training"])
    parser.add_argument("--growing", type=int, nargs="*", default=[224, 384, 512, 768, 1024, 1280, 1536])
    parser.add_argument("--side", type=int, nargs="*", default=[224, 448], help="at which batches grow (%(default)s)")
    parser.add_argument("--largest-batch", type=int, default=LARGEST_BATCH, help="the last that is tried (%(default)s)")
    options = parser.parse_args(arguments)
    memory = parse_memory(options.memory)
    batches = list(itertools.takewhile(lambda size: size <= options.largest_batch, (2**n for n in itertools.count())))
    ladders = {"picture": [(side, 1) for side in sorted(options.growing)]}
    ladders |= {f"batch at {side} px": [(side, batch) for batch in batches] for side in options.side}
    preset_configs(options.preset, [*options.growing, *options.side])  # so that a mistake is told before anything runs
    record = recording.open_record("memory_limit", options)
    for preset, mode, (growing, steps) in itertools.product(options.preset, options.mode, ladders.items()):
        for contestant in get_args(Contestant):
            fixed = {"memory": memory, "model": preset, "mode": mode, "growing": growing, "contestant": contestant}
            keys = [fixed | {"image_size": side, "batch_size": batch} for side, batch in steps]
            climb(record, keys, threads=options.threads)


if __name__ == "__main__":
    recording.run(main)
