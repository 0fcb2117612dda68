"""What each of two processes does in the tests of `training.distributed`."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from autoseg.models.checkpoint import Tensors, load_checkpoint, save_checkpoint
from autoseg.training.distributed import Group, leave

Work = Callable[[Group], Tensors]


def in_two_processes(work: Work, folder: Path) -> list[Tensors]:
    """What the work gives in each of two processes that form a group."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(work, folder, rank)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return [load_checkpoint(folder / f"{rank}.safetensors")[0] for rank in (0, 1)]


def _work(work: Work, folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    where: dict[str, Any] = {"init_method": (folder / "meeting").as_uri()}
    dist.init_process_group("gloo", rank=rank, world_size=2, **where)
    save_checkpoint(folder / f"{rank}.safetensors", work(Group(rank, 2)), {})
    leave()
