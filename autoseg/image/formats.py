"""Text headers of MetaImage and NRRD files, checked before ITK is let near them.

ITK crashes on some headers that cannot be (a MetaImage of -3 dimensions), replaces numbers that
are none by 0, and asks for the memory that a header claims before it looks how long the file is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoseg.common.errors import DataError
from autoseg.common.progress import by_axis

# Endings of image files.

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


def ending_of(path: Path) -> str:
    """The image ending of a file name (`.nii.gz` is one ending), or ''."""
    name = path.name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def stem_of(path: Path) -> str:
    """The file name without its image ending."""
    return path.name[: len(path.name) - len(ending_of(path))]


LONGEST_HEADER = 1 << 20
METAIMAGE_BYTES = {
    "MET_CHAR": 1,
    "MET_UCHAR": 1,
    "MET_SHORT": 2,
    "MET_USHORT": 2,
    "MET_INT": 4,
    "MET_UINT": 4,
    "MET_LONG": 4,
    "MET_ULONG": 4,
    "MET_LONG_LONG": 8,
    "MET_ULONG_LONG": 8,
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}
NUMBER = re.compile(r"[^\s(),]+")
PACKED_AT_MOST = 1032  # deflate makes nothing smaller than by this factor
Fields = dict[str, str]


@dataclass(frozen=True)
class _Header:
    """The fields of a header by name, and how many bytes follow it."""

    fields: Fields
    bytes_after: int


def check_header(path: Path) -> None:
    """Check what the header of a MetaImage or NRRD file says; other files pass.

    Raises:
        DataError: a size or number cannot be, or the file is shorter than its header says.
    """
    checks: dict[str, Callable[[Path], str | None]] = {
        ".mha": _metaimage_fault,
        ".mhd": _metaimage_fault,
        ".nrrd": _nrrd_fault,
    }
    check = checks.get(ending_of(path))
    if check is not None and path.is_file() and (fault := check(path)):
        raise DataError(f"{path}: cannot be read ({fault}): copy it anew, or write it anew")


def _metaimage_fault(path: Path) -> str | None:
    """What is wrong; None if nothing is."""
    header = _read(path, "=", last="ElementDataFile")
    fields = header.fields
    needed = ("NDims", "DimSize", "ElementType", "ElementDataFile")
    if missing := [key for key in needed if key not in fields]:
        return f"no MetaImage header, or a damaged one: {missing[0]} is missing"
    if fields.get("ObjectType", "Image") != "Image":
        return f"ObjectType is {fields['ObjectType']}, not Image"
    sizes = _integers(fields["DimSize"])
    if fault := _size_fault(fields["NDims"], sizes, "NDims", "DimSize"):
        return fault
    assert sizes is not None
    for key in ("ElementSpacing", "ElementSize", "Offset", "Position", "Origin", "TransformMatrix"):
        wanted = len(sizes) ** 2 if key == "TransformMatrix" else len(sizes)
        if key in fields and (fault := _numbers_fault(key, fields[key], wanted)):
            return fault
    if fields["ElementType"] not in METAIMAGE_BYTES:
        return f"ElementType is {fields['ElementType']}, which is none of voxels"
    channels = _integers(fields.get("ElementNumberOfChannels", "1"))
    if channels is None or len(channels) != 1 or channels[0] < 1:
        return f"ElementNumberOfChannels is {fields['ElementNumberOfChannels']}"
    if fields["ElementDataFile"].upper() != "LOCAL":
        return _elsewhere_fault(path, fields["ElementDataFile"])
    claimed = math.prod(sizes) * channels[0] * METAIMAGE_BYTES[fields["ElementType"]]
    packed = fields.get("CompressedData", "False").lower() == "true"
    return _length_fault(claimed, header.bytes_after, packed)


def _nrrd_fault(path: Path) -> str | None:
    """What is wrong; None if nothing is. The type and the encoding are left to ITK."""
    header = _read(path, ":")
    fields = header.fields
    if missing := [key for key in ("type", "dimension", "sizes", "encoding") if key not in fields]:
        return f"no NRRD header, or a damaged one: {missing[0]} is missing"
    sizes = _integers(fields["sizes"])
    if fault := _size_fault(fields["dimension"], sizes, "dimension", "sizes"):
        return fault
    assert sizes is not None
    if "space directions" in fields:
        vectors = re.findall(r"\([^)]*\)", fields["space directions"])
        if len(vectors) < 3:
            return f"space directions has {len(vectors)} axes in space; a scan has 3"
        if fault := _numbers_fault("space directions", " ".join(vectors), 3 * len(vectors)):
            return fault
    for key in ("spacings", "space origin"):
        numbers = fields.get(key, "").replace("none", " ").replace("NaN", " ")
        if key in fields and (fault := _numbers_fault(key, numbers, 0)):
            return fault
    where = fields.get("data file", fields.get("datafile"))
    if where is not None:
        return _elsewhere_fault(path, where)
    packed = fields["encoding"].lower() not in ("raw", "hex", "txt", "text", "ascii")
    return _length_fault(math.prod(sizes), header.bytes_after, packed)  # a byte each, at least


def _size_fault(
    dimensions: str, sizes: Sequence[int] | None, count_key: str, sizes_key: str
) -> str | None:
    if not dimensions.isdecimal():
        return f"{count_key} is {dimensions or 'empty'}"
    if not 3 <= int(dimensions) <= 4:
        return f"it has {dimensions} dimensions; a scan has 3 (or 4 with channels)"
    if sizes is None or len(sizes) != int(dimensions):
        return f"{sizes_key} does not give {dimensions} whole numbers"
    if min(sizes) < 1:
        return f"{sizes_key} is {by_axis(sizes)}; sizes begin at 1"
    return None


def _numbers_fault(key: str, text: str, wanted: int) -> str | None:
    """All must be finite numbers; `wanted` of them, unless it is 0."""
    words = NUMBER.findall(text)
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return f"{key} holds {text!r}, which are not all numbers"
    if not all(map(math.isfinite, numbers)):
        return f"{key} holds NaN or infinity"
    if wanted and len(numbers) < wanted:
        return f"{key} holds {len(numbers)} numbers instead of {wanted}"
    return None


def _elsewhere_fault(path: Path, name: str) -> str | None:
    """Voxels may lie in a file beside the header, and nowhere else."""
    if "/" in name or "\\" in name or name.startswith(".."):
        return f"its voxels would lie in {name}; only a file beside the header is read"
    first = name.split()[0] if name.split() else ""
    if first not in ("LIST",) and "%" not in first and not (path.parent / name).is_file():
        return f"its voxels are missing: there is no {name} beside it"
    return None


def _length_fault(claimed: int, there: int, packed: bool) -> str | None:
    limit = there * PACKED_AT_MOST if packed else there
    if claimed > limit:
        return f"its header claims {claimed} bytes of voxels, but {there} follow it"
    return None


def _integers(text: str) -> list[int] | None:
    try:
        return [int(word) for word in text.split()]
    except ValueError:
        return None


def _read(path: Path, separator: str, last: str | None = None) -> _Header:
    """The header's lines up to an empty one, or up to the field `last`."""
    fields: Fields = {}
    with path.open("rb") as stream:
        while stream.tell() < LONGEST_HEADER and (line := stream.readline(LONGEST_HEADER)):
            text = line.decode("utf-8", errors="replace").rstrip("\r\n")
            if not text and last is None:
                break
            key, found, value = text.partition(separator)
            if found:
                fields[key.strip()] = value.lstrip("=").strip()
            if key.strip() == last:
                break
        return _Header(fields, path.stat().st_size - stream.tell())
