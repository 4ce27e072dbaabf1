"""``comvex train``."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from comvex.commands.options import no_such, says_top5
from comvex.errors import UserError
from comvex.help import DEFAULT_TOLD
from comvex.training.recipe import Options, Recipe
from comvex.training.recipes import RECIPES


@dataclass(frozen=True)
class Train:
    """Train a ConViT and report its accuracy on pictures that it has not seen.

    Without any argument: a small ConViT on scikit-learn's handwritten digits, in a minute or two on two cores.

      comvex train fine-tune --data FOLDER   your own pictures, one folder per class: from published weights
      comvex train --data FOLDER             ... from scratch
      comvex train --data FILE.csv           ... with their paths and labels in a table
      comvex train paper --data IMAGENET --model.preset ConViT_S_plus   the paper's recipe, for any of its six sizes
      comvex train smoke                     half a minute with everything on that is random
      torchrun --nproc-per-node 4 -m comvex train ...   on four GPUs

    --dry-run shows what would be done, in words and pictures. Stop it whenever you like (Ctrl-C finishes the step): the
    same command goes on where it was, and once finished it prints the summary again.
    """

    name: Annotated[Positional[str], arg(metavar="RECIPE")] = "small-data"
    """Where the values start from, each of which can be changed: small-data, fine-tune, paper or smoke; --help after
    the name shows its values."""
    recipe: Annotated[Recipe, arg(name="")] = field(default_factory=Recipe)
    options: Annotated[Options, arg(name="")] = field(default_factory=Options)
    out: Annotated[Path | None, DEFAULT_TOLD] = None
    """Run folder. Default: runs/DATA-HASH, where the hash stands for the recipe."""
    dry_run: bool = False
    """Train nothing: print the recipe, the model and the parameter groups that it comes to, and draw augmented pictures
    and the schedule into the folder OUT.dry-run."""
    json: bool = False
    """Print the summary as one JSON object on standard output, and nothing else there."""

    @classmethod
    def starting_from(cls, name: str, preset: str | None) -> Train:
        """The command as it is when only the recipe's name, and perhaps a preset, is given.

        Raises ``ValueError`` if there is no recipe of that name.
        """
        if name not in RECIPES:
            raise no_such("recipe", name, RECIPES)
        named = RECIPES[name](preset)
        return cls(name=name, recipe=named.recipe, options=named.options)

    @classmethod
    def default(cls, arguments: Sequence[str]) -> Train:
        """What the arguments, name first, seem to start from, as far as can be told without parsing them.

        That is enough for ``--help``. Raises ``ValueError`` if there is no recipe of that name.
        """
        named = arguments and not arguments[0].startswith("-")
        presets = [word for last, word in itertools.pairwise(arguments) if last == "--model.preset"]
        return cls.starting_from(arguments[0] if named else "small-data", presets[-1] if presets else None)

    @staticmethod
    def name_first(arguments: Sequence[str]) -> list[str]:
        """The same arguments with the recipe's name at their head, where no option before it can take it for a value.

        ``--model.image-size 16 smoke`` would: that option has one value or two.
        """
        place = place_of_name(arguments)
        if place is None:
            return list(arguments)
        return [arguments[place], *arguments[:place], *arguments[place + 1 :]]

    def run(self) -> int:
        from comvex.data.sources import check_name
        from comvex.run_folder import SUMMARY

        if not self.recipe.data:
            raise UserError(f"{self.name} has no data of its own: --data must name a folder, a CSV file or a data set.")
        out = self.out if self.out is not None else default_out(self.recipe)
        if not (out / SUMMARY).exists():  # a finished run is told of without its data
            check_name(self.recipe.data)  # before what follows imports PyTorch, which takes seconds

        from comvex.training.ranks import told_rank
        from comvex.training.stopping import StoppedError
        from comvex.training.trainer import train

        if self.dry_run:
            from comvex.training.dry_run import dry_run

            print(dry_run(self.recipe, out.with_name(f"{out.name}.dry-run"), options=self.options))
            return 0
        try:
            summary = train(self.recipe, out, options=self.options)
        except StoppedError as stopped:
            if told_rank() == 0:
                print(f"comvex: {stopped}", file=sys.stderr)
            return stopped.exit_code
        if told_rank() == 0:
            print(
                json.dumps({"run": str(out), **summary}) if self.json else describe_summary(out, summary, self.recipe)
            )
        return 0


def place_of_name(arguments: Sequence[str]) -> int | None:
    """Where the recipe's name stands, if anywhere; a word right after an option without ``=`` may be its value."""
    for place, (last, word) in enumerate(itertools.pairwise(["", *arguments])):
        if word in RECIPES and ("=" in last or not last.startswith("--")):
            return place
    return None


def default_out(recipe: Recipe) -> Path:
    """A run folder whose name depends on the recipe alone, so that repeating a command finds its run again."""
    digest = hashlib.sha256(json.dumps(recipe.to_dict(), sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / f"{Path(recipe.data).resolve().name if '/' in recipe.data else recipe.data}-{digest}"


def describe_summary(out: Path, summary: dict[str, Any], recipe: Recipe) -> str:
    which = {"test": "test", "val": "validation"}[summary["evaluated_on"]]
    pictures = f"{summary['num_pictures']} {which} pictures"
    if "mean_average_precision" in summary:
        figures = f"mean average precision {summary['mean_average_precision']:.2f} % on {pictures}"
    else:
        low, high = summary["top1_interval"]
        figures = f"top-1 accuracy {summary['top1']:.2f} % on {pictures} (95 % interval {low:.1f} to {high:.1f} %)"
        if says_top5(summary):
            figures += f", top-5 {summary['top5']:.2f} %"
    lines = [
        f"{figures}, loss {summary['loss']:.4f}",
        f"{summary['num_parameters']:,} parameters, {summary['num_training_pictures']} training pictures, "
        f"{summary['seconds']:.0f} s, {summary['pictures_per_second']:.0f} pictures/s",
    ]
    if which == "validation":
        why = "The data have no test pictures" if recipe.test else "The test pictures were left alone"
        chose = ", which chose the epoch" if recipe.select == "best" else ""
        lines.append(f"{why}: this figure is of the validation pictures{chose}.")
    if summary["num_unreadable"]:
        lines.append(
            f"{summary['num_unreadable']} pictures could not be read and were skipped; {out / 'log.txt'} names them."
        )
    lines.append(f"weights {out / 'weights' / 'best.safetensors'}, curves {out / 'curves.png'}")
    return "\n".join(lines)
