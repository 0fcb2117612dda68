"""Corrected label maps: `labelsTr_corrected/CASE.nii.gz` is used instead of the one of the case.

`corrections.json` there lists who gave which file when, and which are in use; the originals stay.
"""

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from autoseg.common.errors import DataError
from autoseg.common.files import read_json, sha256_of, write_json
from autoseg.common.progress import counted, note
from autoseg.dataset.problems import TEXT
from autoseg.image.image import read_label
from autoseg.image.label_writer import write_label

CORRECTED = "labelsTr_corrected"  # in the folder of a task of any layout
RECORD = "corrections.json"


def corrected_labels(task: Path) -> dict[str, Path]:
    """Case -> the label map to use instead of its own, which is told.

    Raises:
        DataError: such a file is missing.
    """
    folder = task / CORRECTED
    used = {entry["case"]: folder / entry["file"] for entry in _entries(folder) if entry["in_use"]}
    if lost := [str(path) for path in used.values() if not path.is_file()]:
        raise DataError(TEXT("no correction", path=lost[0], task=task.name))
    if used:
        note(f"{folder}: {counted(len(used), 'corrected label map')} used, not the original")
    return used


def save_corrections(task: Path, given: Mapping[str, Path]) -> None:
    """Copy checked label maps (case -> file) into the task, to be used from now on.

    Without any, all corrections are withdrawn; their files stay.
    """
    folder = task / CORRECTED
    entries = _entries(folder)
    for entry in entries:
        entry["in_use"] = bool(given) and entry["in_use"] and entry["case"] not in given
    who = os.environ.get("USER") or os.environ.get("USERNAME") or "unknown"
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    for case, source in given.items():
        path = folder / f"{case}.nii.gz"
        write_label(path, *read_label(source), like=source)
        facts = {"file": path.name, "sha256": sha256_of(path), "from": str(source.absolute())}
        entries.append({"case": case, **facts, "by": who, "at": now, "in_use": True})
    if entries:
        write_json(folder / RECORD, entries)


def _entries(folder: Path) -> list[dict[str, Any]]:
    path = folder / RECORD
    return list(read_json(path)) if path.is_file() else []
