"""From the seconds of paired rounds to the figures that are reported: medians, quartiles, ratios, exponents."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from comvex.bench.gemm import flop_of_product
from comvex.bench.names import EXPORTED
from comvex.bench.plan import Form, Scene


@dataclass(frozen=True)
class Spread:
    """The median of some rounds with the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        low, median, high = statistics.quantiles(values, n=4)
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass
class Measured:
    """What is known of a form in a scene; ``seconds`` has a step's time in each round, none if it was not timed."""

    scene: Scene
    form: Form
    flop: int
    """Of a step, with all its pictures."""
    peak_memory: float | None = None
    """Bytes, see ``peak_memory``; None if it ran out of memory, or if that cannot be measured."""
    difference: float | None = None
    """To eager float32, of inference; see ``steps.difference_to_eager``."""
    out_of_memory: bool = False
    why_no_memory: str | None = None
    """Why ``peak_memory`` cannot be measured on this system."""
    error: str | None = None
    """Why it could not be timed, if it is not for memory."""
    seconds: list[float] = field(default_factory=list)
    largest_kept: int | None = None
    """Bytes of the largest block of freed memory that was kept meanwhile; None if all was given back."""
    gemm_side: int = 0
    gemm_seconds: list[float] = field(default_factory=list)
    """Of the square float32 product of that side, in the same rounds."""

    def row(self) -> dict[str, Any]:
        """As the JSON report has it: times in milliseconds per picture, rates in GFLOP/s, memory in MB (10^6 bytes).

        ``seconds`` and ``gemm_seconds`` are those of a step in each round. What was not timed has none of the times.
        """
        common = {
            "model": self.scene.model,
            "image_size": self.scene.image_size,
            "batch_size": self.scene.batch_size,
            "mode": self.scene.mode,
            **asdict(self.form),
            "gflop_per_picture": self.flop / self.scene.batch_size / 1e9,
            "out_of_memory": self.out_of_memory,
            "error": self.error,
        }
        if not self.seconds:
            return common
        per_picture = [seconds / self.scene.batch_size for seconds in self.seconds]
        rates = [self.flop / seconds for seconds in self.seconds]
        products = [flop_of_product(self.gemm_side) / seconds for seconds in self.gemm_seconds]
        return common | {
            "ms_per_picture": asdict(Spread.of(1000 * seconds for seconds in per_picture)),
            "pictures_per_second": 1 / statistics.median(per_picture),
            "gflops": statistics.median(rates) / 1e9,
            "gemm_gflops": asdict(Spread.of(product / 1e9 for product in products)),
            "gemm_peak_gflops": max(products) / 1e9,
            "share_of_gemm_peak": asdict(Spread.of(rate / max(products) for rate in rates)),
            "share_of_gemm_in_round": asdict(Spread.of(a / b for a, b in zip(rates, products, strict=True))),
            "peak_memory_mb": None if self.peak_memory is None else self.peak_memory / 1e6,
            "memory_of": "process in a step" if self.form.runtime in EXPORTED else "tensors",
            "why_no_memory": self.why_no_memory,
            "difference_to_eager": self.difference,
            "largest_kept_mb": None if self.largest_kept is None else self.largest_kept / 1e6,
            "rounds": len(per_picture),
            "seconds": self.seconds,
            "gemm_side": self.gemm_side,
            "gemm_seconds": self.gemm_seconds,
        }


def ratio(numerator: Measured | None, denominator: Measured | None) -> Spread | None:
    """Spread of the rounds' ratios of time; None where one of them is missing or was not timed."""
    if numerator is None or denominator is None or not numerator.seconds or not denominator.seconds:
        return None
    return Spread.of(a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True))


def ratios(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """For each form of this ConViT in each scene its ratios to the others, as the report has them."""
    at = {(found.scene, found.form): found for found in measured}
    rows = []
    for found in measured:
        form, scene = found.form, found.scene
        if form.contestant != "convit":
            continue
        plain = at.get((scene, Form("plain_vit", form.runtime, form.precision)))
        theirs = at.get((scene, Form("timm_convit", form.runtime, form.precision)))
        published = at.get((scene, Form("timm_convit", "eager", "float32")))
        float32 = at.get((scene, Form("convit", form.runtime, "float32")))
        spreads = {
            "time_over_plain_vit": ratio(found, plain),
            "times_faster_than_timm": ratio(theirs, found),
            "times_faster_than_timm_eager_float32": ratio(published, found),
            "times_faster_than_float32": ratio(float32, found) if form.precision != "float32" else None,
        }
        memory = None
        if plain is not None and found.seconds and plain.seconds and found.peak_memory and plain.peak_memory:
            memory = found.peak_memory / plain.peak_memory
        rows.append(
            {
                "model": scene.model,
                "image_size": scene.image_size,
                "batch_size": scene.batch_size,
                "mode": scene.mode,
                "runtime": form.runtime,
                "precision": form.precision,
                **{name: None if spread is None else asdict(spread) for name, spread in spreads.items()},
                "memory_over_plain_vit": memory,
                "timm_out_of_memory": theirs is not None and theirs.out_of_memory,
            }
        )
    return rows


def is_timed(row: dict[str, Any]) -> bool:
    """Whether a row of the report has times: it neither failed nor ran out of memory."""
    return "ms_per_picture" in row


def growth(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each form that was measured at several sizes the exponent e of time ~ pixels^e, by least squares of logs.

    1 is cost in proportion to the picture's area; attention alone would be 2.
    """
    series: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    names = ("model", "mode", "contestant", "runtime", "precision")
    for row in rows:
        if is_timed(row):
            point = (row["image_size"] ** 2, row["ms_per_picture"]["median"])
            series.setdefault(tuple(row[name] for name in names), []).append(point)
    fits = []
    for key, points in series.items():
        if len({pixels for pixels, _ in points}) > 1:
            pixels, time = np.log(np.array(points)).T
            exponent = float(np.polyfit(pixels, time, deg=1)[0])
            sizes = [round(pixels**0.5) for pixels, _ in points]
            fits.append(dict(zip(names, key, strict=True)) | {"image_sizes": sizes, "exponent": exponent})
    return fits
