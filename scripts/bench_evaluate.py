"""Time the evaluation of a phantom test set against other packages.

A few phantoms with lungs and infection are drawn; displacing their borders gives the predictions;
both are copied until there are enough cases. The other packages are scikit-learn for
the overlap and surface-distance for the surfaces (the latter on masks that are read already, case
by case, as their documentation shows), on a few cases. nnU-Net's `nnUNetv2_evaluate_simple`, from a
virtual environment of its own, scores the same files; it computes overlap only (Dice, IoU and the
counts), autoseg all its metrics, surfaces and lesions included.

    python scripts/bench_evaluate.py --nnunet /path/to/venv --processes 2
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from shutil import copyfile
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import surface_distance
from make_phantom import Header, draw_anatomy, render, smooth_noise, widen, write
from numpy.typing import NDArray
from side_by_side import Cost, bench_parser, print_head, print_machine, print_row, run
from sklearn import metrics

from autoseg.common.files import write_json
from autoseg.evaluation.evaluate import evaluate_folders
from autoseg.image.image import read_label

LABELS = {"background": 0, "lungs": 1, "infection": 2}
SPACING_MM = (0.75, 0.75, 5.0)
DRAWN = 4
OURS = "_evaluate"  # the folder, as this script calls itself to be measured
Label = NDArray[np.uint8]


def draw_pair(header: Header, seed: int) -> tuple[Label, Label]:
    """A reference, and a prediction whose borders are displaced by a few voxels."""
    rng = np.random.default_rng(seed)
    _, reference_map = render(header, draw_anatomy(header, rng), rng)
    reference_map = np.array([0, 1, 1, 2], np.uint8)[reference_map]
    x, y, _ = header.size
    coarse = [max(8, n // 8) for n in (x, y)]
    steps = [3 * widen(smooth_noise(coarse, 4, rng), (x, y)) for _ in range(2)]
    places = np.meshgrid(np.arange(x), np.arange(y), indexing="ij")
    moved = [
        np.clip(np.rint(place + step), 0, n - 1).astype(int)
        for place, step, n in zip(places, steps, (x, y), strict=True)
    ]
    return reference_map, reference_map[moved[0], moved[1]]


def write_cases(folder: Path, header: Header, cases: int) -> None:
    """Write `labelsTs` and `predicted`; the drawn pairs are repeated."""
    for case in range(cases):
        names = [folder / where / f"case_{case:03d}.nii.gz" for where in ("labelsTs", "predicted")]
        if case < DRAWN:
            for path, label in zip(names, draw_pair(header, case), strict=True):
                write(path, label, header)
        else:
            for path in names:
                copyfile(path.with_name(f"case_{case % DRAWN:03d}.nii.gz"), path)
    description: dict[str, Any] = {"channel_names": {"0": "CT"}, "labels": LABELS}
    write_json(folder / "dataset.json", description | {"file_ending": ".nii.gz"})


def run_autoseg(folder: Path, processes: int) -> None:
    """The measured work: all scores, including summary.json."""
    summary = evaluate_folders(folder / "labelsTs", folder / "predicted", processes=processes)
    summary.save(folder / "predicted" / "summary.json")


def by_references(reference_map: Label, predicted: Label, spacing_mm: tuple[float, ...]) -> None:
    """The same metrics of one case by the other packages."""
    for value in list(LABELS.values())[1:]:
        reference, found = reference_map == value, predicted == value
        flat = reference.ravel(), found.ravel()
        for score in (metrics.f1_score, metrics.jaccard_score, metrics.recall_score):
            score(*flat)
        metrics.precision_score(*flat)
        metrics.accuracy_score(*flat)
        metrics.recall_score(*flat, pos_label=False)
        distances = surface_distance.compute_surface_distances(reference, found, spacing_mm)
        surface_distance.compute_robust_hausdorff(distances, 95)
        surface_distance.compute_average_surface_distance(distances)
        surface_distance.compute_surface_dice_at_tolerance(distances, 1.0)


def time_references(folder: Path, cases: int) -> float:
    """Core-seconds per case, including reading."""
    seconds = []
    for case in range(cases):
        started = time.process_time()
        names = [folder / where / f"case_{case:03d}.nii.gz" for where in ("labelsTs", "predicted")]
        reference_map, predicted = (np.asarray(read_label(path)[0], np.uint8) for path in names)
        by_references(reference_map, predicted, SPACING_MM)
        seconds.append(time.process_time() - started)
    return fmean(seconds) if seconds else 0.0


def run_nnunet(folder: Path, environment: Path, processes: int) -> Cost:
    """The overlap by nnU-Net for the same files."""
    command = [str(environment / "bin" / "nnUNetv2_evaluate_simple")]
    values = [str(value) for value in LABELS.values() if value]
    folders = [str(folder / "labelsTs"), str(folder / "predicted")]
    out = ["-o", str(folder / "theirs.json"), "-np", str(processes)]
    places = dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), str(folder))
    return run([*command, *folders, "-l", *values, *out], places)


def main() -> None:
    """The command line."""
    parser = bench_parser(__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 75), metavar="N")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--reference-cases", type=int, default=1, help="0: leave them out")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # surface-distance uses old names of scipy
    x, y, z = arguments.size
    header = Header("bench", (x, y, z), SPACING_MM, True, 0.10, 0.012)
    what = f"evaluate {arguments.cases} label maps of {x} x {y} x {z}, 2 labels, all metrics"
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_cases(folder, header, arguments.cases)
        cost = run([sys.executable, __file__, OURS, name, str(arguments.processes)], {})
        print_head()
        if arguments.nnunet:
            theirs = run_nnunet(folder, arguments.nnunet, arguments.processes)
            print_row(what, cost, "nnU-Net, overlap only,", theirs)
        else:
            print(f"| {what} | {cost} | | | |", flush=True)
        if arguments.reference_cases:
            seconds = time_references(folder, arguments.reference_cases)
            each = Cost(cost.cpu_seconds / arguments.cases)
            print_row(
                "one of them, core time", each, "scikit-learn, surface-distance", Cost(seconds)
            )
    print_machine()


if __name__ == "__main__":
    if sys.argv[1:2] == [OURS]:
        run_autoseg(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
