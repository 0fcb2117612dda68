"""The cases to look at: the worst, the median and the best, drawn on their scans."""

from __future__ import annotations

from pathlib import Path

from autoseg.common.errors import DataError
from autoseg.evaluation.labels import Labels
from autoseg.evaluation.overlay import overlay
from autoseg.evaluation.scores import CaseScores, Summary
from autoseg.evaluation.tables import dice_text
from autoseg.evaluation.views import Exhibit
from autoseg.image.formats import ending_of, stem_of


def draw_examples(summary: Summary, images: Path, labels: Labels, out: Path) -> list[Path]:
    """Draw the worst, the median and the best case as `overlay_CASE.png` into `out`.

    Args:
        summary: the scores, which also name the label maps.
        images: folder of the scans.
        labels: the classes.
        out: folder of the pictures.

    Returns:
        The pictures, worst case first.

    Raises:
        DataError: a scan is not in `images`, or is on another grid than its label map.
    """
    pictures = []
    for case in worst_median_best(summary):
        picture = out / f"overlay_{case.case}.png"
        overlay(exhibit(case, find_image(images, case.case), labels), picture)
        pictures.append(picture)
    return pictures


def exhibit(case: CaseScores, image: Path, labels: Labels) -> Exhibit:
    """A scored case and its scan, to draw."""
    return Exhibit(
        case=case.case,
        image=image,
        truth=Path(case.reference_file),
        prediction=Path(case.prediction_file),
        labels=labels.values,
        title=dice_text(case),
        in_prediction={name: labels.predicted(name) for name in labels.values},
        colours=labels.colours,
    )


def worst_median_best(summary: Summary) -> list[CaseScores]:
    """Up to three cases by their mean Dice, worst first; cases without a Dice don't count."""
    scored = [(dice, case) for case in summary.cases if (dice := case.mean()) is not None]
    if not scored:
        return []
    scored.sort(key=lambda pair: pair[0])
    places = {0, (len(scored) - 1) // 2, len(scored) - 1}
    return [scored[place][1] for place in sorted(places)]


def find_image(images: Path, case: str) -> Path:
    """The scan of a case, named with or without the channel number `_0000`.

    Raises:
        DataError: there is none.
    """
    for stem in (case, f"{case}_0000"):
        for path in sorted(images.glob("*")):
            if ending_of(path) and stem_of(path) == stem:
                return path
    raise DataError(f"{images}: holds no scan of {case} ({case}.nii.gz or {case}_0000.nii.gz)")
