"""nnU-Net's own augmentation of patches, for bench_transforms.py to compare with.

Runs in nnU-Net's environment: `nnunet_augmentation.py X Y Z SAMPLES`. Its trainer's transforms for
a patch that is not flat act on random volumes of its own initial size, on one thread. Prints the
seconds and core-seconds of one sample, and the peak in GB.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
import torch
from nnunetv2.training.data_augmentation.compute_initial_patch_size import (  # type: ignore[import-not-found]
    get_patch_size,
)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import (  # type: ignore[import-not-found]
    nnUNetTrainer,
)

TURN = np.deg2rad(30)  # as its trainer turns such patches


def main() -> None:
    """Measure samples, after one to warm up."""
    x, y, z, samples = map(int, sys.argv[1:])
    torch.set_num_threads(1)  # as in its workers
    turns = (-TURN, TURN)
    transforms = nnUNetTrainer.get_training_transforms((z, y, x), turns, None, (0, 1, 2), False)
    initial = get_patch_size((z, y, x), turns, turns, turns, (0.85, 1.25)).tolist()
    torch.manual_seed(0)
    np.random.seed(0)  # some of its transforms draw from this
    image = torch.randn(1, *initial)
    label = (image > 0).to(torch.int16)
    transforms(image=image.clone(), segmentation=label.clone())
    started = time.perf_counter(), time.process_time()
    for _ in range(samples):
        transforms(image=image.clone(), segmentation=label.clone())
    ended = time.perf_counter(), time.process_time()
    unit = 1e9 if sys.platform == "darwin" else 1e6  # bytes there, kilobytes elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(*((end - start) / samples for start, end in zip(started, ended, strict=True)), peak)


if __name__ == "__main__":
    main()
