"""The pixels of DICOM files: checks before they are read, decoding, and conversion to intensities.

pydicom reads the pixels, because GDCM inverts MONOCHROME1, ignores a Modality LUT Sequence, and
knows the geometry of some object types only. Compressed pixels are decoded by GDCM.
"""

import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom import Dataset, uid
from pydicom.datadict import tag_for_keyword
from pydicom.filereader import data_element_generator
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import UID

from autoseg.common.arrays import Array
from autoseg.common.errors import DataError, raise_if
from autoseg.common.progress import by_axis
from autoseg.image.dicom_series import TABLES, Series, Slice
from autoseg.image.formats import TEXT

PIXELS = 0x7FE00010
BITS = (8, 16, 32)
LARGEST_SLICE = 1 << 26  # pixels of a compressed slice, whose length cannot be checked
OWN_TYPES = ("u1", "i1", "i2", "u2")


def transfer_syntax(header: Dataset) -> UID:
    """The encoding of a dataset; without file meta information, that of its header.

    Raises:
        ValueError: there is file meta information, but no TransferSyntaxUID in it.
    """
    stated: UID | None = header.file_meta.get("TransferSyntaxUID")
    if stated:
        return stated
    raise_if(len(header.file_meta), "TransferSyntaxUID is missing")
    is_implicit, is_little = header.original_encoding
    if is_implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if is_little else uid.ExplicitVRBigEndian


def pixel_bytes(header: Dataset, stream: BinaryIO) -> int | None:
    """The length of the pixels after a header; None if they are compressed, 0 if missing."""
    syntax = transfer_syntax(header)
    if syntax.is_compressed or syntax.is_deflated:  # in fragments, or together with the header
        return None
    implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
    elements: Iterator[Any] = data_element_generator(stream, implicit, little, defer_size=1)
    return next((int(element.length) for element in elements if element.tag == PIXELS), 0)


def read_header(file: Path, tags: Sequence[str] | None = None) -> tuple[Dataset, int | None]:
    """The header of a file, with or without a preamble, and what `pixel_bytes` says."""
    with pydicom.config.disable_value_validation(), file.open("rb") as stream:
        options: Any = {"specific_tags": list(tags) if tags else None}
        header = pydicom.dcmread(stream, stop_before_pixels=True, force=True, **options)
        return header, pixel_bytes(header, stream)


def frame_header(header: Dataset, frame: int) -> Dataset:
    """The header of one frame: the tags of its functional groups among the others."""
    if not (groups := header.get("PerFrameFunctionalGroupsSequence")):
        return header
    flat = Dataset()
    flat.update({e.tag: e for e in header if e.keyword not in TABLES["sequences"][1:]})
    for group in (*(header.get("SharedFunctionalGroupsSequence") or ()), groups[frame]):
        for element in group:
            if element.VR == "SQ" and element.value and element.keyword in TABLES["frame_groups"]:
                flat.update(element.value[0])
    flat.ImageType = flat.get("FrameType") or flat.get("ImageType")
    return flat


def is_keyword(text: str) -> bool:
    """Whether a text is the keyword of a tag."""
    return tag_for_keyword(text) is not None


def values_of(each: Slice, keyword: str) -> list[Any]:
    """The values of a tag in the header of a slice; an empty list if it is missing."""
    with pydicom.config.disable_value_validation():
        value = frame_header(read_header(each.file)[0], each.frame).get(keyword)
    if value in (None, ""):
        return []
    return list(value) if isinstance(value, pydicom.multival.MultiValue) else [value]


def check_pixels(header: Dataset, length: int | None) -> None:
    """Check that a header describes valid pixels, and that all of them are in the file.

    Args:
        header: the header of a file, read by pydicom.
        length: what `pixel_bytes` returned.

    Raises:
        ValueError: the pixels cannot be read.
    """
    columns, rows = int(header.Columns), int(header.Rows)
    frames = int(header.get("NumberOfFrames") or 1)
    raise_if(min(columns, rows) < 2, f"{columns} x {rows} pixels are not an image")
    allocated = int(header.BitsAllocated)
    stored = int(header.get("BitsStored") or allocated)
    highest = header.get("HighBit")
    if allocated not in BITS or not 1 <= stored <= allocated or highest not in (None, stored - 1):
        raise ValueError(TEXT("bits", stored=stored, allocated=allocated, highest=highest))
    if length is None:
        is_large = columns * rows > LARGEST_SLICE
        raise_if(is_large, f"{columns} x {rows} pixels are too many for a slice")
        return
    needed = columns * rows * frames * allocated // 8
    text = f"{length} bytes of pixels, but {columns} x {rows} pixels take {needed}"
    raise_if(length < needed, text)


def read_pixels(series: Series) -> Array:
    """The intensities of a series, as an array (z, y, x): stored values x slope + intercept.

    Integers of up to 16 bits where all slices have whole slopes and intercepts, else float32.

    Raises:
        DataError: the pixels of a slice cannot be decoded.
    """
    columns, rows = series.first.size
    array = np.empty((len(series.slices), rows, columns), _type_of(series))
    stored = lru_cache(maxsize=2)(_stored)  # a file may hold many slices
    for plane, each in zip(array, series.slices, strict=True):
        try:
            frames, table = stored(each.file, each.has_table)
            frame = frames[each.frame]
            raise_if(frame.shape != plane.shape, by_axis(frame.shape[::-1]) + " pixels")
            if table is not None:
                frame = np.asarray(apply_modality_lut(frame, table))
            elif each.scale != (1.0, 0.0):
                frame = frame * each.scale[0] + each.scale[1]
            with np.errstate(over="ignore"):  # infinity is reported with the other voxels
                plane[...] = frame
        except Exception as error:  # pydicom and GDCM raise nearly anything on damaged bytes
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise DataError(TEXT("damaged pixels", file=each.file, reason=reason)) from error
    return array


def _type_of(series: Series) -> np.dtype[Any]:
    """The smallest type of up to 16 bits that holds all possible values, else float32."""
    low, high = 0.0, 0.0
    for each in series.slices:
        slope, intercept = each.scale
        if each.has_table or not (slope.is_integer() and intercept.is_integer()):
            return np.dtype(np.float32)
        bits, is_signed = each.pixel
        lowest = -(2 ** (bits - 1)) if is_signed else 0
        ends = [value * slope + intercept for value in (lowest, lowest + 2**bits - 1)]
        low, high = min(low, *ends), max(high, *ends)
    fitting = (n for n in OWN_TYPES if np.iinfo(n).min <= low and high <= np.iinfo(n).max)
    return np.dtype(next(fitting, np.float32))


def _stored(file: Path, has_table: bool) -> tuple[Array, Dataset | None]:
    """The stored values (frame, y, x) of a file, and its Modality LUT, if it has one."""
    with pydicom.config.disable_value_validation():
        dataset = pydicom.dcmread(file, force=True)
        syntax = transfer_syntax(dataset)
        dataset.file_meta.TransferSyntaxUID = syntax
        if int(dataset.get("NumberOfFrames") or 1) == 1:
            dataset.pop("NumberOfFrames", None)
        if syntax.is_encapsulated and syntax != pydicom.uid.RLELossless:
            frames = _decoded(dataset)
        else:
            dataset.setdefault("SamplesPerPixel", 1)
            dataset.PhotometricInterpretation = "MONOCHROME2"  # not needed, and may be damaged
            dataset.setdefault("BitsStored", dataset.BitsAllocated)
            dataset.setdefault("PixelRepresentation", 0)
            frames = dataset.pixel_array
    unused = int(dataset.BitsAllocated) - int(dataset.BitsStored)
    if unused:  # overlays, or signs that are not extended
        frames = frames << unused >> unused
    return frames.reshape(-1, *frames.shape[-2:]), dataset if has_table else None


def _decoded(dataset: Dataset) -> Array:
    """Compressed pixels, decoded by GDCM from a file without the tags that would change them."""
    plain = Dataset()
    # What GDCM needs to decode pixels; other tags, such as a rescale slope, would change them.
    for name in (each for each in TABLES["decoding"] if each in dataset):
        plain[name] = dataset[name]
    plain.PhotometricInterpretation = "MONOCHROME2"
    plain.SOPClassUID, plain.SOPInstanceUID = uid.SecondaryCaptureImageStorage, UID("1.2.3")
    plain.file_meta = dataset.file_meta
    plain.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    plain.file_meta.MediaStorageSOPInstanceUID = plain.SOPInstanceUID
    with tempfile.TemporaryDirectory(prefix="autoseg-") as folder:
        path = str(Path(folder, "pixels"))
        plain.save_as(path, enforce_file_format=True)
        return sitk.GetArrayFromImage(sitk.ReadImage(path, imageIO="GDCMImageIO"))
