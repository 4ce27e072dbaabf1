"""The report for people: Markdown with ratios first and absolute figures second, and plots of both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from comvex.bench.figures import is_timed
from comvex.bench.machine import describe_in_words
from comvex.bench.names import CONTESTANT_NAMES, RUNTIME_NAMES
from comvex.errors import UserError
from comvex.files import check_writable, write_text
from comvex.plotting import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure

FILES = ("bench.md", "bench.json", "ratios.png", "times.png")
COLOURS = {"convit": BLUE, "plain_vit": GREY, "timm_convit": VERMILION}
RATIO_NAMES = {
    "time_over_plain_vit": "time, ConViT / plain ViT",
    "times_faster_than_timm": "time, timm's ConViT / ConViT",
    "times_faster_than_timm_eager_float32": "time, timm's in eager float32 / ConViT",
    "times_faster_than_float32": "time, ConViT in float32 / this precision",
}
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s")
"""With the lines: eight ways to compute can be told apart."""


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raises ``ValueError`` if a folder holds a report that is not to be replaced, or cannot be written to.

    To be called before anything is measured.
    """
    there = [name for name in FILES if (out / name).exists()]
    if there and not overwrite:
        raise UserError(f"{out / there[0]} is there already: --overwrite replaces it.")
    check_writable(out)


def write_report(report: dict[str, Any], out: Path) -> None:
    """Write bench.md, bench.json, ratios.png and times.png into a folder."""
    write_text(out / "bench.json", json.dumps(report, indent=2) + "\n")
    write_text(out / "bench.md", to_markdown(report))
    plot_ratios(report, out / "ratios.png")
    plot_times(report, out / "times.png")


def to_markdown(report: dict[str, Any]) -> str:
    """The report as a page: machine and command, ratios, absolute figures, what failed, growth."""
    parts = [header(report), "## Ratios", ratio_table(report["ratios"]), "## Absolute figures", row_table(report)]
    if any(row["error"] for row in report["rows"]):
        parts += ["## Failed", failures(report["rows"])]
    if report["growth"]:
        parts += ["## Cost as pictures grow", growth_table(report["growth"])]
    return "\n\n".join(parts) + "\n"


def header(report: dict[str, Any]) -> str:
    lines = [
        describe_in_words(report["machine"]),
        "",
        f"`{report['command']}`",
        "",
        f"Median of {report['rounds']} paired rounds, each in an order of its own (shuffled with seed "
        f"{report['order_seed']}), in brackets the quartiles. The GEMM peak is the best of a square float32 product "
        "that takes its turn in each round.",
    ]
    scenes = report["num_scenes"]
    if scenes["measured"] < scenes["planned"]:
        lines += ["", f"Not finished: {scenes['measured']} of {scenes['planned']} scenes are measured."]
    if report["left_out"]:
        lines += ["", f"Left out: {'; '.join(report['left_out'])}."]
    return "\n".join(lines)


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def spread(value: dict[str, float] | None, *, form: str = ".3f") -> str:
    if value is None:
        return "-"
    return f"{value['median']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def ratio_table(ratios: Sequence[dict[str, Any]]) -> str:
    shown = [name for name in RATIO_NAMES if any(row[name] for row in ratios)]
    names = ["model", "px", "batch", "mode", "runtime", "precision", *(RATIO_NAMES[name] for name in shown)]
    rows = []
    for row in ratios:
        cells = [spread(row[name]) for name in shown]
        if row["timm_out_of_memory"] and "times_faster_than_timm" in shown:
            cells[shown.index("times_faster_than_timm")] = "timm's is out of memory"
        memory = row["memory_over_plain_vit"]
        rows.append([*place(row), *cells, "-" if memory is None else f"{memory:.3f}"])
    return table([*names, "peak memory, ConViT / plain ViT"], rows)


def place(row: dict[str, Any]) -> list[object]:
    """The cells that say what a row of a table is of."""
    return [
        row["model"], row["image_size"], row["batch_size"], row["mode"], RUNTIME_NAMES[row["runtime"]],
        row["precision"],
    ]  # fmt: skip


def row_table(report: dict[str, Any]) -> str:
    names = [
        "model", "px", "batch", "mode", "runtime", "precision", "whose", "ms/picture", "pictures/s", "GFLOP/picture",
        "share of GEMM peak", "GEMM peak, GFLOP/s", "share of GEMM in the same round", "peak memory, MB", "of",
        "difference to eager float32",
    ]  # fmt: skip
    rows = []
    for row in report["rows"]:
        cells: list[object] = [*place(row), CONTESTANT_NAMES[row["contestant"]]]
        gflop = f"{row['gflop_per_picture']:.3f}"
        if not is_timed(row):
            why = "out of memory" if row["out_of_memory"] else "failed"
            rows.append([*cells, why, "-", gflop, *["-"] * 6])
            continue
        memory = row["peak_memory_mb"]
        difference = row["difference_to_eager"]
        rows.append(
            [
                *cells,
                spread(row["ms_per_picture"], form=".2f"),
                f"{row['pictures_per_second']:.1f}",
                gflop,
                spread(row["share_of_gemm_peak"]),
                f"{row['gemm_peak_gflops']:.0f}",
                spread(row["share_of_gemm_in_round"]),
                "not measurable" if memory is None else f"{memory:.1f}",
                row["memory_of"],
                "-" if difference is None else f"{difference:.0e}",
            ]
        )
    reasons = dict.fromkeys(row["why_no_memory"] for row in report["rows"] if row.get("why_no_memory"))
    return "\n\n".join([table(names, rows), *reasons])


def failures(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each form that could not be timed."""
    return "\n".join(
        f"- {row['model']}, {row['image_size']} px, {row['mode']}, {CONTESTANT_NAMES[row['contestant']]}, "
        f"{RUNTIME_NAMES[row['runtime']]}, {row['precision']}: {row['error']}"
        for row in rows
        if row["error"]
    )


def growth_table(fits: Sequence[dict[str, Any]]) -> str:
    names = ["model", "mode", "runtime", "precision", "whose", "px", "e in time ~ pixels^e"]
    return table(
        names,
        [
            [
                fit["model"],
                fit["mode"],
                RUNTIME_NAMES[fit["runtime"]],
                fit["precision"],
                CONTESTANT_NAMES[fit["contestant"]],
                " ".join(map(str, fit["image_sizes"])),
                f"{fit['exponent']:.2f}",
            ]
            for fit in fits
        ],
    )


def plot_ratios(report: dict[str, Any], file: Path) -> None:
    """A dot with its quartiles for each ratio of time, one row for each form of this ConViT."""
    ratios = report["ratios"]
    shown = [name for name in RATIO_NAMES if any(row[name] for row in ratios)]
    colours = dict(zip(RATIO_NAMES, (BLUE, VERMILION, ORANGE, GREEN), strict=True))
    labels = [
        f"{row['model']}, {row['image_size']} px, {row['mode']}\n{RUNTIME_NAMES[row['runtime']]}, {row['precision']}"
        for row in ratios
    ]
    with new_figure(file, size=(8, 1.8 + 0.5 * len(ratios))) as figure:
        axes = figure.subplots()
        for offset, name in enumerate(shown):
            there = [(index, row[name]) for index, row in enumerate(ratios) if row[name]]
            x = [value["median"] for _, value in there]
            whiskers = [
                [value["median"] - value["low"] for _, value in there],
                [value["high"] - value["median"] for _, value in there],
            ]
            y = [index + 0.15 * offset for index, _ in there]
            axes.errorbar(x, y, xerr=whiskers, fmt="o", capsize=3, color=colours[name], label=RATIO_NAMES[name])
        axes.axvline(1, color=GREY, linewidth=0.8)
        axes.set_yticks(range(len(ratios)), labels)
        axes.invert_yaxis()
        axes.set_xlabel("ratio of times, median and quartiles of paired rounds")
        axes.set_title("ConViT's time beside the others'")
        if shown:
            figure.legend(loc="outside lower center")


def plot_times(report: dict[str, Any], file: Path) -> None:
    """Time per picture over the side of the picture, both logarithmic, a panel for each model and mode."""
    from matplotlib.ticker import LogLocator, NullLocator

    rows = [row for row in report["rows"] if is_timed(row)]
    panels = list(dict.fromkeys((row["model"], row["mode"]) for row in rows))
    ways = list(dict.fromkeys((row["runtime"], row["precision"]) for row in rows))
    with new_figure(file, size=(9, 1.5 + 3.5 * max(1, len(panels)))) as figure:
        for axes, panel in zip(figure.subplots(max(1, len(panels)), squeeze=False)[:, 0], panels, strict=False):
            for key, points in series(rows, lambda row, at=panel: (row["model"], row["mode"]) == at).items():
                contestant, runtime, precision = key
                more, line = divmod(ways.index((runtime, precision)), len(LINES))
                axes.plot(
                    *zip(*sorted(points), strict=True),
                    marker=MARKERS[more % len(MARKERS)],
                    color=COLOURS[contestant],
                    linestyle=LINES[line],
                    label=f"{CONTESTANT_NAMES[contestant]}, {RUNTIME_NAMES[runtime]}, {precision}",
                )
            sizes = sorted({row["image_size"] for row in rows})
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
            axes.set_xlabel("side of the picture, pixels")
            axes.set_ylabel("time per picture, ms")
            axes.set_title(f"{panel[0]}, {panel[1]}, batch {rows[0]['batch_size']}")
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)


def series(
    rows: Sequence[dict[str, Any]], wanted: Callable[[dict[str, Any]], bool]
) -> dict[tuple[str, str, str], list[tuple[int, float]]]:
    """(picture side, milliseconds per picture) of every form among the rows that are wanted."""
    found: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for row in rows:
        if wanted(row):
            key = (row["contestant"], row["runtime"], row["precision"])
            found.setdefault(key, []).append((row["image_size"], row["ms_per_picture"]["median"]))
    return found
