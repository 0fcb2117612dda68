"""The network with its loss, optimiser and weight average: steps, validation, and their timing."""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.swa_utils import AveragedModel

from autoseg.augmentation.loader import Batch, PatchSampler, Position, batches
from autoseg.augmentation.on_device import finish
from autoseg.common.errors import RunError
from autoseg.dataset.splits import Split
from autoseg.dataset.task import Case
from autoseg.models import checkpoint
from autoseg.networks.devices import autocast, autocast_type, describe, memory_format, to_device
from autoseg.networks.unet import build_network, with_masks
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Adam, Sgd
from autoseg.planner.budget import Timing
from autoseg.preprocessing.preprocess import preprocess_case
from autoseg.preprocessing.store import CaseStore
from autoseg.training.distributed import ALONE, Group, StopSignals, share_batch_norm
from autoseg.training.losses import build_loss

WARM_UP_STEPS = 2  # of a measurement
ENOUGH_STEPS, ENOUGH_SECONDS = 5, 8.0  # after the warm-up; three times as many if they scatter
SCATTER = 0.2  # of the middle half of the steps, as a share of their median
VALIDATION_STREAM = 1_000_000  # separates the random numbers of validation from those of training
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
        self.format = memory_format(device)
        self.network = build_network(plan)
        if group.is_shared:
            share_batch_norm(self.network, group)
        self.network.to(device, memory_format=self.format)  # type: ignore[call-overload]
        # `network` itself is neither wrapped nor compiled, so that its weights keep their names.
        forward = torch.compile(self.network) if plan.training.compile else self.network
        assert isinstance(forward, nn.Module)
        self.forward = group.parallel(forward)
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

        Raises:
            RunError: the network could not be compiled.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        image, label, unannotated = self.to_device(batch)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        with _compile_errors():
            with autocast(self.device, self.dtype):
                outputs = self.forward(image)
            loss, dice = self.shared_loss(outputs, label, unannotated)
            self.scaler.scale(loss).backward()
        if self.plan.training.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.training.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return loss.detach(), dice

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


class Validation:
    """Loss and Dice on patches of the validation cases: the same patches after every epoch.

    The first process of a group validates. Without validation cases there is no result.
    """

    def __init__(
        self, plan: Plan, store: CaseStore, split: Split, fold: int, group: Group = ALONE
    ) -> None:
        self.plan, self.fold = plan, fold
        self.steps = plan.training.validation_steps if split.validation and group.leads else 0
        self.sampler = PatchSampler(store, split.validation, plan.sampling, self.steps)

    def after(
        self, learner: Learner, epoch: int, stop: StopSignals
    ) -> tuple[float | None, list[float | None]]:
        """Mean loss, and Dice per class over all patches.

        Raises:
            StopRequested: a signal was received.
            RunError: the loss is not finite.
        """
        if not self.steps:
            return None, []
        training, found = self.plan.training, []
        augment = training.augment_validation
        stream_of = VALIDATION_STREAM + self.fold
        first = Position(training.seed, stream_of, epoch if augment else 0, 0, 0)
        with batches(self.sampler, self.plan, first, workers=0, augment=augment) as stream:
            for _ in range(self.steps):
                stop.check_alone()
                found.append(learner.validate(next(stream)))
        losses, counts = zip(*found, strict=True)
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise RunError(
                f"the validation loss became NaN or infinite in epoch {epoch + 1}; look for "
                "implausible intensities in the validation cases"
            )
        return mean, dice_of(torch.stack(counts).sum(0).cpu())


@contextmanager
def _compile_errors() -> Iterator[None]:
    """Report an error of torch.compile in one line, as a RunError."""
    try:
        yield
    except RuntimeError as error:
        compiler = sys.modules.get("torch._dynamo.exc")  # slow to import, loaded by torch.compile
        if compiler is None or not isinstance(error, compiler.TorchDynamoException):
            raise
        reason = str(error).strip().splitlines()[0]
        raise RunError(
            f"training.compile: torch could not compile the network ({reason}); plan with "
            "training.compile=false, or install what is missing, most often a C++ compiler"
        ) from error


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

    def update(average: TensorList, current: TensorList, count: Tensor | int) -> None:
        if not average[0].is_floating_point():  # counters of batch normalisation
            torch._foreach_copy_(average, current)
            return
        # A warm-up: the decay grows with the number of steps.
        warmup = (1 + float(count)) / (10 + float(count))
        torch._foreach_lerp_(average, current, 1 - min(decay, warmup))

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)


def dice_of(counts: Tensor) -> list[float | None]:
    """Dice per class from (3, classes) counts; None for a class without any voxel."""
    return [
        2 * tp / (2 * tp + fp + fn) if tp + fp + fn > 0 else None
        for tp, fp, fn in counts.double().T.tolist()
    ]


class Stopwatch:
    """Measures plans with equal preprocessing and patches on a few real cases.

    Use as a context manager: the preprocessed cases are in a temporary folder.
    """

    def __init__(self, cases: Sequence[Case], device: torch.device, workers: int) -> None:
        self.cases, self.device, self.workers = cases, device, workers
        self.case_seconds = 0.0
        self.folder = tempfile.TemporaryDirectory(prefix="autoseg-")

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    def measure(self, plan: Plan) -> Timing:
        """Time a few training steps and predictions of a plan, with its own workers."""
        store = self._prepared(plan)
        learner = Learner(plan, self.device)
        names = [case.name for case in self.cases]
        sampler = PatchSampler(store, names, plan.sampling, plan.training.steps_per_epoch)
        start = Position(plan.training.seed, 0, 0, 0, 0)
        with batches(sampler, plan, start, self.workers) as stream:
            times: list[float] = []
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
        return Timing(step, predicted, self.case_seconds, describe(self.device))

    def _prepared(self, plan: Plan) -> CaseStore:
        elsewhere = "set TMPDIR to another folder"
        store = CaseStore(Path(self.folder.name), plan.preprocessing_id, elsewhere)
        if not self.case_seconds:
            started = time.perf_counter()
            for case in self.cases:
                preprocess_case(plan, store, case)
            self.case_seconds = (time.perf_counter() - started) / len(self.cases)
        return store


def is_settled(times: Sequence[float]) -> bool:
    """Whether the seconds of these steps are enough to know how long a step takes."""
    settled, spent = times[WARM_UP_STEPS:], sum(times)
    if len(times) < 2 or (len(settled) < ENOUGH_STEPS and spent < ENOUGH_SECONDS):
        return False
    if len(settled) < 2 or len(settled) >= 3 * ENOUGH_STEPS or spent >= 3 * ENOUGH_SECONDS:
        return True
    low, middle, high = quantiles(settled, n=4)
    return high - low <= SCATTER * middle
