"""What learns: the network with its optimiser, loss and average, one step at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.swa_utils import AveragedModel

from autoseg.augmentation.loader import Batch
from autoseg.augmentation.on_device import finish
from autoseg.common.errors import RunError
from autoseg.models.checkpoint import (
    Tensors,
    load_optimizer,
    optimizer_tensors,
    with_prefix,
    without_prefix,
)
from autoseg.networks.devices import autocast, autocast_type, memory_format, to_device
from autoseg.networks.unet import build_network, with_masks
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Adam, Sgd
from autoseg.training.distributed import ALONE, Group, share_batch_norm
from autoseg.training.losses import build_loss

# torch.compile, where a plan asks for it: what it compiles, and what is said when it cannot.


def compiled(network: nn.Module) -> nn.Module:
    """A call of the network that the first step compiles; the network itself stays as it is."""
    module = torch.compile(network)
    assert isinstance(module, nn.Module)
    return module


@contextmanager
def failures_told() -> Iterator[None]:
    """Turn a failed compilation within the block into one line.

    Raises:
        RunError: torch could not compile.
    """
    try:
        yield
    except RuntimeError as error:
        compiler = sys.modules.get("torch._dynamo.exc")  # loaded by what compiles, and slowly
        if compiler is None or not isinstance(error, compiler.TorchDynamoException):
            raise
        reason = str(error).strip().splitlines()[0]
        raise RunError(
            f"training.compile: torch could not compile the network ({reason}); plan with "
            "training.compile=false, or install what is missing, most often a C++ compiler"
        ) from error


TensorList = tuple[Tensor, ...] | list[Tensor]


class Learner:
    """The state that a training step changes, on one device.

    A step never waits for the device: losses, clipping and the scaling of a float16 loss stay.

    Args:
        plan: network, loss, optimiser, precision.
        device: where everything lies.
        group: the processes that share each batch; they keep the same weights.
    """

    def __init__(self, plan: Plan, device: torch.device, group: Group = ALONE) -> None:
        torch.manual_seed(plan.training.seed)
        self.plan = plan
        self.device = device
        self.group = group
        self.dtype = autocast_type(device, plan.training.precision)
        self.format = memory_format(device)
        self.network = build_network(plan)
        if group.is_shared:
            share_batch_norm(self.network, group)
        self.network.to(device, memory_format=self.format)  # type: ignore[call-overload]
        # Compiled, shared or not, the network keeps its own names of weights.
        forward = compiled(self.network) if plan.training.compile else self.network
        self.forward = group.parallel(forward)
        self.loss = build_loss(plan)
        self.shared_loss = build_loss(plan, group.sum)
        self.scaler = GradScaler(device.type, enabled=self.dtype is torch.float16)
        self.optimizer = build_optimizer(plan.training.optimizer, self.network)
        decay = plan.training.average_decay
        self.average = None if decay is None else averaged(self.network, decay)

    def step(self, batch: Batch, learning_rate: float) -> tuple[Tensor, Tensor]:
        """One optimiser step; returns the loss and the soft Dice per class, still on the device.

        Where processes share the batch, both are this process's; their means are the batch's.

        Raises:
            RunError: the network could not be compiled.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        image, label = self.to_device(batch)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss, dice = self._gradients(image, label)
        if self.plan.training.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.training.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return loss.detach(), dice

    def _gradients(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        with failures_told():
            with autocast(self.device, self.dtype):
                outputs = self.forward(image)
            loss, dice = self.shared_loss(outputs, label)
            self.scaler.scale(loss).backward()
        return loss, dice

    @torch.inference_mode()
    def validate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss and hard counts (3, classes) of the weights that prediction would use."""
        image, label = self.to_device(batch)
        network = self.network if self.average is None else self.average.module
        network.eval()
        with autocast(self.device, self.dtype):
            logits = network(image)
        loss, _ = self.loss(logits, label)
        return loss, self.loss.hard_counts(logits, label)

    def to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The batch as tensors: what the network takes (B, C, X, Y, Z), and label (B, X, Y, Z)."""
        label = to_device(batch["label"], self.device)
        if "postponed" in batch:
            image = finish(batch["postponed"], self.device)
        else:
            image = to_device(batch["data"], self.device)
        image = image.to(memory_format=self.format)
        if self.plan.previous_stage is not None:
            label, previous = label.unbind(1)
            parts = len(self.plan.classes.parts) - 1
            image = with_masks(image, previous, parts).to(memory_format=self.format)
        return image, label

    def weights(self) -> Tensors:
        """The weights that prediction uses: the average if the plan keeps one."""
        network = self.network if self.average is None else self.average.module
        return dict(network.state_dict())

    def tensors(self) -> Tensors:
        """Everything that a resumed run needs to continue to the bit."""
        found = with_prefix("network", self.network.state_dict())
        found |= optimizer_tensors(self.optimizer)
        found |= with_prefix("scaler", scaler_tensors(self.scaler))
        if self.average is not None:
            found |= with_prefix("average", self.average.state_dict())
        return found

    def load_tensors(self, tensors: Tensors) -> None:
        """The reverse of `tensors`."""
        self.network.load_state_dict(without_prefix("network", tensors))
        load_optimizer(self.optimizer, tensors)
        load_scaler(self.scaler, without_prefix("scaler", tensors))
        if self.average is not None:
            self.average.load_state_dict(without_prefix("average", tensors))


def scaler_tensors(scaler: GradScaler) -> Tensors:
    """The scale of a float16 loss and the steps since it changed; nothing for other precisions."""
    state = scaler.state_dict()
    return {key: torch.tensor(state[key]) for key in ("scale", "_growth_tracker") if key in state}


def load_scaler(scaler: GradScaler, tensors: Tensors) -> None:
    """The reverse of `scaler_tensors`."""
    if scaler.is_enabled():
        found = {key: tensor.item() for key, tensor in tensors.items()}
        scaler.load_state_dict(scaler.state_dict() | found)


def build_optimizer(spec: Sgd | Adam, network: nn.Module) -> torch.optim.Optimizer:
    """The plan's optimiser, fused: one kernel for all parameters."""
    parameters = list(network.parameters())
    if isinstance(spec, Sgd):
        return torch.optim.SGD(
            parameters,
            spec.learning_rate,
            momentum=spec.momentum,
            nesterov=spec.nesterov and spec.momentum > 0,
            weight_decay=spec.weight_decay,
            fused=True,
        )
    make = torch.optim.AdamW if spec.decoupled else torch.optim.Adam
    return make(
        parameters,
        spec.learning_rate,
        betas=spec.betas,
        eps=spec.epsilon,
        weight_decay=spec.weight_decay,
        fused=True,
    )


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the weights that forgets the random start quickly."""

    def update(average: TensorList, current: TensorList, count: Tensor | int) -> None:
        if not average[0].is_floating_point():  # counters of batch normalisation
            torch._foreach_copy_(average, current)
            return
        # The mean of the first steps is young: let it follow as fast as its age allows.
        young = (1 + float(count)) / (10 + float(count))
        torch._foreach_lerp_(average, current, 1 - min(decay, young))

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)


def dice_of(counts: Tensor) -> list[float | None]:
    """Dice per class from (3, classes) counts; None for a class that is nowhere."""
    hits, wrong, missed = counts.double().tolist()
    return [
        2 * h / (2 * h + w + m) if h + w + m > 0 else None
        for h, w, m in zip(hits, wrong, missed, strict=True)
    ]
