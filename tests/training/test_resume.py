"""Runs that are killed or asked to stop at any instant, and go on as if they had not been: real processes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file

from commands import Command, free_port, together

STEPS = 48
SMOKE = [
    "train", "smoke", "--steps", STEPS, "--batch-size", 32, "--threads", 1, "--checkpoint-steps", 4, "--patience", 50,
]  # fmt: skip
"""Every source of randomness is on: augmentation, Mixup, CutMix, drop path, whole-head dropout, averaged weights."""


Processes = Sequence[Command | subprocess.Popen[bytes]]


def launch(out: Path, *arguments: object, processes: int = 1, torchrun: bool = False) -> Processes:
    """``comvex train smoke``, each process in a session of its own, or torchrun that starts them."""
    words = list(map(str, [*SMOKE, "--out", out, *arguments]))
    log = out.parent / f"{out.name}.log"
    if processes == 1:
        return [Command(*words, out=log, err=log)]
    if not torchrun:
        return together(*words, files=[(log, log)] * processes)
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    start += ["--master-port", str(free_port()), "-m", "comvex"]
    with log.open("ab") as file:
        return [subprocess.Popen([*start, *words], stdout=file, stderr=file, start_new_session=True)]


def finish(out: Path, *arguments: object, processes: int = 1, torchrun: bool = False) -> None:
    for process in launch(out, *arguments, processes=processes, torchrun=torchrun):
        assert process.wait(300) == 0, (out.parent / f"{out.name}.log").read_text()


def saved_steps(out: Path) -> list[int]:
    return sorted(int(folder.name[5:]) for folder in (out / "checkpoints").glob("step-*"))


def wait_until(condition, processes: Processes, *, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert all(process.poll() is None for process in processes), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def family(pid: int) -> list[int]:
    """A process and all that it has started: torchrun's workers are in sessions of their own."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def kill(processes: Processes) -> None:
    """All processes of a run at once, as a machine that loses its power; loader processes end when they notice."""
    for pid in [pid for process in processes for pid in family(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in processes:
        process.wait(60)


def resumed_steps(out: Path) -> list[int]:
    lines = (out / "log.txt").read_text().splitlines()
    return [int(line.rsplit(" ", 1)[1]) for line in lines if "resumed at step" in line]


def assert_identical(one: Path, other: Path) -> None:
    """Metrics, heads and weights, byte for byte, and the last checkpoint with optimiser and averaged weights."""
    assert saved_steps(one) == saved_steps(other)
    last = Path("checkpoints") / f"step-{saved_steps(one)[-1]:08d}"
    names = ["metrics.csv", "heads.csv", "weights/best.safetensors", "weights/last.safetensors"]
    names += [str(last / f"{name}.safetensors") for name in ("model", "optimizer", "ema")]
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    figures = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    for name in ("top1", "top5", "loss", "num_unreadable", "best_epoch"):
        assert figures[0][name] == figures[1][name]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(out, "--workers", 0)
    return out


def test_a_run_killed_three_times_ends_as_if_it_had_not_been(undisturbed, tmp_path):
    out, seen = tmp_path / "run", []
    for number in range(3):
        run = launch(out, "--workers", 2)
        wait_until(lambda: saved_steps(out) and saved_steps(out)[-1] >= 12 * (number + 1), run)  # noqa: B023
        if number == 1:  # in the middle of saving
            wait_until(lambda: list((out / "checkpoints").glob(".*unfinished/*")), run)
        time.sleep(0.013 * number)
        kill(run)
        seen.append(saved_steps(out)[-1])
    finish(out, "--workers", 1)
    assert resumed_steps(out) == seen
    assert_identical(out, undisturbed)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_finishes_the_step_saves_and_says_try_again(name, undisturbed, tmp_path):
    out = tmp_path / "run"
    [process] = launch(out, "--workers", 2, "--checkpoint-steps", 1000)
    wait_until(lambda: "epoch 1," in (out.parent / "run.log").read_text(), [process])
    process.send_signal(getattr(signal, name))
    assert process.wait(60) == (130 if name == "SIGINT" else 75)
    step = saved_steps(out)[-1]
    assert f"comvex: stopped at step {step} by {name}" in (out.parent / "run.log").read_text()
    if name != "SIGTERM":
        return
    finish(out)
    assert resumed_steps(out) == [step]
    same = {
        name: (out / name).read_bytes() == (undisturbed / name).read_bytes() for name in ("metrics.csv", "heads.csv")
    }
    assert all(same.values()), same


def test_a_signal_to_all_processes_of_a_run_finishes_the_step_too(undisturbed, tmp_path):
    out = tmp_path / "run"
    [process] = launch(out, "--workers", 2, "--checkpoint-steps", 1000)
    wait_until(lambda: "epoch 1," in (out.parent / "run.log").read_text(), [process])
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 75
    [told] = [line for line in (out.parent / "run.log").read_text().splitlines() if "stopped at step" in line]
    assert told == f"comvex: stopped at step {saved_steps(out)[-1]} by SIGTERM: the same command goes on from there."
    assert "stopped at step" in (out / "log.txt").read_text()
    finish(out)
    assert (out / "metrics.csv").read_bytes() == (undisturbed / "metrics.csv").read_bytes()


def test_a_checkpoint_damaged_by_hand_is_passed_over(undisturbed, tmp_path):
    out = tmp_path / "run"
    run = launch(out, "--workers", 0)
    wait_until(lambda: len(saved_steps(out)) > 1 and saved_steps(out)[-1] >= 20, run)
    kill(run)
    *_, before, last = saved_steps(out)
    file = out / "checkpoints" / f"step-{last:08d}" / "ema.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    finish(out)
    assert resumed_steps(out) == [before]
    assert f"{file} is damaged. The checkpoint before it is used." in (out / "log.txt").read_text()
    assert_identical(out, undisturbed)


@pytest.mark.parametrize(
    ("processes", "optimizer"), [(2, "muon"), (1, "adamw"), pytest.param(3, "adamw", marks=pytest.mark.slow)]
)
def test_processes_killed_and_resumed_end_as_if_they_had_not_been(processes, optimizer, tmp_path):
    out, whole, words = tmp_path / "run", tmp_path / "whole", ("--workers", 0, "--optimizer", optimizer)
    run = launch(out, *words, processes=processes)
    wait_until(lambda: saved_steps(out) and saved_steps(out)[-1] >= 24, run)
    kill(run)
    seen = saved_steps(out)[-1]
    finish(out, *words, processes=processes)
    finish(whole, *words, processes=processes)
    assert resumed_steps(out) == [seen]
    assert_identical(out, whole)


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    out = tmp_path / "run"
    run = launch(out, "--workers", 0, processes=2)
    wait_until(lambda: saved_steps(out) and saved_steps(out)[-1] >= 20, run)
    kill(run)
    finish(out, "--workers", 0)
    assert "had 2 processes before and has 1 now" in (out / "log.txt").read_text()
    assert json.loads((out / "summary.json").read_text())["num_pictures"] == 360
    assert (out / "metrics.csv").read_text().count("\n") == 3


def test_processes_whose_disks_differ_are_told_so(tmp_path):
    """As on machines without a common disk, of which only the first has the run's checkpoint."""
    finish(tmp_path / "run", "--steps", 4)
    (tmp_path / "run" / "summary.json").unlink()
    files = [(tmp_path / f"{rank}.log", tmp_path / f"{rank}.log") for rank in range(2)]
    (tmp_path / "other").mkdir()
    words = [*map(str, SMOKE), "--out", "run", "--steps", 4]
    for process in together(*words, files=files, cwds=[tmp_path, tmp_path / "other"]):
        assert process.wait(120) == 2
    for _, log in files:
        assert "see different checkpoints in run (of steps 4, 0): the run folder must lie on a disk" in log.read_text()


def test_a_run_folder_takes_one_process_at_a_time(tmp_path):
    out = tmp_path / "run"
    run = launch(out, "--steps", 100_000)
    wait_until(lambda: saved_steps(out), run)
    [second] = launch(out, "--steps", 100_000)
    assert second.wait(60) == 2
    assert f"Another process is training in the run folder {out}" in (tmp_path / "run.log").read_text()
    kill(run)
    run = launch(out, "--steps", 100_000)
    wait_until(lambda: resumed_steps(out), run)
    kill(run)


def test_a_killed_loader_process_ends_the_run_in_a_sentence_and_the_checkpoint_is_kept(tmp_path):
    out = tmp_path / "run"
    [process] = launch(out, "--steps", 100_000, "--workers", 2)
    wait_until(lambda: saved_steps(out) and len(family(process.pid)) > 2, [process])
    os.kill(family(process.pid)[-1], signal.SIGKILL)
    assert process.wait(60) == 2
    log = (tmp_path / "run.log").read_text()
    [sentence] = [line for line in log.splitlines() if line.startswith("comvex: ")]
    assert "A process that reads pictures was killed" in sentence
    assert f"the checkpoint of step {saved_steps(out)[-1]} is kept" in sentence
    assert "Traceback" not in log


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("workers", [0, 2, 4])
def test_twenty_kills_change_nothing(processes, workers, tmp_path):
    """Each kill at an instant of chance, most after the first save, every fourth in the middle of saving."""
    out, whole, chance = tmp_path / "run", tmp_path / "whole", random.Random(100 * processes + workers)
    arguments = ("--workers", workers, "--steps", 1000)
    finish(whole, *arguments, processes=processes, torchrun=True)
    times_resumed = 0
    for number in range(20):
        before = max(saved_steps(out), default=0)
        run = launch(out, *arguments, processes=processes, torchrun=True)
        if number % 5:
            wait_until(lambda: max(saved_steps(out), default=0) > before, run)  # noqa: B023
            time.sleep(chance.uniform(0, 0.3))
        else:
            time.sleep(chance.uniform(0, 5))
        if number % 4 == 1:
            wait_until(lambda: list((out / "checkpoints").glob(".*unfinished/*")), run)
        kill(run)
        resumed = resumed_steps(out) if (out / "log.txt").exists() else []
        if len(resumed) > times_resumed:
            assert resumed[-1] == before  # no earlier than the last save that was complete
            times_resumed = len(resumed)
    assert times_resumed > 10
    finish(out, *arguments, processes=processes, torchrun=True)
    assert_identical(out, whole)
    shutil.rmtree(whole)
    assert load_file(out / "weights" / "best.safetensors")
