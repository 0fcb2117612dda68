"""From a scan in memory to its segmentation on the same grid."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
from autoseg.prediction.native_grid import (
    Patch,
    Place,
    Planes,
    around,
    label_map,
    native_planes,
    probability_file,
)
from autoseg.prediction.sliding_window import predict_slabs, window_bytes
from autoseg.preprocessing.preprocess import prepare_previous
from autoseg.preprocessing.steps import Prepared, prepare

if TYPE_CHECKING:
    import SimpleITK as sitk


# What one model and an ensemble of models share: from a scan to a label map on its own grid.

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
            save: a file for the probabilities, see `autoseg.prediction.native_grid`.
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


class Predictor(Segmenter[Prepared]):
    """Segments scans with the folds of one model, averaging their probabilities.

    A cascade's scans are segmented by all folds of its previous stage first.

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
        device: `cpu`, `cuda`, ...; the best one there if None.
        mirror: average over mirror images, too, on the axes that the plan allows.
        postprocess: clean label maps as the model's cross-validation has shown to be good, if
            `autoseg_evaluate TASK` has learned that (`postprocessing.json` beside the folds).
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
        axes = self.plan.inference.mirror_axes if mirror else ()
        self.flips = [
            flip for count in range(len(axes) + 1) for flip in itertools.combinations(axes, count)
        ]

    @cached_property
    def previous(self) -> Predictor | None:
        """Predicts the stage that a cascade refines; None if the plan is no cascade.

        Raises:
            AutosegError: that stage's model is not there, or not the one of the training.
        """
        if self.plan.previous_stage is None:
            return None
        # Raw, as the segmentations that the cascade was trained on.
        return Predictor(
            load_previous(self.model, self.device),
            None,
            str(self.device),
            self.mirror,
            postprocess=False,
            backend=self.wanted_backend,
        )

    @property
    def backend_name(self) -> str:
        """What runs the networks, in which version and precision: `torch 2.13.0 bfloat16`."""
        return self.backend.name

    def prepare(self, image: Image, previous: LabelMap | None = None) -> Prepared:
        """A scan as the network sees it; a cascade's previous stage is predicted here.

        Args:
            image: the scan.
            previous: for a cascade, what its previous stage made of the scan, where that is known.

        Raises:
            DataError: the scan cannot be right for the plan.
        """
        check_scan(self.plan, image)
        if previous is None and self.previous is not None:
            previous = self.previous.predict(image)
        prepared = prepare(self.plan, image)
        if self.plan.previous_stage is not None:
            assert previous is not None
            prepared = self._with_previous(prepared, previous)
        return prepared

    def _with_previous(self, prepared: Prepared, previous: LabelMap) -> Prepared:
        """The previous stage as one more channel of part numbers; patches turn it into masks."""
        _, x, y, z = prepared.image.shape
        spacing_mm, box = prepared.geometry.spacing_mm, prepared.box
        numbers = prepare_previous(self.plan, previous, spacing_mm, box, (x, y, z))
        image = np.concatenate([prepared.image, numbers[None].astype(np.float32)])
        return replace(prepared, image=image)

    def segment(
        self, prepared: Prepared, save: Path | None = None, tell: Tell | None = None
    ) -> LabelMap:
        """The label map (x, y, z) of a prepared scan on the scan's own grid.

        Args:
            prepared: by `prepare`.
            save: a file for the probabilities, see `autoseg.prediction.native_grid`. They are
                those of the networks: postprocessing changes the label map alone.
            tell: called with the share of the scan that is done, from 0 to 1, now and then.
        """
        label = super().segment(prepared, save, tell)
        if self.postprocessing is not None:
            self.postprocessing.apply(label)
        return label

    def window_bytes(self, prepared: Prepared, axis: int) -> int:
        """Memory that the sliding window takes along one axis."""
        shape = swapped(prepared.image.shape[1:], axis)
        patch = swapped(self.plan.sampling.patch_size, axis)
        return window_bytes(shape, patch, self.classes.outputs)

    def planes(self, prepared: Prepared, axis: int) -> Iterator[Planes]:
        """Probabilities on the scan's own grid by planes across one axis, swapped with x."""
        _, x, y, z = prepared.image.shape
        inference = self.plan.inference
        slabs = predict_slabs(
            lambda patches: self.probabilities(patches.swapaxes(2, 2 + axis)).swapaxes(2, 2 + axis),
            prepared.image.swapaxes(1, 1 + axis),
            swapped(self.plan.sampling.patch_size, axis),
            inference.model_copy(update={"overlap": swapped(inference.overlap, axis)}),
            self.classes.outputs,
        )
        place = Place(
            low_shape=swapped((x, y, z), axis),
            box=swapped(prepared.box, axis),
            size=swapped(prepared.geometry.size, axis),
            outside=None if self.classes.are_regions else 0,
        )
        return native_planes(slabs, place)

    @torch.inference_mode()
    def probabilities(self, patches: Tensor) -> Tensor:
        """Probabilities of patches (B, channel, *patch), averaged over folds and mirror images.

        Of classes they sum to one (softmax); those of regions are independent (sigmoid).
        """
        patches = self._inputs(patches.to(self.device))
        total: Tensor | None = None
        for network in self.backend.networks:
            for flip in self.flips:
                axes = [axis + 2 for axis in flip]
                shares = self._activated(network(patches.flip(axes) if axes else patches))
                shares = shares.flip(axes) if axes else shares
                total = shares if total is None else total.add_(shares)
        assert total is not None
        return total.div_(len(self.backend.networks) * len(self.flips)).cpu()

    def _inputs(self, patches: Tensor) -> Tensor:
        """What the network takes; a cascade's last channel becomes one mask for each part."""
        if self.plan.previous_stage is not None:
            parts = len(self.classes.parts) - 1
            patches = with_masks(patches[:, :-1], patches[:, -1], parts)
        return patches

    def _activated(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits) if self.classes.are_regions else torch.softmax(logits, dim=1)


# Several models of one task as one: the mean of their probabilities, plan by plan.
#
# Plans may differ in spacing, patches, crops and network. So their probabilities meet on the
# scan's own grid, a few planes and one class at a time.


@dataclass(frozen=True)
class PreparedEach:
    """A scan as each of several plans' networks see it."""

    each: tuple[Prepared, ...]

    @property
    def geometry(self) -> Geometry:
        """The grid of the scan."""
        return self.each[0].geometry


class Ensemble(Segmenter[PreparedEach]):
    """Segments scans with several plans' models, averaging their probabilities.

    Each model counts as much as the others, however many folds it has. What was learned of
    postprocessing is for one model alone: it is not done here.

    Args:
        members: the models.

    Raises:
        AutosegError: they do not segment the same classes of the same channels.
    """

    def __init__(self, members: Sequence[Predictor]) -> None:
        self.members, self.plan = tuple(members), members[0].plan
        for member in self.members[1:]:
            for what in ("channels", "labels", "regions_class_order"):
                ours, theirs = getattr(self.plan, what), getattr(member.plan, what)
                if _in_order(ours) != _in_order(theirs):
                    raise AutosegError(
                        f"plans {self.plan.name} and {member.plan.name} cannot be averaged: they "
                        f"have other {what} ({ours} and {theirs}); name plans of one task"
                    )

    @property
    def device(self) -> torch.device:
        """What the networks run on."""
        return self.members[0].device

    @property
    def backend_name(self) -> str:
        """What runs the networks, in which version and precision."""
        return ", ".join(dict.fromkeys(member.backend_name for member in self.members))

    def prepare(self, image: Image, previous: LabelMap | None = None) -> PreparedEach:
        """A scan as each plan's networks see it.

        Args:
            image: the scan.
            previous: is for a single cascade; here each cascade predicts its own.
        """
        assert previous is None, "each cascade has another previous stage"
        return PreparedEach(tuple(member.prepare(image) for member in self.members))

    def window_bytes(self, prepared: PreparedEach, axis: int) -> int:
        """Memory that the sliding windows take along one axis."""
        pairs = zip(self.members, prepared.each, strict=True)
        return sum(member.window_bytes(ready, axis) for member, ready in pairs)

    def planes(self, prepared: PreparedEach, axis: int) -> Iterator[Planes]:
        """Mean probabilities on the scan's own grid by planes across one axis, swapped with x."""
        pairs = zip(self.members, prepared.each, strict=True)
        each = [member.planes(ready, axis) for member, ready in pairs]
        return (_Mean(planes) for planes in zip(*each, strict=True))


class _Mean:
    """The mean of several models' probabilities on the same planes."""

    def __init__(self, members: Sequence[Planes]) -> None:
        self.members = members
        self.rows, self.shape = members[0].rows, members[0].shape

    def reach(self, index: int, least: float) -> Patch | None:
        # A mean above `least` takes one of them above it.
        parts = [member.reach(index, least) for member in self.members]
        found = [part for part in parts if part is not None]
        return around(found) if found else None

    def shares(self, index: int, part: Patch) -> NDArray[np.float32]:
        total = self.members[0].shares(index, part)
        for member in self.members[1:]:
            total = total + member.shares(index, part)
        return total / np.float32(len(self.members))


def _in_order(value: object) -> object:
    """Objects with their order of keys: that of the labels is that of the classes."""
    return list(value.items()) if isinstance(value, dict) else value
