"""The tables of docs/performance.md, as Markdown made of the records, and the targets with what was found of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from layer_profile import PARTS

from comvex.bench.figures import growth
from comvex.bench.machine import describe_in_words
from comvex.bench.names import CONTESTANT_NAMES, RUNTIME_NAMES
from comvex.bench.report import growth_table, spread, table

Row = dict[str, Any]
Content = dict[str, Any]
NOT_MEASURED = "Not measured yet."
PLACE = ("model", "image_size", "batch_size", "mode", "runtime", "precision")


def report(content: Content) -> str:
    """A record as a page of its own: machine, commands, tables."""
    return f"# {content['table']}\n\n{section(content)}\n"


def section(content: Content | None) -> str:
    """The tables of a record with how they were made; says so where there is none."""
    if content is None:
        return NOT_MEASURED
    commands = dict.fromkeys(entry["command"] for entry in content["entries"])
    dates = sorted(entry["date"] for entry in content["entries"])
    made = ["Measured with " + ", ".join(f"`{command}`" for command in commands) + f", {dates[0]} to {dates[-1]}."]
    return "\n\n".join([*TABLES[content["table"]](content), *made, f"Machine: {describe_in_words(content['machine'])}"])


def joined(content: Content, name: str) -> list[Row]:
    """The rows of all scenes, or their ratios."""
    return [row for entry in content["entries"] for row in entry[name]]


def is_same(row: Row, other: Row, names: Iterable[str] = PLACE) -> bool:
    return all(row[name] == other[name] for name in names)


# Speed


def speed_tables(content: Content) -> list[str]:
    """Ratios with this ConViT's own figures beside them, and the absolute figures of the others."""
    rows, names = joined(content, "rows"), ["model", "px", "batch", "mode"]
    names += [
        "time, ConViT / plain ViT", "time, timm's / ConViT", "peak memory, ConViT / plain ViT", "ConViT, ms/picture",
        "plain ViT, ms/picture", "timm's, ms/picture", "ConViT, share of GEMM peak", "plain ViT, share",
        "ConViT, MB", "plain ViT, MB", "timm's, MB",
    ]  # fmt: skip
    cells = []
    for row in joined(content, "ratios"):
        whose = {name: one(rows, row, contestant=name) for name in CONTESTANT_NAMES}
        times = [milliseconds(whose[name]) for name in CONTESTANT_NAMES]
        shares = [figure(whose[name], "share_of_gemm_peak", ".3f") for name in ("convit", "plain_vit")]
        memory = [figure(whose[name], "peak_memory_mb", ".0f") for name in CONTESTANT_NAMES]
        theirs = "timm's is out of memory" if row["timm_out_of_memory"] else spread(row["times_faster_than_timm"])
        ratio = row["memory_over_plain_vit"]
        cells.append(
            [
                *(row[name] for name in PLACE[:4]),
                spread(row["time_over_plain_vit"]),
                theirs,
                "-" if ratio is None else f"{ratio:.3f}",
                *times,
                *shares,
                *memory,
            ]
        )
    return [table(names, cells)]


def runtime_tables(content: Content) -> list[str]:
    """Every form of ConViT beside the plain ViT, itself in float32 and timm's in eager; the fastest one is named."""
    rows, ratios = joined(content, "rows"), joined(content, "ratios")
    names = [
        "model", "px", "batch", "runtime", "precision", "time, ConViT / plain ViT", "times faster than timm's eager",
        "times faster than float32 there", "ms/picture", "share of float32 GEMM peak", "difference to eager",
    ]  # fmt: skip
    cells = []
    for row in ratios:
        ours = one(rows, row, contestant="convit")
        cells.append(
            [
                *(row[name] for name in PLACE[:3]),
                RUNTIME_NAMES[row["runtime"]],
                row["precision"],
                spread(row["time_over_plain_vit"]),
                spread(row["times_faster_than_timm_eager_float32"]),
                spread(row["times_faster_than_float32"]),
                milliseconds(ours),
                figure(ours, "share_of_gemm_peak", ".3f"),
                figure(ours, "difference_to_eager", ".0e"),
            ]
        )
    fastest = []
    for model in dict.fromkeys(row["model"] for row in ratios):
        best = max(
            (row for row in ratios if row["model"] == model and row["times_faster_than_timm_eager_float32"]),
            key=lambda row: row["times_faster_than_timm_eager_float32"]["median"],
        )
        times = spread(best["times_faster_than_timm_eager_float32"], form=".2f")
        form = f"{RUNTIME_NAMES[best['runtime']]} in {best['precision']}"
        fastest.append(f"The fastest form of {model}, {form}, is {times} times as fast as timm's in eager float32.")
    return [table(names, cells), *fastest]


def growth_tables(content: Content) -> list[str]:
    """The fitted exponents, then the times they are fitted to."""
    return [growth_table(growth(joined(content, "rows"))), *speed_tables(content)]


def one(rows: Sequence[Row], place: Row, *, contestant: str) -> Row | None:
    """The row of a contestant at the place of another row; None if it was not measured."""
    return next((row for row in rows if row["contestant"] == contestant and is_same(row, place)), None)


def milliseconds(row: Row | None) -> str:
    if row is None:
        return "-"
    return "out of memory" if row["out_of_memory"] else spread(row["ms_per_picture"], form=".2f")


def figure(row: Row | None, name: str, form: str) -> str:
    return "-" if row is None or row.get(name) is None else f"{row[name]:{form}}"


# Memory, layers, low precision


def memory_tables(content: Content) -> list[str]:
    """For each way to grow, the most that fits of each contestant, and what the others hold there."""
    entries = content["entries"]
    names = ["memory", "model", "mode", "what grows", "whose", "the most that fits", "MB of tensors there", "not"]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for entry in entries:
        fixed = ("memory", "model", "mode", "growing", "contestant")
        groups.setdefault(tuple(entry["key"][name] for name in fixed), []).append(entry)
    cells = []
    for (memory, model, mode, growing, contestant), climbed in groups.items():
        fits = [entry for entry in climbed if entry["peak_memory_mb"] is not None]
        out = [entry for entry in climbed if entry["peak_memory_mb"] is None]
        end = "none that was tried" if climbed[-1]["is_last"] else "not tried to the end yet"
        cells.append(
            [
                f"{memory / 1e9:g} GB",
                model,
                mode,
                growing,
                CONTESTANT_NAMES[contestant],
                step_in_words(fits[-1]["key"]) if fits else "nothing",
                f"{fits[-1]['peak_memory_mb']:.0f}" if fits else "-",
                step_in_words(out[0]["key"]) if out else end,
            ]
        )
    return [table(names, cells)]


def step_in_words(key: Row) -> str:
    return f"{key['image_size']} px" if key["growing"] == "picture" else f"{key['batch_size']} pictures"


def profile_tables(content: Content) -> list[str]:
    """Milliseconds of each part of a layer, a column for each layer; then the share of the positional factors."""
    entries = content["entries"]
    columns = [(entry, layer) for entry in entries for layer in ("GPSA", "plain")]
    names = [f"{layer}, {of_key(entry['key'])}" for entry, layer in columns]
    totals = [sum(entry["parts_ms"][layer].values()) for entry, layer in columns]
    cells = []
    for part in PARTS:
        times = [entry["parts_ms"][layer][part] for entry, layer in columns]
        cells.append([part, *(f"{time:.3f} ({time / total:.1%})" for time, total in zip(times, totals, strict=True))])
    cells.append(["sum", *(f"{total:.3f}" for total in totals)])
    shares = table(
        ["layer", "positional factors / layer", "GPSA / plain, forward", "GPSA / plain, forward and backward"],
        [
            [
                of_key(entry["key"]),
                spread(entry["factors_over_layer"], form=".4f"),
                spread(entry["gpsa_over_plain"]),
                spread(entry["gpsa_over_plain_with_backward"]),
            ]
            for entry in entries
        ],
    )
    return [table(["part, ms per layer and batch", *names], cells), shares]


def of_key(key: Row) -> str:
    return f"{key['model']}, {key['image_size']} px, batch {key['batch_size']}"


def precision_tables(content: Content) -> list[str]:
    """A table for each model that was evaluated."""
    names = [
        "form", "top-1, %", "points from eager", "times faster than eager", "times faster than OpenVINO float32",
        "ms/picture", "difference of logits", "MB",
    ]  # fmt: skip
    parts = []
    for entry in content["entries"]:
        parts.append(f"{entry['data']}, {entry['num_pictures']} test pictures; {entry['model']}.")
        rows = []
        for form in entry["forms"]:
            rows.append(
                [
                    form["name"],
                    f"{form['top1']:.2f}",
                    f"{form['points_from_eager']:+.2f}",
                    spread(form["times_faster_than_eager"]),
                    spread(form["times_faster_than_float32"]),
                    spread(form["ms_per_picture"]),
                    figure(form, "relative_difference", ".1e"),
                    figure(form, "megabytes", ".1f"),
                ]
            )
        parts.append(table(names, rows))
    return parts


TABLES: dict[str, Callable[[Content], list[str]]] = {
    "eager": speed_tables,
    "openvino": speed_tables,
    "runtimes": runtime_tables,
    "growth": growth_tables,
    "memory_limit": memory_tables,
    "layer_profile": profile_tables,
    "low_precision": precision_tables,
}


# Targets


@dataclass(frozen=True)
class Target:
    """One thing that is aimed at, and which figures of a record it is about."""

    what: str
    goal: str
    record: str
    figures: Callable[[Content], list[float]]


def ratios_where(name: str, **wanted: Any) -> Callable[[Content], list[float]]:
    """Medians of a ratio in the scenes that have these values."""

    def figures(content: Content) -> list[float]:
        rows = [row for row in joined(content, "ratios") if row[name] is not None and is_same(row, wanted, wanted)]
        return [row[name]["median"] if isinstance(row[name], dict) else row[name] for row in rows]

    return figures


def shares_where(model: str, **wanted: Any) -> Callable[[Content], list[float]]:
    """Shares of the GEMM peak of this ConViT's sizes whose names begin so, in inference at batch 16, float32."""

    def figures(content: Content) -> list[float]:
        fixed = {"contestant": "convit", "mode": "inference", "precision": "float32", "batch_size": 16, **wanted}
        rows = [row for row in joined(content, "rows") if row["model"].startswith(model) and is_same(row, fixed, fixed)]
        return [row["share_of_gemm_peak"] for row in rows if not row["out_of_memory"]]

    return figures


def fastest(content: Content) -> list[float]:
    """Of each model, how much faster its fastest form is than timm's in eager."""
    best: dict[str, float] = {}
    for row in joined(content, "ratios"):
        found = row["times_faster_than_timm_eager_float32"]
        if found is not None:
            best[row["model"]] = max(best.get(row["model"], 0), found["median"])
    return list(best.values())


def of_form(form: str, name: str) -> Callable[[Content], list[float]]:
    """A figure of a form of every trained model that was evaluated."""
    return lambda content: [row[name] for entry in content["entries"] for row in entry["forms"] if row["name"] == form]


def factor_shares(content: Content) -> list[float]:
    """In percent of a layer, at batch 16."""
    entries = [entry for entry in content["entries"] if entry["key"]["batch_size"] == 16]
    return [100 * entry["factors_over_layer"]["median"] for entry in entries]


def targets() -> list[Target]:
    """Those of the issue, in its order."""
    found = []
    for record, modes in (("eager", ("inference", "training")), ("openvino", ("inference",))):
        for mode in modes:
            where = ratios_where("time_over_plain_vit", mode=mode)
            found.append(
                Target(f"time of {mode} / plain ViT, {RUNTIME_NAMES[record]}", "at most 1.06, aim 1.03", record, where)
            )
    for mode, side, goal in (
        ("inference", 224, 1.5), ("inference", 448, 3.4), ("training", 224, 1.4), ("training", 448, 2.2),
    ):  # fmt: skip
        where = ratios_where("times_faster_than_timm", mode=mode, image_size=side)
        found.append(Target(f"times faster than timm's, {mode}, {side} px, eager", f"at least {goal}", "eager", where))
    for mode, goal in (("inference", "at most 1.05"), ("training", "at most 1.20, aim 1.10")):
        where = ratios_where("memory_over_plain_vit", mode=mode, image_size=768)
        found.append(Target(f"peak memory of {mode} / plain ViT, 768 px, eager", goal, "eager", where))
    for model, record, goal in (
        ("ConViT_Ti", "eager", 0.72), ("ConViT_S", "eager", 0.82), ("ConViT", "openvino", 0.85),
    ):  # fmt: skip
        what = f"share of the GEMM peak, float32, batch 16, {RUNTIME_NAMES[record]}, {model.replace('ConViT_', '')}"
        found.append(Target(what, f"at least {goal}", record, shares_where(model)))
    for precision, goal in (
        ("bfloat16", "at least 1.7, aim 1.8"), *((name, "at least 2.1, aim 2.3") for name in ("int8_float32", "int8")),
    ):  # fmt: skip
        where = ratios_where("times_faster_than_float32", runtime="openvino", precision=precision)
        found.append(Target(f"times faster than float32, OpenVINO, {precision}", goal, "runtimes", where))
    found.append(Target("times the fastest form is faster than timm's in eager", "at least 4", "runtimes", fastest))
    for precision, goal in (("bfloat16", "-0.1 or more"), ("int8", "-0.3 or more")):
        where = of_form(f"OpenVINO {precision}", "points_from_eager")
        found.append(Target(f"top-1 from eager's, points, OpenVINO {precision}", goal, "low_precision", where))
    what = "positional factors, percent of a GPSA layer, batch 16"
    found.append(Target(what, "under 1", "layer_profile", factor_shares))
    return found


def target_table(contents: dict[str, Content | None]) -> str:
    """Every target with the least and the most that was found in its scenes."""
    cells = []
    for target in targets():
        content = contents[target.record]
        figures = [] if content is None else target.figures(content)
        cells.append(
            [target.what, target.goal, least_and_most(figures), f"[{target.record}](#{anchor(target.record)})"]
        )
    return table(["what", "target", "found, least to most", "table"], cells)


def least_and_most(figures: Sequence[float]) -> str:
    if not figures:
        return "not measured yet"
    least, most = f"{min(figures):.3f}", f"{max(figures):.3f}"
    return least if len(figures) == 1 else f"{least} to {most} ({len(figures)} scenes)"


def anchor(record: str) -> str:
    """Of a record's heading in docs/performance.md."""
    return record.replace("_", "-")
