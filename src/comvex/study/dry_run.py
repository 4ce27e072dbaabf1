"""What a study would do, without doing it: its runs, their lengths, and the time that a few steps of each suggest."""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from comvex.device import choose_device
from comvex.study.carry_out import check_way, duration
from comvex.study.figures import label
from comvex.study.pictures import look_through
from comvex.study.plan import Study
from comvex.study.results import read_result
from comvex.study.study_file import check_same_pictures, noted_study
from comvex.training.plan import make_plan
from comvex.training.ranks import Ranks
from comvex.training.recipe import Options, Recipe, recipe_words
from comvex.training.step import Learner
from comvex.training.trainer import machine_settings, step_order, training_batches

WARM_UP_STEPS = 2
TIMED_SECONDS = 3.0


def dry_run(study: Study, out: Path, *, options: Options) -> dict[str, Any]:
    """Count the runs of a study and time some steps of each architecture; nothing is written, ``out`` neither.

    Returns plain values for JSON. Raises ``ValueError`` for whatever would keep the study from starting.
    """
    check_way(options)
    study, stored = noted_study(study, out)
    pictures = look_through(study)
    if stored is not None:
        check_same_pictures(study, pictures, stored, out)
    study = study.settled(pictures.num)
    runs = study.runs(pictures.num)
    finished = {run.name for run in runs if read_result(run, out) is not None}
    rates: dict[str, float] = {}
    lengths: list[dict[str, Any]] = []
    for run in reversed(runs):  # the most pictures first, of which a step is a whole batch
        if run.architecture not in rates:
            print(f"study: timing some steps of {label(run.architecture)}", file=sys.stderr, flush=True)
            rates[run.architecture] = pictures_per_second(run.recipe, options)
        num_pictures = round(run.fraction * pictures.num)
        steps = run.recipe.num_steps(num_pictures)
        lengths.append(
            {
                "architecture": run.architecture,
                "fraction": run.fraction,
                "seed": run.seed,
                "num_pictures": num_pictures,
                "epochs": run.recipe.epochs,
                "steps": steps,
                "seconds": steps * min(run.recipe.batch_size, num_pictures) / rates[run.architecture],
                "finished": run.name in finished,
            }
        )
    return {
        "study": study.kind,
        "out": str(out),
        "runs": lengths[::-1],
        "pictures_per_second": {name: rates[name] for name in study.architectures},
        "seconds_left": sum(run["seconds"] for run in lengths if not run["finished"]),
        "to_see_pictures": shlex.join(["comvex", "train", *recipe_words(study.recipe.to_dict()), "--dry-run"]),
    }


def pictures_per_second(recipe: Recipe, options: Options) -> float:
    """How fast a run is trained, from some of its steps, whose weights are thrown away."""
    device = choose_device(options.device)
    with machine_settings(options, device):
        plan = make_plan(recipe, options, device, Ranks())
        learner = Learner.of(plan)
        plan.model.train()
        warm_up, shown, begin = min(WARM_UP_STEPS, plan.num_steps - 1), 0, time.monotonic()
        with closing(training_batches(plan, step_order(plan, start=0))) as batches:
            for step in range(1, plan.num_steps + 1):
                micro_batches = [next(batches) for _ in range(options.accumulate)]
                num_pictures = sum(len(batch.labels) for batch in micro_batches)
                if num_pictures:
                    learner.step(step, micro_batches, num_pictures=num_pictures).loss_sum.item()
                if step == warm_up:
                    begin = time.monotonic()
                elif step > warm_up:
                    shown += num_pictures
                    if time.monotonic() - begin > TIMED_SECONDS:
                        break
        return shown / (time.monotonic() - begin)


def describe_dry_run(outline: dict[str, Any]) -> str:
    """A line for each fraction, then the time: what the command prints."""
    runs, rates = outline["runs"], outline["pictures_per_second"]
    finished = sum(run["finished"] for run in runs)
    seeds = {run["seed"] for run in runs}
    lines = [
        f"{outline['study']} in {outline['out']}: {len(runs)} runs ({len(rates)} architectures, {len(seeds)} "
        f"{'seed' if len(seeds) == 1 else 'seeds'}), {finished} of them finished; nothing is trained now",
        f"{'pictures':>18} {'epochs':>8} {'steps':>8}  time of a run",
    ]
    for fraction in sorted({run["fraction"] for run in runs}):
        own = [run for run in runs if run["fraction"] == fraction]
        times = sorted(run["seconds"] for run in own)
        least, most = duration(times[0]), duration(times[-1])
        pictures = f"{own[0]['num_pictures']:,} ({100 * fraction:g} %)"
        epochs = "" if own[0]["epochs"] is None else f"{own[0]['epochs']:,}"
        lines.append(
            f"{pictures:>18} {epochs:>8} {own[0]['steps']:>8,}  {least if least == most else f'{least} to {most}'}"
        )
    told = ", ".join(f"{label(name)} {rate:.0f}" for name, rate in rates.items())
    return "\n".join(
        [
            *lines,
            f"Pictures a second, from some steps: {told}",
            f"One worker takes about {duration(outline['seconds_left'])} for what is left, and a few percent more for "
            "validation",
            f"To see its pictures as they are shown: {outline['to_see_pictures']}",
        ]
    )
