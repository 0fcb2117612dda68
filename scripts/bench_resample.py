"""Time autoseg's resampling and export against scikit-image's, and the memory of a large scan.

    python scripts/bench_resample.py --rounds 3

Both use the same volumes: a CT of 512 x 512 x 301 voxels, and 262 x 262 x 111 voxels at 1.58 x 1.58
x 2.70 mm. They run alternately, each time in a new process. The table shows the median seconds of
the work and the peak memory of its process, including libraries and volumes.

* cubic: the scan to the coarse grid.
* export: probabilities of 4 classes to the scan's grid, and the most probable class. scikit-image
  resizes one class after the other. Once with blurred organs, once with noise, where any class may
  be the most probable one. The organs also beside as many busy processes as there are cores.
* segment: a scan of 512 x 512 x 600 voxels with 4 and 40 classes, from patches of 160 x 160 x 80;
  the network is one convolution. This row shows memory only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from side_by_side import (
    Cost,
    median,
    print_head,
    print_machine,
    print_row,
    run_measured,
    self_measured,
)

from autoseg.common.parallel import cores
from autoseg.image.image import from_array
from autoseg.plan.labels import Classes
from autoseg.plan.plan import make_plan
from autoseg.prediction.model import Model
from autoseg.prediction.native_grid import Placement, label_map, native_planes
from autoseg.prediction.predictor import Predictor
from autoseg.prediction.sliding_window import Slab
from autoseg.preprocessing.steps import Channel, resample_channel

NATIVE, LOW, LARGE = (512, 512, 301), (262, 262, 111), (512, 512, 600)
SPACING_MM = (0.81, 0.81, 1.0)
CLASSES = 4
Volume = NDArray[np.float32]
Job = Callable[[], Any]


def smooth(shape: tuple[int, ...], coarse: int, seed: int = 0) -> Volume:
    """Random values that change over `coarse` voxels."""
    few = np.random.default_rng(seed).normal(size=[2 + size // coarse for size in shape])
    wide = torch.nn.functional.interpolate(
        torch.from_numpy(few.astype(np.float32))[None, None], shape, mode="trilinear"
    )
    return cast("Volume", wide[0, 0].numpy())


def scan(size: tuple[int, int, int]) -> NDArray[np.int16]:
    """A CT as it is read: 16 bits per voxel, x varies fastest."""
    z_first = smooth(size[::-1], 20) * 500
    return z_first.astype(np.int16).T


def cubic(side: str) -> Job:
    """Resample a scan to the coarse grid."""
    values = scan(NATIVE)
    if side == "autoseg":
        return lambda: resample_channel(Channel(values), LOW, (3, 3, 3)).values()
    from skimage.transform import resize

    floats = values.astype(np.float32)
    return lambda: resize(floats, LOW, order=3, mode="edge", anti_aliasing=False)


def export(side: str, kind: str) -> Job:
    """Resample probabilities to the grid of the scan and choose the most probable class."""
    coarse = {"organs": 60, "noise": 1}[kind]
    logits = np.stack([smooth(LOW, coarse, seed) for seed in range(CLASSES)])
    shares = torch.softmax(6 * torch.from_numpy(logits), dim=0).numpy()
    return (lambda: ours(shares)) if side == "autoseg" else (lambda: theirs(shares))


def ours(shares: Volume) -> Any:
    """Planes as the sliding window yields them."""

    def slabs() -> Iterator[Slab]:
        for start in range(0, LOW[0], 8):
            planes = torch.from_numpy(shares[:, start : start + 8])
            yield Slab(start, planes, torch.ones(planes.shape[1:]))

    values = tuple(range(CLASSES))
    kinds = Classes(tuple("abcd"), ((0,),), ((0,),), values, are_regions=False)
    place = Placement(LOW, tuple((0, size) for size in NATIVE), NATIVE)
    return label_map(native_planes(slabs(), place), kinds, NATIVE)


def theirs(shares: Volume) -> Any:
    """One class at a time, so that no two of them are in memory."""
    from skimage.transform import resize

    best = np.full(NATIVE, -np.inf, np.float32)
    out = np.zeros(NATIVE, np.uint8)
    for index, share in enumerate(shares):
        wide = resize(share, NATIVE, order=1, mode="edge", anti_aliasing=False)
        wins = wide > best
        out[wins] = index
        best[wins] = wide[wins]
    return out


def segment(classes: str) -> Job:
    """Segment a large scan."""
    count = int(classes)
    plan = make_plan(
        {
            "task": "Task000_Bench",
            "channels": ["CT"],
            "labels": {"background": [0]} | {f"organ {n}": [n] for n in range(1, count)},
            "target_spacing_mm": [1.58, 1.58, 2.70],
            "preprocessing": [{"step": "resample", "rounding": "down", "anisotropy": None}],
            "sampling": {"patch_size": [160, 160, 80], "batch_size": 1},
            "augmentation": [],
            "network": {
                "features": [2, 4],
                "strides": [[1, 1, 1], [2, 2, 2]],
                "kernels": [[3, 3, 3], [3, 3, 3]],
                "blocks_encoder": [1, 1],
                "blocks_decoder": [1],
            },
            "training": {},
            "inference": {"overlap": [16, 16, 8]},
        },
        "the benchmark's plan",
    )
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, count, 3, padding=1)
    model = Model(Path("bench"), plan, ("0",), cast("Any", (network,)))
    predictor = Predictor(model, device="cpu", backend="torch")
    prepared = predictor.prepare(from_array(scan(LARGE), SPACING_MM))
    return lambda: predictor.segment(prepared)


JOBS: dict[str, Callable[..., Job]] = {"cubic": cubic, "export": export, "segment": segment}


def measure(*job: str) -> Cost:
    """Do a job in a new process."""
    return self_measured([sys.executable, __file__, "--job", *job], {})


@contextmanager
def load() -> Iterator[None]:
    """Within the block, a busy process for each core."""
    command = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(command) for _ in range(cores())]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def print_pair(what: str, *job: str, rounds: int) -> None:
    """Measure both alternately, and print a row."""
    name, *more = job
    pairs = [[measure(name, side, *more) for side in ("skimage", "autoseg")] for _ in range(rounds)]
    slow, fast = (median(side) for side in zip(*pairs, strict=True))
    print_row(what, fast, "scikit-image", slow)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        run_measured(JOBS[arguments.job[0]](*arguments.job[1:]))
        return
    print_head()
    print_pair("cubic resampling of a CT of 512 x 512 x 301", "cubic", rounds=arguments.rounds)
    for kind in ("organs", "noise"):
        print_pair(
            f"resample the probabilities of 4 classes to its grid, {kind}",
            "export",
            kind,
            rounds=arguments.rounds,
        )
    with load():
        what = f"the same, organs, beside {cores()} busy processes"
        print_pair(what, "export", "organs", rounds=arguments.rounds)
    for classes in ("4", "40"):
        cost = measure("segment", classes)
        print(f"| segment 512 x 512 x 600, {classes} classes | {cost} | | | |", flush=True)
    print_machine()


if __name__ == "__main__":
    main()
