"""Scores and label maps that several tests use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.evaluation.metrics import Overlap, Volumes
from autoseg.evaluation.scores import CaseScores, Summary
from autoseg.image.geometry import Geometry
from autoseg.image.image import read_label
from autoseg.image.label_writer import write_label

HIPPOCAMPUS = Path(__file__).parents[1] / "data" / "Task004_Hippocampus"
UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def case(name: str, **counts: tuple[int, int, int, int]) -> CaseScores:
    """The scores of a case from the tp, fp, fn, tn of its classes; voxels of 1 ml."""
    labels = {label: Overlap(*numbers) for label, numbers in counts.items()}
    volumes = {k: Volumes(float(o.n_ref), float(o.n_pred)) for k, o in labels.items()}
    return CaseScores(name, f"truth/{name}.nii.gz", f"out/{name}.nii.gz", labels, volumes)


def three_cases() -> Summary:
    """Dice of lung: 0.8, 0.6, 1.0; of lesion: 0.5, none, 0.0. A fourth case is missing."""
    cases = (
        case("a", lung=(8, 2, 2, 8), lesion=(1, 1, 1, 17)),
        case("b", lung=(6, 4, 4, 6), lesion=(0, 0, 0, 20)),
        case("c", lung=(5, 0, 0, 15), lesion=(0, 3, 0, 17)),
    )
    return Summary(cases, ("d",))


def write(
    path: Path,
    label: NDArray[np.uint8],
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    direction: tuple[float, ...] = UPRIGHT,
) -> Path:
    """Write a label map and return its path."""
    x, y, z = label.shape
    write_label(path, label, Geometry((x, y, z), spacing_mm, (0.0, 0.0, 0.0), direction))
    return path


def shifted_hippocampus(folder: Path, shifts: tuple[int, ...]) -> list[str]:
    """Write the first label maps of the bundled task, shifted along x; returns their cases."""
    names = []
    for path, shift in zip(sorted((HIPPOCAMPUS / "labelsTr").iterdir()), shifts, strict=False):
        label, geometry = read_label(path)
        write_label(folder / path.name, np.roll(label, shift, axis=0), geometry)
        names.append(path.name.removesuffix(".nii.gz"))
    return names
