"""Means, deviations and comparisons of made results, against figures worked out by hand."""

import dataclasses
import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tyro
from matplotlib.figure import Figure

import comvex
from comvex.commands.study import RunStudy
from comvex.processor import machine_line
from comvex.study import figures
from comvex.study.picture_factor import Factor
from comvex.study.plan import Study, command, length
from comvex.study.report import (
    accuracy_table,
    comparison_table,
    machine_lines,
    method_lines,
    plateau_lines,
    verdict,
    write_report,
)
from comvex.study.results import Comparison, Result, compare, differences_to_convit, next_seed_within, summarise
from comvex.training.recipe import Architecture, Recipe


def result(architecture: str, fraction: float, seed: int, top1: float) -> Result:
    return Result(
        architecture=architecture,
        fraction=fraction,
        seed=seed,
        num_pictures=round(1000 * fraction),
        steps=10,
        top1=top1,
        num_test_pictures=400,
        seconds=2.0,
        machine=None,
        ended_early=False,
        curve=((5, top1 - 1), (10, top1)),
        losses=(0.9, 0.8),
    )


RESULTS = [
    *(result("convit", 0.1, seed, top1) for seed, top1 in ((0, 59.0), (1, 61.0))),
    *(result("plain", 0.1, seed, top1) for seed, top1 in ((0, 50.0), (1, 50.0))),
    *(result("convit", 1.0, seed, top1) for seed, top1 in ((0, 81.0), (1, 79.0))),
    *(result("plain", 1.0, seed, top1) for seed, top1 in ((0, 70.0), (1, 72.0))),
]


def words(study: Study, results: list[Result]) -> str:
    return " ".join(method_lines(study, results, summarise(results), {}))


def test_mean_and_deviation_are_those_of_the_seeds():
    first, second, *_ = summarise(RESULTS)
    assert (first.architecture, first.fraction, first.num_seeds, first.num_pictures) == ("convit", 0.1, 2, 100)
    assert (first.top1, first.deviation) == (60.0, pytest.approx(math.sqrt(2)))
    assert (second.architecture, second.top1, second.deviation) == ("plain", 50.0, 0.0)
    assert summarise(RESULTS[:1])[0].deviation is None


def test_the_comparison_is_relative_and_the_factor_is_interpolated_in_log_pictures():
    few, many = compare(RESULTS)
    assert few.improvement == pytest.approx(20.0)  # 60 beside 50
    assert few.improvements == (pytest.approx(18.0), pytest.approx(22.0))
    assert few.leads == (pytest.approx(9.0), pytest.approx(11.0))
    assert few.factor.value == pytest.approx(10 ** (10 / 21))  # from 50 at 100 to 71 at 1,000 pictures
    assert [factor.value for factor in few.factors] == [
        pytest.approx(10 ** (9 / 20)), pytest.approx(10 ** (11 / 22)),
    ]  # fmt: skip
    assert many.factor == Factor(1.0, ">")


def test_only_seeds_that_both_have_finished_are_compared():
    [few] = compare([*RESULTS[:3], result("convit", 1.0, 0, 90.0)])
    assert (few.fraction, few.improvements) == (0.1, (pytest.approx(18.0),))
    assert compare(RESULTS[:2]) == []


def test_the_plain_vit_may_be_ahead_with_more_pictures_and_each_mean_is_of_the_same_seeds():
    both_few = [*RESULTS[:4], result("plain", 1.0, 0, 70.0)]
    [few] = compare(both_few)
    assert few.factor == Factor(1.0, ">")  # only one of the two seeds is known beyond
    assert few.factors == (Factor(pytest.approx(10 ** (9 / 20))), Factor(1.0, ">"))
    [few] = compare([*both_few, result("plain", 1.0, 1, 72.0)])
    assert few.factor.value == pytest.approx(10 ** (10 / 21))


def test_a_run_that_still_rises_is_told_from_one_at_its_plateau():
    few, *_ = RESULTS
    assert (few.late_change, few.least_loss_at) == (None, None)
    losses = tuple(20.0 - epoch for epoch in range(20))
    rising = dataclasses.replace(few, curve=tuple((step, 5.0 * step) for step in range(20)), losses=losses)
    flat = dataclasses.replace(few, curve=tuple((step, min(step, 5)) for step in range(20)), losses=losses[::-1])
    assert (rising.late_change, flat.late_change) == (20.0, 0.0)
    assert (rising.least_loss_at, flat.least_loss_at) == (1.0, 0.1)
    study = Study("sample-efficiency", Recipe(), (0.1,), (0, 1))
    lines = plateau_lines(
        study, results := [rising, dataclasses.replace(flat, architecture="plain")], summarise(results)
    )
    assert lines[6:8] == [
        "| ConViT | 100 (10 %) | 10 | +20.00 | 100 % | 100 |",
        "| plain ViT | 100 (10 %) | 10 | +0.00 | 10 % | 10 |",
    ]
    assert (
        lines[2] == "Means over the seeds, of the validation pictures; each run went down to the lowest learning rate:"
    )
    assert "atience" not in " ".join(lines)
    both = [rising, dataclasses.replace(flat, seed=1, ended_early=True)]
    lines = plateau_lines(study, both, summarise(both))
    assert lines[2] == "Means over the seeds, of the validation pictures:"
    assert lines[6] == "| ConViT | 100 (10 %) | 10 | +10.00 ± 14.14 | 55 % | 10, 100 |"
    assert plateau_lines(study, RESULTS, summarise(RESULTS)) == []  # of two epochs each


def test_one_lucky_epoch_does_not_have_the_least_loss():
    few, *_ = RESULTS
    losses = (3.0,) * 4 + (0.9,) + (3.0,) * 5 + (1.0,) * 2 + (3.0,) * 8
    assert dataclasses.replace(few, losses=losses).least_loss_at == 0.6


def test_the_report_says_how_many_runs_patience_ended():
    patient = Study("sample-efficiency", Recipe(patience=4), (0.1,), (0, 1))
    early = [dataclasses.replace(RESULTS[0], ended_early=True), RESULTS[1]]
    text = " ".join(plateau_lines(patient, early, summarise(early)))
    assert "Patience of 4 epochs" in text
    assert "ended 1 of the 2 runs before their last step" in text


def test_the_report_says_where_one_seed_more_is_expected():
    # Student's t for 2 degrees of freedom is 4.303, for 1 it is 12.706
    assert next_seed_within(3) == pytest.approx(4.303 * math.sqrt(4 / 3), abs=1e-3)
    assert next_seed_within(2) == pytest.approx(12.706 * math.sqrt(3 / 2), abs=1e-3)
    study = Study("sample-efficiency", Recipe(), (0.1,), (0, 1))
    assert "within 15.6 deviations of the mean of 2." in words(study, RESULTS)
    assert "One seed more" not in words(study, RESULTS[:1])


def test_the_report_says_where_the_runs_were_trained_and_where_it_was_written():
    trained = [dataclasses.replace(each, machine="a machine") for each in RESULTS[:3]]
    *told, page = machine_lines([*trained, *RESULTS[3:]])
    assert told == [
        "Where the runs ended:",
        "",
        "- 3 of the runs: a machine",
        "- 5 of the runs: where they were trained was not noted",
        "",
    ]
    assert page == f"This page: {machine_line(f'comvex {comvex.__version__}')}"


@pytest.mark.parametrize("stretch", [0.0, 0.3, 1.0])
def test_the_report_says_how_many_steps_a_fraction_has(stretch):
    study = Study("sample-efficiency", Recipe(steps=600), (0.5, 1.0), (0,), stretch=stretch)
    steps = length(study.recipe, 0.5, 1000, stretch=stretch)["steps"]
    told = {
        0.0: "A fraction's steps are 600 times fraction.",
        0.3: "A fraction's steps are 600 times fraction to the power 0.7.",
        1.0: "Every fraction has 600 steps.",
    }
    assert steps == {0.0: 300, 0.3: round(600 * 0.5**0.7), 1.0: 600}[stretch]
    assert told[stretch] in (text := words(study, RESULTS))
    assert "epochs are" not in text
    by_epochs = dataclasses.replace(study, recipe=Recipe(epochs=3))
    assert "A fraction's epochs are the 3 of all pictures times (1 / fraction)" in (text := words(by_epochs, RESULTS))
    assert "fewer where an epoch" not in text
    more_steps = {0.0: "twice the pictures have 2.00 times the steps", 0.3: "twice the pictures have 1.62 times"}
    assert more_steps.get(stretch, "(1 / fraction).") in text
    one_step = dataclasses.replace(by_epochs, recipe=Recipe(epochs=3, batch_size=128))
    assert ", fewer where an epoch has less than a batch." in words(one_step, RESULTS)


def test_the_report_says_what_the_number_of_test_pictures_leaves_open():
    study = Study("sample-efficiency", Recipe(), (0.1,), (0, 1))
    some = [result("convit", 0.1, 0, 80.0), result("plain", 0.1, 0, 80.0)]
    assert "There are 400 test pictures" in (text := words(study, some))
    assert "a standard error of 2.00 points" in text  # 100 * sqrt(0.8 * 0.2 / 400)
    assert "a standard error of 1.50 to 2.00 points" in words(study, [*some, result("convit", 1.0, 0, 90.0)])


def test_the_report_names_classes_that_could_not_be_learnt():
    study = Study("sample-efficiency", Recipe(), (0.1,), (0, 1))
    text = " ".join(method_lines(study, RESULTS, summarise(RESULTS), {"0.05": list("abcdef"), "0.1": ["f"]}))
    assert (
        "At 5 % of the pictures there is, with some seed, no picture to train on of 6 classes: a, b, c, d, e, ..."
        in text
    )
    assert "At 10 % of the pictures there is, with some seed, no picture to train on of 1 class: f." in text


def test_no_curve_ends_at_the_edge_of_its_panel(tmp_path, monkeypatch):
    drawn = Figure()

    @contextmanager
    def kept(*_, **__) -> Iterator[Figure]:
        yield drawn

    monkeypatch.setattr(figures, "new_figure", kept)
    late = [dataclasses.replace(each, curve=((9_990, 50.0), (10_000, 60.0))) for each in RESULTS]
    figures.draw_learning_curves(late, tmp_path / "curves.png", title="late")
    panels = [axes for axes in drawn.axes if axes.get_title(loc="left") or axes.get_title()]
    assert [axes.get_xlim() for axes in panels] == [(0, pytest.approx(10_500))] * 2


def test_the_tables_say_what_was_found():
    lines = comparison_table(summarise(RESULTS), compare(RESULTS))
    # Student's t for two seeds, 12.706, times their deviation, sqrt(2) and 2 sqrt(2), over sqrt(2)
    assert lines[2] == (
        "| 100 (10 %) | 60.00 ± 1.41 (2) | 50.00 ± 0.00 (2) | +10.00 (-2.71 to +22.71) | 2 of 2 | +20.0 "
        "| 2.99 | 2.82, 3.16 |"
    )
    assert lines[3] == (
        "| 1,000 (100 %) | 80.00 ± 1.41 (2) | 71.00 ± 1.41 (2) | +9.00 (-16.41 to +34.41) | 2 of 2 | +12.7 "
        "| > 1.00 | > 1.00, > 1.00 |"
    )
    alike = [result("convit", 0.1, 2, 40.0), result("plain", 0.1, 2, 40.0)]  # no lead is none
    assert "| +0.00 | 0 of 1 |" in comparison_table(summarise(alike), compare(alike))[2]
    [comparison] = [each for each in compare(RESULTS) if each.fraction == 0.1]
    bounds = dataclasses.replace(comparison, factors=(Factor(1.0, ">"), Factor(1.7), Factor(2.0, "<"), Factor(1.2)))
    assert comparison_table(summarise(RESULTS), [bounds])[2].endswith("| < 2.00, 1.20, 1.70, > 1.00 |")
    assert comparison_table(summarise(RESULTS[:1]), [])[2] == "| 100 (10 %) | 59.00 (1) | - |  |  |  |  |  |"
    assert accuracy_table(summarise(RESULTS), differences_to_convit(RESULTS))[2:] == [
        "| ConViT | 60.00 ± 1.41 (2) |  | 80.00 ± 1.41 (2) |  |",
        "| plain ViT | 50.00 ± 0.00 (2) | -10.00 ± 1.41 (2) | 71.00 ± 1.41 (2) | -9.00 ± 2.83 (2) |",
    ]
    few = [*RESULTS[:3], result("neither", 0.1, 2, 40.0)]
    assert accuracy_table(summarise(few), differences_to_convit(few))[2:] == [
        "| ConViT | 60.00 ± 1.41 (2) |  |",
        "| plain ViT | 50.00 (1) | -9.00 (1) |",
        "| neither | 40.00 (1) |  |",
    ]


def test_the_verdict_is_of_the_intervals_and_not_of_the_means():
    def comparison(num_pictures: int, *leads: float) -> Comparison:
        return dataclasses.replace(compare(RESULTS)[0], num_pictures=num_pictures, leads=leads)

    surely, behind, either = (1.0, 1.1, 1.2), (-1.2, -1.1, -1.0), (0.1, 0.2, 3.0)
    excluded = "(the 95 % interval of the lead excludes 0)"
    open_part = "the seeds do not settle which leads: more of them may"
    shares = [
        comparison(540, *either),
        comparison(2700, *surely),
        comparison(5400, *surely),
        comparison(54000, *behind),
    ]
    assert verdict(shares) == (
        f"ConViT leads with 2,700 and 5,400 pictures {excluded}; the plain ViT leads with 54,000 pictures {excluded}; "
        f"with 540 pictures {open_part}."
    )
    assert verdict([comparison(540, 5.0)]) == f"With 540 pictures {open_part}."  # one seed says nothing of others
    shares = [comparison(1, *either), comparison(2, 1.0, 1.0), comparison(3, *surely), comparison(3, *either)]
    assert verdict(shares) == f"ConViT leads with 3 pictures {excluded}; with 1, 2 and 3 pictures {open_part}."


def test_the_command_in_the_report_gives_the_study_again():
    recipe = Recipe(
        data="my pictures",
        steps=5,
        optimizer="muon",
        learning_rate=1e-3,
        clip_norm=None,
        model=Architecture(image_size=(16, 8), dim=32),
    )
    study = Study("ablation", recipe, (0.1, 1 / 3, 1.0), (0, 7), stretch=1 / 7)
    program, name, *arguments = shlex.split(command(study, Path("studies/my own")))
    assert (program, name) == ("comvex", "study")
    again = tyro.cli(RunStudy, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    assert again.out == Path("studies/my own")
    assert Study(again.kind, again.recipe, again.fractions, again.seeds, again.stretch) == study


def test_nothing_is_written_before_a_run_is_finished(tmp_path):
    study = Study("sample-efficiency", Recipe(), (0.1,), (0,))
    report = write_report(study, study.runs(1000), tmp_path)
    assert (report["num_runs"], report["num_finished"], report["results"]) == (2, 0, [])
    assert list(tmp_path.iterdir()) == []
