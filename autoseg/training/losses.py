"""Losses of a plan.

Shapes: logits (B, N, X, Y, Z), target (B, X, Y, Z) with the indices of a preprocessed label map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoseg.plan.labels import Classes
from autoseg.plan.plan import Plan
from autoseg.plan.sections import DiceCrossEntropy, TverskyCrossEntropy
from autoseg.preprocessing.steps import IGNORED

# Logits against a preprocessed label map: what losses and scores are made of.
#
# Shapes: logits (B, N, X, Y, Z), target (B, X, Y, Z) with the indices of the plan's parts (see
# `planning.classes`), `IGNORED` where nobody knows. Ignored voxels count nowhere.

Total = Callable[[Tensor], Tensor]


def alone(mine: Tensor) -> Tensor:
    """The total of a process that shares no batch."""
    return mine


def build_comparison(classes: Classes, total: Total = alone) -> ClassComparison | RegionComparison:
    """Softmax for classes that exclude each other, a sigmoid each for regions.

    Args:
        classes: the plan's.
        total: the sum over the processes that share a batch (see `training.distributed`).
    """
    return RegionComparison(classes, total) if classes.are_regions else ClassComparison(total)


class ClassComparison(nn.Module):
    """Every voxel has one class; the first of the N is the background."""

    has_background = True

    def __init__(self, total: Total = alone) -> None:
        super().__init__()
        self.total = total

    def forward(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Softmax shares and one-hot truth, both zero where ignored, and the mean cross-entropy."""
        log_shares = functional.log_softmax(logits, dim=1)
        known = target != IGNORED
        truth = functional.one_hot(target.clamp_min(0).long(), logits.shape[1])
        truth = truth.movedim(-1, 1).to(log_shares.dtype) * known[:, None]
        entropy = _share(-(truth * log_shares).sum(), known.sum(), self.total)
        return log_shares.exp() * known[:, None], truth, entropy

    def per_class(self, dice: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """The Dice of the outputs as that of all classes, background first."""
        return dice

    def hard_counts(self, logits: Tensor, target: Tensor) -> Tensor:
        """True positives, false positives and false negatives of each class: (3, N)."""
        known = target != IGNORED
        predicted = logits.argmax(1)[known]
        truth = target[known].long()
        classes = logits.shape[1]
        hits = torch.bincount(truth[predicted == truth], minlength=classes)
        found = torch.bincount(predicted, minlength=classes)
        real = torch.bincount(truth, minlength=classes)
        return torch.stack([hits, found - hits, real - hits])


class RegionComparison(nn.Module):
    """A voxel may lie in several of the N regions, or in none: then it is background."""

    has_background = False
    table: Tensor

    def __init__(self, classes: Classes, total: Total = alone) -> None:
        super().__init__()
        self.total = total
        table = torch.zeros(len(classes.parts), len(classes.members), dtype=torch.bool)
        for region, parts in enumerate(classes.members):
            table[list(parts), region] = True
        self.register_buffer("table", table, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sigmoid shares and truth, both zero where ignored, and the mean binary cross-entropy."""
        known = target != IGNORED
        truth = self._truth(target).to(logits.dtype) * known[:, None]
        each = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        counted = known.sum() * logits.shape[1]
        entropy = _share((each * known[:, None]).sum(), counted, self.total)
        return torch.sigmoid(logits) * known[:, None], truth, entropy

    @torch.no_grad()
    def per_class(self, dice: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """The Dice of all classes: that of the background, which is no output, comes first."""
        nowhere = torch.sigmoid(-logits.amax(1).float()) * (target != IGNORED)
        truth = target == 0
        both, either = (nowhere * truth).sum(), nowhere.sum() + truth.sum()
        return torch.cat([(2 * both / either.clamp_min(1e-8))[None], dice])

    def hard_counts(self, logits: Tensor, target: Tensor) -> Tensor:
        """True positives, false positives and false negatives of each class: (3, 1 + N)."""
        known = (target != IGNORED)[:, None]
        found = _and_background(logits > 0) & known
        real = _and_background(self._truth(target)) & known
        space = (0, 2, 3, 4)
        hits = (found & real).sum(space)
        return torch.stack([hits, found.sum(space) - hits, real.sum(space) - hits])

    def _truth(self, target: Tensor) -> Tensor:
        if self.table.device != target.device:
            self.to(target.device)
        return self.table[target.clamp_min(0).long()].movedim(-1, 1)


def _share(part: Tensor, count: Tensor, total: Total) -> Tensor:
    """Part / count, each over all processes; zero where nothing was counted."""
    part, count = total(torch.stack([part, count.to(part.dtype)]))
    return part / count.clamp_min(1)


def _and_background(inside: Tensor) -> Tensor:
    """The masks of the regions after that of the voxels in none of them."""
    return torch.cat([~inside.any(1, keepdim=True), inside], dim=1)


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
