"""What the processes of a torchrun do in `test_leaving`: learn a step together, and end."""

from __future__ import annotations

import sys
import time
import weakref
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from autoseg.augmentation.loader import Batch
from autoseg.common.errors import Stopped
from autoseg.training import distributed
from autoseg.training.distributed import Group, joined
from autoseg.training.learner import Learner
from tests.making import tiny_plan


def main(end: str) -> None:
    """Learn in a group of processes, end as asked, and say what is left.

    Args:
        end: `finished`, `stopped`, or `silent`: the second process does not answer.
    """
    torch.set_num_threads(1)
    if end == "silent":
        distributed.TIMEOUT = timedelta(seconds=8)  # a busy machine needs some to join
    held: list[weakref.ref[Any]] = []
    told = ""
    try:
        with joined("cpu") as (group, _):
            _learn(group, end, held)
    except Stopped as stop:
        told = f"{stop}; "
    left = sum(each() is not None for each in held)
    sys.stdout.write(f"{told}left of {len(held)}: {left}\n")  # at once: two processes write


def _learn(group: Group, end: str, held: list[weakref.ref[Any]]) -> None:
    if end == "silent":
        if group.leads:
            group.largest(1)
        time.sleep(60)
    plan = tiny_plan(sampling={"batch_size": 4}, training={"precision": "float32"})
    learner = Learner(plan, torch.device("cpu"), group)
    learner.step(_batch(group.places(4)), 0.1)
    held += [weakref.ref(learner.forward), weakref.ref(dist.group.WORLD)]
    held.append(weakref.ref(learner))
    circle: list[Any] = [learner]  # what only the garbage collector finds
    circle.append(circle)
    group.wait()
    if end == "stopped":
        raise Stopped("stopped by SIGTERM", 15)


def _batch(places: range) -> Batch:
    rng = np.random.default_rng(0)
    label = (rng.random((4, 8, 8, 8)) * 3).astype(np.int16)[list(places)]
    return {"data": label[:, None].astype(np.float32), "label": label}


if __name__ == "__main__":
    main(sys.argv[1])
