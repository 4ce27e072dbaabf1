"""``comvex data``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from comvex.help import DEFAULT_TOLD


@dataclass(frozen=True)
class Data:
    """Look at a data set before training: comvex data check DATA.

    Reads every picture once and tells counts per class and part, sizes, modes, unreadable files, the same picture twice
    (most of all in training and in the test), classes that are too small, and settings that fit. What was read is
    remembered: the second time only what has changed is read again. The exit code is 1 if a picture cannot be read, is
    in several parts, or has different labels, or if comvex train would refuse the data.
    """

    action: Annotated[Positional[Literal["check"]], arg(metavar="check")]
    """What to do."""
    data: Annotated[Positional[str], arg(metavar="DATA")]
    """What comvex train takes as --data: a folder of class folders, a CSV file, hfds/NAME, wds/PATTERN, digits, ..."""
    split_seed: int = 0
    """As in comvex train: decides which pictures are set aside for validation, unless the data have a val part."""
    workers: Annotated[int | None, DEFAULT_TOLD] = None
    """Processes that read pictures. Default: one per CPU, up to 8."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> int:
        from comvex.data.check import check_data, describe_check, has_problems
        from comvex.errors import UserError

        if self.workers is not None and self.workers < 0:
            raise UserError(f"workers is {self.workers}: it must be at least 0.")
        report = check_data(self.data, split_seed=self.split_seed, workers=self.workers)
        print(json.dumps(report) if self.json else describe_check(report))
        return 1 if has_problems(report) else 0
