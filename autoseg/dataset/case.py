"""The files of one case."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One scan and its label map; `images` is one file per channel, or one file with all.

    An image may also be a folder with the slices of one DICOM series.
    """

    name: str
    images: tuple[Path, ...]
    label: Path
