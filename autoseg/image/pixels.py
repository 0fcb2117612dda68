"""The pixels of a DICOM slice, before GDCM is let near them: their size, bits and length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from pydicom import Dataset

PIXELS = 0x7FE00010
BITS = (8, 16, 32)
LARGEST_SLICE = 1 << 26  # pixels of a compressed one, whose length says nothing


def pixel_bytes(header: Dataset, stream: BinaryIO) -> int | None:
    """How long the pixels after a header are; None if they are compressed, 0 if there are none."""
    from pydicom.filereader import data_element_generator

    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise ValueError("TransferSyntaxUID is missing")
    if syntax.is_compressed or syntax.is_deflated:  # in pieces, or with the whole header
        return None
    implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
    elements: Iterator[Any] = data_element_generator(stream, implicit, little, defer_size=1)
    return next((int(element.length) for element in elements if element.tag == PIXELS), 0)


def check_pixels(header: Dataset, there: int | None) -> None:
    """Check that the pixels can be what their header says, and that all of them are there.

    GDCM would read on in memory where there are fewer than it expects.

    Args:
        header: of a slice, as pydicom reads it.
        there: see `pixel_bytes`.

    Raises:
        ValueError: they cannot be read.
    """
    columns, rows = int(header.Columns), int(header.Rows)
    if min(columns, rows) < 2:
        raise ValueError(f"{columns} x {rows} pixels are no picture")
    allocated = int(header.BitsAllocated)
    stored = int(header.get("BitsStored") or allocated)
    highest = header.get("HighBit")
    if allocated not in BITS or not 1 <= stored <= allocated or highest not in (None, stored - 1):
        raise ValueError(f"{stored} of {allocated} bits up to bit {highest} are no pixel")
    if there is None:
        if columns * rows > LARGEST_SLICE:
            raise ValueError(f"{columns} x {rows} pixels are no slice")
        return
    needed = columns * rows * allocated // 8
    if there < needed:
        raise ValueError(f"{there} bytes of pixels, where {columns} x {rows} take {needed}")
