"""Every case of an evaluation as pictures: an overlay, and a scroll through its slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from autoseg.common.figures import save_figure
from autoseg.common.parallel import in_parallel
from autoseg.common.progress import say
from autoseg.evaluation.figures.overlay import draw_overlay, exhibit
from autoseg.evaluation.figures.slices import write_scroll
from autoseg.evaluation.figures.views import Exhibit, read_view
from autoseg.evaluation.labels import Labels
from autoseg.evaluation.scores import CaseScores

OVERLAYS, SCROLLS = "overlays", "scrolls"


def draw_gallery(exhibits: Sequence[Exhibit], out: Path, processes: int) -> list[Path]:
    """Draw `overlays/CASE.png` and `scrolls/CASE.png`, which is animated, for every case.

    Args:
        exhibits: the cases.
        out: the folder above these two.
        processes: worker processes; the pictures do not depend on it.

    Returns:
        the pictures, case by case.

    Raises:
        DataError: a file cannot be read, or a case's files lie on different grids.
        RunError: a worker process was killed.
    """
    pairs = in_parallel(partial(_draw, out=out), exhibits, processes, "drawing cases")
    return [path for pair in pairs for path in pair]


def exhibits_of(
    cases: Sequence[CaseScores], images: Mapping[str, Path], labels: Labels
) -> list[Exhibit]:
    """The scored cases whose files are all there; how many are not is said.

    Args:
        cases: the scores, which name the label maps.
        images: case -> its scan.
        labels: the classes.
    """
    found, missing = [], []
    for case in cases:
        files = (images.get(case.case), Path(case.reference_file), Path(case.prediction_file))
        gone = [str(path or "its scan") for path in files if path is None or not path.exists()]
        if gone or files[0] is None:
            missing.append(f"{case.case}: {gone[0]}")
        else:
            found.append(exhibit(case, files[0], labels))
    if missing:
        say(f"{len(missing)} of {len(cases)} cases cannot be drawn; missing of {missing[0]}")
    return found


def _draw(shown: Exhibit, out: Path) -> list[Path]:
    view = read_view(shown)
    paths = [out / OVERLAYS / f"{shown.case}.png", out / SCROLLS / f"{shown.case}.png"]
    save_figure(draw_overlay(view), paths[0])
    write_scroll(view, paths[1])
    return paths
