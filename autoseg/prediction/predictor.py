"""Segment a scan: from a scan in memory to its label map on the same grid.

A prediction has four steps, here in the order in which `Segmenter` calls them:

    prepare        scan (channel, X, Y, Z) -> checked and preprocessed (channel, x, y, z)
    predict_slabs  patches (B, channel, *patch) -> probabilities (class, some planes, y, z)
    native_planes  interpolated to the scan's grid (class, some planes, Y, Z)
    label_map      the most probable class: label values (X, Y, Z)
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.common.arrays import LabelMap
from autoseg.common.errors import AutosegError, DataError
from autoseg.image.geometry import Geometry
from autoseg.image.image import Image, from_array, from_simpleitk
from autoseg.image.label_writer import to_simpleitk
from autoseg.networks.devices import pick_device
from autoseg.networks.unet import with_masks
from autoseg.plan.plan import Plan
from autoseg.prediction.backends import AUTO, choose_backend
from autoseg.prediction.model import (
    Model,
    check_scan,
    load_model,
    load_postprocessing,
    load_previous,
)
from autoseg.prediction.native_grid import MeanPlanes, Placement, Planes, label_map, native_planes
from autoseg.prediction.output import probability_file
from autoseg.prediction.postprocessing import Postprocessing
from autoseg.prediction.sliding_window import predict_slabs, window_bytes
from autoseg.preprocessing.preprocess import prepare_previous
from autoseg.preprocessing.steps import Prepared, prepare

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
        """The grid of the scan."""
        return self.each[0].geometry


Scan = TypeVar("Scan", Prepared, PreparedForEach)


class Segmenter(ABC, Generic[Scan]):
    """Segments scans: what `Predictor` and `Ensemble` have in common.

    Attributes:
        plan: defines the channels and the labels.
        device: where the networks run.
        backend_name: library, version and precision that run them: `torch 2.13.0 bfloat16`.
        postprocessing: applied to every label map, if any.
    """

    plan: Plan
    device: torch.device
    backend_name: str
    postprocessing: Postprocessing | None = None

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
            previous: for a cascade, the previous stage's label map (x, y, z), if it is known.
            spacing_mm: voxel spacing of an array along x, y, z.

        Returns:
            a SimpleITK image for a SimpleITK image, else an array (x, y, z).

        Raises:
            DataError: the scan does not fit the model.
        """
        if isinstance(scan, np.ndarray):
            if spacing_mm is None:
                raise DataError("an array has no voxel spacing; pass spacing_mm=(x, y, z)")
            scan = from_array(scan, spacing_mm)
        if isinstance(scan, Image):
            return self.segment(self.prepare(scan, previous))
        image = from_simpleitk(scan)
        return to_simpleitk(self.segment(self.prepare(image, previous)), image.geometry)

    def segment(
        self, prepared: Scan, save: Path | None = None, report: Report | None = None
    ) -> LabelMap:
        """The label map (x, y, z) of a prepared scan on the scan's own grid.

        Args:
            prepared: by `prepare`.
            save: a file for the probabilities, see `autoseg.prediction.output`. They are those of
                the networks: postprocessing changes the label map only.
            report: called now and then with the finished part of the scan, from 0 to 1.
        """
        size, classes = prepared.geometry.size, self.plan.classes
        # The window slides along the axis that takes the least memory. Until the end, that axis
        # and x are swapped: all code below goes through planes of x.
        axis = min(AXES, key=lambda axis: self.window_bytes(prepared, axis))
        planes = self.planes(prepared, axis)
        if report is not None:
            planes = _reported(planes, size[axis], report)
        names = classes.output_names
        saving = nullcontext() if save is None else probability_file(save, names, size, axis)
        with saving as file:
            write = file.write if file else None
            label = label_map(planes, classes, swapped(size, axis), write)
        label = label.swapaxes(0, axis)
        if self.postprocessing is not None:
            self.postprocessing.apply(label)
        return label

    @abstractmethod
    def prepare(self, image: Image, previous: LabelMap | None = None) -> Scan:
        """Check a scan and preprocess it for the networks."""

    @abstractmethod
    def planes(self, prepared: Scan, axis: int) -> Iterator[Planes]:
        """Probabilities on the scan's own grid by planes across one axis, swapped with x."""

    @abstractmethod
    def window_bytes(self, prepared: Scan, axis: int) -> int:
        """Memory of the sliding window along one axis."""


def swapped(values: Sequence[Any], axis: int) -> tuple[Any, Any, Any]:
    """Three values along x, y, z, with those of x and of one axis swapped."""
    x, y, z = values
    return ((x, y, z), (y, x, z), (z, y, x))[axis]


def _reported(planes: Iterator[Planes], count: int, report: Report) -> Iterator[Planes]:
    """The planes; those that are yielded are finished when the next ones are requested."""
    for some in planes:
        yield some
        report(some.rows.stop / count)


class Predictor(Segmenter[Prepared]):
    """Segments scans with the folds of one model, averaging their probabilities.

    The scans of a cascade are segmented by all folds of its previous stage first.

    >>> import autoseg
    >>> predictor = autoseg.Predictor("models/Task004_Hippocampus/default", device="cpu")
    >>> scan = autoseg.read_image("raw/Task004_Hippocampus/imagesTs/hippocampus_040.nii.gz")
    >>> label = predictor.predict(scan)  # or an array with its spacing_mm, or a SimpleITK image
    >>> label.shape == scan.geometry.size
    True
    >>> autoseg.write_label("hippocampus_040.nii.gz", label, scan.geometry)

    Args:
        model: a folder `models/TASK/PLAN`, a zip of `autoseg_pack`, or a loaded model.
        folds: which folds; all that are finished if None.
        device: `cpu`, `cuda`, ...; the best available one if None.
        mirror: also average over mirrored patches, along the axes that the plan allows.
        postprocess: apply the postprocessing that `autoseg_evaluate TASK` has learned from the
            cross-validation, if any (`postprocessing.json` beside the folds).
        backend: what runs the networks, `auto`, `torch` or `openvino`; see `choose_backend`.
    """

    def __init__(
        self,
        model: Path | str | Model,
        folds: Sequence[str | int] | None = None,
        device: str | None = None,
        mirror: bool = False,
        postprocess: bool = True,
        backend: str = AUTO,
    ) -> None:
        self.device = pick_device(device)
        if isinstance(model, Path | str):
            model = load_model(Path(model), [str(fold) for fold in folds or ()], self.device)
        self.model, self.plan, self.mirror = model, model.plan, mirror
        self.postprocessing = load_postprocessing(model) if postprocess else None
        self.classes = self.plan.classes
        self.wanted_backend = backend
        self.backend = choose_backend(backend, model.networks, self.plan, self.device)
        self.backend_name = self.backend.name
        axes = self.plan.inference.mirror_axes if mirror else ()
        self.flips = [
            flip for count in range(len(axes) + 1) for flip in itertools.combinations(axes, count)
        ]

    @cached_property
    def previous(self) -> Predictor | None:
        """Predicts the stage that a cascade refines; None if the plan is not a cascade.

        Raises:
            AutosegError: that stage's model is missing, or is not the one of the training.
        """
        if self.plan.previous_stage is None:
            return None
        return Predictor(
            load_previous(self.model, self.device),
            None,
            str(self.device),
            self.mirror,
            postprocess=False,  # as the segmentations that the cascade was trained on
            backend=self.wanted_backend,
        )

    def prepare(self, image: Image, previous: LabelMap | None = None) -> Prepared:
        """Check a scan and preprocess it; a cascade's previous stage is predicted here.

        Args:
            image: the scan.
            previous: for a cascade, the previous stage's label map, if it is known.

        Raises:
            DataError: the scan does not fit the plan.
        """
        check_scan(self.plan, image)
        if previous is None and self.previous is not None:
            previous = self.previous.predict(image)
        prepared = prepare(self.plan, image)
        if self.plan.previous_stage is None:
            return prepared
        assert previous is not None
        _, x, y, z = prepared.image.shape
        spacing_mm, box = prepared.geometry.spacing_mm, prepared.box
        # One more channel, of part numbers (x, y, z); `probabilities` turns it into masks.
        parts = prepare_previous(self.plan, previous, spacing_mm, box, (x, y, z))
        channels = [prepared.image, parts[None].astype(np.float32)]
        return replace(prepared, image=np.concatenate(channels))

    def planes(self, prepared: Prepared, axis: int) -> Iterator[Planes]:
        """Probabilities on the scan's own grid by planes across one axis, swapped with x."""
        inference = self.plan.inference
        slabs = predict_slabs(
            lambda patches: self.probabilities(patches.swapaxes(2, 2 + axis)).swapaxes(2, 2 + axis),
            prepared.image.swapaxes(1, 1 + axis),
            swapped(self.plan.sampling.patch_size, axis),
            inference.model_copy(update={"overlap": swapped(inference.overlap, axis)}),
            self.classes.outputs,
        )
        placement = Placement(
            low_shape=swapped(prepared.image.shape[1:], axis),
            box=swapped(prepared.box, axis),
            size=swapped(prepared.geometry.size, axis),
            outside=None if self.classes.are_regions else 0,
        )
        return native_planes(slabs, placement)

    @torch.inference_mode()
    def probabilities(self, patches: Tensor) -> Tensor:
        """Probabilities of patches (B, channel, *patch), averaged over folds and mirrored patches.

        Those of classes sum to one (softmax); those of regions are independent (sigmoid).

        Returns:
            (B, class, *patch) on the CPU.
        """
        patches = patches.to(self.device)
        if self.plan.previous_stage is not None:
            parts = len(self.classes.parts) - 1
            patches = with_masks(patches[:, :-1], patches[:, -1], parts)
        total: Tensor | None = None
        for network, flip in itertools.product(self.backend.networks, self.flips):
            axes = [2 + axis for axis in flip]
            logits = network(patches.flip(axes) if axes else patches)
            found = torch.sigmoid(logits) if self.classes.are_regions else logits.softmax(dim=1)
            found = found.flip(axes) if axes else found
            total = found if total is None else total.add_(found)
        assert total is not None
        return total.div_(len(self.backend.networks) * len(self.flips)).cpu()

    def window_bytes(self, prepared: Prepared, axis: int) -> int:
        """Memory of the sliding window along one axis."""
        shape = swapped(prepared.image.shape[1:], axis)
        patch = swapped(self.plan.sampling.patch_size, axis)
        return window_bytes(shape, patch, self.classes.outputs)


class Ensemble(Segmenter[PreparedForEach]):
    """Segments scans with the models of several plans, averaging their probabilities.

    Plans may differ in spacing, patch size, crop and network: their probabilities are averaged on
    the scan's own grid. Each model has the same weight, whatever its number of folds. Learned
    postprocessing belongs to a single model and is not applied.

    Args:
        members: the models.

    Raises:
        AutosegError: they do not segment the same classes of the same channels.
    """

    def __init__(self, members: Sequence[Predictor]) -> None:
        self.members, self.plan, self.device = tuple(members), members[0].plan, members[0].device
        self.backend_name = ", ".join(dict.fromkeys(member.backend_name for member in members))
        for member in self.members[1:]:
            _check_same_classes(self.plan, member.plan)

    def prepare(self, image: Image, previous: LabelMap | None = None) -> PreparedForEach:
        """Check a scan and preprocess it for each plan; each cascade predicts its own stage."""
        assert previous is None, "each cascade has another previous stage"
        return PreparedForEach(tuple(member.prepare(image) for member in self.members))

    def planes(self, prepared: PreparedForEach, axis: int) -> Iterator[Planes]:
        """Mean probabilities on the scan's own grid by planes across one axis, swapped with x."""
        pairs = zip(self.members, prepared.each, strict=True)
        each = [member.planes(scan, axis) for member, scan in pairs]
        return (MeanPlanes(planes) for planes in zip(*each, strict=True))

    def window_bytes(self, prepared: PreparedForEach, axis: int) -> int:
        """Memory of all sliding windows along one axis."""
        pairs = zip(self.members, prepared.each, strict=True)
        return sum(member.window_bytes(scan, axis) for member, scan in pairs)


def _check_same_classes(plan: Plan, other: Plan) -> None:
    for key in ("channels", "labels", "regions_class_order"):
        values = [getattr(each, key) for each in (plan, other)]
        # The order of the labels is that of the classes, so it has to be the same, too.
        ordered = [list(value.items()) if isinstance(value, dict) else value for value in values]
        if ordered[0] != ordered[1]:
            raise AutosegError(
                f"plans {plan.name} and {other.name} cannot be averaged: their {key} differ "
                f"({values[0]} and {values[1]}); choose plans of the same task"
            )
