"""From a scan in memory to its segmentation on the same grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.devices import autocast, autocast_type, memory_format, pick_device
from autoseg.errors import DataError
from autoseg.image import Image
from autoseg.prediction.model import Model, load_model
from autoseg.prediction.native_grid import segment
from autoseg.prediction.sliding_window import predict_slabs
from autoseg.preprocessing.steps import Prepared, prepare


class Predictor:
    """Segments scans with the folds of one model, averaging their probabilities.

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
        self.model, self.plan = model, model.plan
        self.dtype = autocast_type(self.device, self.plan.training.precision)
        self.format = memory_format(self.device)
        for network in model.networks:
            network.to(memory_format=self.format)  # type: ignore[call-overload]
        axes = self.plan.inference.mirror_axes if mirror else ()
        self.flips = [
            flip for count in range(len(axes) + 1) for flip in itertools.combinations(axes, count)
        ]

    def predict(self, image: Image) -> NDArray[np.unsignedinteger[Any]]:
        """The label map (x, y, z) of a scan, in the label values of the task.

        Raises:
            DataError: the scan has another number of channels than the plan.
        """
        wanted = len(self.plan.channels)
        if len(image.array) != wanted:
            raise DataError(
                f"the scan has {len(image.array)} channels, the model needs {wanted}: "
                f"{', '.join(self.plan.channels)}"
            )
        return self._to_file_grid(prepare(self.plan, image))

    def _to_file_grid(self, prepared: Prepared) -> NDArray[np.unsignedinteger[Any]]:
        patch = self.plan.sampling.patch_size
        slabs = predict_slabs(
            self.probabilities,
            prepared.image,
            patch,
            self.plan.inference,
            len(self.plan.labels),
        )
        _, x, y, z = prepared.image.shape
        classes = segment(slabs, (x, y, z), prepared.box_shape, np.uint16)
        values = [covered[0] for covered in self.plan.labels.values()]
        dtype = np.uint8 if max(values) < 256 else np.uint16
        whole = np.zeros(prepared.geometry.size, dtype)
        box = tuple(slice(start, stop) for start, stop in prepared.box)
        whole[box] = np.asarray(values, dtype)[classes]
        return whole

    @torch.inference_mode()
    def probabilities(self, patches: Tensor) -> Tensor:
        """Softmax of patches (B, channel, *patch), averaged over folds and mirror images."""
        patches = patches.to(self.device, memory_format=self.format)
        total: Tensor | float = 0.0
        for network in self.model.networks:
            for flip in self.flips:
                axes = [axis + 2 for axis in flip]
                with autocast(self.device, self.dtype):
                    logits = network(patches.flip(axes) if axes else patches)
                shares = torch.softmax(logits.float(), dim=1)
                total = total + (shares.flip(axes) if axes else shares)
        assert isinstance(total, Tensor)
        return (total / (len(self.model.networks) * len(self.flips))).cpu()
