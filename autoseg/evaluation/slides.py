"""The slices of a case for the report's slider: small pictures within the page.

What a page holds is bounded: `MOST_CASES` cases, of each at most `MOST_SLICES` slices and
`MOST_BYTES` of pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from autoseg.common.figures import picture_uri
from autoseg.common.parallel import in_parallel
from autoseg.evaluation.panels import as_png, draw_panels
from autoseg.evaluation.views import (
    Array,
    Exhibit,
    View,
    fullest_slices,
    read_view,
    scroll_slices,
    window_of,
)

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_CASES = 12
MOST_SLICES = 24
MOST_BYTES = 1_000_000  # of one case in the page
PANEL_PIXELS = 256
QUALITY = 82
MOST_JUMPS = 4
AROUND = 0.3  # of the extent of the classes: what is shown on each side of them,
AROUND_MM = 20.0  # and at least this
WRONG = "largest difference"


@dataclass(frozen=True)
class Slide:
    """One slice.

    Attributes:
        number: from 1, among all slices of the case.
        picture: image | truth | prediction as a data URI.
    """

    number: int
    picture: str


@dataclass(frozen=True)
class Slides:
    """The slices of one case, from the feet to the head or along the axis that is cut.

    Attributes:
        case: its name.
        title: its name and scores.
        of: how many slices the case has.
        size: width and height of a picture in pixels.
        slides: some of the slices, evenly.
        start: the place in `slides` that is shown first: where truth and prediction differ most.
        jumps: what is to see -> the place in `slides` that shows it best.
        colours: class -> its colour.
    """

    case: str
    title: str
    of: int
    size: tuple[int, int]
    slides: tuple[Slide, ...]
    start: int
    jumps: Mapping[str, int]
    colours: Mapping[str, str]


def draw_slides(
    exhibits: Sequence[Exhibit],
    processes: int,
    most_slices: int = MOST_SLICES,
    most_bytes: int = MOST_BYTES,
) -> list[Slides]:
    """Draw the slices of cases.

    Args:
        exhibits: the cases.
        processes: worker processes; the pictures do not depend on it.
        most_slices: of each case.
        most_bytes: of each case's pictures; the slices are thinned out until they fit.

    Raises:
        DataError: a file cannot be read, or a case's files lie on different grids.
        RunError: a worker process was killed.
    """
    draw = partial(_draw, most_slices=most_slices, most_bytes=most_bytes)
    return in_parallel(draw, exhibits, processes, "drawing slices for the report")


def _draw(exhibit: Exhibit, most_slices: int, most_bytes: int) -> Slides:
    view = _close_up(read_view(exhibit))
    fullest = fullest_slices(view, max(1, min(MOST_JUMPS, most_slices - 1)))
    differing = [_differing(view, k) for k in range(view.slices)]
    first = max(range(view.slices), key=lambda k: (differing[k], k in fullest))
    chosen = fullest.keys() | {first}
    places = set(scroll_slices(view, max(1, most_slices - len(chosen)))) | chosen
    pictures: dict[int, str] = {}
    size = (0, 0)
    for k in sorted(places):
        picture = draw_panels(view, k, PANEL_PIXELS)
        size, pictures[k] = picture.size, _as_uri(picture)
    pictures = _thinned(pictures, set(fullest), first, most_bytes)
    shown = list(pictures)
    jumps = {WRONG: shown.index(first)} if differing[first] else {}
    for k, classes in fullest.items():
        if k in pictures and classes:
            jumps[f"most {', '.join(classes)}"] = shown.index(k)
    slides = tuple(Slide(k + 1, picture) for k, picture in pictures.items())
    return Slides(
        case=exhibit.case,
        title=exhibit.title,
        of=view.slices,
        size=size,
        slides=slides,
        start=shown.index(first),
        jumps=jumps,
        colours=dict(view.colours),
    )


def _close_up(view: View) -> View:
    """The same slices, cut to where the classes are in any of them, and what is around."""
    arrays: Sequence[Array] = (view.image, view.truth, view.prediction)
    classes = (view.truth, view.prediction)
    for axis in {0, 1, 2} - {view.axis}:
        others = tuple({0, 1, 2} - {axis})
        there = np.flatnonzero(sum((of != 0).any(others) for of in classes))
        if len(there):
            spacing = view.spacing_mm[axis]
            around = round(max(AROUND_MM / spacing, AROUND * (there[-1] - there[0] + 1)))
            start, stop = max(0, there[0] - around), there[-1] + around + 1
            places = tuple(slice(start, stop) if i == axis else slice(None) for i in range(3))
            arrays = [array[places] for array in arrays]
    image, truth, prediction = arrays
    window = window_of(image)
    return replace(view, image=image, truth=truth, prediction=prediction, window=window)


def _differing(view: View, k: int) -> int:
    """Pixels of slice k that truth and prediction tell apart."""
    truth, prediction = view.masks(k)
    return sum(int(np.count_nonzero(truth[name] != prediction[name])) for name in truth)


def _thinned(
    pictures: dict[int, str], fullest: set[int], first: int, most_bytes: int
) -> dict[int, str]:
    """Every second is left out until the rest fits; the fullest slices go last."""
    for spared in (fullest | {first}, {first}):
        while sum(map(len, pictures.values())) > most_bytes:
            others = [k for k in pictures if k not in spared]
            if not others:
                break
            gone = set(others[::2])
            pictures = {k: of for k, of in pictures.items() if k not in gone}
    return pictures


def _as_uri(picture: Image) -> str:
    """The smaller of PNG, which suits large voxels, and WebP, which suits fine ones."""
    held = BytesIO()
    picture.convert("RGB").save(held, format="WEBP", quality=QUALITY, method=4)
    kind, content = min(("png", as_png(picture)), ("webp", held.getvalue()), key=_length)
    return picture_uri(kind, content)


def _length(coded: tuple[str, bytes]) -> int:
    return len(coded[1])
