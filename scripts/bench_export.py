"""Time the export of one prediction against that of nnU-Net.

Both resample the same network output of 4 classes, 262 x 262 x 111 voxels at 1.58 x 1.58 x 2.70 mm,
to the grid of a CT of 512 x 512 x 301 voxels, choose the class of each voxel, and write the label
map as .nii.gz: autoseg as `autoseg_predict` does, nnU-Net by `export_prediction_from_logits`, which
gets logits where autoseg gets their softmax. Each time in a process of its own; what is measured is
the work without reading and imports, and the peak of the process with them.

    python scripts/bench_export.py --nnunet /path/to/venv
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from bench_resample import CLASSES, LOW, NATIVE, ours, smooth
from nnunet_plans import few_scans, plan_of_task, write_plan
from side_by_side import (
    NnUNet,
    bench_parser,
    by_turns,
    nnunet_with,
    print_table,
    run_measured,
    self_measured,
)

from autoseg.image.geometry import Geometry
from autoseg.image.image import read_geometry
from autoseg.image.label_writer import write_label

OURS = "_export"  # as this script calls itself to be measured
SPACING_MM = (1.58 * LOW[0] / NATIVE[0], 1.58 * LOW[1] / NATIVE[1], 2.7 * LOW[2] / NATIVE[2])
SIDES = Path(__file__).with_name("nnunet_export.py")


def run_autoseg(shares_file: str, scan: str, out: str) -> None:
    """The command that is measured: from probabilities to the file."""
    shares = np.load(shares_file)
    geometry = read_geometry(Path(scan))
    run_measured(lambda: write_label(Path(out), ours(shares), geometry, like=Path(scan)))


def write_inputs(folder: Path) -> None:
    """Logits for nnU-Net (class, z, y, x), their softmax for autoseg, and a scan for its grid."""
    logits = 6 * np.stack([smooth(LOW, 60, seed) for seed in range(CLASSES)])
    np.save(folder / "shares.npy", torch.softmax(torch.from_numpy(logits), dim=0).numpy())
    np.save(folder / "logits.npy", np.ascontiguousarray(logits.transpose(0, 3, 2, 1)))
    upright = tuple(np.eye(3).ravel().tolist())
    grid = Geometry(NATIVE, SPACING_MM, (0.0, 0.0, 0.0), upright)
    write_label(folder / "scan.nii.gz", np.zeros(NATIVE, np.uint8), grid)


def write_nnunet_plan(nnunet: NnUNet, folder: Path) -> None:
    """A plan of its own, at the low resolution, and the declaration of 4 classes."""
    plans = plan_of_task(nnunet)
    plans["transpose_forward"] = plans["transpose_backward"] = [0, 1, 2]
    plans["configurations"]["3d_fullres"]["spacing"] = [2.7, 1.58, 1.58]
    write_plan(plans, folder / "plans.json")
    labels = {"background": 0} | {f"organ {value}": value for value in range(1, CLASSES)}
    declared = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")


def main() -> None:
    """The command line."""
    arguments = bench_parser(__doc__, rounds=3, needs_nnunet=True).parse_args()
    with TemporaryDirectory() as name, nnunet_with(few_scans(), arguments.nnunet) as nnunet:
        folder = Path(name)
        write_inputs(folder)
        write_nnunet_plan(nnunet, folder)
        files = [str(folder / file) for file in ("plans.json", "dataset.json", "logits.npy")]
        theirs = [str(arguments.nnunet / "bin" / "python"), str(SIDES), *files]
        grid = [*map(str, NATIVE), *map(str, SPACING_MM)]
        mine = [sys.executable, __file__, OURS, str(folder / "shares.npy")]
        costs = by_turns(
            {
                "autoseg": lambda out: self_measured(
                    [*mine, str(folder / "scan.nii.gz"), str(out / "a.nii.gz")], {}
                ),
                "nnU-Net": lambda out: self_measured(
                    [*theirs, str(out / "a"), *grid], nnunet.places
                ),
            },
            arguments.rounds,
        )
    what = f"export {CLASSES} classes to {' x '.join(map(str, NATIVE))}, written"
    print_table(what, costs["autoseg"], "nnU-Net", costs["nnU-Net"])


if __name__ == "__main__":
    if sys.argv[1:2] == [OURS]:
        run_autoseg(*sys.argv[2:])
    else:
        main()
