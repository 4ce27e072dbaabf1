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
import statistics
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, get_args

import recording
import torch
from speed import parse_size

from comvex.allocator import keep_freed_memory
from comvex.bench.figures import Spread
from comvex.bench.names import Contestant, Rival
from comvex.bench.plan import FEWEST_ROUNDS, Form, preset_configs
from comvex.bench.run import time_in_turn
from comvex.bench.steps import Job, make_step
from comvex.convit import ConViTConfig, load_model
from comvex.convit.config import check_integer
from comvex.errors import UserError

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
    """In a process of its own, as often as it is asked: a step, answered with its new pages and the peak so far, MB."""
    if keep:
        keep_freed_memory()
    torch.set_num_threads(job.threads)
    step = make_step(job)
    for _ in range(WARM_UP):
        step()
    connection.send(None)
    while connection.recv():
        before = resource.getrusage(resource.RUSAGE_SELF)
        step()
        after = resource.getrusage(resource.RUSAGE_SELF)
        connection.send((after.ru_minflt - before.ru_minflt, after.ru_maxrss / 1000))


def ask(connection: Connection, answers: list[tuple[int, float]]) -> None:
    """Let a process compute a step, and add what it answers."""
    connection.send(True)
    answers.append(connection.recv())


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
        answers: dict[Which, list[tuple[int, float]]] = {which: [] for which in ends}
        steps = {which: partial(ask, end, answers[which]) for which, end in ends.items()}
        seconds = time_in_turn(steps, rounds=key["rounds"], device=torch.device("cpu"), tell=lambda text: None)

    def ratio(one: Which, other: Which) -> dict[str, float]:
        return vars(Spread.of(a / b for a, b in zip(seconds[one], seconds[other], strict=True)))

    found = {
        contestant: {
            "kept_over_given_back": ratio((contestant, KEPT), (contestant, GIVEN_BACK)),
            "convit_over_it": {way: ratio(("convit", way), (contestant, way)) for way in WAYS},
            "ms_per_picture": vars(Spread.of(1000 * time / key["batch_size"] for time in seconds[contestant, KEPT])),
            "new_pages": {way: statistics.median_high(pages for pages, _ in answers[contestant, way]) for way in WAYS},
            "peak_process_mb": {way: answers[contestant, way][-1][1] for way in WAYS},
        }
        for contestant in contestants
    }
    return {"contestants": found}


def scenes_of(models: list[str] | None, sizes: list[str] | None) -> list[tuple[str, int, int]]:
    """Model, side and batch of each scene: those of the table, of some models alone, or of these at other sizes."""
    if sizes:
        return [(model, *parse_size(size)) for model in models or ["ConViT_Ti"] for size in sizes]
    for model in models or []:
        if all(model != name for name, _, _ in SCENES):
            raise UserError(f"model is {model!r}, of which the table has no scene: --size must say one.")
    return [scene for scene in SCENES if models is None or scene[0] in models]


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
    asked = {"rounds": options.rounds, "against": list(options.against)}
    keys = [
        {"model": model, "image_size": side, "batch_size": batch_size, "mode": mode, **asked}
        for model, side, batch_size in scenes_of(options.model, options.size)
        for mode in options.mode
    ]
    for key in keys:
        config_of(key["model"], key["image_size"])  # so that a mistake is told before anything is measured
    record = recording.open_record("freed_memory", options)
    record.measure(keys, lambda key: measure(key, threads=options.threads))


if __name__ == "__main__":
    recording.run(main)
