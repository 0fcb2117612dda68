"""Endings of image files."""

from __future__ import annotations

from pathlib import Path

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


def ending_of(path: Path) -> str:
    """The image ending of a file name (`.nii.gz` is one ending), or ''."""
    name = path.name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def stem_of(path: Path) -> str:
    """The file name without its image ending."""
    return path.name[: len(path.name) - len(ending_of(path))]
