"""Several processes that train one network, each on its share of every batch.

`torchrun --nproc-per-node=2 -m autoseg.cli.train TASK fold 0` starts them. Gradients are those of
one process with the whole batch, but for the order in which numbers are added.
"""

from __future__ import annotations

import gc
import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Imported later, by the first optimiser or DistributedDataParallel, the defaults of its functions
# would hold the group for ever, and its threads with it.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from autoseg.common.errors import AutosegError, RunError, Stopped
from autoseg.networks.devices import pick_device

PATIENCE = timedelta(days=7)  # the others wait while the leader prepares and predicts cases


@dataclass(frozen=True)
class Group:
    """This process among those of a run; the default is a process alone.

    The first one leads: it alone writes files, validates and talks.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and talks."""
        return self.rank == 0

    @property
    def is_shared(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def places(self, batch_size: int) -> range:
        """The samples of a batch that this process makes.

        Raises:
            AutosegError: the batch cannot be shared equally.
        """
        if batch_size % self.size:
            raise AutosegError(
                f"a batch of {batch_size} (sampling.batch_size) cannot be shared equally by "
                f"{self.size} processes; start torchrun with a --nproc-per-node that divides it, "
                "or plan another batch"
            )
        share = batch_size // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def sum(self, mine: Tensor) -> Tensor:
        """The sum over all processes, with gradients.

        A loss made of such sums is the same number in all processes; the mean of their gradients,
        which training takes, is the gradient of that number.
        """
        return _Sum.apply(mine) if self.is_shared else mine

    def mean(self, mine: Tensor) -> Tensor:
        """The mean over all processes, without gradients."""
        return _summed(mine) / self.size if self.is_shared else mine

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network to call for a step: all processes get the mean of their gradients.

        Its weights are those of `network`; alone it is `network` itself.
        """
        if not self.is_shared:
            return network
        # Channels-last weights; it copies then, as it does for most weights anyway.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DistributedDataParallel(network)

    def largest(self, mine: int) -> int:
        """The largest of the processes' numbers; the host's numbers, no device waits for it."""
        if not self.is_shared:
            return mine
        found = torch.tensor(mine)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def shared_text(self, text: str) -> str:
        """The leader's text, in all processes."""
        if not self.is_shared:
            return text
        coded = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        length = torch.tensor(len(coded))
        dist.broadcast(length, 0)
        if not self.leads:
            coded = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(coded, 0)
        return bytes(coded.numpy()).decode()

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.largest(0)


ALONE = Group()


@contextmanager
def joined(device_name: str | None) -> Iterator[tuple[Group, torch.device]]:
    """This process's group and its device, for the block: by torchrun's variables, else alone.

    With graphics cards the processes of a machine take one each, in order.

    Raises:
        AutosegError: the device is not there, or there are fewer cards than processes.
        RunError: another process of the group ended.
    """
    size = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
    if size == 1:
        yield ALONE, pick_device(device_name)
        return
    device = _own_device(device_name, int(os.environ["LOCAL_RANK"]))
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Group(dist.get_rank(), size), device
    except Stopped as stop:
        forget_frames(stop)
        leave()
        raise
    except RuntimeError as error:
        if "gloo" not in str(error).lower():  # the library by which processes talk
            raise
        raise RunError(
            "another process of this training ended; what it said stands near this line"
        ) from error
    # Not after an error: the end of this process tells the others, who may wait for it.
    leave()


def leave() -> None:
    """End the group and its threads; the networks that were parallel must be out of use.

    After an exchange a thread of the group lets go of the tensor, for which it needs Python's
    lock. If Python has ended by then, that thread aborts the process ("terminate called without an
    active exception", torch 2.13), so it has to end first. It does with the last object that holds
    the group, which must not be a DistributedDataParallel: that one waits for the thread without
    giving it the lock.
    """
    gc.collect()
    dist.destroy_process_group()


def forget_frames(error: BaseException) -> None:
    """Let go of what the calls that raised this error held, the networks among it."""
    chained: BaseException | None = error
    while chained is not None:
        traceback.clear_frames(chained.__traceback__)
        chained = chained.__context__


def _own_device(name: str | None, local_rank: int) -> torch.device:
    first = pick_device(name)
    if first.type == "cpu":
        return first
    if first.type != "cuda":
        raise AutosegError(f"several processes cannot share the device {first}; use cpu or cuda")
    if name not in (None, "cuda"):
        raise AutosegError(f"--device {name}: under torchrun each process takes a card of its own")
    return pick_device(f"cuda:{local_rank}")


def share_batch_norm(network: nn.Module, group: Group) -> None:
    """Let batch normalisation count the samples of all processes; names of weights stay."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm3d):
                setattr(parent, name, SharedBatchNorm(child, group))


class SharedBatchNorm(nn.BatchNorm3d):
    """Batch normalisation over the batch shares of all processes, which are equally large.

    torch's own SyncBatchNorm computes on CUDA only; this one runs everywhere, in plain operations.
    """

    def __init__(self, like: nn.BatchNorm3d, group: Group) -> None:
        super().__init__(like.num_features, like.eps, like.momentum)
        self.group = group
        self.load_state_dict(like.state_dict())

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if not self.training:
            return super().forward(x)
        space = (0, 2, 3, 4)
        whole, shape = x.float(), (1, -1, 1, 1, 1)
        count = whole.numel() // self.num_features * self.group.size
        mean = self.group.sum(whole.sum(space)) / count
        centred = whole - mean.view(shape)
        variance = self.group.sum(centred.square().sum(space)) / count
        self._follow(mean.detach(), variance.detach() * count / max(1, count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


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
