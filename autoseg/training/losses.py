"""Losses of a plan, and the comparison of logits with a label map that they are made of.

Shapes: logits (B, N, X, Y, Z); target (B, X, Y, Z) with the indices of a preprocessed label map
(see `plan.labels.Classes.parts`), or `IGNORED` for voxels that do not count; unannotated (B, N),
true for outputs whose class was not annotated in the case of a sample, or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoseg.plan.labels import Classes
from autoseg.plan.plan import Plan
from autoseg.plan.sections import DiceCrossEntropy, TverskyCrossEntropy
from autoseg.preprocessing.steps import IGNORED

SPACE = (2, 3, 4)
Flags = Tensor | None  # (B, outputs), see `Learner.to_device`
LossAndDice = tuple[Tensor, Tensor]  # the Dice of each class
Compared = tuple[Tensor, Tensor, Tensor]  # probabilities, reference and cross-entropy
NEVER = -1e4  # the logit of a class that is impossible; finite in all precisions
Total = Callable[[Tensor], Tensor]  # the sum over the processes that share a batch


def alone(mine: Tensor) -> Tensor:
    """The total of a single process."""
    return mine


def build_loss(plan: Plan, total: Total = alone) -> Loss:
    """The plan's loss, for a single output or the list of outputs of deep supervision.

    Args:
        plan: names the loss and the classes or regions.
        total: the sum over the processes that share a batch, see `training.distributed`.
    """
    spec, comparison = plan.training.loss, build_comparison(plan.classes, total)
    if isinstance(spec, DiceCrossEntropy):
        return Loss(DiceCrossEntropyLoss(spec, comparison))
    return Loss(TverskyCrossEntropyLoss(spec, comparison))


class Loss(nn.Module):
    """A loss over all resolutions: weights 1, 1/2, 1/4, ... normalised to a sum of one.

    Returns the loss and, for the log, the soft Dice of each class at the finest resolution,
    background first.
    """

    def __init__(self, single: DiceCrossEntropyLoss | TverskyCrossEntropyLoss) -> None:
        super().__init__()
        self.single = single

    def forward(  # noqa: D102
        self, outputs: Tensor | Sequence[Tensor], target: Tensor, unannotated: Flags = None
    ) -> tuple[Tensor, Tensor]:
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        total, dice = self.single(outputs[0].float(), target, unannotated)
        for level, output in enumerate(outputs[1:], start=1):
            loss, _ = self.single(output.float(), shrink(target, output.shape[2:]), unannotated)
            total = total + loss / 2**level
        weights = sum(1 / 2**level for level in range(len(outputs)))
        return total / weights, self.single.comparison.per_class(dice, outputs[0], target)

    def hard_counts(self, logits: Tensor, target: Tensor, unannotated: Flags = None) -> Tensor:
        """True positives, false positives and false negatives of each class: (3, classes)."""
        return self.single.comparison.hard_counts(logits, target, unannotated)


def shrink(target: Tensor, shape: Sequence[int]) -> Tensor:
    """The target on a coarser grid, by nearest-neighbour interpolation."""
    coarse = functional.interpolate(target[:, None].float(), size=list(shape), mode="nearest-exact")
    return coarse[:, 0].to(target.dtype)


class DiceCrossEntropyLoss(nn.Module):
    """1 - mean soft Dice over the (foreground) classes or regions, plus cross-entropy."""

    def __init__(self, spec: DiceCrossEntropy, comparison: Comparison) -> None:
        super().__init__()
        self.spec, self.comparison = spec, comparison

    def forward(self, logits: Tensor, target: Tensor, unannotated: Flags = None) -> LossAndDice:  # noqa: D102
        probabilities, reference, entropy = self.comparison(logits, target, unannotated)
        space = (0, *SPACE) if self.spec.batch_dice else SPACE
        both = (probabilities * reference).sum(space)
        either = probabilities.sum(space) + reference.sum(space)
        if self.spec.batch_dice:
            both, either = self.comparison.total(torch.stack([both, either]))
        smooth = self.spec.smooth
        dice = (2 * both + smooth) / (either + smooth).clamp_min(1e-8)  # (N,) or (B, N)
        without_first = self.comparison.has_background and not self.spec.background
        used = dice[..., 1:] if without_first else dice
        return 1 - used.mean() + entropy, _over_samples(dice.detach())


class TverskyCrossEntropyLoss(nn.Module):
    """N - sum of Tversky indices + cross-entropy (Müller et al. 2021, section 2.5).

    With regions in place of classes, the background has no index.
    """

    def __init__(self, spec: TverskyCrossEntropy, comparison: Comparison) -> None:
        super().__init__()
        self.spec, self.comparison = spec, comparison

    def forward(self, logits: Tensor, target: Tensor, unannotated: Flags = None) -> LossAndDice:  # noqa: D102
        probabilities, reference, entropy = self.comparison(logits, target, unannotated)
        found = (probabilities * reference).sum(SPACE)
        missed = ((1 - probabilities) * reference).sum(SPACE)
        # Ignored voxels are zero in `reference` and in `probabilities`, so they count nowhere.
        wrong = probabilities.sum(SPACE) - found
        smooth = self.spec.smooth
        weighted = found + self.spec.alpha * missed + self.spec.beta * wrong + smooth
        index = (found + smooth) / weighted  # (B, N)
        loss = (index.shape[1] - index.sum(1)).mean() + entropy
        return loss, _over_samples(index.detach())


def _over_samples(dice: Tensor) -> Tensor:
    return dice if dice.ndim == 1 else dice.mean(0)


def build_comparison(classes: Classes, total: Total = alone) -> Comparison:
    """Softmax for exclusive classes, one sigmoid per region for regions."""
    return RegionComparison(classes, total) if classes.are_regions else ClassComparison(total)


class ClassComparison(nn.Module):
    """Each voxel has one class; the first of the N classes is the background."""

    has_background = True

    def __init__(self, total: Total = alone) -> None:
        super().__init__()
        self.total = total

    def forward(self, logits: Tensor, target: Tensor, unannotated: Flags = None) -> Compared:
        """Softmax and one-hot reference, both zero where ignored, and the mean cross-entropy."""
        logits = with_background(logits, unannotated)
        log_probabilities = functional.log_softmax(logits, dim=1)
        known = target != IGNORED
        index = target.clamp_min(0).long()[:, None]
        counted = known[:, None].to(log_probabilities.dtype)
        reference = torch.zeros_like(log_probabilities).scatter_(1, index, counted)
        entropy = -(log_probabilities.gather(1, index) * counted).sum()
        mean = _mean(entropy, known.sum(), self.total)
        # Not `exp() * counted`: autograd would keep the factor beside the product.
        return log_probabilities.masked_fill(~known[:, None], -math.inf).exp(), reference, mean

    def per_class(self, dice: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """The Dice of all classes, background first, from that of the outputs."""
        return dice

    def hard_counts(self, logits: Tensor, target: Tensor, unannotated: Flags = None) -> Tensor:
        """True positives, false positives and false negatives of each class: (3, N)."""
        known = target != IGNORED
        predicted = with_background(logits, unannotated).argmax(1)[known]
        reference = target[known].long()
        classes = logits.shape[1]
        hits = torch.bincount(reference[predicted == reference], minlength=classes)
        found = torch.bincount(predicted, minlength=classes)
        real = torch.bincount(reference, minlength=classes)
        return torch.stack([hits, found - hits, real - hits])


class RegionComparison(nn.Module):
    """A voxel may belong to several of the N regions; in no region it is background."""

    has_background = False
    table: Tensor

    def __init__(self, classes: Classes, total: Total = alone) -> None:
        super().__init__()
        self.total = total
        table = torch.zeros(len(classes.parts), len(classes.members), dtype=torch.bool)
        for region, parts in enumerate(classes.members):
            table[list(parts), region] = True
        self.register_buffer("table", table, persistent=False)

    def forward(self, logits: Tensor, target: Tensor, unannotated: Flags = None) -> Compared:
        """Sigmoid and reference, both zero where unknown, and the mean binary cross-entropy.

        A voxel is unknown where it is ignored, and in the regions that were not annotated.
        """
        known = _known(target, unannotated)
        reference = self._reference(target).to(logits.dtype) * known
        each = functional.binary_cross_entropy_with_logits(logits, reference, reduction="none")
        counted = known.sum() * (logits.shape[1] // known.shape[1])
        entropy = _mean((each * known).sum(), counted, self.total)
        return torch.sigmoid(logits) * known, reference, entropy

    @torch.no_grad()
    def per_class(self, dice: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """The Dice of all classes; the background, which is not an output, is added first."""
        outside = torch.sigmoid(-logits.amax(1).float()) * (target != IGNORED)
        reference = target == 0
        both, either = (outside * reference).sum(), outside.sum() + reference.sum()
        return torch.cat([(2 * both / either.clamp_min(1e-8))[None], dice])

    def hard_counts(self, logits: Tensor, target: Tensor, unannotated: Flags = None) -> Tensor:
        """True positives, false positives and false negatives of each class: (3, 1 + N)."""
        inside = _known(target, unannotated)
        ignored = (target == IGNORED)[:, None]
        found = _and_background((logits > 0) & inside) & ~ignored
        real = _and_background(self._reference(target) & inside) & ~ignored
        space = (0, 2, 3, 4)
        hits = (found & real).sum(space)
        return torch.stack([hits, found.sum(space) - hits, real.sum(space) - hits])

    def _reference(self, target: Tensor) -> Tensor:
        if self.table.device != target.device:
            self.to(target.device)
        return self.table[target.clamp_min(0).long()].movedim(-1, 1)


def with_background(logits: Tensor, unannotated: Tensor | None) -> Tensor:
    """Logits with the unannotated classes of each sample merged with the background.

    A voxel that is background in such a sample may belong to any of these classes. The softmax of
    the result is p'(background) = p(background) + sum of p(unannotated), p'(unannotated) = 0, and
    unchanged elsewhere: the marginal Dice and cross-entropy of Shi et al., "Marginal loss and
    exclusion loss for partially supervised multi-organ segmentation", Medical Image Analysis 70
    (2021), 101979.

    Args:
        logits: (B, N, X, Y, Z), background first.
        unannotated: (B, N), true for classes to merge; None if there are none.
    """
    if unannotated is None:
        return logits
    merged = unannotated[:, :, None, None, None]
    outside = merged.clone()
    outside[:, 0] = True
    background = logits.masked_fill(~outside, NEVER).logsumexp(1, keepdim=True)
    return torch.cat([background, logits.masked_fill(merged, NEVER)[:, 1:]], dim=1)


def _known(target: Tensor, unannotated: Tensor | None) -> Tensor:
    """Where regions are known: (B, 1 or N, X, Y, Z)."""
    known = (target != IGNORED)[:, None]
    return known if unannotated is None else known & ~unannotated[:, :, None, None, None]


def _mean(summed: Tensor, count: Tensor, total: Total) -> Tensor:
    """Sum / count over all processes; zero if the count is zero."""
    summed, count = total(torch.stack([summed, count.to(summed.dtype)]))
    return summed / count.clamp_min(1)


def _and_background(inside: Tensor) -> Tensor:
    """The mask of the voxels in no region, followed by the masks of the regions."""
    return torch.cat([~inside.any(1, keepdim=True), inside], dim=1)


Comparison = ClassComparison | RegionComparison
