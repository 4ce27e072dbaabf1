"""The targets of docs/performance.md, and what the records say of them: kept, missed, or not decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from freed_memory import GIVEN_BACK
from speed import SIZES
from tables import Content, Row, is_same, joined

from comvex.bench.figures import is_timed
from comvex.bench.names import EXPORTED, RUNTIME_NAMES, Contestant
from comvex.bench.report import spread, table


@dataclass(frozen=True)
class Found:
    """A figure of one scene; what has no quartiles is the same each time."""

    median: float
    quartiles: tuple[float, float] | None = None

    @classmethod
    def of(cls, spread: dict[str, float], *, scale: float = 1) -> Found:
        return cls(scale * spread["median"], (scale * spread["low"], scale * spread["high"]))

    def inverse(self) -> Found:
        """Of the ratio the other way round."""
        low, high = self.quartiles or (self.median, self.median)
        return Found(1 / self.median, (1 / high, 1 / low))

    def __str__(self) -> str:
        if self.quartiles is None:
            return f"{self.median:.3f}"
        low, high = self.quartiles
        return spread({"median": self.median, "low": low, "high": high})


@dataclass(frozen=True)
class Bound:
    """The most that a figure may be, or the least; ``aim`` is what would be better still and is not judged."""

    value: float
    is_most: bool
    aim: float | None = None

    def judge(self, found: Found) -> str:
        """Undecided is what has the bound between its quartiles."""
        low, high = found.quartiles or (found.median, found.median)
        if high <= self.value if self.is_most else low >= self.value:
            return "kept"
        return "missed" if (low > self.value if self.is_most else high < self.value) else "undecided"

    def __str__(self) -> str:
        aim = "" if self.aim is None else f", aim {self.aim:g}"
        return f"at {'most' if self.is_most else 'least'} {self.value:g}{aim}"


@dataclass(frozen=True)
class Target:
    """One thing that is aimed at, and which figures of a record are about it."""

    what: str
    bound: Bound
    figures: Callable[[Content], list[Found]]


def is_a_scene(row: Row) -> bool:
    """Whether a row is of a size and a batch that the targets are about: those of the table "eager"."""
    return row["batch_size"] == SIZES.get(row["image_size"])


def ratios_where(
    name: str, *, runtime: str = "eager", precision: str = "float32", **wanted: Any
) -> Callable[[Content], list[Found]]:
    """A ratio in the scenes that have these values."""
    wanted |= {"runtime": runtime, "precision": precision}

    def figures(content: Content) -> list[Found]:
        rows = [row for row in joined(content, "ratios") if is_a_scene(row) and is_same(row, wanted, wanted)]
        values = [row[name] for row in rows if row[name] is not None]
        return [Found.of(value) if isinstance(value, dict) else Found(value) for value in values]

    return figures


def given_back_where(contestant: Contestant, mode: str, side: int | None = None) -> Callable[[Content], list[Found]]:
    """Times as a program has them that gives freed memory back: ConViT's over the plain ViT's, timm's over ConViT's."""

    def figures(content: Content) -> list[Found]:
        found = []
        for entry in content["entries"] if content.get("table") == "freed_memory" else []:
            key = entry["key"]
            is_wanted = is_a_scene(key) and key["mode"] == mode and side in (None, key["image_size"])
            if is_wanted and contestant in entry["contestants"]:
                found.append(Found.of(entry["contestants"][contestant]["convit_over_it"][GIVEN_BACK]))
        return found if contestant == "plain_vit" else [one.inverse() for one in found]

    return figures


def shares_where(runtime: str, model: str | None = None) -> Callable[[Content], list[Found]]:
    """Shares of the GEMM peak of ConViT in a runtime, in inference at batch 16, float32; of all sizes or of one."""
    wanted = {"contestant": "convit", "mode": "inference", "precision": "float32", "batch_size": 16, "runtime": runtime}
    if model is not None:
        wanted["model"] = model

    def figures(content: Content) -> list[Found]:
        rows = [row for row in joined(content, "rows") if is_timed(row) and is_same(row, wanted, wanted)]
        return [Found.of(row["share_of_gemm_peak"]) for row in rows]

    return figures


def fastest(content: Content) -> list[Found]:
    """Of each scene with exported forms, how much faster the fastest form is than timm's in eager."""
    scenes: dict[tuple[Any, ...], list[Row]] = {}
    for row in joined(content, "ratios"):
        if row["times_faster_than_timm_eager_float32"] is not None:
            scenes.setdefault((row["model"], row["image_size"], row["batch_size"], row["mode"]), []).append(row)
    times = [
        [row["times_faster_than_timm_eager_float32"] for row in rows]
        for rows in scenes.values()
        if any(row["runtime"] in EXPORTED for row in rows)
    ]
    return [Found.of(max(forms, key=lambda form: form["median"])) for forms in times]


def points_of(form: str) -> Callable[[Content], list[Found]]:
    """Top-1 less eager's of every trained model that was evaluated, in percent of the test pictures."""

    def figures(content: Content) -> list[Found]:
        forms = [row for row in joined(content, "forms") if row["name"] == form]
        return [Found(row["points_from_eager"]) for row in forms]

    return figures


def factor_shares(content: Content) -> list[Found]:
    """In percent of a layer, at batch 16."""
    entries = [entry for entry in content["entries"] if "factors_over_layer" in entry]
    shares = [entry["factors_over_layer"] for entry in entries if entry["key"]["batch_size"] == 16]
    return [Found.of(share, scale=100) for share in shares]


def targets() -> list[Target]:
    """Those of the issue, in its order."""
    found = []
    for runtime, modes in (("eager", ("inference", "training")), ("openvino", ("inference",))):
        for mode in modes:
            where = ratios_where("time_over_plain_vit", runtime=runtime, mode=mode)
            bound = Bound(1.06, is_most=True, aim=1.03)
            found.append(Target(f"time of {mode} / plain ViT, {RUNTIME_NAMES[runtime]}", bound, where))
            if runtime == "eager":
                what = f"time of {mode} / plain ViT, eager, freed memory given back"
                found.append(Target(what, bound, given_back_where("plain_vit", mode)))
    for mode, side, least in (
        ("inference", 224, 1.5), ("inference", 448, 3.4), ("training", 224, 1.4), ("training", 448, 2.2),
    ):  # fmt: skip
        where = ratios_where("times_faster_than_timm", mode=mode, image_size=side)
        what, bound = f"times faster than timm's, {mode}, {side} px, eager", Bound(least, is_most=False)
        found.append(Target(what, bound, where))
        where = given_back_where("timm_convit", mode, side)
        found.append(Target(f"{what}, freed memory given back", bound, where))
    for mode, bound in (("inference", Bound(1.05, is_most=True)), ("training", Bound(1.2, is_most=True, aim=1.1))):
        where = ratios_where("memory_over_plain_vit", mode=mode, image_size=768)
        found.append(Target(f"peak memory of {mode} / plain ViT, 768 px, eager", bound, where))
    for name, runtime, model, least in (
        ("Ti", "eager", "ConViT_Ti", 0.72), ("S", "eager", "ConViT_S", 0.82), ("every size", "openvino", None, 0.85),
    ):  # fmt: skip
        what = f"share of the GEMM peak, float32, batch 16, {RUNTIME_NAMES[runtime]}, {name}"
        found.append(Target(what, Bound(least, is_most=False), shares_where(runtime, model)))
    for precision, bound in (
        ("bfloat16", Bound(1.7, is_most=False, aim=1.8)),
        ("int8_float32", Bound(2.1, is_most=False, aim=2.3)),
        ("int8", Bound(2.1, is_most=False, aim=2.3)),
    ):
        where = ratios_where("times_faster_than_float32", runtime="openvino", precision=precision)
        found.append(Target(f"times faster than float32, OpenVINO, {precision}", bound, where))
    what = "times the fastest form is faster than timm's in eager"
    found.append(Target(what, Bound(4, is_most=False), fastest))
    for precision, least in (("bfloat16", -0.1), ("int8", -0.3)):
        what = f"top-1 from eager's, points, OpenVINO {precision}"
        found.append(Target(what, Bound(least, is_most=False), points_of(f"OpenVINO {precision}")))
    what = "positional factors, percent of a GPSA layer, batch 16"
    found.append(Target(what, Bound(1, is_most=True), factor_shares))
    return found


def target_table(contents: dict[str, Content | None]) -> str:
    """Every target with the least and the most that any record has of its scenes, and whether it is kept."""
    cells = []
    for target in targets():
        of_record = {name: target.figures(content) for name, content in contents.items() if content is not None}
        figures = [found for found_there in of_record.values() for found in found_there]
        links = ", ".join(f"[{name}](#{anchor(name)})" for name, found_there in of_record.items() if found_there)
        cells.append(
            [target.what, target.bound, least_and_most(figures), judgement(target.bound, figures), links or "-"]
        )
    return table(["what", "target", "found, least to most", "kept, missed or undecided", "tables"], cells)


def least_and_most(figures: Sequence[Found]) -> str:
    if not figures:
        return "not measured yet"
    least, most = (choose(figures, key=lambda found: found.median) for choose in (min, max))
    return str(least) if len(figures) == 1 else f"{least} to {most}, {len(figures)} figures"


def judgement(bound: Bound, figures: Sequence[Found]) -> str:
    """A target is missed if one figure misses it, and kept if all keep it."""
    if not figures:
        return "-"
    counts = Counter(map(bound.judge, figures))
    verdict = next(name for name in ("missed", "undecided", "kept") if counts[name])
    parts = [f"{counts[name]} {name}" for name in ("kept", "undecided", "missed") if counts[name]]
    return verdict if len(parts) == 1 else f"{verdict} ({', '.join(parts)})"


def anchor(record: str) -> str:
    """Of a record's heading in docs/performance.md."""
    return record.replace("_", "-")
