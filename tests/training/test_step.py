"""One step of training: the same as others' on the same batch, however the batch is cut up."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.models.convit import ConVit
from timm.optim import create_optimizer_v2

from commands import completed_together
from comvex.convit import ConViTConfig, ConViTWithLinearClassifier
from comvex.data.loading import Batch
from comvex.data.picture_set import PictureSet
from comvex.data.sources import DataSet, open_data
from comvex.inference.task import MultiLabel, SingleLabel
from comvex.training.ranks import Ranks
from comvex.training.recipe import Architecture, Options, Recipe
from comvex.training.step import Learner, NotFiniteError
from comvex.training.trainer import train

NUM = 12
CONFIG = ConViTConfig.ConViT_Ti(
    image_size=16, patch_size=4, image_channel=1, dim=32, num_local_layers=2, num_nonlocal_layers=1, num_classes=10
)
RECIPE = Recipe(steps=5, batch_size=NUM, optimizer="adamw", learning_rate=1e-3, warmup_epochs=0, min_learning_rate=1e-3)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return open_data("digits")


def learner(recipe: Recipe, data: DataSet, *, dtype: torch.dtype = torch.float64, **options) -> Learner:
    torch.manual_seed(0)
    model = ConViTWithLinearClassifier(CONFIG).to(dtype).train()
    return Learner(
        model,
        recipe,
        data=data,
        task=SingleLabel(),
        device=torch.device("cpu"),
        options=Options(**options),
        ranks=Ranks(),
    )


def batches(*, num: int = 5, dtype: torch.dtype = torch.float64) -> list[Batch]:
    torch.manual_seed(1)
    return [
        Batch(torch.randn(NUM, 1, 16, 16, dtype=dtype), torch.randint(10, (NUM,)), torch.arange(NUM), [])
        for _ in range(num)
    ]


def cut(batch: Batch, *sizes: int) -> list[Batch]:
    parts = [tensor.split(sizes) for tensor in (batch.pictures, batch.labels, batch.indices)]
    return [Batch(*part, []) for part in zip(*parts, strict=True)]


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters() if "pos_proj.bias" not in name}


@pytest.mark.parity
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_five_steps_are_those_of_the_published_implementation(dtype, tolerance, digits):
    """timm's ConViT and timm's AdamW with the loss of the official engine, written out; the positional bias apart."""
    ours = learner(replace(RECIPE, clip_norm=None), digits, dtype=dtype)
    theirs = ConVit(
        img_size=16, patch_size=4, in_chans=1, num_classes=10, embed_dim=8, depth=3, num_heads=4, local_up_to_layer=2
    ).to(dtype)
    theirs.load_state_dict(ours.model.state_dict())
    optimizer = create_optimizer_v2(theirs, opt="adamw", lr=1e-3, weight_decay=0.05)
    for step, batch in enumerate(batches(dtype=dtype), start=1):
        ours.step(step, [batch], num_pictures=NUM)
        loss = F.cross_entropy(theirs(batch.pictures), batch.labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found, expected = parameters(ours.model), parameters(theirs)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_muon_steps_along_the_orthogonal_factor_of_its_momentum_and_adamw_takes_the_rest(layer_decay, digits):
    """Written out: the factor from singular vectors, to which Muon's five iterations come near."""
    recipe = replace(RECIPE, optimizer="muon", clip_norm=None, weight_decay=0.5, min_learning_rate=1e-4)
    each = learner(replace(recipe, layer_decay=layer_decay), digits)
    names = {id(weight): name for name, weight in each.model.named_parameters()}
    orthogonal, momentum, square = set(), {}, {}
    for step, batch in enumerate(batches(num=3), start=1):
        before = parameters(each.model)
        each.step(step, [batch], num_pictures=NUM)
        rates = {}
        for group in each.optimizer.param_groups:
            for weight in group["params"]:
                rates[names[id(weight)]] = group["lr"], group["weight_decay"]
        assert len(set(rates.values())) == (2 if layer_decay is None else 10)
        for name, old in before.items():
            new = each.model.get_parameter(name)
            gradient, (rate, decay) = new.grad, rates[name]
            assert gradient is not None
            momentum[name] = 0.9 * momentum.get(name, 0) + 0.1 * gradient
            square[name] = 0.95 * square.get(name, 0) + 0.05 * gradient**2
            moved = (old * (1 - rate * decay) - new.detach()) / rate
            if old.ndim == 2 and min(old.shape) >= 4:
                orthogonal.add(name.split(".")[-2])
                left, values, right = torch.linalg.svd(momentum[name], full_matrices=False)
                large = values > 0.05 * values[0]
                found = (left.mT @ moved @ right.mT)[large][:, large] / (0.2 * max(old.shape) ** 0.5)
                torch.testing.assert_close(found, torch.eye(int(large.sum())).double(), atol=0.15, rtol=0)
            else:
                mean, deviation = momentum[name] / (1 - 0.9**step), (square[name] / (1 - 0.95**step)).sqrt()
                torch.testing.assert_close(moved, mean / (deviation + 1e-7), atol=1e-5, rtol=0)
    assert orthogonal == {"qk", "v", "qkv", "proj", "fc1", "fc2", "head"}


@pytest.mark.parametrize(
    ("sizes", "optimizer", "tolerance"),
    [
        ((6, 6), "adamw", 1e-12),
        ((5, 4, 3), "adamw", 1e-12),
        ((12, 0), "adamw", 1e-12),
        ((5, 4, 3), "muon", 5e-5),  # which rounds to bfloat16
    ],
)
def test_micro_steps_of_any_size_are_one_step(sizes, optimizer, tolerance, digits):
    whole, pieces = (learner(replace(RECIPE, optimizer=optimizer), digits) for _ in range(2))
    for step, batch in enumerate(batches(), start=1):
        one = whole.step(step, [batch], num_pictures=NUM)
        other = pieces.step(step, cut(batch, *sizes), num_pictures=NUM)
        torch.testing.assert_close(one.loss_sum, other.loss_sum, rtol=max(1e-6, tolerance), atol=0)
    for name, tensor in parameters(whole.model).items():
        torch.testing.assert_close(parameters(pieces.model)[name], tensor, atol=tolerance, rtol=0)


def test_gradient_checkpointing_changes_no_gradient(digits):
    plain, recomputed = learner(RECIPE, digits), learner(RECIPE, digits, grad_checkpointing=True)
    for step, batch in enumerate(batches(), start=1):
        for each in (plain, recomputed):
            each.step(step, [batch], num_pictures=NUM)
    for name, tensor in parameters(plain.model).items():
        torch.testing.assert_close(parameters(recomputed.model)[name], tensor, atol=1e-12, rtol=0)


def test_a_step_depends_on_its_number_and_not_on_what_was_drawn_before(digits):
    recipe = replace(RECIPE, mixup=0.8, cutmix=1.0)
    results = []
    for disturbance in (0, 1):
        each = learner(recipe, digits)
        torch.manual_seed(disturbance)
        np.random.seed(disturbance)  # noqa: NPY002  timm draws from it
        [batch] = batches(num=1)
        each.step(3, cut(batch, 7, 5), num_pictures=NUM)
        results.append(parameters(each.model))
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name])


def test_mixing_leaves_the_sum_of_the_targets_and_mixes_an_odd_number_too(digits):
    each = learner(replace(RECIPE, mixup=0.8, cutmix=1.0), digits)
    [batch] = batches(num=1)
    for size in (12, 7, 1):
        part = cut(batch, size, NUM - size)[0]
        pictures, targets = each.inputs(part._replace(pictures=part.pictures.clone()), (1, 0, 0))
        assert pictures.shape == part.pictures.shape
        torch.testing.assert_close(targets.sum(1), torch.ones(size, dtype=targets.dtype))


def test_rare_classes_count_more_in_the_loss(digits):
    labels = np.repeat([0, 1], [90, 10])
    data = replace(digits, classes=("common", "rare"), train=PictureSet(np.zeros((100, 8, 8), np.uint8), labels))
    each = learner(replace(RECIPE, balance="loss"), data)
    torch.testing.assert_close(each.class_weights, torch.tensor([100 / 180, 5.0]))
    logits = torch.randn(4, 2)
    one, weighted = (
        SingleLabel().loss(logits, torch.ones(4, dtype=torch.int64), class_weights=weights)
        for weights in (None, each.class_weights)
    )
    torch.testing.assert_close(weighted, 5 * one)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_learns_the_same_batch_and_its_state_can_be_kept(precision, optimizer, digits):
    rate = {"adamw": 1e-3, "muon": 5e-3}[optimizer]
    recipe = replace(RECIPE, optimizer=optimizer, learning_rate=rate, min_learning_rate=rate)
    recipe = replace(recipe, precision=precision, label_smoothing=0.0)
    each = learner(recipe, digits, dtype=torch.float32)
    [batch] = batches(num=1, dtype=torch.float32)
    losses = [each.step(step, [batch], num_pictures=NUM).loss_sum.item() for step in range(1, 61)]
    assert losses[-1] < 0.4 * losses[0]
    assert {parameter.dtype for parameter in each.model.parameters()} == {torch.float32}
    other = learner(recipe, digits, dtype=torch.float32)
    kept = {name: {k: v.clone() for k, v in tensors.items()} for name, tensors in each.tensors().items()}
    other.load(kept, each.values())
    assert other.scaler.state_dict() == each.scaler.state_dict()
    for step in (61, 62):  # the second shows what the optimiser has made of its state
        one, same = (x.step(step, [batch], num_pictures=NUM).loss_sum for x in (each, other))
        assert torch.equal(one, same)


def test_a_loss_that_is_not_finite_changes_nothing(digits):
    each = learner(replace(RECIPE, ema_decay=0.9), digits)
    [batch] = batches(num=1)
    before = {name: tensor.clone() for name, tensor in each.model.state_dict().items()}
    batch.pictures[3] = torch.inf
    with pytest.raises(NotFiniteError):
        each.step(1, [batch], num_pictures=NUM)
    for name, tensor in each.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_gradient_that_float16_never_makes_finite_is_told(digits):
    """Overflow is skipped and the scale of the loss halved; what is no number stays so at any scale."""
    each = learner(replace(RECIPE, precision="float16"), digits, dtype=torch.float32)
    each.model.cls_token.register_hook(lambda gradient: gradient * torch.nan)
    [batch] = batches(num=1, dtype=torch.float32)
    while each.scaler.get_scale() >= 1:
        each.step(1, [batch], num_pictures=NUM)
    with pytest.raises(NotFiniteError):
        each.step(1, [batch], num_pictures=NUM)


def test_a_compiled_model_takes_the_same_steps(digits):
    plain, compiled = learner(RECIPE, digits), learner(RECIPE, digits)
    compiled.running.compile(backend="aot_eager")
    for step, batch in enumerate(batches(num=2), start=1):
        for each in (plain, compiled):
            each.step(step, [batch], num_pictures=NUM)
    for name, tensor in parameters(plain.model).items():
        torch.testing.assert_close(parameters(compiled.model)[name], tensor, atol=1e-12, rtol=0)


SPREAD = Recipe(
    model=Architecture(dim=32, num_local_layers=1), steps=10, batch_size=50, optimizer="adamw", learning_rate=1e-3
)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_ten_steps_of_two_processes_are_those_of_one(accumulate, tmp_path):
    """Over gloo, one started as a user does; unequal shares of the batch; evaluation counts each picture once."""
    arguments = "--model.dim 32 --model.num-local-layers 1 --steps 10 --batch-size 50 --optimizer adamw --threads 1"
    arguments += " --learning-rate 1e-3"
    words = ["train", *arguments.split(), "--accumulate", str(accumulate), "--out", str(tmp_path / "two")]
    if accumulate == 1:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "comvex"]
        done = [subprocess.run([*start, *words], capture_output=True, text=True, timeout=300)]
    else:
        done = completed_together(*words, num=2)
    assert [each.returncode for each in done] == [0] * len(done), done
    assert "2 processes" in done[0].stderr
    summaries = [train(SPREAD, tmp_path / "one"), train(SPREAD, tmp_path / "two")]
    one, two = (load_file(tmp_path / run / "weights" / "last.safetensors") for run in ("one", "two"))
    for name, tensor in one.items():
        # AdamW divides by the gradient's own size: where that is nearly 0, rounding decides
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert summaries[0]["num_pictures"] == summaries[1]["num_pictures"] == 360
    assert summaries[0]["loss"] == pytest.approx(summaries[1]["loss"], rel=1e-4)


THREE = """
import sys
import torch
from safetensors.torch import save_file
from comvex.data.loading import Batch
from comvex.data.sources import open_data
from comvex.inference.task import SingleLabel
from comvex.training.build import build_model
from comvex.training.ranks import joined_ranks
from comvex.training.recipe import Architecture, Options, Recipe
from comvex.training.step import Learner

recipe = Recipe(
    model=Architecture(dim=256, num_local_layers=3), steps=4, optimizer=sys.argv[2], learning_rate=1e-3
)
data = open_data("digits")
cpu = torch.device("cpu")
with joined_ranks(cpu) as ranks:
    def learner():
        parts = {"data": data, "task": SingleLabel(), "device": cpu, "options": Options(), "ranks": ranks}
        return Learner(build_model(recipe, data).train(), recipe, **parts)

    def take(each, steps):
        for step in steps:
            torch.manual_seed(10 * step + ranks.rank)
            batch = Batch(torch.randn(4, 1, 8, 8), torch.randint(10, (4,)), torch.arange(4), [])
            each.step(step, [batch], num_pictures=4 * ranks.num)

    whole, resumed = learner(), learner()
    take(whole, [1, 2])
    resumed.load({name: {k: v.clone() for k, v in of.items()} for name, of in whole.tensors().items()}, whole.values())
    take(whole, [3, 4])
    take(resumed, [3, 4])
    if ranks.first:
        save_file(whole.model.state_dict(), sys.argv[1] + "/whole.safetensors")
        save_file(resumed.model.state_dict(), sys.argv[1] + "/resumed.safetensors")
"""


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_three_processes_add_their_gradients_up_alike_in_a_resumed_run_and_a_whole_one(optimizer, tmp_path):
    """Three float32 numbers have more than one sum."""
    (tmp_path / "three.py").write_text(THREE)
    for done in completed_together(tmp_path, optimizer, num=3, script=tmp_path / "three.py"):
        assert (done.returncode, "Warning" in done.stderr) == (0, False), done.stderr
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "resumed.safetensors").read_bytes()


def test_a_piece_without_a_picture_has_the_shape_of_its_task(digits):
    empty = Batch(torch.empty(0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), [])
    for task, shape in ((SingleLabel(), (1,)), (MultiLabel(), (1, 10))):
        each = learner(RECIPE, digits)
        each.task = task
        pictures, labels = each.inputs(empty, (1, 0, 0))
        assert pictures.shape == (1, 1, 16, 16)
        assert labels.shape == shape
        assert torch.isfinite(task.loss(each.model(pictures.double()), labels))


def test_a_process_without_a_single_picture_does_not_stop_the_others(tmp_path: Path):
    words = ["train", "--steps", 3, "--batch-size", 1, "--model.dim", 32, "--threads", 1, "--out", tmp_path / "run"]
    done = completed_together(*words, num=2)
    assert [each.returncode for each in done] == [0, 0], done
