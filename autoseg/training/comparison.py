"""Logits against a preprocessed label map: what losses and scores are made of.

Shapes: logits (B, N, X, Y, Z), target (B, X, Y, Z) with the indices of the plan's parts (see
`planning.classes`), `IGNORED` where nobody knows. Ignored voxels count nowhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoseg.plan.labels import Classes
from autoseg.preprocessing.steps import IGNORED

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
