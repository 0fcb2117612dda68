"""Losses of a plan.

Shapes: logits (B, N, X, Y, Z), target (B, X, Y, Z) with the indices of a preprocessed label map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoseg.plan.plan import Plan
from autoseg.plan.sections import DiceCrossEntropy, TverskyCrossEntropy
from autoseg.training.comparison import (
    ClassComparison,
    RegionComparison,
    Total,
    alone,
    build_comparison,
)

SPACE = (2, 3, 4)
Comparison = ClassComparison | RegionComparison


def build_loss(plan: Plan, total: Total = alone) -> Loss:
    """The plan's loss, for one output or for the list that deep supervision gives.

    Args:
        plan: its labels say what is compared.
        total: the sum over the processes that share a batch (see `training.distributed`).
    """
    spec, comparison = plan.training.loss, build_comparison(plan.classes, total)
    if isinstance(spec, DiceCrossEntropy):
        return Loss(DiceCrossEntropyLoss(spec, comparison))
    return Loss(TverskyCrossEntropyLoss(spec, comparison))


class Loss(nn.Module):
    """A loss over all resolutions: weights 1, 1/2, 1/4, ... scaled to a sum of one.

    Returns the loss, and for the log the soft Dice at the finest resolution of each class,
    background first.
    """

    def __init__(self, single: DiceCrossEntropyLoss | TverskyCrossEntropyLoss) -> None:
        super().__init__()
        self.single = single

    def forward(  # noqa: D102
        self, outputs: Tensor | Sequence[Tensor], target: Tensor
    ) -> tuple[Tensor, Tensor]:
        if isinstance(outputs, Tensor):
            outputs = [outputs]
        total, dice = self.single(outputs[0].float(), target)
        for level, output in enumerate(outputs[1:], start=1):
            loss, _ = self.single(output.float(), shrink(target, output.shape[2:]))
            total = total + loss / 2**level
        weights = sum(1 / 2**level for level in range(len(outputs)))
        return total / weights, self.single.comparison.per_class(dice, outputs[0], target)

    def hard_counts(self, logits: Tensor, target: Tensor) -> Tensor:
        """True positives, false positives and false negatives of each class: (3, classes)."""
        return self.single.comparison.hard_counts(logits, target)


def shrink(target: Tensor, shape: Sequence[int]) -> Tensor:
    """The nearest voxels of the target on a coarser grid."""
    coarse = functional.interpolate(target[:, None].float(), size=list(shape), mode="nearest-exact")
    return coarse[:, 0].to(target.dtype)


class DiceCrossEntropyLoss(nn.Module):
    """1 - mean soft Dice over the (foreground) classes or regions, plus cross-entropy."""

    def __init__(self, spec: DiceCrossEntropy, comparison: Comparison) -> None:
        super().__init__()
        self.spec, self.comparison = spec, comparison

    def forward(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        shares, truth, entropy = self.comparison(logits, target)
        space = (0, *SPACE) if self.spec.batch_dice else SPACE
        both = (shares * truth).sum(space)
        either = shares.sum(space) + truth.sum(space)
        if self.spec.batch_dice:
            both, either = self.comparison.total(torch.stack([both, either]))
        smooth = self.spec.smooth
        dice = (2 * both + smooth) / (either + smooth).clamp_min(1e-8)  # (N,) or (B, N)
        skipped = self.comparison.has_background and not self.spec.background
        counted = dice[..., 1:] if skipped else dice
        return 1 - counted.mean() + entropy, _over_samples(dice.detach())


class TverskyCrossEntropyLoss(nn.Module):
    """Classes - sum of Tversky indices + cross-entropy; Mueller et al. 2021, section 2.6.

    Of regions, in place of classes, the background has no index.
    """

    def __init__(self, spec: TverskyCrossEntropy, comparison: Comparison) -> None:
        super().__init__()
        self.spec, self.comparison = spec, comparison

    def forward(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        shares, truth, entropy = self.comparison(logits, target)
        found = (shares * truth).sum(SPACE)
        missed = ((1 - shares) * truth).sum(SPACE)
        # Ignored voxels are zero in `truth` and in `shares`: they add to no count.
        wrong = shares.sum(SPACE) - found
        smooth = self.spec.smooth
        weighted = found + self.spec.alpha * missed + self.spec.beta * wrong + smooth
        index = (found + smooth) / weighted  # (B, N)
        loss = (index.shape[1] - index.sum(1)).mean() + entropy
        return loss, _over_samples(index.detach())


def _over_samples(dice: Tensor) -> Tensor:
    return dice if dice.ndim == 1 else dice.mean(0)
