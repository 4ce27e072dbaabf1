"""The README's promises: its snippets run as they stand, its commands are the ones that are checked."""

import csv
import json
import re
import shlex
import statistics
from pathlib import Path

import pytest

from comvex.study.plan import Study, command
from comvex.study.report import accuracy_table, comparison_table, lead_words, method_lines, plateau_lines, verdict
from comvex.study.results import Result, compare, differences_to_convit, lead_interval, read_result, summarise

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\S+)([^\n]*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
SNIPPETS = [code for language, tag, code in BLOCKS if language == "python" and "notest" not in tag]
COMMANDS = [line for language, _, code in BLOCKS if language == "bash" for line in code.splitlines()]


TIMM = "timm-baseline/plain-10pc-seed{}.json"


@pytest.mark.parametrize("code", SNIPPETS)
def test_the_documented_snippets_run_as_they_stand(code):
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert {"convit_config", "convit_backbone", "convit"} & names.keys()


def test_the_seeds_snippets_are_all_there():
    together = "\n".join(SNIPPETS)
    assert len(SNIPPETS) == 3
    for line in (
        "from comvex.convit import ConViTConfig",
        "from comvex.convit import ConViTBackbone",
        "convit_config = ConViTConfig.ConViT_Ti()",
        "convit = ConViTWithLinearClassifier(convit_config)",
        "    locality_strength=1.,       # The `alpha` in the official paper",
        '    pred_act_fnc_name="ReLU"    # The name of the activation function for the projection head',
    ):
        assert line in together


def test_the_two_commands_are_there_and_ci_runs_the_second_as_it_stands():
    assert "pip install -e . && comvex train" in COMMANDS
    assert "pip install -e '.[dev]' && pytest" in COMMANDS
    assert "\npip install -e '.[dev]' && pytest\n" in (ROOT / ".ci" / "run").read_text()


def test_every_comvex_command_in_the_readme_is_one_that_the_command_line_takes():
    import tyro

    from comvex.cli import COMMANDS as KNOWN

    lines = [shlex.split(line, comments=True) for line in COMMANDS if line.startswith("comvex ")]
    assert len(lines) >= 3
    for _, name, *arguments in lines:
        tyro.cli(KNOWN[name], args=arguments, config=(tyro.conf.FlagCreatePairsOff,))


def recorded(name: str) -> tuple[Study, list[Result]]:
    """A study that is kept in docs/results, and its finished runs."""
    folder = RESULTS / name
    stored = json.loads((folder / "study.json").read_text())
    study = Study.from_dict(stored)
    results = [read_result(run, folder) for run in study.runs(stored["num_pictures"])]
    return study, [result for result in results if result is not None]


def test_the_figures_of_the_study_are_those_of_its_recorded_runs():
    _, results = recorded("sample-efficiency-muon")
    top1 = {(each.architecture, each.fraction): each.top1 for each in summarise(results)}
    compared = {comparison.fraction: comparison for comparison in compare(results)}
    assert {len(comparison.leads) for comparison in compared.values()} == {3}
    told = " ".join(README.split())
    convit, plain = (
        ", ".join(f"{top1[name, fraction]:.2f}" for fraction in (0.01, 0.05, 0.1)) for name in ("convit", "plain")
    )
    assert f"with 540, 2,700 and 5,400 of them ConViT gets {convit} % of the test pictures right" in told
    assert f"the plain ViT {plain} %" in told
    leads = [statistics.mean(compared[fraction].leads) for fraction in (0.01, 0.05, 0.1)]
    assert f"leads by {leads[0]:.2f}, {leads[1]:.2f} and {leads[2]:.2f} points" in told
    pairs = [lead for comparison in compared.values() for lead in comparison.leads]
    assert f"in {sum(lead > 0 for lead in pairs)} of {len(pairs)} pairs of runs" in told
    one, five = compared[0.01].factor, compared[0.05].factor
    assert f"would need {one.value:.1f} times as many, for that with 2,700 {five.value:.1f} times;" in told
    assert (one.bound, five.bound) == ("", "")
    assert compared[0.1].factor.bound, "told as not known"
    settled = verdict(list(compared.values())).removeprefix("ConViT leads with ").partition(" (")[0]
    assert f"the 95 % interval of the lead excludes 0 with {settled}." in told
    shorter = half_as_long("sample-efficiency-muon")
    half = [statistics.mean(comparison.leads) for comparison in compare(shorter)]
    assert f"In runs of half the steps it led by {half[0]:.2f}, {half[1]:.2f} and {half[2]:.2f} points" in told
    sooner = {each.fraction: each.top1 for each in summarise(shorter) if each.architecture == "convit"}
    words = ", ".join(f"{sooner[fraction]:.2f}" for fraction in (0.01, 0.05, 0.1))
    assert f"ConViT had {words} % then, more than the plain ViT has in twice the steps" in told
    assert all(sooner[fraction] > top1["plain", fraction] for fraction in sooner)


def test_the_figures_of_the_study_with_adamw_are_those_of_its_recorded_runs():
    folder = RESULTS / "sample-efficiency"
    _, results = recorded("sample-efficiency")
    top1 = {(each.architecture, each.fraction): each.top1 for each in summarise(results)}
    compared = {comparison.fraction: comparison for comparison in compare(results)}
    for comparison in (compared[0.01], compared[0.1]):
        assert not any(factor.bound for factor in (comparison.factor, *comparison.factors))  # told as figures
    factors = {fraction: comparison.factor.value for fraction, comparison in compared.items()}
    leads = [statistics.mean(comparison.leads) for comparison in compared.values()]
    told = " ".join(README.split())
    assert f"ConViT leads at every share, by {min(leads):.1f} to {max(leads):.1f} points, and in all 15 pairs" in told
    pairs = [lead for comparison in compared.values() for lead in comparison.leads]
    assert (min(pairs) > 0, len(pairs)) == (True, 15)
    assert f"With 5,400 pictures it gets {top1['convit', 0.1]:.1f} % of the test pictures right, for which" in told
    assert (
        f"would need {factors[0.1]:.1f} times as many; with 540 it gets {top1['convit', 0.01]:.1f} %, for which" in told
    )
    assert f"for which the plain ViT would need {factors[0.01]:.1f} times as many. Those are means of three" in told
    few, many = (
        " to ".join(f"{float(end):+.1f}" for end in re.findall(r"[+-][\d.]+", lead_words(compared[fraction].leads))[1:])
        for fraction in (0.01, 0.1)
    )
    assert f"the 95 % interval of the lead is {many} points with 5,400 pictures and {few} with 540" in told
    convit = {each.seed: each.top1 for each in results if (each.architecture, each.fraction) == ("convit", 0.1)}
    timm = {seed: json.loads((folder.parent / TIMM.format(seed)).read_text())["top1"] for seed in convit}
    over = [convit[seed] - timm[seed] for seed in convit]
    low, high = lead_interval(over) or (0.0, 0.0)
    told_over = f"it is {statistics.mean(over):.1f}, the interval {low:+.1f} to {high:+.1f}."
    assert f"over timm's ViT, trained on the same 5,400, {told_over}" in told
    half = {comparison.fraction: comparison.factor.value for comparison in compare(half_as_long("sample-efficiency"))}
    assert f"In runs half as long the factors were {half[0.1]:.1f} and {half[0.01]:.1f}:" in told


def test_the_figures_of_the_finer_grid_are_those_of_its_recorded_runs():
    finer, coarse = (
        {(each.architecture, each.fraction): each for each in recorded(name)[1] if each.seed == 0}
        for name in ("sample-efficiency-14x14", "sample-efficiency-muon")
    )
    convit, plain = (finer[name, 0.01].top1 for name in ("convit", "plain"))
    other = coarse["convit", 0.01].top1 - coarse["plain", 0.01].top1
    told = " ".join(README.split())
    assert f"ConViT gets {convit:.2f} % right, the plain ViT {plain:.2f} %, {convit - plain:.2f} points where" in told
    assert f"where 4 pixels give that seed {other:.2f}." in told
    assert {each.num_pictures for each in finer.values()} == {540}
    assert {each.steps for each in finer.values()} == {coarse["convit", 0.01].steps}


def half_as_long(name: str) -> list[Result]:
    """The runs of half the steps that a recorded study had before, without their curves."""
    with (RESULTS / name / "half-as-long.csv").open(newline="") as stream:
        return [
            Result(
                architecture=row["architecture"],
                fraction=float(row["fraction"]),
                seed=int(row["seed"]),
                num_pictures=int(row["num_pictures"]),
                steps=int(row["steps"]),
                top1=float(row["top1"]),
                num_test_pictures=10_000,
                seconds=float(row["seconds"]),
                machine=None,
                ended_early=False,
                curve=(),
                losses=(),
            )
            for row in csv.DictReader(stream)
        ]


@pytest.mark.parametrize("name", ["sample-efficiency", "sample-efficiency-muon", "sample-efficiency-14x14", "ablation"])
def test_the_recorded_reports_are_what_their_runs_come_to_today(name):
    study, results = recorded(name)
    summaries = summarise(results)
    if study.kind == "sample-efficiency":
        comparisons = compare(results)
        table = [verdict(comparisons), *comparison_table(summaries, comparisons)]
    else:
        table = accuracy_table(summaries, differences_to_convit(results))
    page = command(study, Path("docs") / "results" / name)
    text = [page, *table, *plateau_lines(study, results, summaries), *method_lines(study, results, summaries, {})]
    assert set(text) <= set((RESULTS / name / "report.md").read_text(encoding="utf-8").splitlines())


def test_files_that_the_readme_names_exist():
    for file in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / file).exists(), file
    for file in re.findall(r"`((?:data|convit|inference|training)/\w+\.py)`", README):
        assert (ROOT / "src" / "comvex" / file).exists(), file
    for file, name in re.findall(r"`([\w/]+\.py)`: `(\w+)", README):
        assert re.search(rf"^(?:def|class) {name}\b", (ROOT / "src" / "comvex" / file).read_text(), re.MULTILINE), name


def test_no_file_names_a_registrys_host():
    hosts = ("pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "debian" + ".org")
    for file in ROOT.rglob("*"):
        relative = file.relative_to(ROOT).parts
        if file.is_file() and not {".git", ".venv", "runs", "__pycache__"} & set(relative) and file.suffix != ".png":
            text = file.read_text(encoding="utf-8", errors="ignore")
            assert not [host for host in hosts if host in text], file
