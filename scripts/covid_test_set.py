"""The scans of An et al. with the annotations of the COVID-19-20 challenge, as a test set."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoseg.common.errors import DataError
from autoseg.common.files import replacing, write_json
from autoseg.common.progress import progress, say

FOLDER = "COVID-19-20"
SCAN = re.compile(r"(volume-covid19-A-\d{4}(?:_\d+)?)(_ct)?\.nii\.gz")
ANNOTATION = re.compile(r"(volume-covid19-A-\d{4}(?:_\d+)?)_seg\.nii\.gz")

DECLARATION: dict[str, Any] = {
    "name": "CT Images in COVID-19, annotated for the COVID-19-20 challenge",
    "description": "chest CTs of COVID-19 patients by An et al. 2020, for testing only",
    "reference": "https://doi.org/10.7937/tcia.2020.gqry-nc81",
    "licence": "as stated by The Cancer Imaging Archive (scans) and the challenge (annotations)",
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "infection": 1},
    "file_ending": ".nii.gz",
}


def lay_out_test_set(source: Path, target: Path) -> int:
    """Link (or copy) the files to `imagesTs` and `labelsTs`; returns the number of cases.

    The files may be in any subfolder of `source`: the challenge's own
    `volume-covid19-A-0003_ct.nii.gz` and `volume-covid19-A-0003_seg.nii.gz`, or the archive's
    `volume-covid19-A-0003.nii.gz` for a scan. Scans without annotations are left out.

    Raises:
        DataError: there is no scan with an annotation, or two files belong to the same case.
    """
    scans, annotations = find_files(source, target)
    cases = sorted(scans.keys() & annotations.keys())
    if not cases:
        raise DataError(
            f"{source}: expected volume-covid19-A-0003_ct.nii.gz with "
            "volume-covid19-A-0003_seg.nii.gz, and so on, in any subfolder; found "
            f"{len(scans)} scans and {len(annotations)} annotations, but no pairs"
        )
    with progress("test set", len(cases)) as shown:
        for case in cases:
            _link(scans[case], target / "imagesTs" / f"{case}_0000.nii.gz")
            _link(annotations[case], target / "labelsTs" / f"{case}.nii.gz")
            shown.advance(case)
    write_json(target / "dataset.json", DECLARATION | {"numTest": len(cases)})
    for what, names, lack in (
        ("scans", scans.keys() - annotations.keys(), "an annotation (_seg.nii.gz)"),
        ("annotations", annotations.keys() - scans.keys(), "a scan (_ct.nii.gz)"),
    ):
        if names:
            say(f"left out {len(names)} {what} without {lack}: {min(names)}, ...")
    return len(cases)


def find_files(source: Path, leave_out: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Scans and annotations by case, not looking into `leave_out`.

    Raises:
        DataError: `source` is not a folder, or two files belong to the same case.
    """
    if not source.is_dir():
        raise DataError(f"{source} is not a folder; give the folder of the unpacked test set")
    challenge: dict[str, Path] = {}
    archive: dict[str, Path] = {}
    annotations: dict[str, Path] = {}
    for path in _files(source.resolve(), leave_out.resolve()):
        if found := ANNOTATION.fullmatch(path.name):
            _add(annotations, found[1], path)
        elif found := SCAN.fullmatch(path.name):
            _add(challenge if found[2] else archive, found[1], path)
    return archive | challenge, annotations  # scans of the challenge have precedence


def _files(folder: Path, leave_out: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if Path(place, name) != leave_out)
        yield from (Path(place, name) for name in sorted(names))


def _add(files: dict[str, Path], case: str, path: Path) -> None:
    if case in files:
        raise DataError(f"{files[case]} and {path} belong to the same case; keep one")
    files[case] = path


def _link(source: Path, target: Path) -> None:
    if target.is_file() and target.stat().st_size == source.stat().st_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or one without links
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
