"""The command line: each command parses its arguments and calls one function elsewhere, which is imported only then."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

import comvex
from comvex.errors import UserError
from comvex.training.recipe import Options, Recipe


@dataclass(frozen=True)
class Train:
    """Train a ConViT and report its accuracy on pictures that it has not seen.

    Without any argument: a small ConViT on scikit-learn's handwritten digits, in a minute or two on two cores.

      comvex train --data FOLDER            your own pictures, one folder per class
      comvex train --data FILE.csv          your own pictures, with their paths and labels in a table
      comvex train --data fashion-mnist     60,000 pictures of clothes
      comvex train --model.preset ConViT_S  a size of the paper

    Stop it whenever you like: the same command goes on where it was, and once finished it prints the summary again.
    """

    recipe: Annotated[Recipe, arg(name="")]
    options: Annotated[Options, arg(name="")]
    out: Path | None = None
    """Run folder. Default: runs/DATA-HASH, where the hash stands for the recipe."""
    json: bool = False
    """Print the summary as one JSON object on standard output, and nothing else there."""

    def run(self) -> int:
        from comvex.training.trainer import train

        out = self.out if self.out is not None else default_out(self.recipe)
        summary = train(self.recipe, out, options=self.options)
        if self.json:
            print(json.dumps({"run": str(out), **summary}))
        else:
            print(describe_summary(out, summary))
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained model on labelled pictures and draw its confusion matrix.

    For a model of several labels a picture, the average precision of every class is drawn instead. Without --data these
    are the test pictures of the run's own data, which training has not seen; with --data FOLDER or FILE.csv they are
    other pictures of the same classes.
    """

    source: Annotated[Positional[str], arg(name="run", metavar="RUN")]
    """Run folder of comvex train, a weights file (ours, timm's or the official repository's), a published name such as
    convit_tiny.fb_in1k, or OWNER/NAME on the Hugging Face Hub."""
    data: str | None = None
    """digits, fashion-mnist, a folder of class folders or a CSV file. Default: what the run was trained on."""
    part: Literal["test", "val", "train"] = "test"
    """Which pictures of the data."""
    out: Path | None = None
    """Folder for confusion.png or average_precision.png. Default: RUN/evaluation/DATA-PART."""
    batch_size: int = 256
    """Pictures per forward pass."""
    workers: int = 0
    """Processes that read pictures."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    overwrite: bool = False
    """Replace the picture of an earlier evaluation."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> int:
        from comvex.inference.run_evaluation import evaluate_run

        figures = evaluate_run(
            self.source,
            data=self.data,
            part=self.part,
            out=self.out,
            batch_size=self.batch_size,
            workers=self.workers,
            device=self.device,
            overwrite=self.overwrite,
        )
        print(json.dumps(figures) if self.json else describe_evaluation(figures))
        return 0


@dataclass(frozen=True)
class Predict:
    """Say what is on pictures: the most probable classes of each, with their probabilities.

    Takes picture files of any size; grey, 16-bit grey, RGB, transparent, CMYK, turned by EXIF.
    """

    source: Annotated[Positional[str], arg(name="run", metavar="RUN")]
    """Run folder of comvex train, a weights file (ours, timm's or the official repository's), a published name such as
    convit_tiny.fb_in1k, or OWNER/NAME on the Hugging Face Hub."""
    pictures: Annotated[Positional[tuple[Path, ...]], arg(metavar="PICTURE...")]
    """Picture files."""
    top: int = 5
    """How many classes to tell for each."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> int:
        from comvex.inference.predictor import predict_files

        if not self.pictures:
            raise UserError("No picture is given: name at least one picture file after the run folder.")
        predictions, problems = predict_files(self.source, self.pictures, top=self.top, device=self.device)
        if self.json:
            print(json.dumps({"predictions": predictions, "unreadable": problems}))
        else:
            for file, classes in predictions.items():
                print(file)
                for entry in classes:
                    print(f"  {100 * entry['probability']:6.2f} %  {entry['label']}")
        for problem in problems:
            print(problem, file=sys.stderr)
        return 2 if problems else 0


@dataclass(frozen=True)
class Convert:
    """Write weights in another layout, every number as it is.

      comvex convert convit_tiny.pth tiny/ --to comvex         an official file, with checksum and preprocessing
      comvex convert runs/mine mine.pth --to official          a run for the official repository's code
      comvex convert runs/mine mine.safetensors --to timm      ... for timm's convit_*

    What IN is, is recognised from its content. Pickles are opened as data; one that needs code to be run is refused.
    """

    source: Annotated[Positional[str], arg(name="in", metavar="IN")]
    """A weights file (ours, timm's or the official repository's), a run folder, a published name or a Hub id."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """File to write: .safetensors, or .pth and .bin for timm's and the official layout; for comvex's also a folder."""
    to: Literal["comvex", "timm", "official"]
    """comvex: safetensors with config.json. timm: the bare state dict. official: {"model": state dict}."""
    config: Path | None = None
    """JSON file of the architecture (ConViTConfig.to_json), where the weights' shapes do not tell it."""
    ema: bool = False
    """Take the averaged weights of a training checkpoint."""
    overwrite: bool = False
    """Replace OUT if it is there."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""

    def run(self) -> int:
        from comvex.convit.config import ConViTConfig
        from comvex.convit.weights import convert, preset_name

        config = ConViTConfig.from_json(self.config) if self.config is not None else None
        file, weights = convert(
            self.source, self.out, layout=self.to, config=config, ema=self.ema, overwrite=self.overwrite
        )
        size = preset_name(weights.info.architecture)
        if self.json:
            print(
                json.dumps(
                    {"in": str(weights.file), "from": weights.layout, "out": str(file), "to": self.to, "size": size}
                )
            )
        else:
            print(f"{weights.file} ({weights.layout} layout, {size}) -> {file} ({self.to} layout)")
            for note in weights.notes:
                print(note)
        return 0


COMMANDS = {"train": Train, "evaluate": Evaluate, "predict": Predict, "convert": Convert}


def default_out(recipe: Recipe) -> Path:
    """A run folder whose name depends on the recipe alone, so that repeating a command finds its run again."""
    digest = hashlib.sha256(json.dumps(recipe.to_dict(), sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / f"{Path(recipe.data).resolve().name if '/' in recipe.data else recipe.data}-{digest}"


def describe_summary(out: Path, summary: dict[str, Any]) -> str:
    which = {"test": "test", "val": "validation"}[summary["evaluated_on"]]
    pictures = f"{summary['num_pictures']} {which} pictures"
    if "mean_average_precision" in summary:
        figures = f"mean average precision {summary['mean_average_precision']:.2f} % on {pictures}"
    else:
        low, high = summary["top1_interval"]
        figures = (
            f"top-1 accuracy {summary['top1']:.2f} % on {pictures} "
            f"(95 % interval {low:.1f} to {high:.1f} %), top-5 {summary['top5']:.2f} %"
        )
    lines = [
        f"{figures}, loss {summary['loss']:.4f}",
        f"{summary['num_parameters']:,} parameters, {summary['num_training_pictures']} training pictures, "
        f"{summary['seconds']:.0f} s, {summary['pictures_per_second']:.0f} pictures/s",
    ]
    if which == "validation":
        lines.append(
            "The data have no test pictures: this figure is of the validation pictures, which chose the weights."
        )
    if summary["num_unreadable"]:
        lines.append(
            f"{summary['num_unreadable']} pictures could not be read and were skipped; {out / 'log.txt'} names them."
        )
    lines.append(f"weights {out / 'weights' / 'best.safetensors'}, curves {out / 'curves.png'}")
    return "\n".join(lines)


def describe_evaluation(figures: dict[str, Any]) -> str:
    lines = [f"{figures['data']}, {figures['num_pictures']} {figures['part']} pictures"]
    if "mean_average_precision" in figures:
        name, picture = "picture", "average_precision_picture"
        lines.append(f"mean AP     {figures['mean_average_precision']:.2f} %")
    else:
        name, picture = "confusion", "confusion_picture"
        low, high = figures["top1_interval"]
        lines.append(f"top-1       {figures['top1']:.2f} %  (95 % interval {low:.2f} to {high:.2f} %)")
        lines.append(f"top-5       {figures['top5']:.2f} %")
    kept = ", kept from an earlier evaluation (--overwrite replaces it)" if figures[f"{picture}_kept"] else ""
    lines += [
        f"loss        {figures['loss']:.4f}",
        f"throughput  {figures['pictures_per_second']:.0f} pictures/s",
        f"{name:<10}  {figures[picture]}{kept}",
    ]
    if figures["num_unreadable"]:
        lines.append(
            f"unreadable  {figures['num_unreadable']} pictures, skipped; the first: {figures['unreadable'][0]}"
        )
    for label, value in figures.get("average_precision", {}).items():
        percent = "     -  " if value is None else f"{value:6.2f} %"
        lines.append(f"  {percent}  {label} ({figures['num_positive'][label]} pictures)")
    return "\n".join(lines)


def overview() -> str:
    """What ``comvex --help`` prints: the commands, each by the first sentence of its own help."""
    lines = [f"  comvex {name:<10} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: comvex COMMAND [ARGUMENTS], comvex COMMAND --help, comvex --version",
            "",
            "ConViT: vision transformers that start as convolutions and learn from few pictures.",
            "",
            *lines,
            "",
            "A first round, without any file of your own:",
            "  comvex train --out runs/first",
            "  comvex evaluate runs/first",
        ]
    )


def parse(arguments: Sequence[str]) -> Train | Evaluate | Predict | Convert:
    """The command that the arguments name; leaves by ``SystemExit`` after help or arguments that it does not have."""
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"There is no command {name!r}: {hint}The commands are {', '.join(COMMANDS)}.")
    return tyro.cli(COMMANDS[name], prog=f"comvex {name}", args=rest, config=(FlagCreatePairsOff,))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0, or 2 with one sentence on standard error for what the user got wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(overview())
            return 0
        if arguments == ["--version"]:
            print(f"comvex {comvex.__version__}")
            return 0
        return parse(arguments).run()
    except UserError as error:
        print(f"comvex: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as the shell has it
    except KeyboardInterrupt:
        print("comvex: interrupted; an unfinished run goes on when its command is repeated.", file=sys.stderr)
        return 130
