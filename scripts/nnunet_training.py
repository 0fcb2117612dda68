"""Seconds of nnU-Net's own training step, for bench_training.py to compare with.

Runs in nnU-Net's environment: `nnunet_training.py PLANS.json DATASET.json STEPS DEVICE`. Its
trainer builds its network, loss and optimiser on the device, and trains on noise of the plan's
shape. Prints the seconds and core-seconds of one step, and the peak in GB.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import (  # type: ignore[import-not-found]
    nnUNetTrainer,
)


def main() -> None:
    """Measure steps, after two to warm up."""
    plans, dataset = (json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:3])
    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, dataset, device=torch.device(sys.argv[4]))
    trainer.initialize()
    trainer.network.train()
    batch = noise(trainer)
    for _ in range(2):
        trainer.train_step(batch)
    steps = int(sys.argv[3])
    started = time.perf_counter(), time.process_time()
    for _ in range(steps):
        trainer.train_step(batch)
    ended = time.perf_counter(), time.process_time()
    unit = 1e9 if sys.platform == "darwin" else 1e6  # bytes there, kilobytes elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(*((end - start) / steps for start, end in zip(started, ended, strict=True)), peak)


def noise(trainer: Any) -> dict[str, Any]:
    """A batch, with labels on every scale of the deep supervision."""
    found = trainer.configuration_manager
    shape = (found.batch_size, 1, *found.patch_size)
    generator = torch.Generator().manual_seed(0)
    labels = len(trainer.dataset_json["labels"])
    label = torch.randint(0, labels, shape, generator=generator).float()
    scales = trainer._get_deep_supervision_scales()
    sizes = [
        [round(n * s) for n, s in zip(found.patch_size, scale, strict=True)] for scale in scales
    ]
    targets = [torch.nn.functional.interpolate(label, size) for size in sizes]
    return {"data": torch.randn(shape, generator=generator), "target": targets}


if __name__ == "__main__":
    main()
