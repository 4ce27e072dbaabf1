"""What it saves that freed memory is kept for the next tensor, as every command of comvex lets the allocator do.

python benchmarks/freed_memory.py
python benchmarks/freed_memory.py --model ConViT_S --size 448:8 --mode inference

A step is computed in two processes in turn, which differ in that alone; so for ConViT, plain ViT and timm's. Beside
the paper's sizes ``convit_fashion_mnist`` stands for the small models of a desk. Eager mode, float32. What is recorded
is not measured again.
"""

from __future__ import annotations

import itertools
import multiprocessing
import resource
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any, get_args

import recording
import torch
from speed import parse_size

from comvex.allocator import keep_freed_memory
from comvex.bench.figures import Spread
from comvex.bench.names import Contestant, Rival
from comvex.bench.plan import FEWEST_ROUNDS, Form, preset_configs
from comvex.bench.run import shuffled
from comvex.bench.steps import Job, make_step
from comvex.convit import ConViTConfig, load_model
from comvex.convit.config import check_integer

SMALL = "convit_fashion_mnist"
WAYS = KEPT, GIVEN_BACK = ("kept", "given back")
Which = tuple[Contestant, str]
"""A process: whose model, and what becomes of freed memory."""
SCENES = (("ConViT_Ti", 224, 16), ("ConViT_Ti", 448, 8), ("ConViT_S", 224, 16), (SMALL, 28, 128))
WARM_UP = 5
"""Steps before the rounds, after which a heap that is kept has the blocks that a step needs."""


def config_of(model: str, side: int) -> ConViTConfig:
    """Of a size of the paper or of the model that ships; raises ``ValueError`` for another name."""
    if model == SMALL:
        return load_model(SMALL, image_size=side).config
    return preset_configs([model], [side])[model][0]


def serve(connection: Connection, job: Job, keep: bool) -> None:
    """In a process of its own, as often as it is asked: a step's seconds and new pages, and the peak so far in MB."""
    if keep:
        keep_freed_memory()
    torch.set_num_threads(job.threads)
    step = make_step(job)
    for _ in range(WARM_UP):
        step()
    connection.send(None)
    while connection.recv():
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        step()
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        connection.send((seconds, after.ru_minflt - before.ru_minflt, after.ru_maxrss / 1000))


def measure(key: recording.Key, *, threads: int) -> dict[str, Any]:
    """A scene: of each contestant both ways, and ConViT beside it in both."""
    contestants: list[Contestant] = ["convit", *key["against"]]
    config = config_of(key["model"], key["image_size"])
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        ends: dict[Which, Connection] = {}
        for contestant, way in itertools.product(contestants, WAYS):
            form = Form(contestant, "eager", "float32")
            job = Job(form, config, key["batch_size"], key["mode"], threads, "cpu")
            end, other = context.Pipe()
            process = context.Process(target=serve, args=(other, job, way == KEPT), daemon=True)
            process.start()
            stack.callback(process.kill)
            other.close()  # so that a process that dies is an end of file here
            end.recv()  # one after the other: a warm-up beside others is none
            ends[contestant, way] = end
        rounds = [one_round(ends, number) for number in range(key["rounds"])]

    def seconds(which: Which) -> list[float]:
        return [found[which][0] for found in rounds]

    def ratio(one: Which, other: Which) -> dict[str, float]:
        return vars(Spread.of(a / b for a, b in zip(seconds(one), seconds(other), strict=True)))

    found = {
        contestant: {
            "kept_over_given_back": ratio((contestant, KEPT), (contestant, GIVEN_BACK)),
            "convit_over_it": {way: ratio(("convit", way), (contestant, way)) for way in WAYS},
            "ms_per_picture": vars(Spread.of(1000 * time / key["batch_size"] for time in seconds((contestant, KEPT)))),
            "new_pages": {way: rounds[-1][contestant, way][1] for way in WAYS},
            "peak_process_mb": {way: rounds[-1][contestant, way][2] for way in WAYS},
        }
        for contestant in contestants
    }
    return {"contestants": found}


def one_round(ends: dict[Which, Connection], number: int) -> dict[Which, tuple[float, int, float]]:
    """What each process answers, one at a time, in an order of the round's own."""
    found = {}
    for which in shuffled(list(ends), number):
        ends[which].send(True)
        found[which] = ends[which].recv()
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = recording.new_parser(__doc__)
    parser.add_argument("--model", nargs="+", help=f"sizes of the paper, or {SMALL}")
    parser.add_argument("--size", nargs="+", metavar="SIDE:BATCH", help="of --model, as in 448:8")
    parser.add_argument("--mode", nargs="+", choices=["inference", "training"], default=["inference", "training"])
    rivals = get_args(Rival)
    parser.add_argument(
        "--against", nargs="*", choices=rivals, default=list(rivals), help="beside ConViT (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=9, help="paired rounds, at least 7 (%(default)s)")
    options = parser.parse_args(arguments)
    check_integer("rounds", options.rounds, at_least=FEWEST_ROUNDS)
    scenes = [
        (model, side, batch_size)
        for model, side, batch_size in SCENES
        if options.model is None or model in options.model
    ]
    if options.size:
        scenes = [(model, *parse_size(size)) for model in options.model or ["ConViT_Ti"] for size in options.size]
    asked = {"rounds": options.rounds, "against": list(options.against)}
    keys = [
        {"model": model, "image_size": side, "batch_size": batch_size, "mode": mode, **asked}
        for model, side, batch_size in scenes
        for mode in options.mode
    ]
    for key in keys:
        config_of(key["model"], key["image_size"])  # so that a mistake is told before anything is measured
    record = recording.open_record("freed_memory", options)
    record.measure(keys, lambda key: measure(key, threads=options.threads))


if __name__ == "__main__":
    recording.run(main)
