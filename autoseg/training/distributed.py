"""The processes that train one network, each on its share of every batch, and stopping them.

`torchrun --nproc-per-node=2 -m autoseg.cli.train TASK fold 0` starts several. Gradients equal those
of a single process with the full batch, except for the order in which numbers are added.
"""

from __future__ import annotations

import gc
import os
import platform
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# Imported later, by the first optimiser or DistributedDataParallel, the default arguments of its
# functions would keep the group and its threads alive for ever.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from autoseg.common.errors import ENDING, AutosegError, RunError, Stopped, signal_handled
from autoseg.networks.devices import pick_device

TIMEOUT = timedelta(minutes=30)  # for a step of the other processes
PATIENCE = timedelta(days=7)  # while the leader preprocesses, validates and saves
SIGNALS = (signal.SIGINT, *ENDING)
STANDARD_ERROR = 2
Shared = TypeVar("Shared")
STOPPING = "\nstopping after this step to save it; press Ctrl-C again to stop immediately\n"


@dataclass(frozen=True)
class Group:
    """This process and the number of processes of a run; by default a single process.

    The first process leads: only it writes files, validates and prints messages.

    Attributes:
        rank: the number of this process.
        size: the number of processes.
        local_size: how many of them are on this machine, and share its cores.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    @property
    def is_shared(self) -> bool:
        """Whether there are several processes."""
        return self.size > 1

    def places(self, batch_size: int) -> range:
        """The indices of the samples of a batch that this process makes.

        Raises:
            AutosegError: the batch size is not divisible by the number of processes.
        """
        if batch_size % self.size:
            raise AutosegError(
                f"sampling.batch_size={batch_size} is not divisible by {self.size} processes; "
                "use a number of processes that divides it, or plan another batch size"
            )
        share = batch_size // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def sum(self, mine: Tensor) -> Tensor:
        """The sum over all processes, with gradients.

        A loss computed from such sums is the same number in all processes. The mean of their
        gradients, which training uses, is the gradient of that number.
        """
        return _Sum.apply(mine) if self.is_shared else mine

    def mean(self, mine: Tensor) -> Tensor:
        """The mean over all processes, without gradients."""
        return _summed(mine) / self.size if self.is_shared else mine

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network to call for a step: all processes get the mean of their gradients.

        It shares its weights with `network`; for a single process it is `network` itself.
        """
        if not self.is_shared:
            return network
        # Caused by channels-last weights, whose gradients are copied; that happens to most anyway.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DistributedDataParallel(network)

    def largest(self, mine: int) -> int:
        """The maximum over all processes of a number on the host; no device waits for it."""
        if not self.is_shared:
            return mine
        found = torch.tensor(mine)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def shared(self, value: Shared) -> Shared:
        """The leader's value, in all processes."""
        values = [value]
        if self.is_shared:
            dist.broadcast_object_list(values, 0, _PATIENT.get("group"), torch.device("cpu"))
        return values[0]

    def wait(self) -> None:
        """Wait until all processes are here, for `PATIENCE`."""
        if self.is_shared:
            dist.barrier(_PATIENT.get("group"))


ALONE = Group()
# Not in `Group`: objects that hold one may live longer than it, see `leave`.
_PATIENT: dict[str, Any] = {}  # a group of the same processes that waits for `PATIENCE`


@contextmanager
def joined(device_name: str | None) -> Iterator[tuple[Group, torch.device]]:
    """The group that torchrun's variables describe, or a single process, and its device.

    On GPUs, each process of a machine takes one, in order.

    Raises:
        AutosegError: the device does not exist, or there are fewer GPUs than processes.
        RunError: another process of the group ended, or did not answer in time.
    """
    size = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
    if size == 1:
        yield ALONE, pick_device(device_name)
        return
    device = _own_device(device_name, int(os.environ["LOCAL_RANK"]))
    if cuda := device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=TIMEOUT)
        _PATIENT["group"] = dist.new_group(timeout=PATIENCE, backend="gloo")
        yield Group(dist.get_rank(), size, int(os.environ["LOCAL_WORLD_SIZE"])), device
    except Stopped as stop:
        forget_frames(stop)
        leave()
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise RunError(
            f"process {os.environ['RANK']} of {size} ({platform.node()}, {device}): another one "
            f"ended, or did not answer for {TIMEOUT.seconds // 60} minutes; see their messages"
        ) from error
    # Not after an error: others may be waiting, and the end of this process ends their wait.
    leave()


def leave() -> None:
    """End the group and its threads; parallel networks must no longer be in use.

    After a collective call, a thread of the group releases the tensor, which needs Python's global
    lock. If Python has already shut down, the thread aborts the process ("terminate called without
    an active exception", torch 2.13), so the thread has to end first. It ends when the last object
    that holds the group is deleted. That object must not be a DistributedDataParallel, which waits
    for the thread without releasing the lock.
    """
    _PATIENT.clear()
    gc.collect()
    dist.destroy_process_group()


def forget_frames(error: BaseException) -> None:
    """Delete the local variables of the calls that raised this error, such as networks."""
    traceback.clear_frames(error.__traceback__)
    if error.__context__ is not None:
        forget_frames(error.__context__)


def _own_device(name: str | None, local_rank: int) -> torch.device:
    if (first := pick_device(name)).type == "cpu":
        return first
    if first.type != "cuda":
        raise AutosegError(f"--device {first} cannot be used by several processes; use cpu or cuda")
    if name not in (None, "cuda"):
        raise AutosegError(f"--device {name}: torchrun gives each process a GPU; use --device cuda")
    return pick_device(f"cuda:{local_rank}")


def share_batch_norm(network: nn.Module, group: Group, device: torch.device) -> None:
    """Replace batch normalisation by one over all processes; the weights keep their names."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm3d):
                setattr(parent, name, SharedBatchNorm(child, group))


class SharedBatchNorm(nn.BatchNorm3d):
    """Batch normalisation over the batch shares of all processes, which have the same size.

    torch's SyncBatchNorm supports CUDA only, where it moves a quarter of this one's memory.
    """

    def __init__(self, like: nn.BatchNorm3d, group: Group) -> None:
        super().__init__(like.num_features, like.eps, like.momentum)
        self.group = group
        self.load_state_dict(like.state_dict())

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if not self.training:
            return super().forward(x)
        space = (0, 2, 3, 4)
        values, shape = x.float(), (1, -1, 1, 1, 1)
        count = values.numel() // self.num_features * self.group.size
        mean = self.group.sum(values.sum(space)) / count
        centred = values - mean.view(shape)
        variance = self.group.sum(centred.square().sum(space)) / count
        with torch.no_grad():
            assert self.momentum is not None
            running_mean, running_variance, batches = self.buffers()
            running_mean.lerp_(mean, self.momentum)
            running_variance.lerp_(variance * count / max(1, count - 1), self.momentum)
            batches.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, mine: Tensor) -> Tensor:
        return _summed(mine)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(mine: Tensor) -> Tensor:
    total = mine.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class StopRequested(Exception):  # noqa: N818
    """Raised by `StopSignals.check`, for the training loop to save its state and end."""


class StopSignals:
    """Turns Ctrl-C, SIGTERM and SIGHUP in a `with` block into requests that `check` reports.

    A second Ctrl-C has its previous effect. A second SIGTERM has none, as a cluster and torchrun
    may both send one. Only the main thread receives signals; in another thread nothing is caught.
    An ignored signal stays ignored, as a shell sets it for background processes.
    """

    def __init__(self, group: Group = ALONE) -> None:
        self.group = group
        self.number = 0  # of the signal that was received
        self._handled = {number: ExitStack() for number in SIGNALS}

    def __enter__(self) -> StopSignals:
        for number, stack in self._handled.items():
            stack.enter_context(signal_handled(number, self._request))
        return self

    def __exit__(self, *_: object) -> None:
        for stack in self._handled.values():
            stack.close()

    def _request(self, number: int, _: FrameType | None) -> None:
        if self.group.leads and not self.number:
            # Not print: the signal may arrive during a print, whose buffer is then in use.
            with suppress(OSError):  # the terminal is gone, or the disk of the log is full
                os.write(STANDARD_ERROR, STOPPING.encode())
        self.number = number
        self._handled[signal.SIGINT].close()

    @property
    def name(self) -> str:
        """`Ctrl-C`, or the name of the signal, such as `SIGTERM`."""
        name = signal.Signals(self.number).name
        return "Ctrl-C" if name == "SIGINT" else name

    def check(self) -> None:
        """Call it in all processes of the group at the same point of their work.

        Raises:
            StopRequested: this process or another one of the group received a signal.
        """
        self.number = self.group.largest(self.number)
        if self.number:
            raise StopRequested

    def check_alone(self) -> None:
        """The same for a single process; a process of a group goes on to its next `check`."""
        if not self.group.is_shared:
            self.check()

    def wait_a_moment(self) -> None:
        """Wait up to a second for a signal that may have been sent to several processes."""
        end = time.monotonic() + 1.0
        while not self.number and time.monotonic() < end:
            time.sleep(0.02)

    def stopped(self, when: str) -> Stopped:
        """The error that ends the run."""
        return Stopped(f"stopped by {self.name} {when}; continue with --resume", self.number)
