"""Damaged copies of a real scan: name -> the bytes of a file that nobody should trust."""

from __future__ import annotations

import gzip
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

Damaged = Iterator[tuple[str, bytes]]

# NIfTI-1 header fields: where they are, and how `struct` packs them.
SIZEOF_HDR, DIM, DATATYPE, BITPIX = (0, "<i"), (40, "<h"), (70, "<h"), (72, "<h")
PIXDIM, VOX_OFFSET = (76, "<f"), (108, "<f")
QFORM, SFORM, QUATERN_B, SROW_X = (252, "<h"), (254, "<h"), (256, "<f"), (280, "<f")
NAN, INF = float("nan"), float("inf")


def as_bytes(picture: sitk.Image, ending: str, compressed: bool = False) -> bytes:
    """A picture as a file of this ending."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scan{ending}"
        sitk.WriteImage(picture, str(path), compressed)
        return path.read_bytes()


def damaged_files(picture: sitk.Image) -> Damaged:
    """All damaged files, by a name with the right ending."""
    for name, content in damaged_nifti(as_bytes(picture, ".nii")):
        yield f"{name}.nii", content
    for name, content in damaged_gzip(gzip.compress(as_bytes(picture, ".nii"), 6, mtime=0)):
        yield f"{name}.nii.gz", content
    for name, content in damaged_nrrd(as_bytes(picture, ".nrrd")):
        yield f"{name}.nrrd", content
    for name, content in damaged_mha(as_bytes(picture, ".mha")):
        yield f"{name}.mha", content
    for name, content in impossible_scans(picture):
        yield f"{name}.nii.gz", content


def damaged_nifti(whole: bytes) -> Damaged:
    """Headers and lengths that cannot be."""
    for length in (0, 1, 4, 40, 100, 200, 347, 348, 351, 352, 353, 1000):
        yield f"nifti-cut-{length}", whole[:length]
    for share in (10, 25, 50, 75, 90, 99):
        yield f"nifti-cut-{share}-percent", whole[: len(whole) * share // 100]
    yield "nifti-one-byte-short", whole[:-1]
    yield "nifti-all-zero", bytes(len(whole))
    yield "nifti-text", b"this is not a scan\n" * 400
    for value in (0, 1, 347, -348, 1 << 30):
        yield f"nifti-header-size-{value}", _put(whole, SIZEOF_HDR, value)
    for magic in (b"\0\0\0\0", b"n+2\0", b"abcd"):
        yield f"nifti-magic-{magic.hex()}", whole[:344] + magic + whole[348:]
    for value in (-1, 0, 1, 2, 8, 32767):
        yield f"nifti-dimensions-{value}", _put(whole, DIM, value)
    for axis in (1, 2, 3):
        for value in (-1, 0, 32767):
            yield f"nifti-size-{axis}-{value}", _put(whole, DIM, value, axis)
    huge = whole
    for axis in (1, 2, 3):
        huge = _put(huge, DIM, 32767, axis)
    yield "nifti-huge", huge
    for value in (0, 1, 3, 32, 128, 1536, 1792, 2048, 2304, 9999, -1):
        yield f"nifti-type-{value}", _put(whole, DATATYPE, value)
    for value in (64, 128):  # a wider type than the file has bytes for
        wide = _put(_put(whole, DATATYPE, 64), BITPIX, value)
        yield f"nifti-bits-{value}", wide
    for axis in (1, 2, 3):
        for number in (0.0, NAN, INF, 1e30, -INF):
            yield f"nifti-spacing-{axis}-{number}", _put(whole, PIXDIM, number, axis)
    for number in (NAN, INF, -1e6, 1e9):
        yield f"nifti-offset-{number}", _put(whole, VOX_OFFSET, number)
    turned = _put(_put(whole, QFORM, 1), SFORM, 0)
    for number in (NAN, INF, 7.0):
        yield f"nifti-quaternion-{number}", _put(turned, QUATERN_B, number)
    matrix = _put(_put(whole, QFORM, 0), SFORM, 1)
    yield "nifti-matrix-singular", _matrix(matrix, [[1, 0, 0], [1, 0, 0], [0, 0, 1]])
    yield "nifti-matrix-sheared", _matrix(matrix, [[1, 0.5, 0], [0, 1, 0], [0, 0, 1]])
    yield "nifti-matrix-zero", _matrix(matrix, [[0, 0, 0], [0, 0, 0], [0, 0, 0]])
    yield "nifti-matrix-nan", _matrix(matrix, [[NAN, 0, 0], [0, 1, 0], [0, 0, 1]])


def damaged_gzip(whole: bytes) -> Damaged:
    """Packed files that are cut, flipped or something else."""
    for length in (0, 1, 2, 5, 9, 10, 11, 18, 50, 200):
        yield f"gzip-cut-{length}", whole[:length]
    for share in range(5, 100, 5):
        yield f"gzip-cut-{share}-percent", whole[: len(whole) * share // 100]
    for short in (1, 4, 7, 8, 9, 100):
        yield f"gzip-short-by-{short}", whole[:-short]
    for place in (0, 1, 2, 3):  # magic, method, flags
        yield f"gzip-header-{place}", _flip(whole, place, 0xFF)
    for step in range(40):
        place = 20 + (len(whole) - 40) * step // 40
        yield f"gzip-flipped-{place}", _flip(whole, place, 1 << step % 8)
    for place in (-8, -5, -4, -1):  # checksum and length
        yield f"gzip-end{place}", _flip(whole, len(whole) + place, 0x55)
    yield "gzip-of-nothing", gzip.compress(b"", mtime=0)
    yield "gzip-of-text", gzip.compress(b"not a scan " * 100, mtime=0)
    yield "gzip-of-gzip", gzip.compress(whole, mtime=0)
    yield "gzip-bomb", gzip.compress(bytes(1 << 26), mtime=0)


def damaged_nrrd(whole: bytes) -> Damaged:
    """Text headers that contradict themselves or the voxels behind them."""
    head, voxels = whole.split(b"\n\n", 1)
    lines = head.split(b"\n")
    for length in (0, 4, 8, 30, len(head) // 2, len(head) + 2):
        yield f"nrrd-cut-{length}", whole[:length]
    for share in (50, 90, 99):
        yield f"nrrd-cut-{share}-percent", whole[: len(whole) * share // 100]
    for index, line in enumerate(lines):
        if line.split(b":")[0] in (b"type", b"dimension", b"sizes", b"encoding"):
            kept = lines[:index] + lines[index + 1 :]
            yield f"nrrd-without-{index}", b"\n".join(kept) + b"\n\n" + voxels
    replaced: dict[bytes, list[bytes]] = {
        b"type": [b"", b"block", b"int128", b"1"],
        b"dimension": [b"0", b"-1", b"1", b"2", b"5", b"17", b"x"],
        b"sizes": [b"0 0 0", b"-1 5 5", b"3", b"100000 100000 100000", b"a b c", b""],
        b"space directions": [
            b"(0,0,0) (0,1,0) (0,0,1)",
            b"(1,0,0) (1,0,0) (0,0,1)",
            b"(1,0.5,0) (0,1,0) (0,0,1)",
            b"(nan,0,0) (0,1,0) (0,0,1)",
            b"(inf,0,0) (0,1,0) (0,0,1)",
            b"none none none",
            b"(1,0,0)",
        ],
        b"space origin": [b"(nan,0,0)", b"(inf,0,0)", b"()", b"(1,2)"],
        b"encoding": [b"zip", b"", b"bzip9"],
    }
    for index, line in enumerate(lines):
        key = line.split(b":")[0]
        for number, value in enumerate(replaced.get(key, [])):
            changed = [*lines[:index], key + b": " + value, *lines[index + 1 :]]
            name = key.decode().replace(" ", "_")
            yield f"nrrd-{name}-{number}", b"\n".join(changed) + b"\n\n" + voxels
    for number, where in enumerate((b"/etc/hostname", b"../../secret.raw", b"missing.raw")):
        elsewhere = b"\n".join([*lines, b"data file: " + where])
        yield f"nrrd-elsewhere-{number}", elsewhere + b"\n"


def damaged_mha(whole: bytes) -> Damaged:
    """The same for MetaImage."""
    end = whole.index(b"ElementDataFile = LOCAL\n") + len(b"ElementDataFile = LOCAL\n")
    lines, voxels = whole[:end].split(b"\n")[:-1], whole[end:]
    for length in (0, 10, 100, end - 5, end, end + 10):
        yield f"mha-cut-{length}", whole[:length]
    for share in (50, 90, 99):
        yield f"mha-cut-{share}-percent", whole[: len(whole) * share // 100]
    replaced: dict[bytes, list[bytes]] = {
        b"NDims": [b"0", b"-3", b"1", b"2", b"99", b"x"],
        b"DimSize": [b"0 0 0", b"-1 5 5", b"7", b"100000 100000 100000", b"a b c"],
        b"ElementSpacing": [b"0 1 1", b"nan 1 1", b"inf 1 1", b"1"],
        b"TransformMatrix": [
            b"0 0 0 0 0 0 0 0 0",
            b"1 0 0 1 0 0 0 0 1",
            b"1 0.5 0 0 1 0 0 0 1",
            b"nan 0 0 0 1 0 0 0 1",
        ],
        b"Offset": [b"nan 0 0", b"inf 0 0"],
        b"ElementType": [b"MET_NONE", b"MET_WHAT", b"", b"MET_DOUBLE"],
        b"ElementDataFile": [b"/etc/hostname", b"../../secret.raw", b"missing.raw", b"LIST"],
        b"ObjectType": [b"Tube"],
    }
    for index, line in enumerate(lines):
        key = line.split(b" = ")[0]
        for number, value in enumerate(replaced.get(key, [])):
            changed = [*lines[:index], key + b" = " + value, *lines[index + 1 :]]
            yield f"mha-{key.decode()}-{number}", b"\n".join(changed) + b"\n" + voxels


def impossible_scans(picture: sitk.Image) -> Damaged:
    """Files that are whole, of what is no scan."""
    values = sitk.GetArrayFromImage(picture).astype(np.float32)
    for name, value in (("nan", NAN), ("inf", INF), ("minus-inf", -INF)):
        for share in (1, values.size // 2, values.size):
            holed = values.copy()
            holed.reshape(-1)[:share] = value
            yield f"scan-{name}-{share}", _packed(holed)
    yield "scan-2d", _packed(values[0])
    yield "scan-one-voxel-2d", _packed(values[:1, :1, 0])


def _packed(values: np.ndarray[Any, Any]) -> bytes:
    return as_bytes(sitk.GetImageFromArray(values), ".nii.gz", True)


def _put(whole: bytes, field: tuple[int, str], value: float, index: int = 0) -> bytes:
    """The file with another value in a header field."""
    start, form = field
    start += index * struct.calcsize(form)
    number = int(value) if form in ("<i", "<h") else value
    return whole[:start] + struct.pack(form, number) + whole[start + struct.calcsize(form) :]


def _matrix(whole: bytes, rows: list[list[float]]) -> bytes:
    packed = b"".join(struct.pack("<4f", *row, 0.0) for row in rows)
    start = SROW_X[0]
    return whole[:start] + packed + whole[start + len(packed) :]


def _flip(whole: bytes, place: int, mask: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :]
