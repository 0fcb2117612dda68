"""What a data set is like: shapes, spacings, intensities and labels of all cases."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.errors import DataError
from autoseg.common.files import check_fields, read_json, write_json
from autoseg.fingerprint.figures import CaseFigures
from autoseg.fingerprint.intensities import Intensities, intensities_from_json

FORMAT = 2


@dataclass(frozen=True)
class Fingerprint:
    """What a data set is like; the same for any number of processes.

    Attributes:
        task, channels, labels, ignore_label: as the task declares them.
        cases: name -> figures of every case without an error, sorted by name.
        foreground: for each channel the intensities of all cases' foreground voxels (labelled
            above zero, not ignored), each case weighing the same, as nnU-Net weighs them when it
            draws equally many voxels from each case; None where no case has foreground. Mean,
            standard deviation, minimum and maximum are exact; median and percentiles are those of
            500 quantiles of each case.
    """

    task: str
    channels: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]
    ignore_label: int | None
    cases: dict[str, CaseFigures]
    foreground: tuple[Intensities | None, ...]

    @property
    def spacings_mm(self) -> NDArray[np.float64]:
        """Spacing of every case, shape (n, 3), x, y, z."""
        return np.array([case.spacing_mm for case in self.cases.values()], dtype=np.float64)

    @property
    def shapes_after_crop(self) -> NDArray[np.int64]:
        """Shape of every case's box of voxels that are not zero, shape (n, 3), x, y, z."""
        return np.array([case.shape_after_crop for case in self.cases.values()], dtype=np.int64)

    @property
    def median_spacing_mm(self) -> tuple[float, float, float]:
        """Median over the cases, axis by axis."""
        x, y, z = np.median(self.spacings_mm, axis=0)
        return float(x), float(y), float(z)

    @property
    def relative_size_after_cropping(self) -> float:
        """Median over the cases of voxels after / before cropping to what is not zero."""
        shapes = np.array([case.shape for case in self.cases.values()], dtype=np.int64)
        return float(np.median(self.shapes_after_crop.prod(axis=1) / shapes.prod(axis=1)))

    @property
    def presence(self) -> dict[str, frozenset[str]]:
        """Case -> names of the labels that it has, background left out."""
        return {
            name: frozenset(label for label, found in case.labels.items() if found.present)
            for name, case in self.cases.items()
        }

    @property
    def voxel_shares(self) -> dict[str, float]:
        """Label name -> its share of all voxels of all cases (regions may overlap)."""
        total = sum(sum(case.voxels.values()) for case in self.cases.values())
        return {
            name: sum(case.voxels.get(v, 0) for case in self.cases.values() for v in values) / total
            for name, values in self.labels.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values for strict JSON."""
        return {
            "format": FORMAT,
            "task": self.task,
            "channels": list(self.channels),
            "labels": {name: list(values) for name, values in self.labels.items()},
            "ignore_label": self.ignore_label,
            "foreground": [
                None if pooled is None else asdict(pooled) for pooled in self.foreground
            ],
            "cases": {name: case.to_json() for name, case in self.cases.items()},
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> Fingerprint:
        """The inverse of `to_json`."""
        return Fingerprint(
            task=values["task"],
            channels=tuple(values["channels"]),
            labels={name: tuple(covered) for name, covered in values["labels"].items()},
            ignore_label=values["ignore_label"],
            cases={name: CaseFigures.from_json(case) for name, case in values["cases"].items()},
            foreground=tuple(intensities_from_json(pooled) for pooled in values["foreground"]),
        )

    def save(self, path: Path) -> None:
        """Write as JSON, atomically; equal fingerprints give equal bytes."""
        write_json(path, self.to_json())

    @staticmethod
    def load(path: Path) -> Fingerprint:
        """Read what `save` wrote.

        Raises:
            AutosegError: the file is missing, not JSON, or not a fingerprint of this version.
        """
        values = read_json(path)
        found = values.get("format") if isinstance(values, dict) else None
        if found != FORMAT:
            raise DataError(
                f"{path}: not a fingerprint of format {FORMAT} (found {found!r}); "
                "delete it and plan again"
            )
        try:
            made = Fingerprint.from_json(values)
            check_fields(made)
            return made
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: not a whole fingerprint ({error!r}); delete it and plan again"
            ) from error
