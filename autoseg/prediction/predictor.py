"""The networks of a model, or of several models, that segment scans; see `segmenter`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoseg.common.arrays import LabelMap
from autoseg.common.errors import AutosegError
from autoseg.common.progress import say
from autoseg.image.geometry import (
    SWAPS,
    Geometry,
    Turn,
    check_code,
    counted_codes,
    most_common,
    orientation_of,
)
from autoseg.image.image import Image
from autoseg.models.folder import RESEARCH, qualification_in
from autoseg.networks.devices import limit_torch, pick_device
from autoseg.networks.unet import with_masks
from autoseg.plan.plan import Plan
from autoseg.prediction.backends import AUTO, Run, choose_backend
from autoseg.prediction.fit import Differences, Judge, check_scan
from autoseg.prediction.model import (
    Model,
    load_model,
    load_postprocessing,
    load_previous,
    load_temperature,
    load_training_set,
)
from autoseg.prediction.native_grid import (
    MeanPlanes,
    Placement,
    Planes,
    ProbabilityPlanes,
    native_planes,
)
from autoseg.prediction.quality import Observer, load_calibration
from autoseg.prediction.segmenter import PreparedForEach, Segmenter
from autoseg.prediction.sliding_window import Float16Sums, predict_slabs, turned, window_bytes
from autoseg.preprocessing.preprocess import prepare_previous
from autoseg.preprocessing.resample import axis_orders
from autoseg.preprocessing.steps import Prepared, prepare


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
        mirror: also average over patches mirrored along the plan's axes; None: if the plan does.
        postprocess: apply what `autoseg_evaluate TASK` has learned (`postprocessing.json`), if any.
        backend: what runs the networks, `auto`, `torch` or `openvino`; see `choose_backend`.
        orientation: to which the axes of scans are brought instead of the plan's, such as `RAS`;
            for models of version 0.1.0, whose plans have none.

    Attributes:
        plan: that of the model, with this orientation.
    """

    def __init__(
        self,
        model: Path | str | Model,
        folds: Sequence[str | int] | None = None,
        device: str | None = None,
        mirror: bool | None = None,
        postprocess: bool = True,
        backend: str = AUTO,
        orientation: str | None = None,
    ) -> None:
        orientation = None if orientation is None else check_code(orientation)
        self.device = pick_device(device)
        if isinstance(model, Path | str):
            model = load_model(Path(model), [str(fold) for fold in folds or ()], self.device)
        self.model, self.plan, self.mirror = model, model.plan, mirror
        self.logits = self.plan.inference.average != "probabilities"
        self.float16 = self.plan.inference.average == "logits_float16"
        if (slide := self.plan.inference.slide_axis) is not None:
            self.axes = (slide,)
        self.wanted_orientation, self.is_warned = orientation, False
        if orientation is not None:
            self.plan = self.plan.model_copy(update={"orientation": orientation})
        self.postprocessing = load_postprocessing(model) if postprocess else None
        self.temperature = load_temperature(model)
        self.qualification = qualification_in(model.files) if model.files else RESEARCH
        self.calibration = load_calibration(model)
        self.classes = self.plan.classes
        self.wanted_backend = backend
        self._start_backend()
        wanted = self.plan.inference.mirror if mirror is None else mirror
        axes = self.plan.inference.mirror_axes if wanted else ()
        self.flips = [
            flip for count in range(len(axes) + 1) for flip in itertools.combinations(axes, count)
        ]
        # The only pass of a single fold is compared with one along the first of these.
        is_single = len(model.networks) == len(self.flips) == 1
        use = is_single and not isinstance(self.calibration, str)
        self.compared = self.plan.inference.mirror_axes[:1] if use else ()

    def _start_backend(self) -> None:
        networks = self.model.networks
        self.backend = choose_backend(self.wanted_backend, networks, self.plan, self.device)
        self.backend_name = self.backend.name

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the backend: OpenVINO's graphs cannot be sent to another process."""
        return {name: value for name, value in vars(self).items() if name != "backend"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start the backend again, in this process."""
        vars(self).update(state)
        limit_torch()
        self._start_backend()

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
            orientation=self.wanted_orientation,
        )

    @cached_property
    def judge(self) -> Judge:
        """Holds scans against the training set."""
        return Judge(self.plan, load_training_set(self.model))

    @property
    def not_checked(self) -> str:
        """What `check` cannot compare with the training scans, and why."""
        return self.judge.not_checked

    def check(self, image: Image, modalities: Sequence[str | None] = ()) -> Differences:
        """What differs between a scan and the training scans.

        Raises:
            DataError: the model cannot segment it.
        """
        limit_torch()
        check_scan(self.plan, image)
        return self.judge.differences(image, modalities)

    @property
    def trained_orientations(self) -> tuple[str, ...]:
        """The orientation in which each training case is stored; empty if it is not known."""
        return () if self.judge.training is None else self.judge.training.orientations

    @property
    def orientation_of_arrays(self) -> str:
        """The orientation of the plan, else of most training cases."""
        return self.plan.orientation or most_common(self.trained_orientations or ("LPS",))

    def check_orientation(self, grid: Geometry, what: str) -> None:
        """Warn once if the plan has no orientation, and a scan another one than the training."""
        trained, code = self.trained_orientations, orientation_of(grid)
        if self.plan.orientation is not None or self.is_warned or code in trained or not trained:
            return
        self.is_warned = True
        say(
            f"{what}: stored in the orientation {code}, but the training scans of "
            f"{self.model.folder} are {counted_codes(trained)}; its plan has no orientation, so "
            "scans are segmented as they are stored, and the result may be wrong; predict with "
            f"--orientation {most_common(trained)}, or plan (autoseg_plan) and train again"
        )

    def prepare(self, image: Image, previous: LabelMap | None = None) -> Prepared:
        """Preprocess a scan that passed `check`; a cascade's previous stage is predicted here.

        Args:
            image: the scan.
            previous: for a cascade, the previous stage's label map, if it is known.

        Raises:
            DataError: the previous stage cannot segment the scan.
        """
        if previous is None and self.previous is not None:
            check_scan(self.previous.plan, image)
            previous = self.previous.segment(self.previous.prepare(image))
        prepared = prepare(self.plan, image)
        if self.plan.previous_stage is None:
            return prepared
        assert previous is not None
        _, x, y, z = prepared.image.shape
        spacing_mm, box = prepared.geometry.spacing_mm, prepared.box
        previous = prepared.turn.array(previous)
        # One more channel, of part numbers (x, y, z); `probabilities` turns it into masks.
        parts = prepare_previous(self.plan, previous, spacing_mm, box, (x, y, z))
        channels = [prepared.image, parts[None].astype(np.float32)]
        return replace(prepared, image=np.concatenate(channels))

    def observer(self, quality: bool, maps: bool) -> Observer:
        """Observes all passes over one scan, and keeps its uncertainty, if that is wanted."""
        passes = len(self.backend.networks) * len(self.flips) if quality else 0
        return Observer(self.classes, passes, self.logits, maps)

    def planes(
        self, prepared: Prepared, axis: int, to: Turn = SWAPS[0], observer: Observer | None = None
    ) -> Iterator[Planes]:
        """Probabilities, or logits, on `prepared.geometry` by planes across one axis, as x.

        Args:
            prepared: the scan.
            axis: 0, 1 or 2, after that turn.
            to: brings that grid to the one of the planes.
            observer: is shown each pass.
        """
        view, inference = to.then(SWAPS[axis]), self.plan.inference
        slabs = predict_slabs(
            lambda p: turned(self.probabilities(turned(p, view.inverse()), observer), view),
            view.array(prepared.image),
            view.triple(self.plan.sampling.patch_size),
            inference.model_copy(update={"overlap": view.triple(inference.overlap)}),
            self.classes.outputs,
            Float16Sums(len(self.backend.networks), z_before_y=axis < 2) if self.float16 else None,
        )
        spacings = prepared.spacing_mm, prepared.geometry.spacing_mm
        placement = Placement(
            low_shape=view.triple(prepared.image.shape[1:]),
            box=view.box(prepared.box, prepared.geometry.size),
            size=view.triple(prepared.geometry.size),
            outside=None if self.classes.are_regions else 0,
            orders=view.triple(axis_orders(1, *spacings, inference.anisotropy)),
            logits=self.logits,
            float16=self.float16,
        )
        return native_planes(slabs, placement)

    def probability_planes(self, prepared: Prepared, axis: int, to: Turn) -> Iterator[Planes]:
        """`planes`, always of probabilities."""
        planes = self.planes(prepared, axis, to)
        return (ProbabilityPlanes(p, self.classes) for p in planes) if self.logits else planes

    @torch.inference_mode()
    def probabilities(self, patches: Tensor, observer: Observer | None = None) -> Tensor:
        """Probabilities of patches (B, channel, *patch), averaged over folds and mirrored patches.

        Those of classes sum to one (softmax); those of regions are independent (sigmoid). If the
        plan averages logits, it is these; in float16, folds are averaged later.

        Returns:
            (B, class, *patch) on the CPU; with float16, (B, fold x class, *patch).
        """
        patches = patches.to(self.device)
        if self.plan.previous_stage is not None:
            parts = len(self.classes.parts) - 1
            patches = with_masks(patches[:, :-1], patches[:, -1], parts)
        if self.float16:
            folds = [self._mean((net,), patches, observer) for net in self.backend.networks]
            found = torch.cat(folds, dim=1)
        else:
            folds = [found := self._mean(self.backend.networks, patches, observer)]
        if observer is not None:
            if self.compared:
                observer.add(self._pass(self.backend.networks[0], self.compared, patches))
            observer.finish(torch.stack(folds).mean(0) if len(folds) > 1 else found)
        return found.cpu()

    def _mean(self, networks: Sequence[Run], patches: Tensor, observer: Observer | None) -> Tensor:
        """The mean over networks and mirrored patches."""
        total: Tensor | None = None
        for network, flip in itertools.product(networks, self.flips):
            found = self._pass(network, flip, patches)
            if observer is not None:
                observer.add(found)
            total = found if total is None else total.add_(found)
        assert total is not None
        return total.div_(len(networks) * len(self.flips))

    def _pass(self, network: Run, flip: Sequence[int], patches: Tensor) -> Tensor:
        """The output of a network for patches mirrored along some axes, mirrored back."""
        axes = [2 + axis for axis in flip]
        sided = bool(self.plan.mirrored_labels) and self.plan.left_right in flip
        flipped = patches.flip(axes) if axes else patches
        logits = network(flipped[:, self._exchanged_inputs] if sided else flipped)
        if self.logits:
            found = logits
        elif self.classes.are_regions:
            found = torch.sigmoid(logits)
        else:
            found = logits.softmax(dim=1)
        found = found[:, self.plan.exchanged_outputs] if sided else found
        return found.flip(axes) if axes else found

    @cached_property
    def _exchanged_inputs(self) -> list[int]:
        """Input channels if left and right are exchanged: scan, then parts of a previous stage."""
        channels, previous = len(self.plan.channels), self.plan.previous_stage is not None
        parts = self.plan.exchanged_parts[1:] if previous else ()
        return [*range(channels), *(channels + part - 1 for part in parts)]

    def window_bytes(self, prepared: Prepared, axis: int, to: Turn = SWAPS[0]) -> int:
        """Memory of the sliding window along one axis, after a turn."""
        view = to.then(SWAPS[axis])
        shape, patch = view.triple(prepared.image.shape[1:]), self.plan.sampling.patch_size
        found = window_bytes(shape, view.triple(patch), self.classes.outputs)
        return found * len(self.backend.networks) // 2 if self.float16 else found


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
        stated = {member.qualification for member in members}
        self.qualification = members[0].qualification if len(stated) == 1 else RESEARCH
        for member in self.members[1:]:
            _check_same_classes(self.plan, member.plan)

    @property
    def not_checked(self) -> str:
        """What `check` cannot compare with the training scans, and why."""
        found = (member.not_checked for member in self.members)
        return "; ".join(dict.fromkeys(each for each in found if each))

    def check(self, image: Image, modalities: Sequence[str | None] = ()) -> Differences:
        """What differs between a scan and the training scans of any model.

        Raises:
            DataError: a model cannot segment it.
        """
        found: Differences = {}
        for member in self.members:
            found = member.check(image, modalities) | found
        return found

    def prepare(self, image: Image, previous: LabelMap | None = None) -> PreparedForEach:
        """Preprocess a scan for each plan; each cascade predicts its own stage."""
        assert previous is None, "each cascade has another previous stage"
        return PreparedForEach(tuple(member.prepare(image) for member in self.members))

    def observer(self, quality: bool, maps: bool) -> Observer:
        """Observes no pass, as there is no calibration."""
        return Observer(self.plan.classes, 0, False, maps)

    def planes(
        self, prepared: PreparedForEach, axis: int, observer: Observer | None = None
    ) -> Iterator[Planes]:
        """Mean probabilities on `prepared.geometry` by planes across one axis, swapped with x."""
        each = [
            member.probability_planes(scan, axis, scan.turn.inverse().then(prepared.turn))
            for member, scan in zip(self.members, prepared.each, strict=True)
        ]
        return (MeanPlanes(planes) for planes in zip(*each, strict=True))

    def window_bytes(self, prepared: PreparedForEach, axis: int) -> int:
        """Memory of all sliding windows along one axis."""
        return sum(
            member.window_bytes(scan, axis, scan.turn.inverse().then(prepared.turn))
            for member, scan in zip(self.members, prepared.each, strict=True)
        )

    @property
    def orientation_of_arrays(self) -> str:
        """That of the first plan that has an orientation, else of the first one's training."""
        found = (member for member in self.members if member.plan.orientation is not None)
        return next(found, self.members[0]).orientation_of_arrays

    def check_orientation(self, grid: Geometry, what: str) -> None:
        """Warn once for each model whose plan has no orientation."""
        for member in self.members:
            member.check_orientation(grid, what)


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
