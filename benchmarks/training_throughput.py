"""The training loop beside a bare loop of forward, backward and step on the same batches: their speed, as a ratio.

python benchmarks/training_throughput.py            digits: 1 thread, 1 loader process
python benchmarks/training_throughput.py --size 224  ConViT-Ti at 224 pixels on made JPEG files
python benchmarks/training_throughput.py --ready     what the loop itself costs: both get the same ready batches
python benchmarks/training_throughput.py --cpu       CPU seconds instead of those of the clock, where others compute
                                                     too; without loader processes, whose seconds do not count

In each round the whole of ``comvex train`` (loading, augmentation, loss, optimiser, sums, progress; without the
validation at the end) and the bare loop run one after the other, in an order that alternates.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn

from comvex.allocator import keep_freed_memory
from comvex.data.loading import Batch
from comvex.processor import machine_line
from comvex.training import trainer
from comvex.training.plan import Plan, make_plan
from comvex.training.ranks import Ranks
from comvex.training.recipe import Architecture, Options, Recipe
from comvex.training.record import EpochSums, RunRecord
from comvex.training.step import Learner
from comvex.training.stopping import StopRequest
from comvex.training.trainer import step_order, train_steps, training_batches


def made_folder(root: Path, *, num: int, side: int) -> Path:
    """JPEG files of noise in two classes."""
    generator = np.random.default_rng(0)
    for label in ("one", "other"):
        (root / label).mkdir(parents=True)
        for index in range(num):
            values = generator.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
            Image.fromarray(values).resize((side, side)).save(root / label / f"{index}.jpg")
    return root


class Quiet(RunRecord):
    """Leaves out validation and files, which a bare loop does not have either."""

    def resume(self, learner: Learner) -> tuple[int, EpochSums]:
        return 0, EpochSums()

    def begin(self, *arguments: object, **options: object) -> None:
        pass

    def end_epoch(self, *arguments: object, **options: object) -> None:
        pass

    def save_checkpoint(self, *arguments: object, **options: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, choices=[8, 224], default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="training steps a round (default: 60, at 224 pixels 6)")
    parser.add_argument("--threads", type=int, help="default: 1, at 224 pixels 2")
    parser.add_argument("--workers", type=int, help="default: 1, with --cpu none")
    parser.add_argument("--cpu", action="store_true", help="compare CPU seconds")
    parser.add_argument("--ready", action="store_true", help="give the training loop ready batches too")
    options = parser.parse_args()
    keep_freed_memory()
    small = options.size == 8
    clock = time.process_time if options.cpu else time.perf_counter
    workers = options.workers if options.workers is not None else 0 if options.cpu else 1
    steps = options.steps or (60 if small else 6)
    torch.set_num_threads(options.threads or (1 if small else 2))

    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(steps=steps)
        if not small:
            data = made_folder(Path(folder) / "pictures", num=80, side=320)
            recipe = Recipe(data=str(data), model=Architecture(preset="ConViT_Ti"), steps=steps, batch_size=16)
        machine = Options(device="cpu", workers=workers)
        plan = make_plan(recipe, machine, torch.device("cpu"), Ranks())
        print(machine_line(f"{torch.get_num_threads()} threads", f"{workers} loader processes"))
        batches = list(training_batches(plan, step_order(plan, start=0)))
        ratios, rates = [], []
        for round_number in range(options.rounds + 1):
            loops = [
                lambda: trained(plan, Path(folder), batches if options.ready else None, clock),
                lambda: bare(plan, batches, clock),
            ]
            order = (0, 1) if round_number % 2 else (1, 0)
            seconds = {}
            for which in order:
                seconds[which] = loops[which]()
            if round_number:  # the first round warms up
                ratios.append(seconds[1] / seconds[0])
                rates.append(steps * recipe.batch_size / seconds[0])
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"training loop / bare loop: {middle:.3f} (quartiles {low:.3f} to {high:.3f}), {len(ratios)} rounds")
        print(f"training loop: {statistics.median(rates):.0f} pictures/s")


def trained(plan: Plan, out: Path, ready: list[Batch] | None, clock: Callable[[], float]) -> float:
    """Seconds that the trainer's own loop takes, from the first batch asked for to the last step done.

    Starting loader processes and the one validation at the end are subtracted: they do not grow with the steps.
    """
    record = Quiet(out, plan)
    tiny = dataclasses.replace(plan.data, val=plan.data.train.where(np.arange(len(plan.data.train)) < 1))
    learner = Learner.of(plan)
    first: list[float] = []
    last: list[float] = []
    step = learner.step

    def timed(*arguments: object, **options: object) -> object:
        first.append(clock())
        result = step(*arguments, **options)  # pyright: ignore[reportArgumentType]
        last.append(clock())
        return result

    learner.step = timed  # pyright: ignore[reportAttributeAccessIssue]
    tiny_plan = dataclasses.replace(plan, data=tiny)
    if ready is None:
        train_steps(tiny_plan, learner, record, StopRequest())
    else:
        with mock.patch.object(trainer, "training_batches", return_value=(batch for batch in ready)):
            train_steps(tiny_plan, learner, record, StopRequest())
    # from the end of the first step: what comes before it is the start of the loader
    return (last[-1] - last[0]) * len(last) / (len(last) - 1)


def bare(plan: Plan, batches: list[Batch], clock: Callable[[], float]) -> float:
    """Seconds of forward, backward, clipping and step on batches that are there already."""
    learner = Learner.of(plan)
    model, optimizer = learner.model, learner.optimizer
    model.train()
    times = []
    for batch in batches:
        loss = plan.task.loss(model(batch.pictures), batch.labels, smoothing=plan.recipe.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        times.append(clock())
    return (times[-1] - times[0]) * len(times) / (len(times) - 1)


if __name__ == "__main__":
    main()
