"""Segment a scan: from a scan in memory to its label map on the same grid.

A prediction has four steps, here in the order in which `Predictor.segment` calls them:

    prepare        scan (channel, X, Y, Z) -> checked and preprocessed (channel, x, y, z)
    predict_slabs  patches (B, channel, *patch) -> probabilities (class, some planes, y, z)
    native_planes  interpolated to the scan's grid (class, some planes, Y, Z)
    label_map      the most probable class: label values (X, Y, Z)

Between `prepare` and `label_map`, axes are those of the plan's orientation.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from autoseg.common.arrays import LabelMap
from autoseg.common.errors import DataError
from autoseg.common.parallel import GB
from autoseg.common.progress import note, say
from autoseg.image.geometry import SWAPS, Turn, check_code
from autoseg.image.image import Image, from_array, from_simpleitk
from autoseg.image.label_writer import to_simpleitk
from autoseg.models.folder import RESEARCH, qualification_in
from autoseg.networks.devices import fast_convolutions, free_bytes, limit_torch, pick_device
from autoseg.prediction import model as models
from autoseg.prediction import native_grid as native
from autoseg.prediction.backends import AUTO
from autoseg.prediction.fit import ORIENTATION, Differences, Judge, check_scan, differs_from
from autoseg.prediction.output import Prediction, probability_file
from autoseg.prediction.passes import Passes
from autoseg.prediction.postprocessing import Postprocessing, Reliability
from autoseg.prediction.quality import Observer
from autoseg.prediction.sliding_window import CPU, predict_slabs, turned, window_bytes
from autoseg.prediction.studies import TEXT
from autoseg.preprocessing.preprocess import prepare_previous
from autoseg.preprocessing.resample import axis_orders
from autoseg.preprocessing.steps import Prepared, prepare


class Predictor(Passes):
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
        postprocessing: applied to every label map, if any.
        qualification: what results are for, as the model's card states it.
        axes: along which the window may slide.
        temperature: of saved probabilities, learned from the cross-validation.
        reliability: watches the probabilities of cases whose labels are known, if it is given.
        together: models that share the memory of the card.
    """

    postprocessing: Postprocessing | None = None
    qualification: str = RESEARCH
    axes: tuple[int, ...] = (2, 1, 0)  # z first: image files store planes across z
    temperature: float = 1.0
    reliability: Reliability | None = None
    together: int = 1

    def __init__(
        self,
        model: Path | str | models.Model,
        folds: Sequence[str | int] | None = None,
        device: str | None = None,
        mirror: bool | None = None,
        postprocess: bool = True,
        backend: str = AUTO,
        orientation: str | None = None,
    ) -> None:
        code = None if orientation is None else check_code(orientation)
        where = pick_device(device)
        if isinstance(model, Path | str):
            model = models.load_model(Path(model), [str(fold) for fold in folds or ()], where)
        plan = model.plan.model_copy(update={"orientation": code}) if code else model.plan
        super().__init__(model, plan, where, backend, mirror)
        self.wanted_orientation = code
        if (slide := plan.inference.slide_axis) is not None:
            self.axes = (slide,)
        self.postprocessing = models.load_postprocessing(model) if postprocess else None
        self.temperature = models.load_temperature(model)
        self.qualification = qualification_in(model.where)

    @cached_property
    def previous(self) -> "Predictor | None":
        """Predicts the stage that a cascade refines; None if the plan is not a cascade.

        Raises:
            AutosegError: that stage's model is missing, or is not the one of the training.
        """
        if self.plan.previous_stage is None:
            return None
        # Without postprocessing, as the segmentations that the cascade was trained on.
        how = str(self.device), self.mirror, False, self.wanted_backend, self.wanted_orientation
        return Predictor(models.load_previous(self.model, self.device), None, *how)

    @cached_property
    def judge(self) -> Judge:
        """Holds scans against the training set."""
        return Judge(self.plan, models.training_set_of(self.model.where), str(self.model.folder))

    @property
    def judges(self) -> Sequence[Judge]:
        """Those of all models."""
        return [self.judge]

    @property
    def not_checked(self) -> str:
        """What `check` cannot compare with the training scans, and why; empty if it does all."""
        return "; ".join(dict.fromkeys(each for j in self.judges if (each := j.not_checked)))

    def check(self, image: Image, modalities: Sequence[str | None] = ()) -> Differences:
        """What differs between a scan and the training scans of any model.

        Raises:
            DataError: a model cannot segment it.
        """
        limit_torch()
        found: Differences = {}
        for judge in self.judges:
            check_scan(judge.plan, image)
            found = judge.differences(image, modalities) | found
        return found

    def warn(self, what: str, image: Image, found: Differences, file: str = "") -> None:
        """Say what is found to differ in one line, and once if the orientation may be wrong."""
        if set(found) - {ORIENTATION}:
            say(f"warning: {what} {differs_from(self.plan, found)}")
        for judge in self.judges:
            judge.check_orientation(image.geometry, file or what)

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

    @overload
    def predict(
        self,
        scan: Image | NDArray[Any],
        previous: LabelMap | None = None,
        *,
        spacing_mm: Sequence[float] | None = None,
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
            known = [judge for judge in self.judges if judge.plan.orientation is not None]
            orientation = (known or self.judges)[0].orientation_of_arrays
            scan = from_array(scan, spacing_mm, orientation)
        image = scan if isinstance(scan, Image) else from_simpleitk(scan)
        what = "the scan" if image is scan else "the SimpleITK image"
        self.warn(what, image, self.check(image))
        label = self.segment(self.prepare(image, previous))
        return label if image is scan else to_simpleitk(label, image.geometry)

    def show(self, scan: Image, label: LabelMap | None = None) -> Prediction:
        """A scan and its label map, which is predicted if it is not given, as a picture."""
        return Prediction(scan, self.predict(scan) if label is None else label, self.plan)

    def segment(
        self,
        prepared: Prepared,
        save: Path | None = None,
        report: Callable[[float], None] | None = None,
        observer: Observer | None = None,
    ) -> LabelMap:
        """The label map (x, y, z) of a prepared scan on the scan's own grid.

        Args:
            prepared: by `prepare`.
            save: a file for the probabilities of the networks, see `autoseg.prediction.output`.
            report: called now and then with the finished part of the scan, from 0 to 1.
            observer: of this scan, by `observer`; the label map does not depend on it.
        """
        classes, shape = self.plan.classes, prepared.geometry.size
        # The window slides along the axis that takes the least memory. That axis and x are
        # swapped: all code below goes through planes of x. Results are written through `view`.
        axis = min(self.axes, key=lambda axis: self.window_bytes(prepared, axis))
        view, size = prepared.turn.then(SWAPS[axis]), prepared.turn.inverse().triple(shape)
        watched = observer if observer and observer.averaged else None
        planes = self.planes(prepared, axis, observer=watched)
        if self.reliability is not None:
            planes = self.reliability.watch(planes, view, self.logits)
        if report is not None:
            planes = _reported(planes, shape[axis], report)
        saves: list[native.Save] = []
        with fast_convolutions(self.device), ExitStack() as stack:
            if save is not None:
                about = classes.output_names, size, view, self.temperature
                saves.append(stack.enter_context(probability_file(save, *about)))
            if observer is not None and observer.maps:
                saves.append(observer.entropies(size, view))
            how = self.logits, self.temperature
            label = native.label_map(planes, classes, size, saves, view, *how)
        if self.postprocessing is not None:
            self.postprocessing.apply(prepared.turn.array(label))
        return label

    def planes(
        self, prepared: Prepared, axis: int, to: Turn = SWAPS[0], observer: Observer | None = None
    ) -> Iterator[native.Planes]:
        """Probabilities, or logits, on `prepared.geometry` by planes across one axis, as x.

        Args:
            prepared: the scan.
            axis: 0, 1 or 2, after that turn.
            to: brings that grid to the one of the planes.
            observer: is shown each pass.
        """
        view, inference = to.then(SWAPS[axis]), self.plan.inference
        placement = self.placement(prepared, axis, to)
        slabs = predict_slabs(
            lambda p: turned(self.probabilities(turned(p, view.inverse()), observer), view),
            view.array(prepared.image),
            view.triple(self.plan.sampling.patch_size),
            inference.model_copy(update={"overlap": view.triple(inference.overlap)}),
            self.classes.outputs,
            len(self.backend.networks) if self.float16 else 0,
            self.float16 and axis < 2,
            self.device if placement.on_card else CPU,
        )
        return native.native_planes(slabs, placement)

    def placement(self, prepared: Prepared, axis: int, to: Turn = SWAPS[0]) -> native.Placement:
        """Where the network's grid lies on the scan's, turned as in `planes`."""
        view, outputs = to.then(SWAPS[axis]), self.classes.outputs
        low, size = view.triple(prepared.image.shape[1:]), view.triple(prepared.geometry.size)
        spacings = prepared.spacing_mm, prepared.geometry.spacing_mm
        needed = self.window_bytes(prepared, axis, to) + prepared.image.nbytes
        on_card = self._holds(needed + native.card_bytes(low, size, outputs))
        box = view.box(prepared.box, prepared.geometry.size)
        outside = None if self.classes.are_regions else 0
        orders = view.triple(axis_orders(1, *spacings, self.plan.inference.anisotropy))
        how = self.logits, self.float16, on_card
        return native.Placement(low, box, size, outside, orders, *how)

    def _holds(self, needed: int) -> bool:
        """Whether half of the free memory of a card holds so many bytes; if not, say it."""
        if self.device.type != "cuda":
            return False
        free = free_bytes(self.device) // self.together
        if 2 * needed > free:
            about = {"needed": needed / GB, "free": free / GB, "device": self.device}
            note(TEXT("sums on the host", **about))
        return 2 * needed <= free

    def window_bytes(self, prepared: Prepared, axis: int, to: Turn = SWAPS[0]) -> int:
        """Memory of the sliding window along one axis, after a turn."""
        view = to.then(SWAPS[axis])
        shape, patch = view.triple(prepared.image.shape[1:]), self.plan.sampling.patch_size
        found = window_bytes(shape, view.triple(patch), self.classes.outputs)
        return found * len(self.backend.networks) // 2 if self.float16 else found


@dataclass(frozen=True)
class PreparedForEach(Prepared):
    """A scan, prepared for each of several models; its own fields are those of the first."""

    each: tuple[Prepared, ...] = ()


class Ensemble(Predictor):
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
        for member in self.members:
            models.check_same_classes(self.plan, member.plan)
            member.together = len(members)

    @property
    def judges(self) -> Sequence[Judge]:
        """Those of all models."""
        return [member.judge for member in self.members]

    def prepare(self, image: Image, previous: LabelMap | None = None) -> PreparedForEach:
        """Preprocess a scan for each plan; each cascade predicts its own stage."""
        assert previous is None, "each cascade has another previous stage"
        each = tuple(member.prepare(image) for member in self.members)
        return PreparedForEach(**vars(each[0]), each=each)

    def observer(self, quality: bool, maps: bool) -> Observer:
        """Observes no pass, as there is no calibration."""
        return Observer(self.plan.classes, 0, False, maps)

    def planes(
        self, prepared: Prepared, axis: int, to: Turn = SWAPS[0], observer: Observer | None = None
    ) -> Iterator[native.Planes]:
        """Mean probabilities on `prepared.geometry` by planes across one axis, swapped with x."""
        each: list[Iterable[native.Planes]] = []
        for member, scan, turn in self._turned(prepared):
            planes = member.planes(scan, axis, turn)
            shares = partial(native.ProbabilityPlanes, classes=member.classes)
            each.append(map(shares, planes) if member.logits else planes)
        yield from map(native.MeanPlanes, zip(*each, strict=True))

    def window_bytes(self, prepared: Prepared, axis: int, to: Turn = SWAPS[0]) -> int:
        """Memory of all sliding windows along one axis."""
        each = self._turned(prepared)
        return sum(member.window_bytes(scan, axis, turn) for member, scan, turn in each)

    def _turned(self, prepared: Prepared) -> Iterator[tuple[Predictor, Prepared, Turn]]:
        """Each model with its scan, and the turn of that to the orientation of the first plan."""
        assert isinstance(prepared, PreparedForEach)
        for member, scan in zip(self.members, prepared.each, strict=True):
            yield member, scan, scan.turn.inverse().then(prepared.turn)


def _reported(
    planes: Iterator[native.Planes], count: int, report: Callable[[float], None]
) -> Iterator[native.Planes]:
    """The planes; those that are yielded are finished when the next ones are requested."""
    for some in planes:
        yield some
        report(some.rows.stop / count)
