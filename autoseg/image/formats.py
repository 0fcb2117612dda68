"""File endings, and checks of MetaImage and NRRD headers before ITK reads them.

ITK crashes on some impossible headers (a MetaImage of -3 dimensions), replaces malformed numbers
by 0, and allocates what a header claims before it looks at the length of the file.
"""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from autoseg.common.errors import DataError, raise_if
from autoseg.common.files import obstacle, printable, read_json, texts_in
from autoseg.common.progress import by_axis, note

TABLES = read_json(Path(__file__).with_name("formats.json"))
TEXT = texts_in(Path(__file__).with_name("messages.json"))
# 3D Slicer names its segmentations CASE.seg.nrrd; it comes before .nrrd, as the longer ending.
PICTURES, LOSSY = (tuple(TABLES[key]) for key in ("pictures", "lossy"))  # of one plane; refused
ENDINGS: tuple[str, ...] = (*TABLES["endings"], *PICTURES, *LOSSY)
PREVIEW, UNCERTAINTY = ".preview.png", ".uncertainty.nii.gz"
NO_SCANS = (PREVIEW, UNCERTAINTY)  # written beside predictions
NRRD = (".nrrd", ".seg.nrrd", ".nhdr")
FREESURFER = (".mgz", ".mgh")  # recognised, so that they are refused by name
READABLE = tuple(ending for ending in ENDINGS if ending not in (*FREESURFER, *LOSSY))
LONGEST_HEADER = 1 << 20  # bytes
PACKED_AT_MOST = 1032  # deflate compresses by at most this factor
NUMBER = re.compile(r"[^\s(),]+")
METAIMAGE_AXES = ("TransformMatrix", "Orientation", "Rotation")
Fields = dict[str, str]


def ending_of(path: Path) -> str:
    """The image ending of a file name (`.nii.gz` is one ending), or ''."""
    name = path.name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def is_picture(path: Path) -> bool:
    """Whether it has the ending of a two-dimensional picture, also of a kind that is not read."""
    return ending_of(path) in (*PICTURES, *LOSSY)


def images_among(paths: Iterable[Path]) -> list[Path]:
    """The files with image endings, except `NO_SCANS` and, beside volumes, pictures (figures)."""
    found = [path for path in paths if ending_of(path) and not path.name.endswith(NO_SCANS)]
    return [path for path in found if not is_picture(path)] or found


def stem_of(path: Path) -> str:
    """The file name without its image ending, see `composed`."""
    return composed(path.name[: len(path.name) - len(ending_of(path))])


def composed(name: str) -> str:
    """A name with composed characters (Unicode's NFC), and escapes where it cannot be printed.

    macOS and some archives write an accent as a character of its own (NFD): the same name.
    """
    return unicodedata.normalize("NFC", printable(name))


def alike(names: Iterable[str]) -> list[str]:
    """A message for each group of names that differ only in case."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        found[name.casefold()].append(name)
    advice = "differ only in case; on a disk that ignores case, rename one of them"
    return [f"{' and '.join(group)} {advice}" for group in found.values() if len(group) > 1]


def check_header(path: Path) -> None:
    """Check the header of a MetaImage or NRRD file; other files pass.

    Raises:
        DataError: a size or number is impossible, or the file is shorter than its header says.
    """
    ending = ending_of(path)
    if ending in (*FREESURFER, *LOSSY):
        kind = "lossy" if ending in LOSSY else "FreeSurfer"
        raise DataError(TEXT(kind, path=path, stem=stem_of(path)))
    if ending not in (".mha", ".mhd", *NRRD) or not path.is_file():
        return
    check = _check_nrrd if ending in NRRD else _check_metaimage
    try:
        check(path)
    except ValueError as error:
        raise DataError(f"{path}: cannot be read ({error}); copy or export it again") from error


def _check_metaimage(path: Path) -> None:
    fields, bytes_after = _read_header(path, "=", last="ElementDataFile")
    _require(fields, "NDims", "DimSize", "ElementType", "ElementDataFile")
    kind, voxel_type = fields.get("ObjectType", "Image"), fields["ElementType"]
    raise_if(kind != "Image", f"ObjectType is {kind}, not Image")
    sizes = _sizes(fields, "NDims", "DimSize")
    for key in ("ElementSpacing", "ElementSize", "Offset", "Position", "Origin"):
        _check_numbers(key, fields.get(key), len(sizes))
    if (matrix := next((fields[key] for key in METAIMAGE_AXES if key in fields), None)) is None:
        note(TEXT("no orientation", path=path, found="TransformMatrix is missing"))
    _check_numbers("TransformMatrix", matrix, len(sizes) ** 2)
    voxel_bytes = TABLES["metaimage_bytes"].get(voxel_type)
    raise_if(voxel_bytes is None, f"ElementType {voxel_type} is not a voxel type")
    channels = fields.get("ElementNumberOfChannels", "1")
    is_count = channels.isdecimal() and int(channels) >= 1
    raise_if(not is_count, f"ElementNumberOfChannels is {channels}")
    if fields["ElementDataFile"].upper() != "LOCAL":
        _check_data_file(path, fields["ElementDataFile"])
        return
    packed = fields.get("CompressedData", "False").lower() == "true"
    _check_length(math.prod(sizes) * int(channels) * voxel_bytes, bytes_after, packed)


def _check_nrrd(path: Path) -> None:
    """Check what ITK does not; the type and the encoding are left to ITK."""
    fields, bytes_after = _read_header(path, ":")
    _require(fields, "type", "dimension", "sizes", "encoding")
    sizes = _sizes(fields, "dimension", "sizes")
    if "space directions" in fields:
        vectors = re.findall(r"\([^)]*\)", fields["space directions"])
        count = len(vectors)
        raise_if(count < 3, f"space directions has {count} spatial axes; a scan has 3")
        _check_numbers("space directions", " ".join(vectors), 3 * count)
    space, axes = (fields.get(key, "missing") for key in ("space", "space directions"))
    if space.lower() not in TABLES["nrrd_spaces"] or axes == "missing":
        found = f"space is {space}, space directions {axes}"
        note(TEXT("no orientation", path=path, found=found))
    for key in ("spacings", "space origin"):
        numbers = fields.get(key, "").replace("none", " ").replace("NaN", " ")
        _check_numbers(key, numbers, 0)
    if (data_file := fields.get("data file", fields.get("datafile"))) is not None:
        _check_data_file(path, data_file)
        return
    packed = fields["encoding"].lower() not in ("raw", "hex", "txt", "text", "ascii")
    _check_length(math.prod(sizes), bytes_after, packed)  # at least one byte per voxel


def _read_header(path: Path, separator: str, last: str | None = None) -> tuple[Fields, int]:
    """The fields up to an empty line, or up to the field `last`, and how many bytes follow."""
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
        return fields, path.stat().st_size - stream.tell()


def _require(fields: Fields, *keys: str) -> None:
    if missing := [key for key in keys if key not in fields]:
        raise ValueError(f"not a valid header: {missing[0]} is missing")


def _sizes(fields: Fields, count_key: str, sizes_key: str) -> list[int]:
    dimensions = fields[count_key]
    raise_if(not dimensions.isdecimal(), f"{count_key} is {dimensions or 'empty'}")
    text = f"it has {dimensions} dimensions; a scan has 3 (or 4 with channels)"
    raise_if(not 3 <= int(dimensions) <= 4, text)
    words = fields[sizes_key].split()
    valid = len(words) == int(dimensions) and all(re.fullmatch(r"[+-]?\d+", w) for w in words)
    raise_if(not valid, f"{sizes_key} does not hold {dimensions} integers")
    sizes = [int(word) for word in words]
    text = f"{sizes_key} is {by_axis(sizes)}; each size must be at least 1"
    raise_if(min(sizes) < 1, text)
    return sizes


def _check_numbers(key: str, text: str | None, count: int) -> None:
    """A field that is there must hold finite numbers, at least `count` of them."""
    if text is None:
        return
    try:
        numbers = [float(word) for word in NUMBER.findall(text)]
    except ValueError as error:
        raise ValueError(f"{key} holds {text!r}, not numbers") from error
    raise_if(not all(map(math.isfinite, numbers)), f"{key} holds NaN or infinity")
    raise_if(len(numbers) < count, f"{key} holds {len(numbers)} numbers instead of {count}")


def _check_data_file(path: Path, name: str) -> None:
    """Voxels may lie in a file beside the header, and nowhere else."""
    is_elsewhere = "/" in name or "\\" in name or name.startswith("..")
    raise_if(is_elsewhere, f"its data file is {name}; only a file beside the header is read")
    first = name.split()[0] if name.split() else ""
    if first != "LIST" and "%" not in first and (reason := obstacle(path.parent / name)):
        raise ValueError(f"its data file {reason}")


def _check_length(claimed: int, found: int, packed: bool) -> None:
    text = f"its header claims {claimed} bytes of voxels, but {found} follow it"
    raise_if(claimed > found * (PACKED_AT_MOST if packed else 1), text)
