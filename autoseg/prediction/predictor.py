"""From a scan in memory to its segmentation on the same grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.devices import autocast, autocast_type, memory_format, pick_device
from autoseg.errors import DataError
from autoseg.image import Image
from autoseg.networks.previous import with_masks
from autoseg.prediction.model import Model, load_model, load_previous
from autoseg.prediction.native_grid import segment
from autoseg.prediction.sliding_window import predict_slabs
from autoseg.preprocessing.previous import prepare_previous
from autoseg.preprocessing.steps import Prepared, prepare

LabelMap = NDArray[np.integer[Any]]


class Predictor:
    """Segments scans with the folds of one model, averaging their probabilities.

    A cascade's scans are segmented by all folds of its previous stage first.

    Args:
        model: a folder `models/TASK/PLAN`, or a loaded model.
        folds: which folds; all that are finished if None.
        device: `cpu`, `cuda`, ...; the best one there if None.
        mirror: average over mirror images, too, on the axes that the plan allows.
    """

    def __init__(
        self,
        model: Path | Model,
        folds: Sequence[str] | None = None,
        device: str | None = None,
        mirror: bool = False,
    ) -> None:
        self.device = pick_device(device)
        if isinstance(model, Path):
            model = load_model(model, list(folds) if folds else None, self.device)
        self.model, self.plan, self.mirror = model, model.plan, mirror
        self.classes = self.plan.classes
        self.dtype = autocast_type(self.device, self.plan.training.precision)
        self.format = memory_format(self.device)
        for network in model.networks:
            network.to(memory_format=self.format)  # type: ignore[call-overload]
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
        return Predictor(
            load_previous(self.model, self.device), None, str(self.device), self.mirror
        )

    def predict(
        self, image: Image, previous: LabelMap | None = None
    ) -> NDArray[np.unsignedinteger[Any]]:
        """The label map (x, y, z) of a scan, in the label values of the task.

        Args:
            image: the scan.
            previous: for a cascade, what its previous stage made of the scan, where that is known.

        Raises:
            DataError: the scan has another number of channels than the plan.
        """
        wanted = len(self.plan.channels)
        if len(image.array) != wanted:
            raise DataError(
                f"the scan has {len(image.array)} channels, the model needs {wanted}: "
                f"{', '.join(self.plan.channels)}"
            )
        if previous is None and self.previous is not None:
            previous = self.previous.predict(image)
        prepared = prepare(self.plan, image)
        if self.plan.previous_stage is not None:
            assert previous is not None
            prepared = self._with_previous(prepared, previous)
        return self._to_file_grid(prepared)

    def _with_previous(self, prepared: Prepared, previous: LabelMap) -> Prepared:
        """The previous stage as one more channel of part numbers; patches turn it into masks."""
        _, x, y, z = prepared.image.shape
        spacing_mm, box = prepared.geometry.spacing_mm, prepared.box
        numbers = prepare_previous(self.plan, previous, spacing_mm, box, (x, y, z))
        image = np.concatenate([prepared.image, numbers[None].astype(np.float32)])
        return replace(prepared, image=image)

    def _to_file_grid(self, prepared: Prepared) -> NDArray[np.unsignedinteger[Any]]:
        patch = self.plan.sampling.patch_size
        slabs = predict_slabs(
            self.probabilities,
            prepared.image,
            patch,
            self.plan.inference,
            self.classes.outputs,
        )
        _, x, y, z = prepared.image.shape
        regions = self.classes.are_regions
        classes = segment(slabs, (x, y, z), prepared.box_shape, np.uint16, regions)
        values = self.classes.painted
        dtype = np.uint8 if max(values) < 256 else np.uint16
        whole = np.zeros(prepared.geometry.size, dtype)
        box = tuple(slice(start, stop) for start, stop in prepared.box)
        whole[box] = np.asarray(values, dtype)[classes]
        return whole

    @torch.inference_mode()
    def probabilities(self, patches: Tensor) -> Tensor:
        """Probabilities of patches (B, channel, *patch), averaged over folds and mirror images.

        Of classes they sum to one (softmax); those of regions are independent (sigmoid).
        """
        patches = self._inputs(patches.to(self.device))
        total: Tensor | float = 0.0
        for network in self.model.networks:
            for flip in self.flips:
                axes = [axis + 2 for axis in flip]
                with autocast(self.device, self.dtype):
                    logits = network(patches.flip(axes) if axes else patches)
                shares = self._activated(logits.float())
                total = total + (shares.flip(axes) if axes else shares)
        assert isinstance(total, Tensor)
        return (total / (len(self.model.networks) * len(self.flips))).cpu()

    def _inputs(self, patches: Tensor) -> Tensor:
        """What the network takes; a cascade's last channel becomes one mask for each part."""
        if self.plan.previous_stage is not None:
            parts = len(self.classes.parts) - 1
            patches = with_masks(patches[:, :-1], patches[:, -1], parts)
        return patches.to(memory_format=self.format)

    def _activated(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits) if self.classes.are_regions else torch.softmax(logits, dim=1)
