"""The same scan in other orders of axes, by SimpleITK."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from autoseg.image.geometry import Geometry
from autoseg.image.image import Image, from_simpleitk

SPACING_MM = (0.7, 1.1, 2.5)


def in_order(array: NDArray[Any], code: str, stored: str = "LPS") -> sitk.Image:
    """An array (x, y, z) in the orientation `stored`, brought to another one."""
    upright = sitk.DICOMOrient(sitk.Image(2, 3, 4, sitk.sitkUInt8), stored)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(SPACING_MM)
    image.SetDirection(upright.GetDirection())
    found: sitk.Image = sitk.DICOMOrient(image, code)
    return found


def scan_in_order(channels: NDArray[Any], code: str) -> Image:
    """A scan (channel, x, y, z) in the orientation LPS, brought to another one."""
    scans = [from_simpleitk(in_order(channel, code)) for channel in channels]
    return Image(np.concatenate([scan.array for scan in scans]), scans[0].geometry)


def upright(array: NDArray[Any], grid: Geometry) -> NDArray[Any]:
    """An array on a grid, brought to the orientation LPS."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetDirection(grid.direction)
    found: NDArray[Any] = sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS")).T
    return found
