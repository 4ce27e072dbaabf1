"""What the runs of a study came to: the figure of each, mean and deviation over the seeds, and the comparison."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comvex import run_folder
from comvex.errors import UserError
from comvex.files import read_table
from comvex.study.picture_factor import Factor, picture_factor
from comvex.study.plan import CONVIT, PLAIN, PlannedRun
from comvex.training.recipe import differences

RUNS = "runs"
COLUMNS = ("architecture", "fraction", "seed", "num_pictures", "steps", "top1", "seconds")
"""Of results.csv."""


@dataclass(frozen=True)
class Result:
    """A finished run."""

    architecture: str
    fraction: float
    seed: int
    num_pictures: int
    """Training pictures, without those set aside for validation."""
    steps: int
    """Until it ended."""
    top1: float
    """On the test pictures, in percent; of a run without a test on the validation pictures."""
    num_test_pictures: int
    """That could be read; of a run without a test of the validation pictures."""
    seconds: float
    machine: str | None
    """Where, with what and when it ended; None for runs of before that was noted."""
    ended_early: bool
    """Whether patience ended it before its last step."""
    curve: tuple[tuple[int, float], ...]
    """(step, validation top-1 in percent) after each epoch."""
    losses: tuple[float, ...]
    """Validation loss after each epoch."""

    @property
    def late_change(self) -> float | None:
        """Mean validation top-1 of the last fifth of its epochs less that of the fifth before, in percentage points.

        None for less than ten epochs.
        """
        fifth = len(self.curve) // 5
        if fifth < 2:
            return None
        values = [top1 for _, top1 in self.curve]
        return statistics.mean(values[-fifth:]) - statistics.mean(values[-2 * fifth : -fifth])

    @property
    def least_loss_at(self) -> float | None:
        """The share of its epochs after which the validation loss was least, as the mean of a tenth of the epochs.

        1 where it still fell at the end, 0.1 at the earliest. None for less than ten epochs.
        """
        tenth = len(self.losses) // 10
        if not tenth:
            return None
        ends = range(tenth, len(self.losses) + 1)
        return min(ends, key=lambda end: sum(self.losses[end - tenth : end])) / len(self.losses)

    def row(self) -> dict[str, Any]:
        """Its line in results.csv."""
        return {name: getattr(self, name) for name in COLUMNS}


@dataclass(frozen=True)
class Summary:
    """An architecture at a fraction, over the seeds that are finished."""

    architecture: str
    fraction: float
    num_seeds: int
    num_pictures: float
    top1: float
    """Mean, in percent."""
    deviation: float | None
    """Standard deviation over the seeds, in percentage points; None for a single one."""
    seconds: float
    """Mean of a run."""
    steps: float
    """Mean of a run."""
    late_change: float | None
    """Mean of those of its runs that have one, in percentage points."""
    late_deviation: float | None
    """Standard deviation over them; None for less than two."""
    least_loss_at: tuple[float, ...]
    """Of those of its runs that have one, in the order of the seeds."""


@dataclass(frozen=True)
class Comparison:
    """ConViT beside the plain ViT at a fraction, on the seeds that both have finished."""

    fraction: float
    num_pictures: float
    improvement: float
    """Of the mean accuracy, relative to that of the plain ViT, in percent."""
    improvements: tuple[float, ...]
    """The same for each seed."""
    leads: tuple[float, ...]
    """Of ConViT's top-1 over that of the plain ViT, in percentage points, for each seed, so with the same pictures."""
    factor: Factor
    """How many times more pictures the plain ViT needs for ConViT's mean accuracy."""
    factors: tuple[Factor, ...]
    """The same for each seed, from the curve of the plain ViT of that seed."""


def read_result(run: PlannedRun, out: Path) -> Result | None:
    """The result of a run of the study in the folder ``out``; None if the run is not finished.

    Raises ``ValueError`` if it was trained with another recipe than the study's.
    """
    folder = out / RUNS / run.name
    summary = run_folder.read_summary(folder)
    if summary is None:
        return None
    found = differences(run_folder.read_recipe(folder), run.recipe.to_dict())
    if found:
        raise UserError(f"The run {folder} was not trained as the study says ({'; '.join(found)}): remove it.")
    history: list[dict[str, Any]] = read_table(folder / run_folder.METRICS)  # pyright: ignore[reportAssignmentType]
    return Result(
        architecture=run.architecture,
        fraction=run.fraction,
        seed=run.seed,
        num_pictures=summary["num_training_pictures"],
        steps=history[-1]["step"],
        top1=summary["top1"],
        num_test_pictures=summary["num_pictures"],
        seconds=summary["seconds"],
        machine=summary.get("machine"),
        ended_early=history[-1]["step"] < run.recipe.num_steps(summary["num_training_pictures"]),
        curve=tuple((row["step"], row["val_top1"]) for row in history),
        losses=tuple(row["val_loss"] for row in history),
    )


def summarise(results: Sequence[Result]) -> list[Summary]:
    """Mean and deviation over the seeds, in the order of the results."""
    groups: dict[tuple[str, float], list[Result]] = {}
    for result in results:
        groups.setdefault((result.architecture, result.fraction), []).append(result)
    return [summary(group) for group in groups.values()]


def summary(group: Sequence[Result]) -> Summary:
    """Of the runs of one architecture at one fraction, at least one."""
    late_changes = [result.late_change for result in group if result.late_change is not None]
    return Summary(
        architecture=group[0].architecture,
        fraction=group[0].fraction,
        num_seeds=len(group),
        num_pictures=statistics.mean(result.num_pictures for result in group),
        top1=statistics.mean(result.top1 for result in group),
        deviation=statistics.stdev(result.top1 for result in group) if len(group) > 1 else None,
        seconds=statistics.mean(result.seconds for result in group),
        steps=statistics.mean(result.steps for result in group),
        late_change=statistics.mean(late_changes) if late_changes else None,
        late_deviation=statistics.stdev(late_changes) if len(late_changes) > 1 else None,
        least_loss_at=tuple(place for result in group if (place := result.least_loss_at) is not None),
    )


def next_seed_within(num_seeds: int) -> float:
    """By how many standard deviations of so many seeds one more differs from their mean at most, 19 times out of 20.

    Half the width of the prediction interval of Student's t, for figures that scatter normally.
    """
    return students_t(num_seeds) * math.sqrt(1 + 1 / num_seeds)


def mean_within(num_seeds: int) -> float:
    """By how many standard deviations of so many seeds their mean differs from that of all seeds, 19 times out of 20.

    Half the width of the confidence interval of Student's t, for figures that scatter normally.
    """
    return students_t(num_seeds) * math.sqrt(1 / num_seeds)


def lead_interval(leads: Sequence[float]) -> tuple[float, float] | None:
    """Where the mean lead over all seeds lies, 19 times out of 20; None for a single seed, which says nothing of it."""
    if len(leads) < 2:
        return None
    mean, within = statistics.mean(leads), mean_within(len(leads)) * statistics.stdev(leads)
    return mean - within, mean + within


def students_t(num_seeds: int) -> float:
    """Its 97.5th percentile for the deviation of so many seeds, two at least."""
    from scipy.stats import t

    return float(t.ppf(0.975, num_seeds - 1))


def compare(results: Sequence[Result]) -> list[Comparison]:
    """ConViT and the plain ViT at each fraction, few pictures first, of the seeds that both have finished there."""
    found = {(result.architecture, result.fraction, result.seed): result for result in results}
    pairs = {
        (fraction, seed): (result, found[PLAIN, fraction, seed])
        for (architecture, fraction, seed), result in found.items()
        if architecture == CONVIT and (PLAIN, fraction, seed) in found
    }
    pairs = {key: pair for key, pair in pairs.items() if pair[1].top1}  # nothing is relative to 0
    plain = [result for result in results if result.architecture == PLAIN]
    comparisons = []
    for fraction in sorted({fraction for fraction, _ in pairs}):
        own = {seed: pair for (other, seed), pair in pairs.items() if other == fraction}
        num_pictures, top1 = mean_point([convit for convit, _ in own.values()])
        _, plain_top1 = mean_point([result for _, result in own.values()])
        comparisons.append(
            Comparison(
                fraction=fraction,
                num_pictures=num_pictures,
                improvement=relative(top1, plain_top1),
                improvements=tuple(relative(convit.top1, result.top1) for convit, result in own.values()),
                leads=tuple(convit.top1 - result.top1 for convit, result in own.values()),
                factor=picture_factor(num_pictures, top1, mean_curve(plain, own.keys())),
                factors=tuple(
                    picture_factor(convit.num_pictures, convit.top1, mean_curve(plain, {seed}))
                    for seed, (convit, _) in own.items()
                ),
            )
        )
    return comparisons


def differences_to_convit(results: Sequence[Result]) -> dict[tuple[str, float], list[float]]:
    """By how many points of top-1 each architecture differs from ConViT at a fraction, for each seed that both have
    finished there.
    """
    convit = {(each.fraction, each.seed): each.top1 for each in results if each.architecture == CONVIT}
    found: dict[tuple[str, float], list[float]] = {}
    for each in results:
        if each.architecture != CONVIT and (each.fraction, each.seed) in convit:
            difference = each.top1 - convit[each.fraction, each.seed]
            found.setdefault((each.architecture, each.fraction), []).append(difference)
    return found


def mean_point(results: Sequence[Result]) -> tuple[float, float]:
    """(pictures, top-1 in percent), means over the seeds."""
    return statistics.mean(result.num_pictures for result in results), statistics.mean(r.top1 for r in results)


def mean_curve(results: Sequence[Result], seeds: Collection[int]) -> list[tuple[float, float]]:
    """(pictures, top-1 in percent), means over these seeds, of the fractions that all of them have finished."""
    by_fraction: dict[float, list[Result]] = {}
    for result in results:
        if result.seed in seeds:
            by_fraction.setdefault(result.fraction, []).append(result)
    return [mean_point(own) for _, own in sorted(by_fraction.items()) if len(own) == len(seeds)]


def relative(value: float, reference: float) -> float:
    """By how many percent a value exceeds a reference."""
    return 100 * (value / reference - 1)
