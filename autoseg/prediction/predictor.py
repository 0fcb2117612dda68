"""From a scan in memory to its segmentation on the same grid."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoseg.image.image import Image
from autoseg.networks.devices import pick_device
from autoseg.networks.unet import with_masks
from autoseg.prediction.backend import AUTO, choose_backend
from autoseg.prediction.check import check_scan
from autoseg.prediction.model import Model, load_model, load_postprocessing, load_previous
from autoseg.prediction.native_grid import Place, Planes, native_planes
from autoseg.prediction.segmenter import LabelMap, Segmenter, Tell, swapped
from autoseg.prediction.sliding_window import predict_slabs, window_bytes
from autoseg.preprocessing.preprocess import prepare_previous
from autoseg.preprocessing.steps import Prepared, prepare


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
            save: a file for the probabilities, see `autoseg.prediction.probabilities`. They are
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
