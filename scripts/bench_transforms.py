"""Time the default plan's augmentation against nnU-Net's own transforms for the same patch.

    python scripts/bench_transforms.py --nnunet /path/to/venv

The default plan has nnU-Net's transforms with the same probabilities and ranges. Both augment
random patches on one core, alternately, each in a process of its own; the row shows the median
round. Reading the patches from disk is left out. `bench_augmentation.py` compares the paper's plan
with batchgenerators.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from bench_augmentation import Ours, Specs, largest_box, smooth
from pydantic import TypeAdapter
from side_by_side import bench_parser, by_turns, print_table, run_measured, self_measured
from threadpoolctl import threadpool_limits

PATCH = (160, 160, 80)
OURS = "_augment"  # as this script calls itself to be measured
SIDE = Path(__file__).with_name("nnunet_augmentation.py")
DEFAULT = [
    {"transform": "spatial", "rotation_degrees": [[-30, 30]] * 3},
    {"transform": "gaussian_noise"},
    {"transform": "gaussian_blur"},
    {"transform": "brightness"},
    {"transform": "contrast"},
    {"transform": "low_resolution"},
    {"transform": "gamma", "probability": 0.1, "invert": True},
    {"transform": "gamma"},
    {"transform": "mirror", "axes": [0, 1, 2]},
]


def augment(samples: int) -> None:
    """The measured work of autoseg, after one sample to warm up."""
    specs: Specs = TypeAdapter(Specs).validate_python(DEFAULT)
    torch.set_num_threads(1)
    ours = Ours(specs, PATCH)
    volume = smooth(largest_box(specs, PATCH))
    label = (volume > 0).astype(np.int16)
    rng = np.random.default_rng(0)
    with threadpool_limits(limits=1):
        ours.make(volume, label, rng)
        run_measured(lambda: ours.make(volume, label, rng), samples)


def main() -> None:
    """The command line."""
    parser = bench_parser(__doc__, rounds=3, needs_nnunet=True)
    parser.add_argument("--samples", type=int, default=50, help="samples per round")
    arguments = parser.parse_args()
    samples = str(arguments.samples)
    theirs = [str(arguments.nnunet / "bin" / "python"), str(SIDE), *map(str, PATCH), samples]
    places = dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), ".")
    costs = by_turns(
        {
            "autoseg": lambda _: self_measured([sys.executable, __file__, OURS, samples], {}),
            "nnU-Net": lambda _: self_measured(theirs, places),
        },
        arguments.rounds,
    )
    what = (
        f"augment a patch of {' x '.join(map(str, PATCH))} with nnU-Net's probabilities, one core"
    )
    print_table(what, costs["autoseg"], "nnU-Net", costs["nnU-Net"])


if __name__ == "__main__":
    if sys.argv[1:2] == [OURS]:
        augment(int(sys.argv[2]))
    else:
        main()
