"""One step of training: forward, backward and the optimiser, over micro-batches and processes, in any precision.

A step is a function of the state before it, its batch and (seed, step): nothing else is drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from comvex.convit.config import as_pair
from comvex.convit.model import ConViTWithLinearClassifier
from comvex.data.balance import class_weights
from comvex.data.loading import Batch
from comvex.data.picture_set import DataSet
from comvex.inference.task import Task
from comvex.randomness import derive_seed, seeded
from comvex.training.build import build_ema, build_mixup, build_optimizer, build_schedule
from comvex.training.plan import Plan
from comvex.training.ranks import Ranks
from comvex.training.recipe import Options, Recipe

STEP, MIX = 12, 13
"""Purposes that a seed is derived for."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """What a step tells of itself, all still on the device."""

    loss_sum: Tensor
    """Loss summed over the pictures of this process."""
    num_pictures: int
    """Pictures of this process."""
    gradient_norm: Tensor
    """Norm of the whole gradient before clipping; the same for all processes."""


class NotFiniteError(Exception):
    """The loss or the gradient is NaN or infinite; the weights are those from before the step."""

    def __init__(self, loss: float, gradient_norm: float) -> None:
        super().__init__(f"loss {loss}, gradient norm {gradient_norm}")
        self.loss, self.gradient_norm = loss, gradient_norm


class Learner:
    """A model with all that changes when it is trained: optimiser, averaged weights, scale of the loss.

    ``model`` is the bare model, ``running`` the same wrapped for several processes and compilation.
    """

    def __init__(
        self,
        model: ConViTWithLinearClassifier,
        recipe: Recipe,
        *,
        data: DataSet,
        task: Task,
        device: torch.device,
        options: Options,
        ranks: Ranks,
    ) -> None:
        self.model = model.to(device)
        self.recipe, self.task, self.device, self.ranks = recipe, task, device, ranks
        self.num_classes = len(data.classes)
        self.image_shape = (model.config.image_channel, *as_pair(model.config.image_size))
        self.optimizer = build_optimizer(model, recipe)
        self.schedule = build_schedule(self.optimizer, recipe, len(data.train))
        self.ema = build_ema(model, recipe)
        self.mixup = build_mixup(recipe, data)
        self.class_weights: Tensor | None = None
        if recipe.balance == "loss":
            self.class_weights = torch.from_numpy(class_weights(data.train.labels, len(data.classes))).to(device)
        self.precision = PRECISIONS[recipe.precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        model.set_grad_checkpointing(options.grad_checkpointing)
        self.running: nn.Module = model
        if ranks.num > 1:
            self.running = self.distributed()
        if options.compile:
            self.running.compile()

    @classmethod
    def of(cls, plan: Plan) -> Learner:
        """The learner of a planned run, at its start."""
        return cls(
            plan.model,
            plan.recipe,
            data=plan.data,
            task=plan.task,
            device=plan.device,
            options=plan.options,
            ranks=plan.ranks,
        )

    def distributed(self) -> DistributedDataParallel:
        """The model as all processes run it together, its gradients in the groups in which they will stay.

        DDP groups gradients anew after its first backward, and three or more numbers add up differently in another
        grouping: the first step of a resumed run would differ from that of an uninterrupted one. So the first backward
        is that of two empty pictures.
        """
        devices = [torch.cuda.current_device()] if self.device.type == "cuda" else None
        running = DistributedDataParallel(self.model, device_ids=devices)
        like = next(self.model.parameters())
        running(like.new_zeros(2, *self.image_shape)).sum().backward()
        self.optimizer.zero_grad(set_to_none=True)
        return running

    @property
    def evaluated(self) -> ConViTWithLinearClassifier:
        """The model whose figures and weights are written down: the averaged one, if there is one."""
        return self.model if self.ema is None else cast(ConViTWithLinearClassifier, self.ema.module)

    @property
    def learning_rate(self) -> float:
        """The largest learning rate of the last step (with ``layer_decay`` that of the head)."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def step(self, step: int, batches: Sequence[Batch], *, num_pictures: int) -> StepResult:
        """Carry out step number ``step``, from 1, on this process's micro-batches.

        ``num_pictures`` counts the pictures of all micro-batches of all processes; every picture has the same weight.
        Raises ``NotFiniteError`` before anything is changed.
        """
        self.schedule.step_update(step - 1)
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum, num_own = torch.zeros((), device=self.device), sum(len(batch.labels) for batch in batches)
        for micro, batch in enumerate(batches):
            last = micro == len(batches) - 1
            loss_sum += self.backward(batch, num_pictures, last=last, at=(step, micro, self.ranks.rank))
        self.scaler.unscale_(self.optimizer)
        clip_norm = math.inf if self.recipe.clip_norm is None else self.recipe.clip_norm
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm)
        # A scaled gradient may overflow: the step is skipped and the scale halved, until that cannot be the cause
        may_overflow = self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        checked = loss_sum if may_overflow else loss_sum + norm
        if not math.isfinite(checked.item()):
            raise NotFiniteError(loss_sum.item() / max(1, num_own), norm.item())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model, step)
        return StepResult(loss_sum, num_own, norm)

    def backward(self, batch: Batch, num_pictures: int, *, last: bool, at: tuple[int, int, int]) -> Tensor:
        """Forward and backward of one micro-batch; returns its loss, summed over its pictures."""
        num = len(batch.labels)
        if num == 0 and self.ranks.num == 1:
            return torch.zeros((), device=self.device)
        pictures, labels = self.inputs(batch, at)
        # torch.manual_seed keeps a stack trace for each accelerator that is not there: a hundredth of a small step
        seed_all = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed
        seed_all(derive_seed(self.recipe.seed, STEP, *at))
        with self.gradients_stay_here(not last):
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                logits = self.running(pictures)
            loss = self.task.loss(
                logits.float() if self.precision != torch.float32 else logits,
                labels,
                smoothing=0.0 if self.mixup is not None else self.recipe.label_smoothing,
                class_weights=self.class_weights,
            )
            # DDP takes the mean over the processes
            self.scaler.scale(loss * (num * self.ranks.num / num_pictures)).backward()
        return loss.detach() * num

    def inputs(self, batch: Batch, at: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """The pictures and targets of a micro-batch on the device, mixed if the recipe says so.

        A process that has no picture takes part with an empty one, of weight 0, because the others wait for it.
        """
        pictures = batch.pictures.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        if len(labels) == 0:
            pictures = torch.zeros(1, *self.image_shape, device=self.device)
            labels = labels.new_zeros((1, self.num_classes) if self.task.multi_label else 1)
        if self.mixup is None:
            return pictures, labels
        with seeded(derive_seed(self.recipe.seed, MIX, *at)):
            if len(labels) % 2 == 0:
                return self.mixup(pictures, labels)
            # timm mixes pairs: of an odd number one picture is mixed with itself
            mixed, targets = self.mixup(torch.cat([pictures, pictures[-1:]]), torch.cat([labels, labels[-1:]]))
            return mixed[:-1], targets[:-1]

    def gradients_stay_here(self, stay: bool) -> AbstractContextManager[Any]:
        """Between micro-steps the processes do not exchange gradients."""
        return self.running.no_sync() if stay and isinstance(self.running, DistributedDataParallel) else nullcontext()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The state as named tensors: of the model, the optimiser, and the averaged model."""
        state = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        return state if self.ema is None else state | {"ema": self.ema.module.state_dict()}

    def values(self) -> dict[str, Any]:
        """The rest of the state, as plain values."""
        return {"scaler": self.scaler.state_dict()}

    def load(self, tensors: dict[str, dict[str, Tensor]], values: dict[str, Any]) -> None:
        """The inverse of ``tensors`` and ``values``."""
        self.model.load_state_dict(tensors["model"])
        load_optimizer_tensors(self.optimizer, tensors["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(tensors["ema"])
        self.scaler.load_state_dict(values["scaler"])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: "INDEX.NAME" for the parameter at that place.

    Muon also notes of each parameter whether it takes it, which it sees anew.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
        if name != "use_muon"
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of ``optimizer_tensors``; settings such as the learning rate stay those of ``optimizer``."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
