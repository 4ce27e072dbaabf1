"""The whole of a benchmark: scene by scene, every form prepared, checked and then timed in turn with the others."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from comvex.bench.figures import Measured, growth, ratios
from comvex.bench.flop import count_flop
from comvex.bench.gemm import SIDES, gemm_peak, wait
from comvex.bench.machine import describe_machine
from comvex.bench.names import EXPORTED
from comvex.bench.peak_memory import peak_memory
from comvex.bench.plan import FEWEST_ROUNDS, Form, Plan, Scene
from comvex.bench.steps import Job, Step, difference_to_eager, export, full_float32, make_step
from comvex.convit.config import check_integer
from comvex.device import choose_device
from comvex.errors import UserError
from comvex.terminal import progress_bar

WARM_UP = 2
SHORTEST_ROUND = 0.05
"""Seconds that a form computes in a round at least, by several steps if one is shorter."""


def run_bench(
    plan: Plan,
    *,
    rounds: int,
    threads: int | None = None,
    device: str = "cpu",
    command: str = "",
    gemm_sides: Sequence[int] = SIDES,
) -> dict[str, Any]:
    """Measure every form in every scene of a plan; returns the report as plain numbers and texts, for JSON.

    PyTorch's thread count is set to ``threads`` for the time of it, and TF32 is off. Raises ``ValueError`` for fewer
    than seven rounds, for a device that is not there or that a runtime cannot use, and if a form does not compute what
    eager mode does.
    """
    check_integer("rounds", rounds, at_least=FEWEST_ROUNDS)
    before = torch.get_num_threads()
    threads = before if threads is None else threads
    check_integer("threads", threads, at_least=1)
    on = choose_device(device)
    if on.type not in ("cpu", "cuda") or (on.type != "cpu" and not set(plan.runtimes).isdisjoint(EXPORTED)):
        raise UserError(f"device is {device!r}: it must be cpu or cuda, and cpu for ONNX Runtime and OpenVINO.")
    machine = describe_machine(threads=threads, device=on, runtimes=plan.runtimes, precisions=plan.precisions)
    torch.set_num_threads(threads)
    try:
        with full_float32():
            measured = measure_all(plan, rounds=rounds, threads=threads, device=on, gemm_sides=gemm_sides)
    finally:
        torch.set_num_threads(before)
    rows = [found.row() for found in measured]
    return {
        "machine": machine | {"gemm_peak_gflops": max(row["gemm_peak_gflops"] for row in rows)},
        "command": command,
        "rounds": rounds,
        "left_out": plan.left_out,
        "ratios": ratios(measured),
        "rows": rows,
        "growth": growth(rows),
    }


def measure_all(
    plan: Plan, *, rounds: int, threads: int, device: torch.device, gemm_sides: Sequence[int]
) -> list[Measured]:
    """Every scene, with a bar on standard error that is drawn only in a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
    total = sum(1 + 2 * len(plan.forms[scene.mode]) + rounds for scene in plan.scenes)
    with (
        # Drawn between the rounds only: a thread that draws would take time from what is measured.
        progress_bar(*columns, TimeRemainingColumn(), auto_refresh=False) as bar,
        tempfile.TemporaryDirectory(prefix="comvex-bench-") as folder,
    ):
        task = bar.add_task("", total=total)
        measured = []
        for scene in plan.scenes:

            def tell(text: str, scene: Scene = scene) -> None:
                bar.update(task, description=f"{scene}: {text}", advance=1, refresh=True)

            tell("GEMM peak")
            peak = gemm_peak(device=device, sides=gemm_sides)
            found: dict[Form, Measured] = {}
            steps: dict[Form, Step] = {}
            for form in plan.forms[scene.mode]:
                tell(str(form))
                job = make_job(scene, form, threads=threads, device=device, folder=Path(folder))
                tell(f"{form}, memory")
                found[form], step = prepare(scene, job, gemm_peak=peak)
                if step is not None:
                    steps[form] = step
            for form, times in time_in_turn(steps, rounds=rounds, device=device, tell=tell).items():
                found[form].seconds = times
            measured += found.values()
        return measured


def make_job(scene: Scene, form: Form, *, threads: int, device: torch.device, folder: Path) -> Job:
    """A form in a scene, exported if its runtime runs files."""
    file = None
    if form.runtime in EXPORTED:
        file = str(export(scene, form, folder))
    return Job(form, scene.config, scene.batch_size, scene.mode, threads, str(device), file)


def prepare(scene: Scene, job: Job, *, gemm_peak: float) -> tuple[Measured, Step | None]:
    """Memory in a process of its own, then the step itself, compared with eager; no step if memory does not suffice."""
    flop = count_flop(job.form.contestant, scene.config, batch_size=scene.batch_size, mode=scene.mode)
    memory = peak_memory(job)
    if memory is None:
        return Measured(scene, job.form, flop, gemm_peak, None, None), None
    step = make_step(job)
    difference = difference_to_eager(job, step) if scene.mode == "inference" else None
    return Measured(scene, job.form, flop, gemm_peak, memory, difference), step


Name = TypeVar("Name", bound=Hashable)


def time_in_turn(
    steps: dict[Name, Step],
    *,
    rounds: int,
    device: torch.device,
    tell: Callable[[str], None],
    shortest_round: float = SHORTEST_ROUND,
) -> dict[Name, list[float]]:
    """Seconds of a step of each form, round by round; another form begins every round, so that none gains by its place.

    What slows the machine for a while slows all forms of a round, and leaves their ratios as they are.
    """
    repeats = {}
    for form, step in steps.items():
        once = [seconds(step, repeats=1, device=device) for _ in range(WARM_UP)][-1]
        repeats[form] = max(1, math.ceil(shortest_round / once))
    order = list(steps)
    times: dict[Name, list[float]] = {form: [] for form in steps}
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}")
        first = number % len(order) if order else 0
        for form in order[first:] + order[:first]:
            times[form].append(seconds(steps[form], repeats=repeats[form], device=device))
    return times


def seconds(step: Step, *, repeats: int, device: torch.device) -> float:
    """Seconds per step, over some repeats in a row."""
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    wait(device)
    return (time.perf_counter() - start) / repeats
