"""Which cases a folder of new scans holds."""

from __future__ import annotations

import re
from pathlib import Path

from autoseg.errors import DataError
from autoseg.image import ENDINGS, ending_of, stem_of

CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
Inputs = dict[str, tuple[Path, ...]]


def find_inputs(path: Path, channels: tuple[str, ...]) -> Inputs:
    """Case names and their files, one a channel, in the order of the channels.

    Files are named CASE_0000, CASE_0001, ... by channel; a scan with one channel, or one file that
    holds all channels, may leave the number out. A DICOM series is a folder of its own.

    Raises:
        DataError: nothing is there, a channel is missing, or two files claim to be the same case.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    files = [path] if path.is_file() or _is_series(path) else _scans_in(path)
    if not files:
        raise DataError(
            f"{path}: holds no scan; known are files ending in {', '.join(ENDINGS)}, and folders "
            "with one DICOM series each"
        )
    found: dict[str, dict[int, Path]] = {}
    stems = {stem_of(file) for file in files}
    for file in files:
        name, channel = _case_and_channel(stem_of(file), stems, len(channels))
        twin = found.setdefault(name, {}).setdefault(channel, file)
        if twin != file:
            raise DataError(f"{file} and {twin.name} are the same case; rename or remove one")
    return {name: _in_order(name, by_channel, channels) for name, by_channel in found.items()}


def _case_and_channel(stem: str, stems: set[str], channels: int) -> tuple[str, int]:
    """A number that no channel has belongs to the name (`scan_2021`), unless CASE_0000 is there."""
    numbered = CHANNEL.match(stem)
    if not numbered:
        return stem, 0
    case, channel = numbered["case"], int(numbered["channel"])
    if channel >= channels and f"{case}_0000" not in stems:
        return stem, 0
    return case, channel


def _in_order(name: str, files: dict[int, Path], channels: tuple[str, ...]) -> tuple[Path, ...]:
    """The files by channel; a gap in the numbers is named."""
    if gaps := sorted(set(range(len(files))) - set(files)):
        missing = ", ".join(f"{name}_{gap:04d}" for gap in gaps)
        raise DataError(
            f"case {name}: {missing} is missing; the model's channels are {', '.join(channels)}"
        )
    return tuple(files[channel] for channel in sorted(files))


def _scans_in(folder: Path) -> list[Path]:
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    return [entry for entry in entries if ending_of(entry) or _is_series(entry)]


def _is_series(path: Path) -> bool:
    """Is this a folder of DICOM slices? They often have no ending: look for the `DICM` mark."""
    if not path.is_dir():
        return False
    entries = (entry for entry in sorted(path.iterdir()) if not entry.name.startswith("."))
    first = next((entry for entry in entries if entry.is_file()), None)
    if first is None:
        return False
    with first.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
