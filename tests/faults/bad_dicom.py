"""DICOM series that are damaged in one way each, made of a series that is whole."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLSLossless,
    RLELossless,
)

from autoseg.image.dicom import TAGS
from tests.dicom_series import write_series

ARRAY = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
VOXEL_BYTES = 60  # of a slice, at the end of its file
Damage = Callable[[Path], None]
Change = Callable[[Dataset], object]

TEXTS = ("", "abc", "nan", "1e400", "0", "-1", "1\\2\\3\\4\\5\\6\\7\\8", "9" * 64)
NUMBERS = (0, 1, 255, 65535)
PIXEL_TAGS = (
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "PixelData",
)
COMPRESSED = (JPEGBaseline8Bit, JPEGLossless, JPEGLSLossless, JPEG2000, RLELossless)
PLAIN = (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


def whole(folder: Path) -> list[Path]:
    """Write the series; its files in the order of their slices."""
    return write_series(folder, ARRAY, SeriesInstanceUID="1.2.3", StudyInstanceUID="1.2")


def damages() -> Iterator[tuple[str, Damage]]:
    """All of them by name; each changes the files of a folder that `whole` wrote."""
    for which in ("one", "all"):
        for tag in (*TAGS, *PIXEL_TAGS):
            yield f"{which}-without-{tag}", _changed(which, _without(tag))
            for number, value in enumerate(_values_for(tag)):
                yield f"{which}-{tag}-{number}", _changed(which, _with(tag, value))
        for syntax in (*COMPRESSED, *PLAIN):
            yield f"{which}-said-to-be-{syntax.keyword}", _changed(which, _said_to_be(syntax))
        for syntax in COMPRESSED if which == "all" else ():
            yield f"{which}-rubbish-as-{syntax.keyword}", _changed(which, _rubbish(syntax))
    yield from _of_series()
    yield from _of_bytes()


def _values_for(tag: str) -> tuple[Any, ...]:
    kind = pydicom.datadict.dictionary_VR(tag)
    if kind in ("US", "US or SS"):
        return NUMBERS
    if kind in ("DS", "IS", "UI", "CS"):
        return TEXTS
    return (b"", b"\0", bytes(VOXEL_BYTES - 2))  # voxels


def _without(tag: str) -> Change:
    return lambda header: header.pop(tag, None)


def _with(tag: str, value: Any) -> Change:
    def change(header: Dataset) -> None:
        number = pydicom.datadict.tag_for_keyword(tag)
        assert number is not None
        kind = pydicom.datadict.dictionary_VR(tag).partition(" or ")[0]
        if isinstance(value, bytes):
            content = value
        else:
            content = struct.pack("<H", value) if isinstance(value, int) else value.encode()
        content += b" " * (len(content) % 2)
        # As bytes, which pydicom writes as they are: it would refuse to make such a number.
        header[number] = RawDataElement(
            pydicom.tag.Tag(number), kind, len(content), content, 0, False, True
        )

    return change


def _said_to_be(syntax: pydicom.uid.UID) -> Change:
    """Another encoding in the header than that of the voxels."""

    def change(header: Dataset) -> None:
        header.file_meta.TransferSyntaxUID = syntax

    return change


def _rubbish(syntax: pydicom.uid.UID) -> Change:
    """Voxels that should be compressed, but no program can unpack them."""

    def change(header: Dataset) -> None:
        header.file_meta.TransferSyntaxUID = syntax
        header.PixelData = encapsulate([Random(0).randbytes(200)])
        header["PixelData"].VR = "OB"

    return change


def _changed(which: str, change: Change) -> Damage:
    """The headers of one slice, or of all, changed and written again as they are."""

    def damage(folder: Path) -> None:
        files = sorted(folder.iterdir())
        for file in files if which == "all" else files[1:2]:
            with pydicom.config.disable_value_validation():
                header = pydicom.dcmread(file)
                change(header)
                _write(header, file)

    return damage


def _write(header: Dataset, file: Path) -> None:
    """Write what pydicom would think twice about; the bytes stay little-endian and explicit."""
    syntax = header.file_meta.TransferSyntaxUID
    with file.open("wb") as stream:
        stream.write(bytes(128) + b"DICM")
        body = pydicom.filebase.DicomFileLike(stream)
        pydicom.filewriter.write_file_meta_info(body, header.file_meta)
        body.is_little_endian, body.is_implicit_VR = True, False
        pydicom.filewriter.write_dataset(body, header)
    assert syntax == header.file_meta.TransferSyntaxUID


def _of_series() -> Iterator[tuple[str, Damage]]:
    """Slices missing, there twice, of other series, and files that are none."""

    def remove(*which: int) -> Damage:
        def damage(folder: Path) -> None:
            files = sorted(folder.iterdir())
            for index in which:
                files[index].unlink()

        return damage

    def twice(folder: Path) -> None:
        files = sorted(folder.iterdir())
        shutil.copy(files[1], folder / "copy.dcm")

    def all_twice(folder: Path) -> None:
        for file in sorted(folder.iterdir()):
            shutil.copy(file, folder / f"copy-{file.name}")

    def other_series(folder: Path) -> None:
        for file in write_series(folder / "other", -ARRAY):
            file.rename(folder / f"other-{file.name}")
        (folder / "other").rmdir()

    def other_size(folder: Path) -> None:
        (file, *more) = write_series(folder / "o", ARRAY[:3], [60], SeriesInstanceUID="1.2.3")
        assert not more
        file.rename(folder / "other.dcm")
        (folder / "o").rmdir()

    def rubbish(folder: Path) -> None:
        (folder / "more.dcm").write_bytes(bytes(128) + b"DICM" + Random(1).randbytes(400))

    yield "missing-last", remove(1)  # file names run against positions
    yield "missing-one", remove(2)
    yield "missing-most", remove(0, 1, 2)
    yield "mixed-series", other_series
    yield "mixed-sizes", other_size
    yield "one-twice", twice
    yield "all-twice", all_twice
    yield "rubbish-among-them", rubbish


def _of_bytes() -> Iterator[tuple[str, Damage]]:
    """Files cut off and with flipped bytes, without anybody's knowledge of what they mean."""

    def cut(length: int) -> Damage:
        def damage(folder: Path) -> None:
            file = sorted(folder.iterdir())[1]
            file.write_bytes(file.read_bytes()[:length])

        return damage

    def flip(place: int, mask: int) -> Damage:
        def damage(folder: Path) -> None:
            file = sorted(folder.iterdir())[1]
            content = bytearray(file.read_bytes())
            content[132 + place % (len(content) - 132 - VOXEL_BYTES)] ^= mask
            file.write_bytes(content)

        return damage

    for length in (*range(132, 1000, 62),):
        yield f"cut-at-{length}", cut(length)
    random = Random(2)
    for number in range(150):
        yield f"flip-{number}", flip(random.randrange(1 << 20), 1 << random.randrange(8))
