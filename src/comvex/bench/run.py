"""The whole of a benchmark: scene by scene, every form prepared, checked and then timed in turn with the others."""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from comvex.allocator import (
    BY_ITSELF,
    LARGEST,
    give_back_freed_memory,
    is_freed_memory_kept,
    keep_blocks_up_to,
    keep_freed_memory,
)
from comvex.bench.figures import Measured, growth, ratios
from comvex.bench.flop import count_flop
from comvex.bench.gemm import SIDES, fastest_side, square_product, wait
from comvex.bench.machine import describe_machine
from comvex.bench.names import EXPORTED
from comvex.bench.peak_memory import NotMeasurable, is_out_of_memory, memory_of_machine, peak_memory
from comvex.bench.plan import FEWEST_ROUNDS, Form, Plan, Scene
from comvex.bench.steps import Job, Step, difference_to_eager, export, full_float32, make_step
from comvex.convit.config import check_integer
from comvex.device import choose_device
from comvex.errors import UserError
from comvex.randomness import derive_seed
from comvex.terminal import progress_bar

WARM_UP = 2
SHORTEST_ROUND = 0.05
"""Seconds that a form computes in a round at least, by several steps if one is shorter."""
ORDER_SEED = 0
"""Of the order in which forms take their turns in a round."""
GEMM = "GEMM"
"""The product that shares of the peak are of, among the forms."""


def run_bench(
    plan: Plan,
    *,
    rounds: int,
    threads: int | None = None,
    device: str = "cpu",
    command: str = "",
    gemm_sides: Sequence[int] = SIDES,
    after_scene: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measure every form in every scene of a plan; returns the report as plain numbers and texts, for JSON.

    A form that cannot be run, or that does not compute what eager mode does, is a row that says so. ``after_scene`` is
    given the report of what is measured so far. PyTorch's thread count is set to ``threads`` for the time of it, and
    TF32 is off; from then on freed memory is kept, as in every command of comvex. Raises ``ValueError`` for fewer than
    seven rounds and for a device that is not there or that a runtime cannot use.
    """
    check_integer("rounds", rounds, at_least=FEWEST_ROUNDS)
    before = torch.get_num_threads()
    threads = before if threads is None else threads
    check_integer("threads", threads, at_least=1)
    on = choose_device(device)
    if on.type not in ("cpu", "cuda") or (on.type != "cpu" and not set(plan.runtimes).isdisjoint(EXPORTED)):
        raise UserError(f"device is {device!r}: it must be cpu or cuda, and cpu for ONNX Runtime and OpenVINO.")
    keep_freed_memory()
    machine = describe_machine(threads=threads, device=on, runtimes=plan.runtimes, precisions=plan.precisions)
    measured: list[Measured] = []

    def report() -> dict[str, Any]:
        rows = [found.row() for found in measured]
        return {
            "machine": machine,
            "command": command,
            "rounds": rounds,
            "order_seed": ORDER_SEED,
            "num_scenes": {"planned": len(plan.scenes), "measured": len({found.scene for found in measured})},
            "left_out": plan.left_out,
            "ratios": ratios(measured),
            "rows": rows,
            "growth": growth(rows),
        }

    torch.set_num_threads(threads)
    try:
        with full_float32():
            for found in measure_scenes(plan, rounds=rounds, threads=threads, device=on, gemm_sides=gemm_sides):
                measured += found
                if after_scene is not None:
                    after_scene(report())
    finally:
        torch.set_num_threads(before)
    return report()


def measure_scenes(
    plan: Plan, *, rounds: int, threads: int, device: torch.device, gemm_sides: Sequence[int]
) -> Iterator[list[Measured]]:
    """What is found in each scene, with a bar on standard error that is drawn only in a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
    total = sum(1 + 2 * len(plan.forms[scene.mode]) + rounds for scene in plan.scenes)
    with (
        # Drawn between the rounds only: a thread that draws would take time from what is measured.
        progress_bar(*columns, TimeRemainingColumn(), auto_refresh=False) as bar,
        tempfile.TemporaryDirectory(prefix="comvex-bench-") as folder,
    ):
        task = bar.add_task("", total=total)
        for scene in plan.scenes:

            def tell(text: str, scene: Scene = scene) -> None:
                bar.update(task, description=f"{scene}: {text}", advance=1, refresh=True)

            tell("GEMM peak")
            side = fastest_side(device=device, sides=gemm_sides)
            found: dict[Form, Measured] = {}
            steps: dict[Form, Step] = {}
            for form in plan.forms[scene.mode]:
                flop = count_flop(form.contestant, scene.config, batch_size=scene.batch_size, mode=scene.mode)
                found[form] = Measured(scene, form, flop, gemm_side=side)
                with noting_failure(found[form]):
                    tell(str(form))
                    job = make_job(scene, form, threads=threads, device=device, folder=Path(folder))
                    tell(f"{form}, memory")
                    step = prepare(found[form], job)
                    if step is not None:
                        steps[form] = step
            with keeping_what_fits(list(found.values())):
                time_all(found, steps, rounds=rounds, device=device, tell=tell)
            yield list(found.values())


@contextmanager
def keeping_what_fits(found: Sequence[Measured]) -> Iterator[None]:
    """Large blocks are given back where a form needs more than a third of the machine's memory.

    A process that keeps them may hold twice what it needs, and what the other forms have left beside it.
    """
    needed = max((one.peak_memory for one in found if one.peak_memory is not None), default=0)
    total = memory_of_machine()
    largest = BY_ITSELF if total is not None and 3 * needed > total else LARGEST
    for one in found:
        one.largest_kept = largest if is_freed_memory_kept() else None
    keep_blocks_up_to(largest)
    try:
        yield
    finally:
        keep_blocks_up_to(LARGEST)


def make_job(scene: Scene, form: Form, *, threads: int, device: torch.device, folder: Path) -> Job:
    """A form in a scene, exported if its runtime runs files."""
    file = None
    if form.runtime in EXPORTED:
        file = str(export(scene, form, folder))
    return Job(form, scene.config, scene.batch_size, scene.mode, threads, str(device), file)


def prepare(found: Measured, job: Job) -> Step | None:
    """Memory in a process of its own, then the step itself, compared with eager; no step if memory does not suffice."""
    give_back_freed_memory()  # of the scene before, which that process would miss
    try:
        found.peak_memory = peak_memory(job)
        found.out_of_memory = found.peak_memory is None
    except NotMeasurable as error:
        found.why_no_memory = str(error)
    if found.out_of_memory:
        return None
    step = make_step(job)
    found.difference = difference_to_eager(job, step) if job.mode == "inference" else None
    return step


@contextmanager
def noting_failure(found: Measured) -> Iterator[None]:
    """What goes wrong within is this form's failure: the others go on."""
    try:
        yield
    except Exception as error:
        note(found, error)


def note(found: Measured, error: Exception) -> None:
    """What a row says of an error: that memory ran out, or the error in words."""
    found.out_of_memory = is_out_of_memory(error)
    found.error = None if found.out_of_memory else in_words(error)


def in_words(error: Exception) -> str:
    """An error in a line; what is no mistake of the user's is named by its type."""
    text = next(iter(str(error).splitlines()), "")
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def time_all(
    found: dict[Form, Measured],
    steps: dict[Form, Step],
    *,
    rounds: int,
    device: torch.device,
    tell: Callable[[str], None],
) -> None:
    """Times of the forms that can be run, and in the same rounds of the product whose rate their shares are of."""
    if not steps:
        return
    [side] = {one.gemm_side for one in found.values()}
    members: dict[Form | str, Step] = {**steps, GEMM: square_product(side, device=device)}

    def fail(name: Form | str, error: Exception) -> None:
        if not isinstance(name, Form):
            raise error
        note(found[name], error)

    times = time_in_turn(members, rounds=rounds, device=device, tell=tell, failed=fail)
    gemm_seconds = times.pop(GEMM)
    for form in steps.keys() & times.keys():
        found[form].seconds, found[form].gemm_seconds = times[form], gemm_seconds


Name = TypeVar("Name", bound=Hashable)


def time_in_turn(
    steps: dict[Name, Step],
    *,
    rounds: int,
    device: torch.device,
    tell: Callable[[str], None],
    shortest_round: float = SHORTEST_ROUND,
    failed: Callable[[Name, Exception], None] | None = None,
) -> dict[Name, list[float]]:
    """Seconds of a step of each form, round by round, in an order that is shuffled anew for each round.

    What slows the machine for a while slows all forms of a round, and leaves their ratios as they are; the shuffle
    gives a form other forms before it, so that what one leaves behind does not always meet the same next one.
    ``failed`` is told of a form whose step raises: the others go on without it. If it is not given the error ends all.
    """
    order = list(steps)
    repeats = {}
    times: dict[Name, list[float]] = {form: [] for form in steps}

    @contextmanager
    def taking_part(form: Name) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if failed is None:
                raise
            failed(form, error)
            order.remove(form)

    for form in steps:
        with taking_part(form):
            once = [seconds(steps[form], repeats=1, device=device) for _ in range(WARM_UP)][-1]
            repeats[form] = max(1, math.ceil(shortest_round / once))
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}")
        for form in shuffled(order, number):
            with taking_part(form):
                times[form].append(seconds(steps[form], repeats=repeats[form], device=device))
    return {form: times[form] for form in order}


def shuffled(order: Sequence[Name], number: int) -> list[Name]:
    """The order of a round, a function of its number and ``ORDER_SEED``."""
    return random.Random(derive_seed(ORDER_SEED, number)).sample(order, len(order))


def seconds(step: Step, *, repeats: int, device: torch.device) -> float:
    """Seconds per step, over some repeats in a row."""
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    wait(device)
    return (time.perf_counter() - start) / repeats
