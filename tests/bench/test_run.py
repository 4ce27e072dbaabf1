"""The report of a benchmark: its rounds, its figures, its files, and the command. No time is asserted."""

import errno
import itertools
import json
import os
import statistics
import subprocess
import sys
from typing import Any

import pytest
import torch
from PIL import Image

from comvex.bench.figures import Measured, Spread, growth, ratio, ratios
from comvex.bench.gemm import fastest_side, flop_of_product, square_product
from comvex.bench.machine import INSTRUCTION_SETS, instruction_sets_in_words
from comvex.bench.peak_memory import NotMeasurable, peak_memory, peak_of_process, peak_of_tensors
from comvex.bench.plan import Form, make_plan
from comvex.bench.report import FILES, check_out, to_markdown, write_report
from comvex.bench.run import keeping_what_fits, run_bench, shuffled, time_all, time_in_turn
from comvex.bench.steps import Job, export, make_step
from comvex.cli import main
from comvex.convit import ConViTConfig
from comvex.errors import UserError

CPU = torch.device("cpu")
OURS, PLAIN, TIMM = (Form(name, "eager", "float32") for name in ("convit", "plain_vit", "timm_convit"))


def config(**overrides) -> ConViTConfig:
    values = {"image_size": 32, "dim": 24, "num_local_layers": 1, "num_nonlocal_layers": 1, "num_classes": 5}
    return ConViTConfig.ConViT_Ti(**(values | overrides))


def made_plan(*configs: ConViTConfig, against=("plain_vit", "timm_convit")):
    return make_plan(
        {"tiny": configs},
        batch_size=2,
        modes=("inference",),
        runtimes=("eager",),
        precisions=("float32",),
        against=against,
    )


@pytest.fixture(scope="module")
def report():
    """A real run of a very small model."""
    plan = made_plan(config(), against=("plain_vit",))
    before = torch.get_num_threads()
    found = run_bench(plan, rounds=7, threads=1, command="comvex bench", gemm_sides=(64,))
    assert torch.get_num_threads() == before
    return found


def test_tf32_is_off_while_it_is_measured_and_as_before_afterwards(monkeypatch):
    def flags() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    def fail(*_: Any, **__: Any) -> None:
        seen.append(flags())
        raise UserError("stopped")

    seen: list[tuple[str, bool]] = []
    before = flags()
    monkeypatch.setattr("comvex.bench.run.measure_scenes", fail)
    try:
        for chosen in (("high", True), ("highest", False)):
            torch.set_float32_matmul_precision(chosen[0])
            torch.backends.cudnn.allow_tf32 = chosen[1]
            with pytest.raises(UserError, match="stopped"):
                run_bench(made_plan(config()), rounds=7, threads=1)
            assert flags() == chosen
        assert seen == 2 * [("highest", False)]
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def made(form: Form, seconds: list[float], *, image_size: int = 32, memory: float | None = 8e6) -> Measured:
    [scene] = made_plan(config(image_size=image_size)).scenes
    return Measured(
        scene, form, flop=10**6, peak_memory=memory, difference=0.0, out_of_memory=memory is None, seconds=seconds,
        gemm_side=100, gemm_seconds=[1e-3] * len(seconds),
    )  # fmt: skip


def test_a_report_has_every_form_at_every_size_with_all_its_figures(report):
    json.loads(json.dumps(report, allow_nan=False))
    assert [(row["image_size"], row["contestant"]) for row in report["rows"]] == [
        (32, "convit"),
        (32, "plain_vit"),
    ]
    for row in report["rows"]:
        time = row["ms_per_picture"]
        assert 0 < time["low"] <= time["median"] <= time["high"]
        assert row["pictures_per_second"] == pytest.approx(1000 / time["median"])
        assert row["gflops"] == pytest.approx(row["gflop_per_picture"] * row["pictures_per_second"])
        assert statistics.median(row["seconds"]) * 1000 / 2 == pytest.approx(time["median"])
        peaks = [flop_of_product(64) / seconds / 1e9 for seconds in row["gemm_seconds"]]
        assert row["gemm_gflops"]["median"] == pytest.approx(statistics.median(peaks))
        assert row["gemm_peak_gflops"] == max(peaks)
        assert len(row["seconds"]) == len(peaks) == 7
        assert row["peak_memory_mb"] > 0
        assert row["memory_of"] == "tensors"
        assert row["rounds"] == 7
    assert [row["image_size"] for row in report["ratios"]] == [32]
    machine = report["machine"]
    there = machine["instruction_sets"]
    assert there is None or set(there) <= set(INSTRUCTION_SETS)
    assert (machine["threads"], machine["device"]) == (1, "cpu")
    assert torch.__version__.startswith(machine["versions"]["torch"])


def test_the_page_says_ratios_first_and_how_it_was_made(report, tmp_path):
    larger = [made(form, [2.0] * 7, image_size=64) for form in (OURS, PLAIN)]
    rows = report["rows"] + [found.row() for found in larger]
    report = report | {"rows": rows, "ratios": report["ratios"] + ratios(larger), "growth": growth(rows)}
    assert len(report["growth"]) == 2
    write_report(report, tmp_path)
    page = (tmp_path / "bench.md").read_text()
    assert page == to_markdown(report)
    assert page.index("## Ratios") < page.index("## Absolute figures") < page.index("## Cost as pictures grow")
    said = ("1 threads", "torch 2.", "timm 1.", "`comvex bench`", "Median of 7 paired rounds", "shuffled with seed 0")
    for text in said:
        assert text in page.split("##")[0]
    for table in page.split("##")[1:]:
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1
    assert json.loads((tmp_path / "bench.json").read_text()) == report
    for name in ("ratios.png", "times.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 1000
    with pytest.raises(UserError, match="--overwrite replaces it"):
        check_out(tmp_path, overwrite=False)
    check_out(tmp_path, overwrite=True)


def test_the_instruction_sets_that_matter_are_named_and_those_that_lack_too(report):
    assert instruction_sets_in_words(INSTRUCTION_SETS).endswith("amx_bf16, amx_int8")
    zen_3 = "avx2; without avx512f, avx512_vnni, avx_vnni, avx512_bf16, amx_bf16, amx_int8"
    assert instruction_sets_in_words(["avx2"]) == zen_3
    assert instruction_sets_in_words(report["machine"]["instruction_sets"]) in to_markdown(report).split("##")[0]
    assert instruction_sets_in_words(None) == "instruction sets unknown"


def test_forms_take_turns_and_none_always_comes_after_the_same_other():
    calls = []
    steps = {form: lambda form=form: calls.append(form) for form in (OURS, PLAIN, TIMM)}
    times = time_in_turn(steps, rounds=9, device=CPU, tell=lambda text: None, shortest_round=0)
    assert {form: len(found) for form, found in times.items()} == {OURS: 9, PLAIN: 9, TIMM: 9}
    rounds = [calls[start : start + 3] for start in range(6, len(calls), 3)]  # two to warm up of each
    assert all(set(order) == {OURS, PLAIN, TIMM} for order in rounds)
    assert {order[0] for order in rounds} == {OURS, PLAIN, TIMM}
    neighbours = {pair for order in rounds for pair in itertools.pairwise(order)}
    assert neighbours == set(itertools.permutations((OURS, PLAIN, TIMM), 2))
    assert rounds == [shuffled([OURS, PLAIN, TIMM], number) for number in range(9)]


def test_a_form_that_fails_in_a_round_leaves_the_others_their_rounds():
    calls = itertools.count(1)

    def fail_at_the_fifth():
        if next(calls) == 5:
            raise RuntimeError("no more")

    steps = {OURS: lambda: None, PLAIN: fail_at_the_fifth}
    told = []
    options = {"rounds": 7, "device": CPU, "tell": lambda text: None, "shortest_round": 0}
    times = time_in_turn(steps, failed=lambda form, error: told.append((form, str(error))), **options)
    assert {form: len(found) for form, found in times.items()} == {OURS: 7}
    assert told == [(PLAIN, "no more")]
    steps[PLAIN] = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        time_in_turn(steps, **options)


@pytest.mark.parametrize(("needed", "megabytes"), [(3.3e9, 1073.741824), (3.4e9, 33.554432), (None, 1073.741824)])
def test_large_blocks_are_given_back_where_a_form_needs_more_than_a_third_of_what_there_is(
    monkeypatch, tmp_path, needed, megabytes
):
    (tmp_path / "meminfo").write_text("MemTotal: 9765625 kB\n")  # 10 GB
    monkeypatch.setattr("comvex.bench.peak_memory.MEMINFO", tmp_path / "meminfo")
    told = []
    monkeypatch.setattr("comvex.bench.run.keep_blocks_up_to", told.append)
    found = [made(OURS, [1.0] * 7, memory=1e9), made(TIMM, [1.0] * 7, memory=needed)]
    monkeypatch.setattr("comvex.bench.run.is_freed_memory_kept", lambda: True)
    with keeping_what_fits(found):
        assert told == [megabytes * 1e6]
    assert told == [megabytes * 1e6, 1 << 30]
    assert [one.row()["largest_kept_mb"] for one in found] == [megabytes, megabytes]


def test_a_row_whose_step_runs_out_of_memory_says_so_and_is_no_failure():
    found = {form: made(form, []) for form in (OURS, PLAIN)}
    message = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"

    def run_out():
        raise RuntimeError(message)

    time_all(found, {OURS: run_out, PLAIN: lambda: None}, rounds=7, device=CPU, tell=lambda text: None)
    assert (found[OURS].out_of_memory, found[OURS].error, found[OURS].seconds) == (True, None, [])
    assert (found[PLAIN].out_of_memory, len(found[PLAIN].seconds)) == (False, 7)


def test_a_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_medians():
    ours = made(OURS, [7.0, 6.0, 5.0, 4.0, 15.0, 12.0, 7.0])
    plain = made(PLAIN, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert ratio(ours, plain) == Spread(2, 1, 3)
    assert Spread.of([1, 2, 3, 4, 5, 6, 7]) == Spread(4, 2, 6)


def test_the_share_of_the_peak_is_of_the_best_product_and_the_other_of_the_same_rounds():
    """10^6 operations, and products of 2 x 100^3 operations, each at its pace of the round."""
    found = made(OURS, [1.0, 2.0, 4.0, 1.0, 2.0, 4.0, 8.0])
    found.gemm_seconds = [1.0, 1.0, 2.0, 2.0, 3.0, 8.0, 24.0]
    row = found.row()
    peak, in_round = row["share_of_gemm_peak"], row["share_of_gemm_in_round"]
    assert (peak["low"], peak["median"], peak["high"]) == (0.125, 0.25, 0.5)  # 1/2, 1/4, 1/8, 1/2, 1/4, 1/8, 1/16
    assert (in_round["low"], in_round["median"], in_round["high"]) == (0.25, 0.75, 1)  # 1/2, 1/4, 1/4, 1, 3/4, 1, 3/2
    assert (row["gemm_peak_gflops"], row["gemm_gflops"]["median"]) == (0.002, 0.001)


def test_speed_is_told_beside_timms_and_the_plain_vits():
    found = [made(OURS, [2.0] * 7), made(PLAIN, [1.6] * 7, memory=4e6), made(TIMM, [5.0] * 7)]
    [row] = ratios(found)
    assert row["time_over_plain_vit"]["median"] == 1.25
    assert row["times_faster_than_timm"]["median"] == 2.5
    assert row["times_faster_than_float32"] is None
    assert row["memory_over_plain_vit"] == 2
    in_bfloat16 = made(Form("convit", "eager", "bfloat16"), [1.0] * 7)
    row = ratios([*found, in_bfloat16])[1]
    assert row["times_faster_than_float32"]["median"] == 2
    assert row["times_faster_than_timm_eager_float32"]["median"] == 5
    assert row["times_faster_than_timm"] is None


def test_a_form_that_runs_out_of_memory_is_said_to_and_the_others_are_still_compared(report, tmp_path):
    found = [made(OURS, [1.0] * 7), made(PLAIN, [1.0] * 7), made(TIMM, [], memory=None)]
    rows = [measured.row() for measured in found]
    assert [row["out_of_memory"] for row in rows] == [False, False, True]
    [row] = ratios(found)
    assert row["timm_out_of_memory"]
    assert row["times_faster_than_timm"] is None
    told = report | {"rows": rows, "ratios": [row], "growth": growth(rows)}
    page = to_markdown(told)
    assert "| out of memory |" in page
    write_report(told, tmp_path)


def test_the_exponent_of_growth_is_found_again():
    for exponent in (1.0, 1.7):
        rows = [made(OURS, [side ** (2 * exponent)] * 7, image_size=side).row() for side in (32, 64, 160)]
        [fit] = growth(rows)
        assert fit["exponent"] == pytest.approx(exponent)
        assert fit["image_sizes"] == [32, 64, 160]
    assert growth(rows[:1]) == []


def test_the_peak_is_of_a_real_product_of_the_fastest_side():
    assert fastest_side(device=CPU, sides=(4, 256), repeats=3) == 256  # 4 x 4 is all call
    assert square_product(8, device=CPU)().shape == (8, 8)
    assert flop_of_product(8) == 8 * 8 * (8 + 8)


def test_memory_of_tensors_is_what_a_hand_counts():
    """Two products of 1000 x 1000: the second exists beside the first, which exists beside its factor."""
    square = 4 * 1000 * 1000

    def make():
        factor = torch.zeros(1000, 1000)
        torch.zeros(3000, 1000)  # gone before the step

        def step():
            first = factor @ factor
            second = first @ factor
            del first
            return second @ factor

        return step

    assert peak_of_tensors(make) == 3 * square


def feed_forward_peak(config: ConViTConfig, *, batch_size: int) -> int:
    """Bytes in the second feed-forward of timm's plain ViT, by hand: weights, pictures and activations.

    These are x as it came into the first layer and into this one, which their callers hold, x after attention and its
    norm, and what is before and after GELU.
    """
    num_tokens = 1 + config.grid[0] * config.grid[1]
    d, hidden, patch = config.dim, config.ff_dim, config.image_channel * config.patch_size**2
    weights = patch * d + d + d + num_tokens * d
    weights += 2 * (4 * d * d + 4 * d + 2 * d * hidden + d + hidden + 4 * d) + 2 * d + d * config.num_classes
    weights += config.num_classes
    pictures = batch_size * config.image_channel * config.image_size**2
    return 4 * (weights + pictures + batch_size * num_tokens * (4 * d + 2 * hidden))


def test_memory_of_a_whole_model_is_what_a_hand_counts_each_time():
    wide = config(dim=96, heads=4, ff_dim=4096, image_size=64)
    job = Job(PLAIN, wide, batch_size=3, mode="inference", threads=1, device="cpu")
    expected = feed_forward_peak(wide, batch_size=3)
    assert [peak_memory(job), peak_memory(job)] == [expected, expected]


def test_memory_of_a_process_is_of_the_form_alone_and_not_of_what_started_it(tmp_path):
    pytest.importorskip("openvino")
    ballast = torch.ones(150_000_000)  # 600 MB in this process
    wide = config(dim=512, heads=4, ff_dim=8192)
    [scene] = made_plan(wide).scenes
    form = Form("convit", "openvino", "float32")
    job = Job(form, wide, 2, "inference", 1, "cpu", file=str(export(scene, form, tmp_path)))
    weights = 4 * (2 * (4 * 512**2 + 2 * 512 * 8192) + 768 * 512)
    assert weights < peak_memory(job) < 3 * weights + 100e6  # the runtime lays weights out anew
    assert len(ballast) > 0


STEP_AFTER_MORE = """
import json
import torch
from comvex.bench.peak_memory import of_process, peak_of_process

before = of_process("VmRSS")
torch.ones(150_000_000)
held = of_process("VmHWM") - before
print(json.dumps([held, peak_of_process(lambda: torch.ones(25_000_000)) - before]))
"""


def test_memory_of_a_process_is_that_of_the_step_whatever_was_held_before():
    """A hundred megabytes in the step, after six hundred that are gone; in a process of its own, as another test may
    have told this one to keep freed memory."""
    done = subprocess.run([sys.executable, "-c", STEP_AFTER_MORE], capture_output=True, text=True, check=True)
    held, peak = json.loads(done.stdout)
    assert held > 500e6
    assert 90e6 < peak < 200e6


def test_memory_of_a_process_is_not_told_where_the_system_keeps_its_peak(monkeypatch, tmp_path):
    monkeypatch.setattr("comvex.bench.peak_memory.CLEAR_REFS", tmp_path / "none" / "clear_refs")
    with pytest.raises(NotMeasurable, match="clear_refs cannot be written to"):
        peak_of_process(lambda: None)

    def refuse(job):
        raise NotMeasurable("Memory of a step in a process is not measured: no.")

    monkeypatch.setattr("comvex.bench.run.peak_memory", refuse)
    plan = made_plan(config(), against=("plain_vit",))
    report = run_bench(plan, rounds=7, threads=1, gemm_sides=(64,))
    assert [row["peak_memory_mb"] for row in report["rows"]] == [None, None]
    assert report["ratios"][0]["memory_over_plain_vit"] is None
    page = to_markdown(report)
    assert page.count("| not measurable |") == 2
    assert page.count("Memory of a step in a process is not measured: no.") == 1


def test_a_limit_of_memory_is_kept():
    """Timm's ConViT makes maps of all patches to all patches: 4 heads x 4096 x 4096 at 1024 pixels are 268 MB each."""
    large = config(image_size=1024, heads=4)
    jobs = {form: Job(form, large, 1, "inference", 1, "cpu") for form in (OURS, TIMM)}
    assert peak_memory(jobs[TIMM], limit=10**9) is None
    assert peak_memory(jobs[OURS], limit=10**9) < 100e6


def test_what_takes_more_than_there_is_ends_itself_and_is_said_to():
    """Two petabytes of pictures: no machine has them."""
    job = Job(OURS, config(), batch_size=2 * 10**11, mode="inference", threads=1, device="cpu")
    assert peak_memory(job) is None


def test_the_command_measures_and_prints_one_object(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("comvex.bench.run.fastest_side", lambda device, sides: 64)  # products of 2048 take seconds
    arguments = ["bench", "--size", "32", "--batch-size", "1", "--mode", "inference", "--against"]
    arguments += ["--rounds", "7", "--threads", "1", "--out", str(tmp_path), "--json"]
    monkeypatch.setattr(sys, "argv", ["comvex", *arguments])
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["command"] == f"comvex {' '.join(arguments)}"
    assert [row["contestant"] for row in printed["rows"]] == ["convit"]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(FILES)


def test_what_was_measured_is_printed_even_if_it_cannot_be_written(monkeypatch, capsys, tmp_path):
    def full(report, out):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out / "bench.json"))

    monkeypatch.setattr("comvex.bench.run.fastest_side", lambda device, sides: 64)
    monkeypatch.setattr("comvex.bench.report.write_report", full)
    arguments = ["--size", "32", "--batch-size", "1", "--mode", "inference", "--against", "--rounds", "7"]
    assert main(["bench", *arguments, "--threads", "1", "--out", str(tmp_path / "out"), "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows"]
    assert "bench.json cannot be read or written: No space left on device." in captured.err


def test_an_interrupted_command_has_written_and_prints_the_scenes_before(monkeypatch, capsys, tmp_path):
    def interrupted(job):
        if job.config.image_size == 48:
            raise KeyboardInterrupt
        return 1e6

    monkeypatch.setattr("comvex.bench.run.fastest_side", lambda device, sides: 64)
    monkeypatch.setattr("comvex.bench.run.peak_memory", interrupted)
    arguments = ["--size", "32", "48", "--batch-size", "1", "--mode", "inference", "--against", "--rounds", "7"]
    assert main(["bench", *arguments, "--threads", "1", "--out", str(tmp_path), "--json"]) == 130
    printed = json.loads(capsys.readouterr().out)
    assert [row["image_size"] for row in printed["rows"]] == [32]
    assert json.loads((tmp_path / "bench.json").read_text()) == printed
    assert "Not finished: 1 of 2 scenes are measured." in (tmp_path / "bench.md").read_text()


def test_a_form_that_fails_is_a_row_that_says_so(monkeypatch, capsys, tmp_path):
    """One computes something else, one cannot be run at all; the third has all its figures."""

    def make_other_step(job):
        if job.form == TIMM:
            raise RuntimeError("not today\nat all")
        step = make_step(job)
        return (lambda: step() + 1) if job.form == PLAIN else step

    monkeypatch.setattr("comvex.bench.run.make_step", make_other_step)
    monkeypatch.setattr("comvex.bench.run.peak_memory", lambda job: 1e6)
    monkeypatch.setattr("comvex.bench.run.fastest_side", lambda device, sides: 64)
    arguments = ["--size", "32", "--batch-size", "1", "--mode", "inference", "--rounds", "7", "--threads", "1"]
    assert main(["bench", *arguments, "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.endswith("comvex: 2 of 3 forms failed: the report says why.\n")
    found = json.loads((tmp_path / "bench.json").read_text())
    errors = [row["error"] for row in found["rows"]]
    assert errors[0] is None
    assert "differ from those in eager float32" in errors[1]
    assert errors[2] == "RuntimeError: not today"
    assert ["ms_per_picture" in row for row in found["rows"]] == [True, False, False]
    [row] = found["ratios"]
    assert row["time_over_plain_vit"] is row["memory_over_plain_vit"] is row["times_faster_than_timm"] is None
    assert captured.out.count("| failed |") == 2
    assert "- ConViT_Ti, 32 px, inference, timm's ConViT, eager, float32: RuntimeError: not today" in captured.out


def test_mistakes_are_answered_by_one_sentence(capsys, tmp_path):
    (tmp_path / "bench.md").write_text("kept")
    (tmp_path / "file").write_text("")
    for arguments, said in (
        (["--rounds", "3"], "rounds is 3: it must be a whole number of at least 7."),
        (["--size", "225"], "image_size is 225"),
        (["--grow", "--size", "224"], "size and grow are both given"),
        (["--size"], "size is empty: at least one value is needed."),
        (["--size", "32", "64", "64"], "size has 64 more than once: each value must be given once."),
        (["--preset"], "preset is empty"),
        (["--runtime", "eager", "eager"], "runtime has eager more than once"),
        (["--against", "plain_vit", "plain_vit"], "against has plain_vit more than once"),
        (["--out", str(tmp_path / "file" / "out")], "cannot be written to (Not a directory): choose another --out."),
        (["--threads", "0"], "threads is 0"),
        (["--preset", "ConViT_X"], "There is no preset 'ConViT_X'"),
        (["--out", str(tmp_path)], "is there already: --overwrite replaces it."),
        (["--device", "mps"], "device is 'mps'"),
    ):
        assert main(["bench", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        [line] = captured.err.splitlines()
        assert said in line
    assert (tmp_path / "bench.md").read_text() == "kept"
