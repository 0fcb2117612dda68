"""A label map as a file, in the format that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.errors import AutosegError
from autoseg.image.formats import ending_of
from autoseg.image.geometry import Geometry
from autoseg.image.label_writer import write_label
from autoseg.plan.plan import Plan

DEFAULT_FORMAT, DICOM_SEG = "nii.gz", "dicom-seg"
ENDINGS = {DEFAULT_FORMAT: ".nii.gz", "nrrd": ".nrrd", "mha": ".mha", DICOM_SEG: ".dcm"}
FORMATS = tuple(ENDINGS)


def ending(format: str) -> str:
    """How the files of a format end.

    Raises:
        AutosegError: the format is unknown.
    """
    if format not in ENDINGS:
        raise AutosegError(f"no output format {format!r}; choose {', '.join(FORMATS)}")
    return ENDINGS[format]


def check_format(format: str, inputs: Mapping[str, tuple[Path, ...]]) -> None:
    """Check that all cases can be written in a format, before the first one is predicted.

    Raises:
        AutosegError: the format is unknown, needs DICOM and a case is none, or its library is not
            installed.
    """
    ending(format)
    if format != DICOM_SEG:
        return
    if find_spec("highdicom") is None:
        raise AutosegError("--format dicom-seg needs highdicom: pip install 'autoseg[dicom]'")
    others = [name for name, files in inputs.items() if not _is_series(files[0])]
    if others:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise AutosegError(
            f"{inputs[others[0]][0]}{more}: --format dicom-seg needs a DICOM series as input; "
            "choose nii.gz, nrrd or mha"
        )


def write_prediction(
    path: Path,
    label: NDArray[np.integer[Any]],
    geometry: Geometry,
    files: tuple[Path, ...],
    plan: Plan,
    format: str = DEFAULT_FORMAT,
) -> None:
    """Write a label map, whole or not at all.

    Its grid is the scan's to the bit in MHA, and in the scan's own format. Otherwise NIfTI rounds
    to 32 bits, and NRRD may change the last bit of 64 where the axes are oblique.

    Args:
        path: where to; it ends as `ending` says.
        label: label values (x, y, z).
        geometry: the grid of the scan.
        files: the scan, one file a channel.
        plan: names the classes.
        format: one of FORMATS.
    """
    if format == DICOM_SEG:
        from autoseg.prediction.dicom_seg import write_segmentation

        write_segmentation(path, label, files[0], plan)
    else:
        write_label(path, label, geometry, like=files[0])


def _is_series(path: Path) -> bool:
    return path.is_dir() or not ending_of(path)
