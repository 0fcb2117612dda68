"""The networks of a model on patches: the mean over all folds and mirrored patches."""

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor

from autoseg.networks.devices import limit_torch
from autoseg.networks.unet import with_masks
from autoseg.plan.plan import Plan
from autoseg.prediction.backends import Backend, Run, choose_backend
from autoseg.prediction.model import Model
from autoseg.prediction.quality import Calibration, Observer, load_calibration


class Passes:
    """Runs the networks of a model on patches.

    Args:
        model: whose networks these are.
        plan: defines the channels and the labels.
        device: where the networks run.
        backend: what runs them, see `choose_backend`.
        mirror: whether to average over mirrored patches; None: if the plan does.

    Attributes:
        backend_name: library, version and precision: `torch 2.13.0 bfloat16`.
        logits: whether logits are averaged, not probabilities.
        float16: whether their sums are rounded to float16.
        flips: the axes along which the patches of each pass are mirrored.
        calibration: what the cross-validation says about predictions, or why it is not known.
    """

    logits: bool = False
    calibration: Calibration | str = "not calibrated: an average of several plans"

    def __init__(
        self, model: Model, plan: Plan, device: torch.device, backend: str, mirror: bool | None
    ) -> None:
        self.model, self.plan, self.device, self.wanted_backend = model, plan, device, backend
        self.calibration, self.mirror = load_calibration(model), mirror
        inference = self.plan.inference
        self.logits = inference.average != "probabilities"
        self.float16 = inference.average == "logits_float16"
        self.classes = self.plan.classes
        self.backend_name = self.backend.name
        wanted = inference.mirror if mirror is None else mirror
        axes = inference.mirror_axes if wanted else ()
        counts = range(len(axes) + 1)
        self.flips = [flip for count in counts for flip in itertools.combinations(axes, count)]
        # The only pass of a single fold is compared with one along the first of these.
        is_single = len(self.model.networks) == len(self.flips) == 1
        use = is_single and not isinstance(self.calibration, str)
        self.compared = inference.mirror_axes[:1] if use else ()

    @cached_property
    def backend(self) -> Backend:
        """What runs the networks; each process has its own."""
        return choose_backend(self.wanted_backend, self.model.networks, self.plan, self.device)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the backend: OpenVINO's graphs cannot be sent to another process."""
        return {name: value for name, value in vars(self).items() if name != "backend"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Without the backend, which is started again in this process when it is needed."""
        vars(self).update(state)
        limit_torch()

    def observer(self, quality: bool, maps: bool) -> Observer:
        """Observes all passes over one scan, and keeps its uncertainty, if that is wanted."""
        passes = len(self.backend.networks) * len(self.flips) if quality else 0
        return Observer(self.classes, passes, self.logits, maps)

    @torch.inference_mode()
    def probabilities(self, patches: Tensor, observer: Observer | None = None) -> Tensor:
        """Probabilities of patches (B, channel, *patch), averaged over folds and mirrored patches.

        Those of classes sum to one (softmax); those of regions are independent (sigmoid). If the
        plan averages logits, it is these; in float16, folds are averaged later.

        Returns:
            (B, class, *patch) on `device`; with float16, (B, fold x class, *patch).
        """
        patches = patches.to(self.device)
        if self.plan.previous_stage is not None:
            patches = with_masks(patches[:, :-1], patches[:, -1], len(self.classes.parts) - 1)
        networks = self.backend.networks
        groups = [(network,) for network in networks] if self.float16 else [networks]
        folds = [self._mean(group, patches, observer) for group in groups]
        found = torch.cat(folds, dim=1) if self.float16 else folds[0]
        if observer is not None:
            if self.compared:
                observer.add(self._pass(networks[0], self.compared, patches))
            observer.finish(torch.stack(folds).mean(0) if len(folds) > 1 else found)
        return found

    def _mean(self, networks: Sequence[Run], patches: Tensor, observer: Observer | None) -> Tensor:
        """The mean over networks and mirrored patches."""

        def each() -> Iterator[Tensor]:
            for network, flip in itertools.product(networks, self.flips):
                found = self._pass(network, flip, patches)
                if observer is not None:
                    observer.add(found)
                yield found

        return reduce(Tensor.add_, each()).div_(len(networks) * len(self.flips))

    def _pass(self, network: Run, flip: Sequence[int], patches: Tensor) -> Tensor:
        """The output of a network for patches mirrored along some axes, mirrored back."""
        axes = [2 + axis for axis in flip]
        sided = bool(self.plan.mirrored_labels) and self.plan.left_right in flip
        flipped = patches.flip(axes) if axes else patches
        found = network(flipped[:, self._exchanged_inputs] if sided else flipped)
        if not self.logits:
            found = torch.sigmoid(found) if self.classes.are_regions else found.softmax(dim=1)
        found = found[:, self.plan.exchanged_outputs] if sided else found
        return found.flip(axes) if axes else found

    @cached_property
    def _exchanged_inputs(self) -> list[int]:
        """Input channels if left and right are exchanged: scan, then parts of a previous stage."""
        channels, previous = len(self.plan.channels), self.plan.previous_stage is not None
        parts = self.plan.exchanged_parts[1:] if previous else ()
        return [*range(channels), *(channels + part - 1 for part in parts)]
