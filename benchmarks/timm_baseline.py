"""timm's VisionTransformer on the splits of a study: does a plain ViT written by others land where the baseline does?

It has the baseline's width, depth, heads and patches, and takes the recipe of the study's plain run of each fraction
and seed: pictures, order, augmentation, length, which epoch is tested. What is timm's own: the class token goes through
all layers, queries, keys and values have biases, and the start is Xavier's (weight_init="jax"). It can be stopped and
repeated: finished runs are kept.

    python benchmarks/timm_baseline.py docs/results/sample-efficiency --fractions 0.1 --out docs/results/timm-baseline
"""

import argparse
import copy
import json
import shlex
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from comvex.allocator import keep_freed_memory
from comvex.bench.models import plain_vit
from comvex.convit import ConViTConfig
from comvex.errors import UserError
from comvex.files import write_text
from comvex.processor import machine_line
from comvex.run_folder import STUDY
from comvex.study.plan import PLAIN, PlannedRun, Study
from comvex.study.results import read_result
from comvex.study.study_file import read_study
from comvex.training.best_epoch import selected_epoch
from comvex.training.plan import Plan, make_plan
from comvex.training.ranks import Ranks
from comvex.training.recipe import Options, differences
from comvex.training.step import Learner
from comvex.training.trainer import evaluate_part, step_order, training_batches


def timm_vit(config: ConViTConfig) -> VisionTransformer:
    """timm's ViT of the same width, depth, heads and patches, with the config that a ``Learner`` looks at."""
    model = plain_vit(config, drop_path_rate=config.drop_path, weight_init="jax")
    model.config = config  # pyright: ignore[reportArgumentType]
    return model


def write_attention_out(vit: VisionTransformer) -> None:
    """For training in bfloat16, where the fused one is slow on the CPU (docs/decisions/0008)."""
    for block in vit.blocks:
        block.attn.fused_attn = False  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


def trained(run: PlannedRun, *, threads: int | None) -> dict[str, Any]:
    """Train timm's ViT as the run says; top-1 in percent on the test pictures, of the epoch that the recipe selects."""
    options = Options(device="cpu", threads=threads)
    plan = make_plan(run.recipe, options, torch.device("cpu"), Ranks())
    torch.manual_seed(run.seed)
    vit: Any = timm_vit(plan.model.config)
    if run.recipe.precision == "bfloat16":
        write_attention_out(vit)
    plan = replace(plan, model=vit)
    start = time.monotonic()
    weights, history = train_steps(plan)
    vit.load_state_dict(weights)
    return {
        "fraction": run.fraction,
        "seed": run.seed,
        "recipe": run.recipe.to_dict(),
        "num_pictures": len(plan.data.train),
        "num_parameters": plan.num_parameters,
        "steps": history[-1]["step"],
        "top1": evaluate_part(vit, plan, "test").scores.summary()["top1"],
        "seconds": time.monotonic() - start,
    }


def result(run: PlannedRun, out: Path, *, threads: int | None) -> dict[str, Any]:
    """What a finished run has found; trains it if it is none. Raises ``ValueError`` if it had another recipe."""
    file = out / f"{run.name}.json"
    if not file.exists():
        write_text(file, json.dumps(trained(run, threads=threads), indent=2) + "\n")
    found = json.loads(file.read_text())
    other = differences(found["recipe"], run.recipe.to_dict()) if "recipe" in found else ["which one was not noted"]
    if other:
        raise UserError(f"{file} is of another study ({'; '.join(other)}): choose another --out, or delete it.")
    return found


def train_steps(plan: Plan) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The weights of the epoch that the recipe selects, and the history of the epochs."""
    recipe, data, vit = plan.recipe, plan.data, plan.model
    learner = Learner.of(plan)
    order = step_order(plan, start=0)
    weights, history = {}, []
    vit.train()
    for step, batch in enumerate(training_batches(plan, order), start=1):
        learner.step(step, [batch], num_pictures=len(batch.labels))
        if step % (plan.epochs_per_validation * order.steps_per_epoch) and step != plan.num_steps:
            continue
        evaluation = evaluate_part(learner.evaluated, plan, "val")
        top1 = evaluation.scores.summary()["top1"]
        history.append({"step": step, "val_loss": evaluation.loss, "val_top1": top1})
        chosen = selected_epoch(history, select=recipe.select, criterion="val_top1", num_pictures=len(data.val or ()))
        if chosen is history[-1]:
            weights = copy.deepcopy(learner.evaluated.state_dict())
        print(f"step {step} of {plan.num_steps}: validation top-1 {top1:.2f} %", flush=True)
        if recipe.patience is not None and len(history) - 1 - history.index(chosen) >= recipe.patience:
            break
    return weights, history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a comvex study sample-efficiency")
    parser.add_argument("--fractions", type=float, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/timm-baseline"), help="a JSON file per finished run, and a table"
    )
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    keep_freed_memory()
    if options.threads is not None:
        torch.set_num_threads(options.threads)

    stored = read_study(options.study / STUDY)
    study = replace(Study.from_dict(stored), fractions=tuple(options.fractions), seeds=tuple(options.seeds))
    lines = [
        f"{machine_line()}, `{shlex.join(['python', *sys.argv])}`",
        "",
        "| fraction | seed | timm's ViT top-1, % | study's plain ViT, % | difference |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    differences = []
    for run in study.runs(stored["num_pictures"]):
        if run.architecture != PLAIN:
            continue
        found, ours = result(run, options.out, threads=options.threads), read_result(run, options.study)
        cells = [f"{100 * run.fraction:g} %", str(run.seed), f"{found['top1']:.2f}"]
        if ours is not None:
            differences.append(found["top1"] - ours.top1)
            cells += [f"{ours.top1:.2f}", f"{differences[-1]:+.2f}"]
        else:
            cells += ["-", ""]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    if differences:
        spread = f" ± {statistics.stdev(differences):.2f}" if len(differences) > 1 else ""
        lines += [
            "",
            f"Mean difference {statistics.mean(differences):+.2f}{spread} points over {len(differences)} runs.",
        ]
    write_text(options.out / "table.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
