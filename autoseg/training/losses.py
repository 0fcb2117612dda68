"""Losses of a plan. Shapes: logits (B, N, X, Y, Z), target (B, X, Y, Z) with class indices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoseg.planning.plan import Plan
from autoseg.planning.training import DiceCrossEntropy, TverskyCrossEntropy
from autoseg.preprocessing.steps import IGNORED

SPACE = (2, 3, 4)


def build_loss(plan: Plan) -> Loss:
    """The plan's loss, for one output or for the list that deep supervision gives."""
    spec = plan.training.loss
    if isinstance(spec, DiceCrossEntropy):
        return Loss(DiceCrossEntropyLoss(spec))
    return Loss(TverskyCrossEntropyLoss(spec))


class Loss(nn.Module):
    """A loss over all resolutions: weights 1, 1/2, 1/4, ... scaled to a sum of one.

    Returns the loss, and the soft Dice per class of the finest resolution for the log.
    """

    def __init__(self, single: nn.Module) -> None:
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
        return total / weights, dice


def shrink(target: Tensor, shape: Sequence[int]) -> Tensor:
    """The nearest voxels of the target on a coarser grid."""
    coarse = functional.interpolate(target[:, None].float(), size=list(shape), mode="nearest-exact")
    return coarse[:, 0].to(target.dtype)


class DiceCrossEntropyLoss(nn.Module):
    """1 - mean soft Dice over the (foreground) classes, plus cross-entropy."""

    def __init__(self, spec: DiceCrossEntropy) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        shares, truth, entropy = compare(logits, target)
        space = (0, *SPACE) if self.spec.batch_dice else SPACE
        both = (shares * truth).sum(space)
        either = shares.sum(space) + truth.sum(space)
        smooth = self.spec.smooth
        dice = (2 * both + smooth) / (either + smooth).clamp_min(1e-8)  # (N,) or (B, N)
        counted = dice if self.spec.background else dice[..., 1:]
        return 1 - counted.mean() + entropy, _per_class(dice.detach())


class TverskyCrossEntropyLoss(nn.Module):
    """Classes - sum of Tversky indices + cross-entropy; Mueller et al. 2021, section 2.6."""

    def __init__(self, spec: TverskyCrossEntropy) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        shares, truth, entropy = compare(logits, target)
        found = (shares * truth).sum(SPACE)
        missed = ((1 - shares) * truth).sum(SPACE)
        # Ignored voxels are zero in `truth` and in `shares`: they add to no count.
        wrong = shares.sum(SPACE) - found
        smooth = self.spec.smooth
        weighted = found + self.spec.alpha * missed + self.spec.beta * wrong + smooth
        index = (found + smooth) / weighted  # (B, N)
        loss = (index.shape[1] - index.sum(1)).mean() + entropy
        return loss, _per_class(index.detach())


def compare(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax shares and one-hot truth, both zero where ignored, and the mean cross-entropy."""
    log_shares = functional.log_softmax(logits, dim=1)
    known = target != IGNORED
    truth = functional.one_hot(target.clamp_min(0).long(), logits.shape[1])
    truth = truth.movedim(-1, 1).to(log_shares.dtype) * known[:, None]
    entropy = -(truth * log_shares).sum() / known.sum().clamp_min(1)
    return log_shares.exp() * known[:, None], truth, entropy


def _per_class(dice: Tensor) -> Tensor:
    return dice if dice.ndim == 1 else dice.mean(0)


def hard_counts(logits: Tensor, target: Tensor) -> Tensor:
    """True positives, false positives and false negatives of each class: (3, N)."""
    known = target != IGNORED
    predicted = logits.argmax(1)[known]
    truth = target[known].long()
    classes = logits.shape[1]
    hits = torch.bincount(truth[predicted == truth], minlength=classes)
    found = torch.bincount(predicted, minlength=classes)
    real = torch.bincount(truth, minlength=classes)
    return torch.stack([hits, found - hits, real - hits])
