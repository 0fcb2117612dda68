"""Segment a scan: from a scan in memory to its label map on the same grid.

A prediction has four steps, here in the order in which `Segmenter` calls them:

    prepare        scan (channel, X, Y, Z) -> checked and preprocessed (channel, x, y, z)
    predict_slabs  patches (B, channel, *patch) -> probabilities (class, some planes, y, z)
    native_planes  interpolated to the scan's grid (class, some planes, Y, Z)
    label_map      the most probable class: label values (X, Y, Z)

Between `prepare` and `label_map`, axes are those of the plan's orientation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg.common.arrays import LabelMap
from autoseg.common.errors import DataError
from autoseg.common.figures import rendered
from autoseg.common.pages import picture_uri
from autoseg.image.geometry import SWAPS, Geometry, Turn
from autoseg.image.image import Image, from_array, from_simpleitk
from autoseg.image.label_writer import to_simpleitk
from autoseg.models.folder import RESEARCH
from autoseg.plan.plan import Plan
from autoseg.prediction.fit import Differences, warn
from autoseg.prediction.native_grid import Planes, Save, label_map
from autoseg.prediction.output import draw_preview, probability_file
from autoseg.prediction.postprocessing import Postprocessing, Reliability
from autoseg.prediction.quality import Calibration, Observer
from autoseg.preprocessing.steps import Prepared

if TYPE_CHECKING:
    import SimpleITK as sitk

Report = Callable[[float], None]  # called with the finished part of a scan, from 0 to 1
AXES = (2, 1, 0)  # z first: image files store planes across z


@dataclass(frozen=True)
class PreparedForEach:
    """A scan, prepared for each of several models."""

    each: tuple[Prepared, ...]

    @property
    def geometry(self) -> Geometry:
        """The grid of the scan, turned to the orientation of the first plan."""
        return self.each[0].geometry

    @property
    def turn(self) -> Turn:
        """From the scan's own grid to that one."""
        return self.each[0].turn


@dataclass(frozen=True)
class Prediction:
    """A scan with its label map (x, y, z), which a notebook shows in three planes."""

    image: Image
    label: LabelMap
    plan: Plan

    def _repr_html_(self) -> str:
        """Three planes through the largest class, as those of `--preview`."""
        picture = draw_preview(self.image.array[0], self.label, self.image.geometry, self.plan)
        uri = picture_uri("png", rendered(picture, "png"))
        return f'<img alt="three planes" src="{uri}">'


Scan = TypeVar("Scan", Prepared, PreparedForEach)


class Segmenter(ABC, Generic[Scan]):
    """Segments scans: what `Predictor` and `Ensemble` have in common.

    Attributes:
        plan: defines the channels and the labels.
        device: where the networks run.
        backend_name: library, version and precision that run them: `torch 2.13.0 bfloat16`.
        postprocessing: applied to every label map, if any.
        qualification: what results are for, as the model's card states it.
        logits: whether `planes` yields logits, not probabilities.
        axes: along which the window may slide.
        calibration: what the cross-validation says about predictions, or why it is not known.
        temperature: of saved probabilities, learned from the cross-validation.
        reliability: watches the probabilities of cases whose labels are known, if it is given.
    """

    plan: Plan
    device: torch.device
    backend_name: str
    postprocessing: Postprocessing | None = None
    qualification: str = RESEARCH
    logits: bool = False
    axes: tuple[int, ...] = AXES
    calibration: Calibration | str = "not calibrated: an average of several plans"
    temperature: float = 1.0
    reliability: Reliability | None = None

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
            scan: an array (x, y, z) or (channel, x, y, z), a SimpleITK image, or an `Image`. The
                axes of an array are taken to be those of the plan's `orientation` (for a plan
                without, of the training scans); the others know the direction of their axes.
            previous: for a cascade, the previous stage's label map (x, y, z), if it is known.
            spacing_mm: voxel spacing of an array along x, y, z.

        Returns:
            a SimpleITK image for a SimpleITK image, else an array (x, y, z).

        A warning says what differs from the training scans.

        Raises:
            DataError: the model cannot segment the scan.
        """
        if isinstance(scan, np.ndarray):
            if spacing_mm is None:
                raise DataError("an array has no voxel spacing; pass spacing_mm=(x, y, z)")
            scan = from_array(scan, spacing_mm, self.orientation_of_arrays)
        if isinstance(scan, Image):
            self._check(scan, "the scan")
            return self.segment(self.prepare(scan, previous))
        image = from_simpleitk(scan)
        self._check(image, "the SimpleITK image")
        return to_simpleitk(self.segment(self.prepare(image, previous)), image.geometry)

    def show(self, scan: Image, label: LabelMap | None = None) -> Prediction:
        """A scan and its label map, which is predicted if it is not given, as a picture."""
        return Prediction(scan, self.predict(scan) if label is None else label, self.plan)

    def _check(self, image: Image, what: str) -> None:
        warn(what, self.plan, self.check(image))
        self.check_orientation(image.geometry, what)

    def segment(
        self,
        prepared: Scan,
        save: Path | None = None,
        report: Report | None = None,
        observer: Observer | None = None,
    ) -> LabelMap:
        """The label map (x, y, z) of a prepared scan on the scan's own grid.

        Args:
            prepared: by `prepare`.
            save: a file for the probabilities, see `autoseg.prediction.output`. They are those of
                the networks: postprocessing changes the label map only.
            report: called now and then with the finished part of the scan, from 0 to 1.
            observer: of this scan, by `observer`; the label map does not depend on it.
        """
        classes, shape = self.plan.classes, prepared.geometry.size
        # The window slides along the axis that takes the least memory. That axis and x are
        # swapped: all code below goes through planes of x. Results are written through `view`.
        axis = min(self.axes, key=lambda axis: self.window_bytes(prepared, axis))
        view, size = prepared.turn.then(SWAPS[axis]), prepared.turn.inverse().triple(shape)
        planes = self.planes(
            prepared, axis, observer=observer if observer and observer.averaged else None
        )
        if self.reliability is not None:
            planes = self.reliability.watch(planes, view, self.logits)
        if report is not None:
            planes = _reported(planes, shape[axis], report)
        names = classes.output_names
        saving = (
            nullcontext()
            if save is None
            else probability_file(save, names, size, view, self.temperature)
        )
        with saving as file:
            saves: list[Save] = [file.write] if file else []
            if observer is not None and observer.maps:
                saves.append(observer.entropies(size, view))
            save_all = partial(_save_all, saves) if saves else None
            label = label_map(planes, classes, size, save_all, view, self.logits, self.temperature)
        if self.postprocessing is not None:
            self.postprocessing.apply(prepared.turn.array(label))
        return label

    @property
    @abstractmethod
    def not_checked(self) -> str:
        """What `check` cannot compare with the training scans, and why; empty if it does all."""

    @abstractmethod
    def check(self, image: Image, modalities: Sequence[str | None] = ()) -> Differences:
        """What differs between a scan and the training scans, see `Judge.differences`.

        Raises:
            DataError: the model cannot segment it.
        """

    @abstractmethod
    def prepare(self, image: Image, previous: LabelMap | None = None) -> Scan:
        """Preprocess a scan that passed `check` for the networks."""

    @abstractmethod
    def observer(self, quality: bool, maps: bool) -> Observer:
        """An observer for one scan, of the passes (`quality`) or the uncertainty (`maps`)."""

    @abstractmethod
    def planes(
        self, prepared: Scan, axis: int, *, observer: Observer | None = None
    ) -> Iterator[Planes]:
        """Probabilities (or logits) on `prepared.geometry` by planes across one axis, as x."""

    @abstractmethod
    def window_bytes(self, prepared: Scan, axis: int) -> int:
        """Memory of the sliding window along one axis."""

    @property
    @abstractmethod
    def orientation_of_arrays(self) -> str:
        """The orientation of arrays without a direction."""

    @abstractmethod
    def check_orientation(self, grid: Geometry, what: str) -> None:
        """Warn once if a model cannot tell whether it knows the orientation of a scan."""


def _save_all(saves: Sequence[Save], index: int, rows: slice, shares: NDArray[np.float32]) -> None:
    for save in saves:
        save(index, rows, shares)


def _reported(planes: Iterator[Planes], count: int, report: Report) -> Iterator[Planes]:
    """The planes; those that are yielded are finished when the next ones are requested."""
    for some in planes:
        yield some
        report(some.rows.stop / count)
