"""The COVID-19 CT set of Ma et al. 2020 as a task: its archives, its cases, its `dataset.json`.

Zenodo record 3757476 has the scans and three sets of label maps, each a zip of 20 NIfTI files of
the same names. The task uses the maps with separate labels for left lung, right lung and infection.
"""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fetching import MEGABYTE

from autoseg.common.errors import AutosegError, DataError
from autoseg.common.files import read_json, replacing, write_json
from autoseg.common.progress import progress

TASK = "Task001_COVID"
LABELS = {"background": 0, "left lung": 1, "right lung": 2, "infection": 3}
CASES = (
    *(f"coronacases_{number:03d}" for number in range(1, 11)),
    "radiopaedia_10_85902_1",
    "radiopaedia_10_85902_3",
    "radiopaedia_14_85914_0",
    "radiopaedia_27_86410_0",
    "radiopaedia_29_86490_1",
    "radiopaedia_29_86491_1",
    "radiopaedia_36_86526_0",
    "radiopaedia_40_86625_0",
    "radiopaedia_4_85506_1",
    "radiopaedia_7_85703_0",
)
LARGEST_MEMBER = 2048 * MEGABYTE  # the largest scan has 166 million voxels of two bytes


@dataclass(frozen=True)
class Archive:
    """A zip with one NIfTI file per case, and where its files go in the task's folder."""

    name: str
    sha256: str
    folder: str
    suffix: str = ""

    def target(self, task: Path, case: str) -> Path:
        """The file of a case."""
        return task / self.folder / f"{case}{self.suffix}.nii.gz"


# The checksums are those that the library torch-em checks its downloads of this record against.
ARCHIVES = (
    Archive(
        "COVID-19-CT-Seg_20cases.zip",
        "a5060480eff9315b069b086312dac4872777901fb80d268a5a83edd9f4e7b440",
        "imagesTr",
        "_0000",
    ),
    Archive(
        "Lung_and_Infection_Mask.zip",
        "34f5a573cb8fb53cb15abe81868395d9addf436854826a6fd6e70c2b294f19c3",
        "labelsTr",
    ),
)
OTHER_MASKS = (
    Archive(
        "Lung_Mask.zip",
        "f060b0d0299939a6d95ddefdbfa281de1a779c4d230a5adbd32414711d6d8187",
        "lung_masksTr",
    ),
    Archive(
        "Infection_Mask.zip",
        "87901c73fdd2230260e61d2dbc57bf56026efc28264006b8ea2bf411453c1694",
        "infection_masksTr",
    ),
)


def patient_of(case: str) -> str | None:
    """The patient: a case on Radiopaedia (`radiopaedia_CASE_STUDY_SERIES`) is one person's scans.

    So both series of study 85902 belong together, and both studies of case 29. Each Coronacases
    scan is another patient's.
    """
    found = re.fullmatch(r"(radiopaedia_\d+)_\d+_\d+", case)
    return found[1] if found else None


def declaration(
    cases: Sequence[str], name: str, description: str, reference: str, licence: str
) -> dict[str, Any]:
    """The `dataset.json` of these cases, nnU-Net v2's with patient groups."""
    groups = {case: patient_of(case) for case in cases}
    return {
        "name": name,
        "description": description,
        "reference": reference,
        "licence": licence,
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        "groups": {case: patient for case, patient in groups.items() if patient},
    }


def published() -> dict[str, Any]:
    """The `dataset.json` of the set as it was published."""
    return declaration(
        CASES,
        name="COVID-19 CT Lung and Infection Segmentation Dataset",
        description="20 chest CTs of COVID-19 patients by Ma et al. 2020; the coronacases are in "
        "Hounsfield units, the radiopaedia scans are a window of [-1250, 250] HU as 0..255",
        reference="https://doi.org/10.5281/zenodo.3757476",
        licence="CC BY-NC-SA",
    )


def check_free(task: Path) -> None:
    """Check that the task's folder does not contain another set, such as a phantom of this one.

    Raises:
        DataError: it does.
    """
    path = task / "dataset.json"
    name = published()["name"]
    if path.is_file() and read_json(path).get("name") != name:
        raise DataError(
            f"{path} does not describe {name!r}; move {task} away or choose another workspace"
        )


def is_whole(task: Path, archives: Iterable[Archive]) -> bool:
    """Whether everything is laid out: `dataset.json` is written last."""
    files = (archive.target(task, case) for archive in archives for case in CASES)
    return (task / "dataset.json").is_file() and all(file.is_file() for file in files)


def lay_out(zips: Mapping[Archive, Path], task: Path) -> None:
    """Unpack archives into a task's folder and declare it; existing files are kept.

    Only the files of the 20 cases are written, each under the name that it has in the task. One
    process at a time: unfinished files of killed ones are deleted.

    Raises:
        DataError: an archive is broken, has a file outside its own folder, lacks a case, or
            differs from a file that is there.
        AutosegError: the disk has too little space.
    """
    missing = [
        (path, member, archive.target(task, case))
        for archive, path in zips.items()
        for case, member in _members(path).items()
        if not _is_there(member, archive.target(task, case), path)
    ]
    check_space(task, sum(member.file_size for _, member, _ in missing))
    for left in {left for *_, target in missing for left in target.parent.glob(".tmp-*")}:
        left.unlink()
    with progress("unpacking", len(missing)) as shown:
        for path, member, target in missing:
            _unpack(path, member, target)
            shown.advance(target.name)
    if not (task / "dataset.json").is_file():
        write_json(task / "dataset.json", published())


def check_space(folder: Path, needed: int) -> None:
    """Check that the disk of a folder has `needed` free bytes.

    Raises:
        AutosegError: it has fewer.
    """
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise AutosegError(
            f"{folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; "
            "free space or choose another workspace"
        )


def _members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The file of each case in an archive, in whichever folder.

    Raises:
        DataError: a case is missing or there twice, or the archive is not safe to unpack.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a valid zip file ({error}); download it again") from error
    for member in members:
        _check_member(member, path)
    found: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        case, ending, _ = member.filename.rpartition("/")[2].partition(".nii.gz")
        if not ending or case not in CASES:
            continue
        if case in found:
            raise DataError(f"{path} contains {case}.nii.gz twice; download it again")
        found[case] = member
    if absent := [case for case in CASES if case not in found]:
        raise DataError(
            f"{path} lacks {absent[0]}.nii.gz ({len(CASES) - len(absent)} of {len(CASES)} cases "
            "are there); it is not the published archive; download it again"
        )
    return {case: found[case] for case in CASES}


def _check_member(member: zipfile.ZipInfo, path: Path) -> None:
    parts = re.split(r"[/\\]", member.filename)
    if ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise DataError(f"{path} contains {member.filename!r}, outside its folder; do not trust it")
    if member.file_size > LARGEST_MEMBER:
        raise DataError(
            f"{path} has {member.filename!r} of {member.file_size:,} bytes; no file of the set "
            f"is larger than {LARGEST_MEMBER:,}, do not trust it"
        )


def _is_there(member: zipfile.ZipInfo, target: Path, path: Path) -> bool:
    """Whether a file was unpacked before.

    Raises:
        DataError: another file has its name.
    """
    if not target.is_file():
        return False
    if target.stat().st_size != member.file_size or _crc(target) != member.CRC:
        raise DataError(
            f"{target} is another file than the one in {path}; move its folder away or choose "
            "another workspace"
        )
    return True


def _crc(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(MEGABYTE):
            value = zlib.crc32(chunk, value)
    return value


def _unpack(path: Path, member: zipfile.ZipInfo, target: Path) -> None:
    """Write one file; zipfile reads no more than its declared size and checks its CRC."""
    try:
        with (
            zipfile.ZipFile(path) as archive,
            archive.open(member) as packed,
            replacing(target) as temporary,
            temporary.open("wb") as file,
        ):
            shutil.copyfileobj(packed, file, MEGABYTE)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise DataError(f"{path}: {member.filename} cannot be unpacked: {error}") from error
