"""What the scans that trained a model looked like: what prediction needs of its fingerprint.

`fingerprint.json` lies beside the plan in a model. Models of 0.1.0 have it only if they are packed;
that of an unpacked one is still in the workspace that planned it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from autoseg.common.errors import AutosegError
from autoseg.common.files import dataclass_from_json
from autoseg.image.appearance import Appearance, on_patient_axes
from autoseg.models.folder import FINGERPRINT, PLAN, FolderFiles, ModelFiles, plan_in

ADVICE = "restore it; the model was trained on the data that it describes"


@dataclass(frozen=True)
class TrainingSet:
    """The training scans.

    Attributes:
        cases: the figures of each; those of fingerprints before format 3 have no `bodies`.
        labelled: for each channel the 0.5 and the 99.5 percentile of the labelled voxels, or None.
    """

    cases: tuple[Appearance, ...]
    labelled: tuple[tuple[float, float] | None, ...]

    @property
    def orientations(self) -> tuple[str, ...]:
        """In which each scan is stored."""
        return tuple(case.orientation for case in self.cases)

    @property
    def has_bodies(self) -> bool:
        """Whether the intensities inside the body are known of every scan."""
        return all(all(case.bodies) for case in self.cases)


def training_set_of(files: ModelFiles) -> TrainingSet | None:
    """The training set of a model; None if the model came without its fingerprint.

    Raises:
        AutosegError: the fingerprint is damaged.
    """
    found = _with_fingerprint(files)
    if found is None:
        return None
    values, where = found.json(FINGERPRINT), found.path(FINGERPRINT)
    try:
        made = {"cases": list(_cases(values["cases"])), "labelled": _labelled(values["foreground"])}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AutosegError(f"{where}: not a fingerprint ({error!r}); {ADVICE}") from error
    return dataclass_from_json(TrainingSet, made, where, ADVICE)


def _with_fingerprint(files: ModelFiles) -> ModelFiles | None:
    """Where the fingerprint of a model is: in it, or where the same plan was planned."""
    if files.has(FINGERPRINT):
        return files
    if isinstance(files, FolderFiles) and len((path := files.folder.absolute()).parts) > 3:
        planned = FolderFiles(path.parents[2] / "preprocessed" / path.parent.name / path.name)
        if (
            planned.has(PLAN)
            and planned.has(FINGERPRINT)
            and plan_in(planned).id == plan_in(files).id
        ):
            return planned
    return None


def _cases(cases: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for case in cases.values():
        code, spacing = case["orientation"], case["spacing_mm"]
        x, y, z = (size * mm for size, mm in zip(case["shape_after_crop"], spacing, strict=True))
        yield asdict(
            Appearance(
                orientation=code,
                spacing_mm=on_patient_axes(spacing, code),
                extent_mm=on_patient_axes((x, y, z), code),
                ranges=tuple((c["image"]["p00_5"], c["image"]["p99_5"]) for c in case["channels"]),
                bodies=tuple(channel.get("body", ()) for channel in case["channels"]),
            )
        )


def _labelled(foreground: Any) -> list[Any]:
    return [found and (found["p00_5"], found["p99_5"]) for found in foreground]
