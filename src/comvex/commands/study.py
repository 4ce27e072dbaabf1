"""``comvex study``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from comvex.help import DEFAULT_TOLD
from comvex.study.plan import FRACTIONS, STANDARD, Study
from comvex.training.recipe import Options, Recipe


@dataclass(frozen=True)
class RunStudy:
    """Find out by many runs how few pictures ConViT needs, or which of its parts matters.

    All runs have the same recipe, whose settings are those of comvex train; --epochs are those of all pictures, by
    default as many as show 800,000 of them, at least ten: in short runs ConViT may lead by learning faster. The study
    itself sets --fraction, --seed, --split-seed and the switches of GPSA, and refuses them, as it does --weights and
    --no-test. The last epoch of each run is tested; --patience wants --select best.

    Stop it whenever you like and repeat the command to go on; the same command in several terminals, or on several
    machines with one disk, shares the runs out among them: give each --threads, so that together they have no more
    than there are cores.

    OUT/report.md has the table, the figures and how they were measured; results.csv has every run.

      comvex study sample-efficiency --data FOLDER --dry-run            # how many runs, how long
      comvex study sample-efficiency --data FOLDER --out studies/mine   # ConViT and a plain ViT on 1 to 100 %
      comvex study ablation --data FOLDER --out studies/parts           # the paper's Table 3
    """

    kind: Annotated[Positional[Literal["sample-efficiency", "ablation"]], arg(name="study", metavar="STUDY")]
    """sample-efficiency: ConViT beside a plain ViT of the same code. ablation: the rows of the paper's Table 3."""
    recipe: Annotated[Recipe, arg(name="")] = field(default_factory=lambda: STANDARD)
    options: Annotated[Options, arg(name="")] = field(default_factory=Options)
    out: Annotated[Path | None, DEFAULT_TOLD] = None
    """Folder for the report and the runs. Default: studies/STUDY-DATA."""
    fractions: Annotated[tuple[float, ...], DEFAULT_TOLD] = ()
    """Shares of the training pictures. Default: those that OUT has been asked for; at first 0.01 0.05 0.1 0.3 1, for
    the ablation 0.1 1, as far as the data have enough."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each decides pictures, initial weights, order and augmentation of one run per architecture and fraction."""
    stretch: float = 1.0
    """Epochs of a fraction are multiplied by (1 / fraction) to this power. 1, as in the paper, gives every fraction as
    many steps; 0.5 is much shorter, where few pictures are learnt sooner."""
    dry_run: bool = False
    """Train nothing: tell the runs, their lengths, and how long they would take, from some steps of each
    architecture."""
    json: bool = False
    """Print the figures as one JSON object on standard output, and nothing else there."""

    def run(self) -> int:
        from comvex.study.carry_out import carry_out, check_way
        from comvex.study.pictures import with_fitting_fractions
        from comvex.study.study_file import noted_study
        from comvex.training.stopping import StoppedError

        out = self.out if self.out is not None else Path("studies") / f"{self.kind}-{Path(self.recipe.data).name}"
        check_way(self.options)
        study = Study(self.kind, self.recipe, self.fractions or FRACTIONS[self.kind], self.seeds, self.stretch)
        _, noted = noted_study(study, out)  # a folder of something else is refused before the data are opened
        if not self.fractions and noted is not None:
            study = replace(study, fractions=tuple(noted["fractions"]))
        elif not self.fractions:
            study, left_out = with_fitting_fractions(study)
            for sentence in left_out:
                print(f"study: {sentence}", file=sys.stderr)
        if self.dry_run:
            from comvex.study.dry_run import describe_dry_run, dry_run

            outline = dry_run(study, out, options=self.options)
            print(json.dumps(outline) if self.json else describe_dry_run(outline))
            return 0
        try:
            report = carry_out(study, out, options=self.options)
        except StoppedError as stopped:
            print(f"comvex: {stopped}", file=sys.stderr)
            return stopped.exit_code
        print(json.dumps(report) if self.json else describe(report))
        return 0


def describe(report: dict[str, Any]) -> str:
    """A line for each architecture and fraction, and for each comparison."""
    from comvex.study.picture_factor import Factor
    from comvex.study.report import lead_words

    lines = []
    for summary in report["summary"]:
        deviation = "" if summary["deviation"] is None else f" ± {summary['deviation']:.2f}"
        lines.append(
            f"{summary['architecture']}, {100 * summary['fraction']:g} % ({summary['num_pictures']:.0f} pictures): "
            f"top-1 {summary['top1']:.2f}{deviation} % over {summary['num_seeds']} "
            f"{'seed' if summary['num_seeds'] == 1 else 'seeds'}"
        )
    if report["study"] == "sample-efficiency":
        lines += [
            f"at {100 * comparison['fraction']:g} % ConViT's top-1 less the plain ViT's is "
            f"{lead_words(comparison['leads'])} points; the plain ViT needs {Factor(**comparison['factor'])} times the "
            "pictures for ConViT's"
            for comparison in report["comparison"]
        ]
        if report["verdict"]:
            lines.append(report["verdict"])
    return "\n".join([*lines, f"{Path(report['out']) / 'report.md'} has the table, the figures and the method"])
