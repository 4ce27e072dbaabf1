"""What is measured: scenes (model size, picture size, batch, mode) and in each the forms that are timed in turn."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from comvex.bench.names import (
    CONTESTANT_NAMES,
    EXPORTED,
    QUANTISED,
    RUNTIME_NAMES,
    Contestant,
    Mode,
    Precision,
    Rival,
    Runtime,
)
from comvex.convit.config import ConViTConfig, check_integer
from comvex.errors import UserError
from comvex.inference.programs import check_installed

PACKAGES = {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino", "onnx", "onnxscript")}
FEWEST_ROUNDS = 7


@dataclass(frozen=True)
class Form:
    """One way to compute the same thing: whose model, in which runtime and precision."""

    contestant: Contestant
    runtime: Runtime
    precision: Precision

    def __str__(self) -> str:
        return f"{CONTESTANT_NAMES[self.contestant]}, {RUNTIME_NAMES[self.runtime]}, {self.precision}"


@dataclass(frozen=True)
class Scene:
    """What the forms that are compared have in common."""

    model: str
    """Name of the size, as in the tables."""
    config: ConViTConfig
    batch_size: int
    mode: Mode

    @property
    def image_size(self) -> int:
        """Side of the square pictures in pixels."""
        assert isinstance(self.config.image_size, int)
        return self.config.image_size

    def __str__(self) -> str:
        return f"{self.model}, {self.image_size} px, {self.mode}"


@dataclass(frozen=True)
class Plan:
    """What a benchmark measures: the forms of a mode, in every scene of that mode."""

    scenes: tuple[Scene, ...]
    forms: dict[Mode, list[Form]]
    runtimes: tuple[Runtime, ...]
    precisions: tuple[Precision, ...]
    left_out: list[str]
    """The combinations asked for that do not exist, each in words."""


def make_plan(
    config_of: Mapping[str, Sequence[ConViTConfig]],
    *,
    batch_size: int,
    modes: Sequence[Mode],
    runtimes: Sequence[Runtime],
    precisions: Sequence[Precision],
    against: Sequence[Rival],
) -> Plan:
    """All combinations of what is given: ``config_of`` names a size of the model, with its configs at picture sizes.

    Raises ``ValueError`` for a list without values or with one twice, what is not known or not installed, and if no
    combination exists.
    """
    check_integer("batch_size", batch_size, at_least=1)
    check_list("preset", list(config_of))
    for configs in config_of.values():
        check_list("size", [config.image_size for config in configs])
    for name, values in {"mode": modes, "runtime": runtimes, "precision": precisions}.items():
        check_list(name, values)
    check_list("against", against, may_be_empty=True)
    for runtime in runtimes:
        check_known("runtime", runtime, Runtime)
        check_installed(packages_of([runtime]), what=f"runtime {runtime!r}")
    for precision in precisions:
        check_known("precision", precision, Precision)
    contestants: list[Contestant] = ["convit", *against]
    forms: dict[Mode, list[Form]] = {mode: [] for mode in modes}
    reasons = {}
    for mode, runtime, precision in itertools.product(modes, runtimes, precisions):
        reason = why_impossible(mode, runtime, precision)
        if reason is None:
            check_installed(packages_of([runtime], [precision]), what=f"precision {precision!r}")
            forms[mode] += [Form(contestant, runtime, precision) for contestant in contestants]
        else:
            reasons[reason] = None
    scenes = [
        Scene(name, config, batch_size, mode)
        for name, configs in config_of.items()
        for mode in modes
        for config in configs
        if forms[mode]
    ]
    if not scenes:
        raise UserError(f"Nothing is left to measure: there is no {'; no '.join(reasons)}.")
    return Plan(tuple(scenes), forms, tuple(runtimes), tuple(precisions), list(reasons))


def preset_configs(presets: Sequence[str], sizes: Sequence[int]) -> dict[str, list[ConViTConfig]]:
    """The paper's sizes at these picture sides in pixels; raises ``ValueError`` for what does not exist."""
    return {preset: [ConViTConfig.from_preset(preset, image_size=size) for size in sizes] for preset in presets}


def why_impossible(mode: Mode, runtime: Runtime, precision: Precision) -> str | None:
    """Why a runtime cannot do this, or None if it can."""
    if runtime in EXPORTED and mode == "training":
        return f"training in {RUNTIME_NAMES[runtime]}, which only infers"
    if runtime == "onnxruntime" and precision == "bfloat16":
        return "bfloat16 in ONNX Runtime, which has no such kernels for CPUs"
    if runtime != "openvino" and precision in QUANTISED:
        return f"{precision} in {RUNTIME_NAMES[runtime]}: only OpenVINO's models are quantised here"
    return None


def packages_of(runtimes: Iterable[Runtime], precisions: Iterable[Precision] = ()) -> list[str]:
    """Packages beyond PyTorch and timm that these runtimes and precisions need."""
    needed = [package for runtime in runtimes for package in PACKAGES.get(runtime, ())]
    return needed + ["nncf"] * any(precision in QUANTISED for precision in precisions)


def check_list(name: str, values: Sequence[object], *, may_be_empty: bool = False) -> None:
    """Raises ``ValueError`` if there is no value, or one twice: it would count double where a line is fitted."""
    if not values and not may_be_empty:
        raise UserError(f"{name} is empty: at least one value is needed.")
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise UserError(f"{name} has {twice} more than once: each value must be given once.")


def check_known(name: str, value: str, allowed: object) -> None:
    if value not in get_args(allowed):
        raise UserError(f"{name} is {value!r}: it must be one of {', '.join(get_args(allowed))}.")
