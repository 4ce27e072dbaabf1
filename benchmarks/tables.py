"""The tables of docs/performance.md, as Markdown made of the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from freed_memory import WAYS
from layer_profile import PARTS
from step_profile import KINDS

from comvex.allocator import LARGEST
from comvex.bench.figures import growth, is_timed
from comvex.bench.machine import describe_in_words
from comvex.bench.names import CONTESTANT_NAMES, RUNTIME_NAMES
from comvex.bench.report import growth_table, spread, table

Row = dict[str, Any]
Content = dict[str, Any]
NOT_MEASURED = "Not measured yet."
LARGE_BLOCKS = "Blocks beyond 32 MiB were given back, since a model needed more than a third of the machine's memory:"
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
    made += [revisions_in_words(content["entries"]), f"Machine: {describe_in_words(content['machine'])}"]
    return "\n\n".join([*TABLES[content["table"]](content), *made])


def revisions_in_words(entries: Sequence[Row]) -> str:
    """Which code was measured; says so if it was not the same for all entries."""
    counts = Counter(map(revision_in_words, entries))
    if len(counts) == 1:
        return f"Code: {next(iter(counts))}."
    parts = ", ".join(f"{revision} ({count} entries)" for revision, count in counts.items())
    return f"Code: not the same for all entries, which may differ by that: {parts}."


def revision_in_words(entry: Row) -> str:
    if "revision" not in entry:
        return "revision not noted"
    revision = entry["revision"]
    if revision is None:
        return "not of a git checkout"
    return f"revision `{revision['commit'][:7]}`" + " with src/comvex changed since" * revision["changed"]


def joined(content: Content, name: str) -> list[Row]:
    """The rows of all scenes, or their ratios; none if the record is of something else."""
    return [row for entry in content["entries"] for row in entry.get(name, [])]


def is_same(row: Row, other: Row, names: Iterable[str] = PLACE) -> bool:
    return all(row[name] == other[name] for name in names)


# Speed


def speed_tables(content: Content) -> list[str]:
    """Ratios with this ConViT's own figures beside them, and the absolute figures of the others."""
    rows, names = joined(content, "rows"), ["model", "px", "batch", "mode"]
    names += [
        "time, ConViT / plain ViT", "time, timm's / ConViT", "peak memory, ConViT / plain ViT", "ConViT, ms/picture",
        "plain ViT, ms/picture", "timm's, ms/picture", "ConViT, share of GEMM peak", "plain ViT, share",
        "GEMM peak, GFLOP/s", "ConViT, share of GEMM in the same round", "GEMM in the rounds, GFLOP/s",
        "ConViT, MB", "plain ViT, MB", "timm's, MB",
    ]  # fmt: skip
    cells = []
    for row in joined(content, "ratios"):
        whose = {name: one(rows, row, contestant=name) for name in CONTESTANT_NAMES}
        times = [milliseconds(whose[name]) for name in CONTESTANT_NAMES]
        shares = [timed(whose[name], "share_of_gemm_peak") for name in ("convit", "plain_vit")]
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
                figure(whose["convit"], "gemm_peak_gflops", ".0f"),
                timed(whose["convit"], "share_of_gemm_in_round"),
                timed(whose["convit"], "gemm_gflops", form=".0f"),
                *memory,
            ]
        )
    return [table(names, cells), *large_blocks_in_words(rows)]


def large_blocks_in_words(rows: Sequence[Row]) -> list[str]:
    """In which scenes large blocks of freed memory were given back."""
    given_back = [row for row in rows if (row.get("largest_kept_mb") or LARGEST / 1e6) < LARGEST / 1e6]
    scenes = dict.fromkeys(f"{of_key(row)}, {row['mode']}" for row in given_back)
    return [f"{LARGE_BLOCKS} {'; '.join(scenes)}."] if scenes else []


def timed(row: Row | None, name: str, *, form: str = ".3f") -> str:
    """A figure of a row with its quartiles; none if it was not timed."""
    return "-" if row is None or not is_timed(row) else spread(row[name], form=form)


def runtime_tables(content: Content) -> list[str]:
    """Every form of ConViT beside the plain ViT, itself in float32 and timm's in eager; the fastest one is named."""
    rows, ratios = joined(content, "rows"), joined(content, "ratios")
    names = [
        "model", "px", "batch", "mode", "runtime", "precision", "time, ConViT / plain ViT",
        "times faster than timm's eager", "times faster than float32 there", "ms/picture",
        "share of float32 GEMM peak", "float32 GEMM peak, GFLOP/s", "share of GEMM in the same round",
        "difference to eager",
    ]  # fmt: skip
    cells = []
    for row in ratios:
        ours = one(rows, row, contestant="convit")
        cells.append(
            [
                *(row[name] for name in PLACE[:4]),
                RUNTIME_NAMES[row["runtime"]],
                row["precision"],
                spread(row["time_over_plain_vit"]),
                spread(row["times_faster_than_timm_eager_float32"]),
                spread(row["times_faster_than_float32"]),
                milliseconds(ours),
                timed(ours, "share_of_gemm_peak"),
                figure(ours, "gemm_peak_gflops", ".0f"),
                timed(ours, "share_of_gemm_in_round"),
                figure(ours, "difference_to_eager", ".0e"),
            ]
        )
    scenes: dict[tuple[str, str], list[Row]] = {}
    for row in ratios:
        if row["times_faster_than_timm_eager_float32"]:
            scenes.setdefault((row["model"], row["mode"]), []).append(row)
    fastest = []
    for (model, mode), forms in scenes.items():
        best = max(forms, key=lambda row: row["times_faster_than_timm_eager_float32"]["median"])
        times = spread(best["times_faster_than_timm_eager_float32"], form=".2f")
        form = f"{RUNTIME_NAMES[best['runtime']]} in {best['precision']}"
        fastest.append(f"The fastest form of {model} in {mode}, {form}, is {times} times as fast as timm's in eager.")
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
    for (memory, model, mode, growing, contestant), steps in groups.items():
        climbed = sorted(steps, key=lambda entry: (entry["key"]["image_size"], entry["key"]["batch_size"]))
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
    """Milliseconds of each part of a layer, a column for each layer; then what compares the layers."""
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
    apart = "Each part is the median of calls in turn: only the next table, of paired rounds, compares the layers."
    return [table(["part, ms per layer and batch", *names], cells), apart, shares]


def step_tables(content: Content) -> list[str]:
    """Milliseconds of each kind of operation in a step, a column for each step; below them the rate of the products."""
    columns = [(entry, contestant) for entry in content["entries"] for contestant in entry["contestants"]]
    names = [
        f"{CONTESTANT_NAMES[contestant]}, {of_key(entry['key'])}, {entry['key']['mode']}"
        for entry, contestant in columns
    ]
    found = [entry["contestants"][contestant] for entry, contestant in columns]
    totals = [sum(one["kinds_ms"].values()) for one in found]
    cells = []
    for kind in KINDS:
        times = [one["kinds_ms"][kind] for one in found]
        cells.append([kind, *(f"{time:.1f} ({time / total:.1%})" for time, total in zip(times, totals, strict=True))])
    cells.append(["sum", *(f"{total:.1f}" for total in totals)])
    cells.append(["products, GFLOP/s", *(f"{one['products_gflops']:.0f}" for one in found)])
    cells.append(["GEMM peak, GFLOP/s", *(f"{entry['gemm_peak_gflops']:.0f}" for entry, _ in columns)])
    return [table(["ms per step", *names], cells)]


def of_key(key: Row) -> str:
    return f"{key['model']}, {key['image_size']} px, batch {key['batch_size']}"


def freed_memory_tables(content: Content) -> list[str]:
    """For each scene, what keeping freed memory changes for each contestant."""
    names = [
        "model", "px", "batch", "mode", "whose", "time, kept / given back", "ms/picture, kept",
        "ConViT's time / its, kept", "given back", "new pages a step, kept", "given back",
        "peak of the process, MB, kept", "given back",
    ]  # fmt: skip
    rows = []
    for entry in content["entries"]:
        for contestant, found in entry["contestants"].items():
            beside = [spread(found["convit_over_it"][way]) for way in WAYS]
            rows.append(
                [
                    *(entry["key"][name] for name in PLACE[:4]),
                    CONTESTANT_NAMES[contestant],
                    spread(found["kept_over_given_back"]),
                    spread(found["ms_per_picture"], form=".2f"),
                    *(["-", "-"] if contestant == "convit" else beside),
                    *(f"{found['new_pages'][way]:,}" for way in WAYS),
                    *(f"{found['peak_process_mb'][way]:.0f}" for way in WAYS),
                ]
            )
    return [table(names, rows)]


def precision_tables(content: Content) -> list[str]:
    """A table for each model that was evaluated."""
    names = [
        "form", "top-1, %", "points from eager", "times faster than eager", "times faster than OpenVINO float32",
        "ms/picture", "difference of logits", "MB",
    ]  # fmt: skip
    parts = []
    for entry in content["entries"]:
        parts.append(
            f"{entry['data']}, {entry['num_pictures']} test pictures; {entry['model']}; batches of "
            f"{entry['key']['batch_size']}, int8 calibrated on {entry['calibrated_on']} training pictures."
        )
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
    "bfloat16": runtime_tables,
    "compile": runtime_tables,
    "growth": growth_tables,
    "memory_limit": memory_tables,
    "layer_profile": profile_tables,
    "step_profile": step_tables,
    "freed_memory": freed_memory_tables,
    "low_precision": precision_tables,
}
