"""Does a network learn its training cases by heart? What the log of a run says about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WINDOW = 3  # epochs whose mean Dice is looked at: single epochs are noise
WAIT_EPOCHS = 5  # that the Dice must have stayed below its best
FALLEN_BY = 0.2  # of its best


@dataclass(frozen=True)
class Overfitting:
    """Validation got worse while training got better.

    Attributes:
        best_epoch: from 1; the last of the epochs with the best Dice.
        best_dice: of validation patches, mean of those epochs.
        last_dice: mean of the last epochs.
        epochs: since the best.
    """

    best_epoch: int
    best_dice: float
    last_dice: float
    epochs: int

    def __str__(self) -> str:
        return (
            f"the Dice of validation patches fell from {self.best_dice:.2f} (epoch "
            f"{self.best_epoch}) to {self.last_dice:.2f} in {self.epochs} epochs while the "
            "training loss fell, too: the network learns its training cases by heart"
        )


ADVICE = (
    "more training cases help most; else plan again with another --name and fewer epochs, another "
    "patch or stronger augmentation, and compare the scores"
)


def find_overfitting(losses: Sequence[float], dice: Sequence[float | None]) -> Overfitting | None:
    """Judge a run by its epochs; None if all is well or there are too few to tell.

    Args:
        losses: of training, one an epoch.
        dice: of validation patches, mean over the classes; None where there was none.
    """
    known = [
        (n, loss, d) for n, (loss, d) in enumerate(zip(losses, dice, strict=True)) if d is not None
    ]
    if len(known) < WINDOW + WAIT_EPOCHS:
        return None
    windows = [known[end - WINDOW : end] for end in range(WINDOW, len(known) + 1)]
    means = [sum(d for _, _, d in window) / WINDOW for window in windows]
    best = max(range(len(means)), key=means.__getitem__)
    best_epoch, best_loss, _ = windows[best][-1]
    last_epoch, last_loss, _ = known[-1]
    waited = last_epoch - best_epoch
    fallen = means[-1] < (1 - FALLEN_BY) * means[best]
    if waited < WAIT_EPOCHS or not fallen or last_loss >= best_loss:
        return None
    return Overfitting(best_epoch + 1, means[best], means[-1], waited)
