"""What the target table of docs/performance.md says of records, made up here."""

import pytest


def ratio_row(model="ConViT_Ti", *, time: tuple[float, float, float], **overrides) -> dict:
    """A row as the reports' ratios have it: (low, median, high) of the time beside the plain ViT's."""
    row = {"model": model, "image_size": 224, "batch_size": 16, "mode": "inference", "runtime": "eager"}
    row |= {"precision": "float32", "memory_over_plain_vit": 1.0}
    row |= {"time_over_plain_vit": dict(zip(("low", "median", "high"), time, strict=True))}
    names = ("times_faster_than_timm", "times_faster_than_timm_eager_float32", "times_faster_than_float32")
    return row | dict.fromkeys(names) | overrides


def share_row(model: str, share, **overrides) -> dict:
    row = {"model": model, "image_size": 224, "batch_size": 16, "mode": "inference", "runtime": "eager"}
    row |= {"contestant": "convit", "precision": "float32", "ms_per_picture": {}, "share_of_gemm_peak": share}
    return row | overrides


def record(*, ratios=(), rows=()) -> dict:
    return {"entries": [{"key": {}, "ratios": list(ratios), "rows": list(rows)}]}


def line(scripts, what: str, **contents) -> list[str]:
    """The cells after the name of a target."""
    table = scripts["targets"].target_table(contents)
    [found] = [line for line in table.splitlines() if line.startswith(f"| {what} |")]
    return [cell.strip() for cell in found.split("|")[2:-1]]


def test_a_bound_between_the_quartiles_is_undecided(scripts):
    targets = scripts["targets"]
    most, least = targets.Bound(1.06, is_most=True), targets.Bound(1.5, is_most=False)
    for bound, quartiles, verdict in (
        (most, (0.9, 1.06), "kept"),
        (most, (1.0, 1.07), "undecided"),
        (most, (1.07, 1.2), "missed"),
        (least, (1.5, 1.6), "kept"),
        (least, (1.4, 1.6), "undecided"),
        (least, (1.3, 1.4), "missed"),
    ):
        assert bound.judge(targets.Found(sum(quartiles) / 2, quartiles)) == verdict
    assert (most.judge(targets.Found(1.05)), most.judge(targets.Found(1.07))) == ("kept", "missed")
    assert (str(targets.Bound(1.06, is_most=True, aim=1.03)), str(least)) == ("at most 1.06, aim 1.03", "at least 1.5")


def test_a_target_takes_its_scenes_from_every_record_and_from_no_other_scene(scripts):
    eager = record(ratios=[ratio_row(time=(0.9, 1.0, 1.05)), ratio_row(time=(2, 2, 2), mode="training")])
    runtimes = record(ratios=[ratio_row(time=(1.0, 1.05, 1.1)), ratio_row(time=(3, 3, 3), runtime="openvino")])
    growth = record(ratios=[ratio_row(time=(1.2, 1.3, 1.4), batch_size=1)])
    cells = line(scripts, "time of inference / plain ViT, eager", eager=eager, runtimes=runtimes, growth=growth)
    assert cells == [
        "at most 1.06, aim 1.03",
        "1.000 (0.900 to 1.050) to 1.050 (1.000 to 1.100), 2 figures",
        "undecided (1 kept, 1 undecided)",
        "[eager](#eager), [runtimes](#runtimes)",
    ]
    runtimes["entries"][0]["ratios"].append(ratio_row("ConViT_S", time=(1.1, 1.2, 1.3)))
    cells = line(scripts, "time of inference / plain ViT, eager", eager=eager, runtimes=runtimes)
    assert cells[2] == "missed (1 kept, 1 undecided, 1 missed)"
    assert line(scripts, "time of inference / plain ViT, eager", eager=None)[1:] == ["not measured yet", "-", "-"]


def test_times_with_memory_given_back_are_those_of_the_record_of_freed_memory(scripts):
    over = {"given back": {"low": 0.4, "median": 0.5, "high": 0.8}, "kept": {"low": 9, "median": 9, "high": 9}}
    key = {"model": "ConViT_Ti", "image_size": 448, "batch_size": 8, "mode": "inference"}
    small = {"key": key | {"image_size": 28, "batch_size": 128}, "contestants": {"plain_vit": {"convit_over_it": over}}}
    both = {"plain_vit": {"convit_over_it": over}, "timm_convit": {"convit_over_it": over}, "convit": {}}
    content = {"table": "freed_memory", "entries": [small, {"key": key, "contestants": both}]}
    other = {"table": "step_profile", "entries": [{"key": key, "contestants": {"plain_vit": {}}}]}
    what = "time of inference / plain ViT, eager, freed memory given back"
    assert line(scripts, what, freed_memory=content, step_profile=other)[1:3] == ["0.500 (0.400 to 0.800)", "kept"]
    what = "times faster than timm's, inference, 448 px, eager, freed memory given back"
    assert line(scripts, what, freed_memory=content)[1:3] == ["2.000 (1.250 to 2.500)", "missed"]
    what = "times faster than timm's, inference, 224 px, eager, freed memory given back"
    assert line(scripts, what, freed_memory=content)[1] == "not measured yet"


def test_shares_are_of_one_size_and_runtime(scripts):
    what = "share of the GEMM peak, float32, batch 16, eager, S"
    spread = {"low": 0.83, "median": 0.85, "high": 0.9}
    found = record(rows=[share_row("ConViT_S", spread), share_row("ConViT_S_plus", spread | {"median": 0.1})])
    assert line(scripts, what, eager=found)[1:3] == ["0.850 (0.830 to 0.900)", "kept"]
    elsewhere = record(rows=[share_row("ConViT_S", spread, runtime="onnxruntime")])
    assert line(scripts, what, runtimes=elsewhere)[1] == "not measured yet"


def test_the_fastest_form_is_sought_where_exported_ones_are_too(scripts):
    def faster(median, runtime):
        times = {"low": median - 1, "median": median, "high": median + 1}
        return ratio_row(time=(1, 1, 1), runtime=runtime, times_faster_than_timm_eager_float32=times)

    both = record(ratios=[faster(2, "eager"), faster(6, "openvino"), faster(3, "onnxruntime")])
    what = "times the fastest form is faster than timm's in eager"
    others = record(ratios=[faster(9, "eager"), faster(9, "compile")])
    cells = line(scripts, what, runtimes=both, compile=others)
    assert cells[1:] == ["6.000 (5.000 to 7.000)", "kept", "[runtimes](#runtimes)"]


@pytest.mark.parametrize(("memory", "verdict"), [(1.04, "kept"), (1.06, "missed")])
def test_memory_of_tensors_is_exact_and_decides(scripts, memory, verdict):
    row = ratio_row(time=(1, 1, 1), image_size=768, batch_size=2, memory_over_plain_vit=memory)
    cells = line(scripts, "peak memory of inference / plain ViT, 768 px, eager", eager=record(ratios=[row]))
    assert cells[1:3] == [f"{memory:.3f}", verdict]
