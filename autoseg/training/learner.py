"""The network with its loss, optimiser and weight average: steps, validation, and their timing."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.swa_utils import AveragedModel

from autoseg.augmentation.loader import Batch, PatchSampler, Position, batches
from autoseg.augmentation.on_device import finish
from autoseg.common.progress import say
from autoseg.dataset.task import Case
from autoseg.models import checkpoint
from autoseg.networks.devices import (
    autocast,
    autocast_type,
    describe,
    fast_convolutions,
    place,
    to_device,
)
from autoseg.networks.unet import build_network, with_masks
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Adam, Sgd, Training
from autoseg.planner.budget import Timing
from autoseg.preprocessing.preprocess import case_round_trip_dice, preprocess_case
from autoseg.preprocessing.store import CaseStore
from autoseg.training.distributed import ALONE, Group, share_batch_norm
from autoseg.training.losses import build_loss

WARM_UP_STEPS = 2  # of a measurement
ENOUGH_STEPS, ENOUGH_SECONDS = 5, 8.0  # after the warm-up; three times as many if they scatter
SCATTER = 0.2  # of the middle half of the steps, as a share of their median
LEAST_STEPS, LEAST_SECONDS = 5000, 1800.0  # of a run that gains by compiling for a minute or two
TensorList = tuple[Tensor, ...] | list[Tensor]


class Learner:
    """The state that a training step changes, on one device.

    A step never waits for the device: loss, gradient clipping and loss scaling stay there.

    Args:
        plan: network, loss, optimiser, precision.
        device: where all tensors are.
        group: the processes that share each batch; their weights stay equal.
    """

    def __init__(self, plan: Plan, device: torch.device, group: Group = ALONE) -> None:
        torch.manual_seed(plan.training.seed)
        self.plan = plan
        self.device = device
        self.group = group
        self.dtype = autocast_type(device, plan.training.precision)
        self.network = build_network(plan)
        if group.is_shared:
            share_batch_norm(self.network, group, device)
        self.format = place(self.network, device)
        # `network` itself is neither wrapped nor compiled, so that its weights keep their names.
        self.parallel = group.parallel(self.network)
        self.forward: Callable[[Tensor], Any] = self.parallel
        self.is_to_compile = is_to_compile(plan.training, device)  # in the first step
        self.not_compiled: str | None = None  # the reason, if torch could not
        self.loss = build_loss(plan)
        self.shared_loss = build_loss(plan, group.sum)
        self.scaler = GradScaler(device.type, enabled=self.dtype is torch.float16)
        self.optimizer = build_optimizer(plan.training.optimizer, self.network)
        decay = plan.training.average_decay
        self.average = None if decay is None else averaged(self.network, decay)

    def step(self, batch: Batch, learning_rate: float) -> tuple[Tensor, Tensor]:
        """One optimiser step; returns the loss and the soft Dice per class, still on the device.

        If processes share the batch, both belong to this process's share; their means over the
        processes belong to the batch.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        image, label, unannotated = self.to_device(batch)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        compute = self._compile_and_differentiate if self.is_to_compile else self._differentiate
        loss, dice = compute(image, label, unannotated)
        if self.plan.training.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.training.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return loss.detach(), dice

    def _differentiate(
        self, image: Tensor, label: Tensor, unannotated: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Loss and soft Dice per class; the gradients are added to those of the weights."""
        with autocast(self.device, self.dtype):
            outputs = self.forward(image)
        loss, dice = self.shared_loss(outputs, label, unannotated)
        del outputs  # the gradients do not need them
        self.scaler.scale(loss).backward()
        return loss, dice

    def _compile_and_differentiate(self, *batch: Any) -> tuple[Tensor, Tensor]:
        """The same in the first step of a compiled run, which goes on without if torch cannot."""
        self.is_to_compile = False
        try:
            self.forward = torch.compile(self.parallel)
            return self._differentiate(*batch)
        except Exception as error:  # of torch's compiler, Triton, a C++ compiler, ...
            self.not_compiled = (
                f"{str(error).strip().partition(chr(10))[0]} ({type(error).__name__})"
            )
        if self.group.leads:
            say(f"warning: torch.compile failed; training is slower without: {self.not_compiled}")
        self.forward = self.parallel
        self.optimizer.zero_grad(set_to_none=True)
        return self._differentiate(*batch)

    @torch.inference_mode()
    def validate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss and hard counts (3, classes), with the weights that prediction uses."""
        image, label, unannotated = self.to_device(batch)
        network = self.network if self.average is None else self.average.module
        network.eval()
        with autocast(self.device, self.dtype):
            logits = network(image)
        loss, _ = self.loss(logits, label, unannotated)
        return loss, self.loss.hard_counts(logits, label, unannotated)

    def to_device(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """The batch as tensors: network input, label, and outputs without annotation, if any.

        Their shapes are (B, C, X, Y, Z), (B, X, Y, Z) and (B, outputs).
        """
        label = to_device(batch["label"], self.device)
        image = to_device(batch["data"], self.device) if "data" in batch else None
        image = finish(batch["postponed"], self.device) if image is None else image
        image = image.to(memory_format=self.format)
        if self.plan.previous_stage is not None:
            label, previous = label.unbind(1)
            parts = len(self.plan.classes.parts) - 1
            image = with_masks(image, previous, parts).to(memory_format=self.format)
        unannotated = batch.get("unannotated")
        return image, label, None if unannotated is None else to_device(unannotated, self.device)

    def weights(self) -> checkpoint.Tensors:
        """The weights that prediction uses: the moving average if the plan has one."""
        network = self.network if self.average is None else self.average.module
        return dict(network.state_dict())

    def tensors(self) -> checkpoint.Tensors:
        """All tensors that a resumed run needs to continue bit by bit."""
        found = checkpoint.with_prefix("network", self.network.state_dict())
        found |= checkpoint.optimizer_tensors(self.optimizer)
        found |= checkpoint.with_prefix("scaler", scaler_tensors(self.scaler))
        if self.average is not None:
            found |= checkpoint.with_prefix("average", self.average.state_dict())
        return found

    def load_tensors(self, tensors: checkpoint.Tensors) -> None:
        """The reverse of `tensors`."""
        self.network.load_state_dict(checkpoint.without_prefix("network", tensors))
        checkpoint.load_optimizer(self.optimizer, tensors)
        load_scaler(self.scaler, checkpoint.without_prefix("scaler", tensors))
        if self.average is not None:
            self.average.load_state_dict(checkpoint.without_prefix("average", tensors))


def is_to_compile(training: Training, device: torch.device) -> bool:
    """Whether the network is to be compiled: by default on CUDA, if the run is long enough."""
    if training.compile != "auto":
        return training.compile
    seconds = training.seconds or math.inf
    return device.type == "cuda" and training.steps >= LEAST_STEPS and seconds >= LEAST_SECONDS


def scaler_tensors(scaler: GradScaler) -> checkpoint.Tensors:
    """The scale of a float16 loss and the steps since its last change; empty without scaling."""
    state = scaler.state_dict()
    return {key: torch.tensor(state[key]) for key in ("scale", "_growth_tracker") if key in state}


def load_scaler(scaler: GradScaler, tensors: checkpoint.Tensors) -> None:
    """The reverse of `scaler_tensors`."""
    if scaler.is_enabled():
        found = {key: tensor.item() for key, tensor in tensors.items()}
        scaler.load_state_dict(scaler.state_dict() | found)


def build_optimizer(spec: Sgd | Adam, network: nn.Module) -> torch.optim.Optimizer:
    """The plan's optimiser in its fused form: one kernel for all parameters."""
    parameters, rate = list(network.parameters()), spec.learning_rate
    options: dict[str, Any] = {"weight_decay": spec.weight_decay, "fused": True}
    if isinstance(spec, Sgd):
        nesterov = spec.nesterov and spec.momentum > 0
        return torch.optim.SGD(parameters, rate, spec.momentum, nesterov=nesterov, **options)
    make = torch.optim.AdamW if spec.decoupled else torch.optim.Adam
    return make(parameters, rate, spec.betas, spec.epsilon, **options)


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the weights that soon forgets their initialisation."""

    def update(average: TensorList, current: TensorList, _: Tensor | int) -> None:
        if not average[0].is_floating_point():  # counters of batch normalisation
            torch._foreach_copy_(average, current)
            return
        # A warm-up: the decay grows with the number of steps.
        count = float(model.n_averaged)  # on the processor, so that nothing waits for the device
        warmup = (1 + count) / (10 + count)
        torch._foreach_lerp_(average, current, 1 - min(decay, warmup))

    model = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    return model


def dice_of(counts: Tensor) -> list[float | None]:
    """Dice per class from (3, classes) counts; None for a class without any voxel."""
    rows = counts.double().T.tolist()
    return [2 * tp / (2 * tp + fp + fn) if tp + fp + fn > 0 else None for tp, fp, fn in rows]


class Stopwatch:
    """Measures plans with equal preprocessing and patches on a few real cases.

    Use as a context manager: the preprocessed cases are in a temporary folder.
    """

    def __init__(self, cases: Sequence[Case], device: torch.device, workers: int) -> None:
        self.cases, self.device, self.workers = cases, device, workers
        self.prepared: dict[str, tuple[float, float]] = {}  # of plans with equal preprocessing
        self.folder = tempfile.TemporaryDirectory(prefix="autoseg-")

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    def measure(self, plan: Plan) -> Timing:
        """Time a few training steps and predictions of a plan, with its own workers."""
        store, case_seconds, labels_kept = self._prepared(plan)
        learner = Learner(plan, self.device)
        names = [case.name for case in self.cases]
        sampler = PatchSampler(store, names, plan.sampling, plan.training.steps_per_epoch)
        start = Position(plan.training.seed, 0, 0, 0, 0)
        with fast_convolutions(self.device), batches(sampler, plan, start, self.workers) as stream:
            times: list[float] = []
            if learner.is_to_compile:
                learner.step(next(stream), 1e-4)
            while not is_settled(times):
                started = time.perf_counter()
                loss, _ = learner.step(next(stream), 1e-4)
                float(loss)  # waits for the device
                times.append(time.perf_counter() - started)
            batch = next(stream)
        learner.validate(batch)
        started = time.perf_counter()
        float(learner.validate(batch)[0])
        predicted = (time.perf_counter() - started) / plan.sampling.batch_size
        step = median(times[min(WARM_UP_STEPS, len(times) - 1) :])
        return Timing(step, predicted, case_seconds, describe(self.device), labels_kept)

    def _prepared(self, plan: Plan) -> tuple[CaseStore, float, float]:
        """The cases, the seconds for one, and the Dice of the labels on the plan's grid."""
        folder = Path(self.folder.name) / plan.preprocessing_id
        store = CaseStore(folder, plan.preprocessing_id, "set TMPDIR to another folder")
        if plan.preprocessing_id not in self.prepared:
            started = time.perf_counter()
            for case in self.cases:
                preprocess_case(plan, store, case)
            seconds = (time.perf_counter() - started) / len(self.cases)
            kept = fmean(case_round_trip_dice(plan, case) for case in self.cases)
            self.prepared[plan.preprocessing_id] = seconds, kept
        return store, *self.prepared[plan.preprocessing_id]


def is_settled(times: Sequence[float]) -> bool:
    """Whether the seconds of these steps are enough to know how long a step takes."""
    settled, spent = times[WARM_UP_STEPS:], sum(times)
    if len(times) < 2 or (len(settled) < ENOUGH_STEPS and spent < ENOUGH_SECONDS):
        return False
    if len(settled) < 2 or len(settled) >= 3 * ENOUGH_STEPS or spent >= 3 * ENOUGH_SECONDS:
        return True
    low, middle, high = quantiles(settled, n=4)
    return high - low <= SCATTER * middle
