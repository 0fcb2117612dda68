"""Write a task with very many classes: the organs of a raw task, and regions of the other body.

The regions start from the same points of every body, spread evenly over its box (a small atlas),
and grow by the watershed of the image's gradient, so that their borders follow the tissues. Region
7 is thus about the same place in every case. The organs of the raw task keep their names; where it
has as many as classes are wanted, there are regions only. The same arguments give the same files.

    python scripts/make_many_classes.py raw/Task012_HeadNeckCT raw/Task117_Regions --classes 117
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_gradient_magnitude
from scipy.stats.qmc import Halton
from skimage.segmentation import watershed

from autoseg.common.arrays import bounding_box
from autoseg.common.files import replacing, write_json
from autoseg.dataset.task import Case, read_task
from autoseg.image.geometry import Geometry
from autoseg.image.image import read_image, read_label

CLASSES = 117  # of TotalSegmentator
BODY_PERCENT = 60  # of the voxels; the brighter ones are the body, in whatever unit
Label = NDArray[np.uint16]


def regions_of(image: NDArray[np.generic], organs: Label, first: int, count: int) -> Label:
    """The organs, and the rest of the body as regions with the values `first`, `first` + 1, ...

    Args:
        image: the scan (x, y, z).
        organs: label map of the same shape; its voxels are kept.
        first: the lowest value of a region.
        count: the number of regions. A small body may lack some.
    """
    values = image.astype(np.float32)
    body = (values > np.percentile(values, BODY_PERCENT)) | (organs > 0)
    free = body & (organs == 0)
    box = bounding_box(body)
    if box is None or not count or not free.any():
        return organs
    low = np.array([side.start for side in box])
    sizes = np.array([side.stop - side.start for side in box])
    points = low + (Halton(3, scramble=False).random(count + 1)[1:] * sizes).astype(int)
    nearest = distance_transform_edt(~free, return_distances=False, return_indices=True)
    seeds = nearest[:, *points.T]  # the point itself, or the nearest voxel that is free
    markers = np.zeros(values.shape, np.int32)
    markers[tuple(seeds)] = first + np.arange(count)
    grown = watershed(gaussian_gradient_magnitude(values, 1.0), markers, mask=free)
    return np.where(organs > 0, organs, grown).astype(np.uint16)


def make_case(case: Case, organs: Sequence[Sequence[int]], classes: int, out: Path) -> None:
    """Write the scan and the new label map of a case; `organs` are the label values to keep."""
    image, (label, geometry) = read_image(case.images[:1]), read_label(case.label)
    table = np.zeros(1 << 16, np.uint16)
    for value, before in enumerate(organs, start=1):
        table[list(before)] = value
    found = regions_of(image.array[0], table[label], len(organs) + 1, classes - len(organs))
    scan = np.rint(image.array[0]).astype(np.int16)
    write(out / "imagesTr" / f"{case.name}_0000.nii.gz", scan, geometry)
    write(out / "labelsTr" / f"{case.name}.nii.gz", found, geometry)


def write(path: Path, array: NDArray[np.generic], geometry: Geometry) -> None:
    """Write one volume (x, y, z) as compressed NIfTI on a grid."""
    picture = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    picture.SetSpacing(geometry.spacing_mm)
    picture.SetOrigin(geometry.origin_mm)
    picture.SetDirection(geometry.direction)
    with replacing(path) as temporary:
        sitk.WriteImage(picture, str(temporary), useCompression=True, compressionLevel=1)


def make_task(raw: Path, out: Path, classes: int = CLASSES, cases: int | None = None) -> None:
    """Write a task with `classes` classes made from the first `cases` cases of a raw task."""
    task = read_task(raw)
    named = {name: values for name, values in task.labels.items() if 0 not in values}
    organs = named if len(named) < classes else {}
    chosen = task.cases[:cases]
    for case in chosen:
        make_case(case, list(organs.values()), classes, out)
    regions = [f"region_{number:03d}" for number in range(1, 1 + classes - len(organs))]
    names = ["background", *organs, *regions]
    description = {
        "name": f"{task.name} with {classes} classes",
        "description": "made by scripts/make_many_classes.py for measurements",
        "channel_names": {"0": task.channels[0]},
        "labels": {name: value for value, name in enumerate(names)},
        "numTraining": len(chosen),
        "file_ending": ".nii.gz",
    }
    write_json(out / "dataset.json", description)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("raw", type=Path, help="folder of a raw task")
    parser.add_argument("out", type=Path, help="folder of the new task")
    parser.add_argument("--classes", type=int, default=CLASSES, help="without the background")
    parser.add_argument("--cases", type=int, help="the first ones of the task (default: all)")
    arguments = parser.parse_args()
    make_task(arguments.raw, arguments.out, arguments.classes, arguments.cases)
    print(f"{arguments.out}: {arguments.classes} classes")


if __name__ == "__main__":
    main()
