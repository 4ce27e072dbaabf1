"""What became of a study's layers, against a table of heads that is made by hand."""

import json

import pytest

from comvex import run_folder
from comvex.files import write_table
from comvex.study.layers import LayerFigures, over_seeds, read_layers
from comvex.study.plan import Study
from comvex.study.results import RUNS
from comvex.training.recipe import Recipe

STUDY = Study("sample-efficiency", Recipe(), (0.1,), (7,))
[CONVIT, PLAIN] = STUDY.runs(1000)


def head(epoch, layer, head, gate, nonlocality):
    return {
        "epoch": epoch, "layer": layer, "head": head, "gate": gate, "nonlocality_content": 9.0,
        "nonlocality_positional": None if gate is None else 9.0, "nonlocality_blended": nonlocality,
    }  # fmt: skip


def made(out, run, heads, *, best_epoch=2):
    folder = out / RUNS / run.name
    folder.mkdir(parents=True)
    (folder / run_folder.SUMMARY).write_text(json.dumps({"best_epoch": best_epoch}))
    write_table(folder / run_folder.HEADS, heads)


def test_layers_are_means_over_their_heads_before_the_first_step_and_after_the_tested_epoch(tmp_path):
    heads = [
        head(epoch, layer, number, None if layer else gate + 0.1 * number, far + number)
        for epoch, gate, far in ((0, 0.7, 1.0), (1, 0.9, 5.0), (2, 0.5, 2.0), (3, 0.9, 5.0))
        for layer in (0, 1)
        for number in (0, 1)
    ]
    made(tmp_path, CONVIT, heads)
    told = [(each.epoch, each.layer, each.gate, each.nonlocality) for each in read_layers(CONVIT, tmp_path)]
    assert told == [
        (0, 0, pytest.approx(0.75), 1.5),
        (0, 1, None, 1.5),
        (2, 0, pytest.approx(0.55), 2.5),
        (2, 1, None, 2.5),
    ]
    [name] = {(each.architecture, each.fraction, each.seed) for each in read_layers(CONVIT, tmp_path)}
    assert name == ("convit", 0.1, 7)


def test_a_run_that_is_not_finished_or_has_no_table_of_heads_has_no_layers(tmp_path):
    made(tmp_path, CONVIT, [head(2, 0, 0, 0.5, 1.0)])
    (tmp_path / RUNS / CONVIT.name / run_folder.SUMMARY).unlink()
    made(tmp_path, PLAIN, [])
    assert read_layers(CONVIT, tmp_path) == read_layers(PLAIN, tmp_path) == []


def test_lines_are_means_over_the_seeds_and_before_the_first_step_over_all_fractions():
    layers = [
        LayerFigures("convit", fraction, seed, epoch, layer, gate, far)
        for fraction, seed, epoch, layer, gate, far in (
            (0.1, 0, 0, 0, 0.7, 1.0), (1.0, 0, 0, 0, 0.7, 3.0), (0.1, 0, 4, 0, 0.6, 1.0), (0.1, 1, 5, 0, 0.8, 2.0),
            (0.1, 0, 4, 1, None, 5.0), (1.0, 0, 9, 0, 0.9, 8.0),
        )
    ]  # fmt: skip
    assert over_seeds(layers, "nonlocality", begun=False) == {("convit", 0.0): {0: 2.0}}
    assert over_seeds(layers, "nonlocality", begun=True) == {
        ("convit", 0.1): {0: 1.5, 1: 5.0},
        ("convit", 1.0): {0: 8.0},
    }
    assert over_seeds(layers, "gate", begun=True) == {
        ("convit", 0.1): {0: pytest.approx(0.7)},
        ("convit", 1.0): {0: 0.9},
    }
