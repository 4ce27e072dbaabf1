"""The scripts behind docs/performance.md run and go on where they were, and the page has what they record.

Tiny sizes, on whatever machine this is: no time is asserted.
"""

import dataclasses
import functools
import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from comvex.bench.peak_memory import of_process
from comvex.bench.plan import preset_configs
from comvex.convit.weights import file_sha256
from comvex.errors import UserError

SCRIPTS = (
    "speed", "memory_limit", "layer_profile", "step_profile", "freed_memory", "low_precision", "performance_page",
)  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    """Products of 64 x 64 for the GEMM peak, since those of 2048 take seconds."""
    monkeypatch.setattr("comvex.bench.run.fastest_side", lambda device, sides: 64)


@pytest.fixture
def small(scripts, monkeypatch):
    """Two layers instead of twelve, and memory taken in this process: a process for each form takes a minute."""

    def shallow(names, sizes):
        changes = {"num_local_layers": 1, "num_nonlocal_layers": 1}
        found = preset_configs(names, sizes)
        return {name: [dataclasses.replace(config, **changes) for config in found[name]] for name in found}

    monkeypatch.setattr(scripts["speed"], "preset_configs", shallow)
    monkeypatch.setattr("comvex.bench.run.peak_memory", lambda job: float(of_process("VmHWM")))


def record_of(out: Path, name: str) -> dict:
    content = json.loads((out / f"{name}.json").read_text())
    assert content["table"] == name
    assert content["machine"]["threads"] == 1
    for entry in content["entries"]:
        assert entry["command"].startswith("python ")
        assert entry["date"][:2] == "20"
        assert entry["revision"] is None or len(entry["revision"]["commit"]) == 40
    return content


def check_tables(markdown: str) -> list[list[str]]:
    """Every table has a line of names and at least one below it, all of as many cells; returns the tables' lines."""
    tables, lines = [], []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("|"):
            lines.append(line)
        elif lines:
            tables, lines = [*tables, lines], []
    for lines in tables:
        assert len(lines) > 2
        assert len({line.count("|") for line in lines}) == 1
    return tables


def test_speed_is_recorded_scene_by_scene_and_an_interrupted_command_goes_on(
    scripts, quick, small, tmp_path, monkeypatch, capsys
):
    speed = scripts["speed"]
    arguments = ["eager", "--preset", "ConViT_Ti", "--size", "32:2", "--rounds", "7", "--threads", "1"]
    arguments += ["--out", str(tmp_path)]
    measured = []
    measure = speed.measure_scene

    def interrupted(table, key, **options):
        measured.append(key["mode"])
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure(table, key, **options)

    monkeypatch.setattr(speed, "measure_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        speed.main(arguments)
    assert len(record_of(tmp_path, "eager")["entries"]) == 1
    speed.main(arguments)
    assert measured == ["inference", "training", "training"]
    content = record_of(tmp_path, "eager")
    assert [entry["key"]["mode"] for entry in content["entries"]] == ["inference", "training"]
    assert [len(entry["rows"]) for entry in content["entries"]] == [3, 3]
    [lines] = check_tables((tmp_path / "eager.md").read_text())
    assert len(lines) == 4
    assert "recorded already" in capsys.readouterr().err
    product = content["entries"][0]["rows"][0]["gemm_gflops"]
    assert f"| {product['median']:.0f} ({product['low']:.0f} to {product['high']:.0f}) |" in lines[2]


def test_openvino_has_this_convit_and_the_plain_vit(scripts, quick, small, tmp_path):
    pytest.importorskip("openvino")
    arguments = ["openvino", "--preset", "ConViT_Ti", "--size", "32:2", "--rounds", "7", "--threads", "1"]
    scripts["speed"].main([*arguments, "--out", str(tmp_path)])
    [entry] = record_of(tmp_path, "openvino")["entries"]
    assert [(row["contestant"], row["runtime"]) for row in entry["rows"]] == [
        ("convit", "openvino"),
        ("plain_vit", "openvino"),
    ]
    [lines] = check_tables((tmp_path / "openvino.md").read_text())
    assert len(lines) == 3


def test_what_was_measured_for_longer_takes_the_place_of_what_it_was_before(scripts, tmp_path):
    recording = scripts["recording"]
    record = recording.Record("eager", tmp_path, {}, [], None)
    for key, found in (
        ({"model": "one", "rounds": 7}, 1),
        ({"model": "other", "rounds": 7}, 2),
        ({"model": "one", "rounds": 11}, 3),
    ):
        record.replace(key, {"key": key, "found": found})
    assert [(entry["key"]["model"], entry["found"]) for entry in record.entries] == [("other", 2), ("one", 3)]


def test_a_scene_with_a_form_that_failed_is_not_recorded(scripts, quick, small, tmp_path, monkeypatch):
    def fail(job):
        raise RuntimeError("not today")

    monkeypatch.setattr("comvex.bench.run.make_step", fail)
    arguments = ["eager", "--preset", "ConViT_Ti", "--size", "32:2", "--rounds", "7", "--threads", "1"]
    with pytest.raises(UserError, match="Not recorded, since convit in eager failed: RuntimeError: not today"):
        scripts["speed"].main([*arguments, "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_runtimes_have_low_precision_and_timms_model_as_published(scripts, quick, small, tmp_path):
    pytest.importorskip("nncf")
    arguments = ["runtimes", "--preset", "ConViT_Ti", "--size", "32:2", "--rounds", "7", "--threads", "1"]
    scripts["speed"].main([*arguments, "--out", str(tmp_path)])
    content = record_of(tmp_path, "runtimes")
    [entry] = content["entries"]
    forms = {(row["contestant"], row["runtime"], row["precision"]) for row in entry["rows"]}
    low = [("openvino", "bfloat16"), ("openvino", "int8"), ("openvino", "int8_float32")]
    ways = [("eager", "float32"), ("onnxruntime", "float32"), ("openvino", "float32"), *low]
    expected = {(whose, *way) for whose in ("convit", "plain_vit") for way in ways}
    assert forms == expected | {("timm_convit", "eager", "float32")}
    assert "nncf" in content["machine"]["versions"]
    page = (tmp_path / "runtimes.md").read_text()
    [lines] = check_tables(page)
    assert len(lines) == 2 + len(ways)
    assert "The fastest form of ConViT_Ti in inference" in page


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_torch_compile_is_measured_beside_eager(scripts, quick, small, tmp_path):
    arguments = ["compile", "--preset", "ConViT_Ti", "--size", "32:2", "--mode", "inference", "--rounds", "7"]
    scripts["speed"].main([*arguments, "--threads", "1", "--out", str(tmp_path)])
    [entry] = record_of(tmp_path, "compile")["entries"]
    differences = {(row["contestant"], row["runtime"]): row["difference_to_eager"] for row in entry["rows"]}
    both = {(whose, runtime) for whose in ("convit", "plain_vit") for runtime in ("eager", "compile")}
    assert differences.keys() == both | {("timm_convit", "eager")}
    assert differences["convit", "eager"] == 0 < differences["convit", "compile"] < 1e-5
    [lines] = check_tables((tmp_path / "compile.md").read_text())
    assert ["torch.compile" in line for line in lines[2:]] == [False, True]


def test_growth_has_an_exponent(scripts, quick, small, tmp_path):
    arguments = ["growth", "--size", "32:1", "64:1", "--mode", "inference", "--rounds", "7", "--threads", "1"]
    scripts["speed"].main([*arguments, "--out", str(tmp_path)])
    exponents, times = check_tables((tmp_path / "growth.md").read_text())
    assert len(exponents) == 5  # of each of the three
    assert len(times) == 4


def test_memory_ends_where_the_limit_is(scripts, tmp_path):
    """Timm's ConViT makes several maps of 4 x 2304 x 2304, 85 MB each, for a picture of 768 pixels."""
    arguments = ["--memory", "300MB", "--mode", "inference", "--growing", "768", "--side", "--threads", "1"]
    scripts["memory_limit"].main([*arguments, "--out", str(tmp_path)])
    found = {}
    for entry in record_of(tmp_path, "memory_limit")["entries"]:
        found[entry["key"]["contestant"], entry["key"]["image_size"]] = entry["peak_memory_mb"]
    assert found["timm_convit", 768] is None
    assert 20 < found["convit", 768] < 300
    [lines] = check_tables((tmp_path / "memory_limit.md").read_text())
    assert [line.split("|")[6].strip() for line in lines[2:]] == ["768 px", "768 px", "nothing"]
    for wrong in ("4", "0GB", "4 GB", "x"):
        with pytest.raises(UserError, match="memory is"):
            scripts["memory_limit"].parse_memory(wrong)


def test_a_scene_in_which_large_blocks_were_given_back_is_named(scripts):
    words = scripts["tables"].large_blocks_in_words
    row = {"model": "ConViT_S_plus", "image_size": 448, "batch_size": 8, "mode": "training"}
    kept = [row, row | {"largest_kept_mb": None}, row | {"largest_kept_mb": 1073.741824}]
    assert words(kept) == []
    [sentence] = words([*kept, row | {"largest_kept_mb": 33.554432}])
    assert sentence.endswith(": ConViT_S_plus, 448 px, batch 8, training.")


def test_the_most_that_fits_is_the_largest_whenever_it_was_measured(scripts):
    """A command that is repeated with more sizes adds them behind those that are there."""

    def entry(side, megabytes, *, is_last=False):
        key = {"memory": 4 * 10**9, "model": "ConViT_Ti", "mode": "training", "growing": "picture"}
        key |= {"contestant": "convit", "image_size": side, "batch_size": 1}
        return {"key": key, "peak_memory_mb": megabytes, "is_last": is_last}

    def cells(entries):
        [table] = scripts["tables"].memory_tables({"entries": entries})
        return [cell.strip() for cell in table.splitlines()[2].split("|")[6:9]]

    first = [entry(224, 60.0), entry(1024, 700.0, is_last=True)]
    assert cells(first) == ["1024 px", "700", "none that was tried"]
    assert cells([*first, entry(384, 100.0), entry(1280, None)]) == ["1024 px", "700", "1280 px"]
    assert cells([*first, entry(384, 100.0)]) == ["1024 px", "700", "none that was tried"]
    assert cells([*first, entry(1280, 900.0)]) == ["1280 px", "900", "not tried to the end yet"]


def test_every_part_of_a_layer_is_found_and_none_twice(scripts, tmp_path):
    arguments = ["--preset", "ConViT_Ti", "--size", "64:2", "--rounds", "7", "--repeats", "2", "--threads", "1"]
    scripts["layer_profile"].main([*arguments, "--out", str(tmp_path)])
    [entry] = record_of(tmp_path, "layer_profile")["entries"]
    parts = entry["parts_ms"]
    mixing = {"mixing: products", "mixing: copies", "mixing: blend with content", "positional factors"}
    assert {name for name, time in parts["GPSA"].items() if time == 0} == set()
    # What plain attention gives already lies as the projection wants it.
    assert {name for name, time in parts["plain"].items() if time == 0} == mixing | {"copies of heads"}
    assert 0 < entry["factors_over_layer"]["median"] < 1
    assert len(check_tables((tmp_path / "layer_profile.md").read_text())) == 2


def test_every_millisecond_of_a_step_is_of_some_kind(scripts, tmp_path, monkeypatch):
    monkeypatch.setattr(scripts["step_profile"], "fastest_side", lambda device, sides: 512)  # larger ones take seconds
    arguments = ["--preset", "ConViT_Ti", "--size", "64:2", "--repeats", "2", "--threads", "1", "--out", str(tmp_path)]
    scripts["step_profile"].main(arguments)
    entries = record_of(tmp_path, "step_profile")["entries"]
    without = {
        (entry["key"]["mode"], contestant): {kind for kind, time in found["kinds_ms"].items() if time == 0}
        for entry in entries
        for contestant, found in entry["contestants"].items()
    }
    assert without == {
        ("inference", "convit"): {"optimiser"},
        ("inference", "plain_vit"): {"optimiser", "mixing by positions"},
        ("training", "convit"): set(),
        ("training", "plain_vit"): {"mixing by positions"},
    }
    for entry in entries:
        for found in entry["contestants"].values():
            assert 0 < found["products_gflops"] < 2 * entry["gemm_peak_gflops"]
    [lines] = check_tables((tmp_path / "step_profile.md").read_text())
    assert len(lines) == 2 + 8 + 3


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_what_is_kept_takes_no_new_pages(scripts, tmp_path, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072")  # by itself glibc keeps some, by chance
    arguments = ["--model", "convit_fashion_mnist", "--size", "28:16", "--mode", "training", "--against"]
    arguments += ["--rounds", "7", "--threads", "1"]
    scripts["freed_memory"].main([*arguments, "--out", str(tmp_path)])
    [entry] = record_of(tmp_path, "freed_memory")["entries"]
    [found] = entry["contestants"].values()
    assert found["new_pages"]["kept"] < 500 < 5000 < found["new_pages"]["given back"]
    [lines] = check_tables((tmp_path / "freed_memory.md").read_text())
    assert len(lines) == 3


def test_a_model_without_a_scene_of_its_own_needs_a_size(scripts, tmp_path):
    with pytest.raises(UserError, match="model is 'ConViT_B', of which the table has no scene: --size must say"):
        scripts["freed_memory"].main(["--model", "ConViT_B", "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_the_time_of_an_operation_counts_to_the_part_that_it_is_within(scripts):
    part_of = scripts["layer_profile"].part_of
    for above, part in (
        (["aten::addmm", "aten::linear", "attn.proj", "layer"], "projections"),
        (["aten::copy_", "aten::addmm", "aten::linear", "mlp", "layer"], "MLP"),
        (["aten::addcmul", "attn.pos_proj", "layer"], "positional factors"),
        (["aten::bmm", "aten::matmul", "blend", "layer"], "mixing: products"),
        (["aten::copy_", "aten::clone", "aten::flatten", "blend", "layer"], "mixing: copies"),
        (["aten::copy_", "aten::clone", "aten::flatten", "layer"], "copies of heads"),
        (["aten::addcmul", "blend", "layer"], "mixing: blend with content"),
        (["attn.proj", "layer"], "between operations"),
        (["aten::view", "layer"], "other operations"),
    ):
        assert part_of(above[0], above) == part


def test_the_layers_are_profiled_call_by_call_in_turn(scripts, monkeypatch):
    profiler = scripts["layer_profile"]
    examples = profiler.examples("ConViT_Ti", image_size=32, batch_size=1)
    calls = []

    def record(example):
        calls.append(example)
        return dict.fromkeys(profiler.PARTS, len(calls))

    monkeypatch.setattr(profiler, "parts_of_call", record)
    found = profiler.parts(examples, repeats=6)
    assert found.keys() == {"GPSA", "plain"}
    both = list(examples.values())
    assert all(call in both for call in calls)
    pairs = [calls[start : start + 2] for start in range(0, 12, 2)]
    assert all(first is not second for first, second in pairs)
    assert {id(first) for first, _ in pairs} == set(map(id, both))


def test_a_trained_model_is_evaluated_in_every_precision(scripts, tmp_path):
    pytest.importorskip("nncf")
    from comvex.training.recipe import Architecture, Recipe
    from comvex.training.trainer import train

    train(Recipe(model=Architecture(dim=32, num_local_layers=1, num_nonlocal_layers=1), steps=2), tmp_path / "run")
    arguments = [str(tmp_path / "run"), "--batch-size", "32", "--rounds", "7", "--threads", "1"]
    scripts["low_precision"].main([*arguments, "--out", str(tmp_path)])
    [entry] = record_of(tmp_path, "low_precision")["entries"]
    assert (entry["data"], entry["num_pictures"]) == ("digits", 360)
    assert entry["key"]["sha256"] == file_sha256(tmp_path / "run" / "weights" / "best.safetensors")
    forms = {form["name"]: form for form in entry["forms"]}
    assert list(forms) == ["eager float32", "OpenVINO float32", "OpenVINO bfloat16", "OpenVINO int8"]
    assert forms["OpenVINO float32"]["points_from_eager"] == 0
    assert forms["OpenVINO int8"]["megabytes"] < forms["OpenVINO float32"]["megabytes"]
    assert forms["eager float32"]["times_faster_than_eager"]["median"] == 1
    [lines] = check_tables((tmp_path / "low_precision.md").read_text())
    assert len(lines) == 6


def test_a_record_of_another_machine_is_not_gone_on_with(scripts, tmp_path):
    record = scripts["recording"].Record
    here = {"date": "2026-11-25", "processor": "one", "threads": 1}
    (tmp_path / "eager.json").write_text(json.dumps({"table": "eager", "machine": here, "entries": []}))
    record.open("eager", tmp_path, here | {"date": "2026-11-26"}, overwrite=False)
    with pytest.raises(UserError, match="was measured with another processor: one, now other"):
        record.open("eager", tmp_path, here | {"processor": "other"}, overwrite=False)
    assert record.open("eager", tmp_path, here | {"threads": 2}, overwrite=True).machine["threads"] == 2


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_record_says_which_code_was_measured(scripts, tmp_path):
    revision = scripts["recording"].revision

    def git(*arguments):
        who = ["-c", "user.name=one", "-c", "user.email=one@example.com"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    package = tmp_path / "src" / "comvex"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert revision(package) is None
    git("init")
    git("commit", "--allow-empty", "-m", "nothing")
    assert revision(package) is None  # an installed package in someone else's checkout
    git("add", "--all")
    git("commit", "-m", "one")
    clean = revision(package)
    assert (len(clean["commit"]), clean["changed"]) == (40, False)
    (tmp_path / "notes").write_text("of no matter")
    assert revision(package) == clean
    (package / "new.py").write_text("")
    assert revision(package) == clean | {"changed": True}


def test_the_tables_say_which_code_they_are_of(scripts):
    words = scripts["tables"].revisions_in_words
    one, other = ({"revision": {"commit": letter * 40, "changed": False}} for letter in "ab")
    changed = {"revision": one["revision"] | {"changed": True}}
    assert words([{}, {}]) == "Code: revision not noted."
    assert words([one, one]) == "Code: revision `aaaaaaa`."
    assert words([changed]) == "Code: revision `aaaaaaa` with src/comvex changed since."
    assert words([{"revision": None}]) == "Code: not of a git checkout."
    assert words([one, one, other, {}]) == (
        "Code: not the same for all entries, which may differ by that: revision `aaaaaaa` (2 entries), "
        "revision `bbbbbbb` (1 entries), revision not noted (1 entries)."
    )


def test_mistakes_are_told_before_anything_is_measured(scripts, tmp_path):
    for arguments, said in (
        (["--size", "224"], "size is '224': it must be SIDE:BATCH"),
        (["--size", "225:1"], "image_size is 225"),
        (["--size", "32:0"], "batch_size is 0"),
        (["--preset", "ConViT_X"], "There is no preset 'ConViT_X'"),
        (["--threads", "0"], "threads is 0"),
    ):
        with pytest.raises(UserError, match=said):
            scripts["speed"].main(["eager", *arguments, "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_the_page_has_what_the_records_say(scripts):
    """After new records: python benchmarks/performance_page.py."""
    page = scripts["performance_page"]
    text = page.PAGE.read_text()
    made = page.pages(page.PAGE, scripts["recording"].FOLDER)
    assert [file.name for file, text in made.items() if file.read_text() != text] == []
    recorded = {name for name in scripts["tables"].TABLES if scripts["recording"].read(name, page.recording.FOLDER)}
    assert text.count("\nNot measured yet.\n") == len(scripts["tables"].TABLES) - len(recorded)


def test_a_figure_that_a_sentence_of_the_page_quotes_stands_in_a_table(scripts):
    page = scripts["performance_page"]
    text = page.PAGE.read_text()
    tables = "".join(match[0] for match in page.MARKED.finditer(text))
    quoted = re.findall(r"\d+\.\d{3}(?: \(\d+\.\d{3} to \d+\.\d{3}\))?(?!\d)", page.MARKED.sub("", text))
    assert len(quoted) > 20
    assert [figure for figure in quoted if figure not in tables] == []


def test_a_record_reaches_the_page_and_nothing_else_of_it_changes(scripts, tmp_path):
    page, text = scripts["performance_page"], scripts["performance_page"].PAGE.read_text()
    machine = {
        "date": "2026-11-25 05:00", "processor": "made up", "instruction_sets": ["avx2"], "cores": 2, "threads": 2,
        "device": "cpu", "system": "none", "versions": {"python": "3"},
    }  # fmt: skip
    key = {"memory": 4 * 10**9, "model": "ConViT_Ti", "mode": "training", "growing": "picture", "contestant": "convit"}
    key |= {"image_size": 224, "batch_size": 1}
    entry = {"key": key, "date": "2026-11-25 05:00", "command": "python made up", "peak_memory_mb": 123.0}
    entry["is_last"] = False
    made = {"table": "memory_limit", "machine": machine, "entries": [entry]}
    (tmp_path / "memory_limit.json").write_text(json.dumps(made))
    assert "| 224 px | 123 | not tried to the end yet |" in page.filled(text, page.read_records(tmp_path))
    entry["is_last"] = True
    (tmp_path / "memory_limit.json").write_text(json.dumps(made))
    filled = page.filled(text, page.read_records(tmp_path))
    assert "| 224 px | 123 | none that was tried |" in filled
    assert "`python made up`" in filled
    assert page.filled(filled, page.read_records(tmp_path)) == filled
    strip = functools.partial(page.MARKED.sub, "")
    assert strip(filled) == strip(text)
    with pytest.raises(UserError, match="The page has markers of"):
        page.filled(text.replace("from the records: eager", "from the records: other"), page.read_records(tmp_path))


def test_the_page_names_a_script_for_every_table(scripts):
    text = scripts["performance_page"].PAGE.read_text()
    for name in scripts["speed"].TABLES:
        assert f"python benchmarks/speed.py {name}" in text
    for name in SCRIPTS[1:]:
        assert f"python benchmarks/{name}.py" in text
