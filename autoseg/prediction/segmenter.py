"""What one model and an ensemble of models share: from a scan to a label map on its own grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from autoseg.common.errors import DataError
from autoseg.image.geometry import Geometry
from autoseg.image.image import Image, from_array, from_simpleitk
from autoseg.image.label_writer import to_simpleitk
from autoseg.plan.plan import Plan
from autoseg.prediction.label_map import label_map
from autoseg.prediction.native_grid import Planes
from autoseg.prediction.probabilities import probability_file

if TYPE_CHECKING:
    import SimpleITK as sitk

LabelMap = NDArray[np.integer[Any]]
Value = TypeVar("Value")
Tell = Callable[[float], None]
AXES = (2, 1, 0)  # z first: its planes lie as image files have them


class OnGrid(Protocol):
    """A prepared scan: it knows its own grid."""

    @property
    def geometry(self) -> Geometry:
        """The grid of the scan."""


Ready = TypeVar("Ready", bound=OnGrid)


class Segmenter(ABC, Generic[Ready]):
    """Segments scans. `Ready` is a scan after `prepare`, as `segment` takes it.

    Attributes:
        plan: names the channels and the labels.
    """

    plan: Plan

    @abstractmethod
    def prepare(self, image: Image, previous: LabelMap | None = None) -> Ready:
        """Bring a scan to where the networks take it."""

    @abstractmethod
    def planes(self, prepared: Ready, axis: int) -> Iterator[Planes]:
        """Probabilities on the scan's own grid by planes across one axis, swapped with x."""

    @abstractmethod
    def window_bytes(self, prepared: Ready, axis: int) -> int:
        """Memory that the sliding window takes along one axis."""

    def segment(
        self, prepared: Ready, save: Path | None = None, tell: Tell | None = None
    ) -> LabelMap:
        """The label map (x, y, z) of a prepared scan on the scan's own grid.

        Args:
            prepared: by `prepare`.
            save: a file for the probabilities, see `autoseg.prediction.probabilities`.
            tell: called with the share of the scan that is done, from 0 to 1, now and then.
        """
        axis = min(AXES, key=lambda axis: self.window_bytes(prepared, axis))
        size, classes = prepared.geometry.size, self.plan.classes
        names = classes.names[int(classes.are_regions) :]
        saving = nullcontext() if save is None else probability_file(save, names, size, axis)
        with saving as file:
            planes = _told(self.planes(prepared, axis), size[axis], tell)
            found = label_map(planes, classes, swapped(size, axis), file)
        return found.swapaxes(0, axis)

    @overload
    def predict(self, scan: Image, previous: LabelMap | None = None) -> LabelMap: ...

    @overload
    def predict(
        self,
        scan: NDArray[Any],
        previous: LabelMap | None = None,
        *,
        spacing_mm: Sequence[float],
    ) -> LabelMap: ...

    @overload
    def predict(self, scan: sitk.Image, previous: LabelMap | None = None) -> sitk.Image: ...

    def predict(
        self,
        scan: Image | NDArray[Any] | sitk.Image,
        previous: LabelMap | None = None,
        *,
        spacing_mm: Sequence[float] | None = None,
    ) -> LabelMap | sitk.Image:
        """The label map of a scan on its own grid, in the label values of the task.

            predictor = Predictor(Path("models/Task001_COVID/default"))
            label = predictor.predict(array, spacing_mm=(0.8, 0.8, 1.0))  # array: (x, y, z)
            SimpleITK.WriteImage(predictor.predict(SimpleITK.ReadImage("a.nrrd")), "b.nrrd")

        Args:
            scan: an array (x, y, z) or (channel, x, y, z), a SimpleITK image, or an `Image`.
            previous: for a cascade, what its previous stage made of the scan (x, y, z), where that
                is known.
            spacing_mm: distance of an array's voxels along x, y, z.

        Returns:
            a SimpleITK image for a SimpleITK image, else an array (x, y, z).

        Raises:
            DataError: the scan cannot be one for this model.
        """
        if isinstance(scan, np.ndarray):
            if spacing_mm is None:
                raise DataError("an array has no spacing of its own: give spacing_mm=(x, y, z)")
            scan = from_array(scan, spacing_mm)
        if isinstance(scan, Image):
            return self.segment(self.prepare(scan, previous))
        image = from_simpleitk(scan)
        return to_simpleitk(self.segment(self.prepare(image, previous)), image.geometry)


def _told(planes: Iterator[Planes], count: int, tell: Tell | None) -> Iterator[Planes]:
    """The planes; those before the one that is asked for are done."""
    for some in planes:
        yield some
        if tell is not None:
            tell(some.rows.stop / count)


def swapped(values: Sequence[Value], axis: int) -> tuple[Value, Value, Value]:
    """Three values along x, y, z with that of one axis and that of x in each other's place."""
    x, y, z = values
    match axis:
        case 0:
            return x, y, z
        case 1:
            return y, x, z
    return z, y, x
