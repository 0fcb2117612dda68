"""Slices as small pictures, image | truth | prediction: for scrolls and for the report's slider.

A picture has a palette of at most 256 colours (greys, greys tinted by each class, borders): it is
drawn quickly, and its files are small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoseg.common.figures import picture_uri
from autoseg.common.files import replacing
from autoseg.common.parallel import in_parallel
from autoseg.evaluation.figures.views import (
    Array,
    Exhibit,
    Masks,
    View,
    fullest_slices,
    read_view,
    scroll_slices,
    window_of,
)

if TYPE_CHECKING:
    from PIL.Image import Image


PANEL_PIXELS = 192  # the longer side of one panel
MOST_FRAMES = 32
FRAME_MS = 120
TINT = 0.4  # the share of a class's colour in its filled area
GAP = 4  # pixels between panels
CAPTION = 14  # pixels above them
MOST_COLOURS = 40  # further classes share these

Indices = NDArray[np.uint8]


@dataclass(frozen=True)
class Palette:
    """Where colours lie in a picture's palette: greys, tinted greys of each colour, borders, white.

    Attributes:
        colours: `#RRGGBB`, each once.
        levels: how many greys.
    """

    colours: tuple[str, ...]
    levels: int

    @staticmethod
    def of(colours: Sequence[str]) -> Palette:
        """The palette with as many greys as there is room for."""
        known = tuple(dict.fromkeys(colours))[:MOST_COLOURS]
        return Palette(known, (255 - len(known)) // (1 + len(known)))

    @property
    def white(self) -> int:
        """The place of pure white."""
        return self.border(len(self.colours) - 1) + 1

    def slot(self, colour: str) -> int:
        """The number of a colour."""
        return self.colours.index(colour) if colour in self.colours else len(self.colours) - 1

    def tinted(self, slot: int, grey: Indices) -> Indices:
        """The places of greys that a colour tints."""
        return (grey + (slot + 1) * self.levels).astype(np.uint8)

    def border(self, slot: int) -> int:
        """The place of a pure colour."""
        return self.levels * (1 + len(self.colours)) + slot

    def table(self) -> bytes:
        """Red, green and blue of every place."""
        greys = np.linspace(0, 255, self.levels)[:, None].repeat(3, 1)
        pure = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in self.colours])
        tinted = [(1 - TINT) * greys + TINT * colour for colour in pure]
        rows = [greys, *tinted, pure.reshape(-1, 3), np.full((1, 3), 255)]
        return bytes(np.rint(np.concatenate(rows)).astype(np.uint8))


def draw_panels(view: View, k: int, pixels: int = PANEL_PIXELS) -> Image:
    """Slice k as image | truth | prediction, captioned.

    Args:
        view: the case.
        k: which slice.
        pixels: the longer side of a panel; the other follows from the spacing.
    """
    from PIL import Image, ImageDraw

    palette = Palette.of(list(view.colours.values()))
    grey = _grey(view, k, palette, pixels)
    rows, columns = grey.shape
    panels = [grey, *(_painted(grey, masks, view, palette) for masks in view.masks(k))]
    canvas = np.zeros((rows + CAPTION, 3 * columns + 2 * GAP), np.uint8)
    for i, panel in enumerate(panels):
        canvas[CAPTION:, i * (columns + GAP) : i * (columns + GAP) + columns] = panel
    picture = Image.fromarray(canvas, "P")
    picture.putpalette(palette.table())
    drawing = ImageDraw.Draw(picture)
    drawing.fontmode = "1"  # no grey edges: places of the palette don't mix
    captions = (f"slice {k + 1} of {view.slices}", "truth", "prediction")
    for i, text in enumerate(captions):
        drawing.text((i * (columns + GAP) + 2, 1), text, fill=palette.white)
    return picture


def write_scroll(view: View, out: Path) -> None:
    """Write an animated PNG, as browsers show it, of at most `MOST_FRAMES` slices of a case."""
    frames = [draw_panels(view, k) for k in scroll_slices(view, MOST_FRAMES)]
    with replacing(out) as temporary:
        frames[0].save(
            temporary,
            format="PNG",
            save_all=True,
            append_images=frames[1:],
            duration=FRAME_MS,
            loop=0,  # for ever
        )


def as_png(picture: Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    held = BytesIO()
    picture.save(held, format="PNG", optimize=True)
    return held.getvalue()


def _grey(view: View, k: int, palette: Palette, pixels: int) -> Indices:
    """The image as places in the palette, at the size of a panel."""
    from PIL import Image

    low, high = view.window
    cut = np.clip((view.cut(view.image, k).astype(np.float32) - low) / (high - low), 0, 1)
    rows, columns = _size(view, pixels)
    larger = rows >= cut.shape[0]  # then voxels are shown as they are
    how = Image.Resampling.NEAREST if larger else Image.Resampling.BILINEAR
    resized = Image.fromarray(cut).resize((columns, rows), how)
    grey: Indices = np.rint(np.asarray(resized) * (palette.levels - 1)).astype(np.uint8)
    return grey


def _size(view: View, pixels: int) -> tuple[int, int]:
    """Rows and columns of a panel."""
    height = view.image.shape[view.down] * view.spacing_mm[view.down]
    width = view.image.shape[view.across] * view.spacing_mm[view.across]
    scale = pixels / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _painted(grey: Indices, masks: Masks, view: View, palette: Palette) -> Indices:
    """A panel with every class filled and bordered."""
    painted = grey.copy()
    for name, mask in masks.items():
        slot = palette.slot(view.colours[name])
        inside = _resized(mask, grey.shape)
        painted[inside] = palette.tinted(slot, grey[inside])
        painted[inside & ~_eroded(inside)] = palette.border(slot)
    return painted


def _resized(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The nearest voxel for every pixel."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(shape, mask.shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]


def _eroded(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels whose four neighbours are inside; beyond the edge counts as inside."""
    wide = np.pad(inside, 1, constant_values=True)
    middle = slice(1, -1)
    eroded: NDArray[np.bool_] = (
        wide[:-2, middle] & wide[2:, middle] & wide[middle, :-2] & wide[middle, 2:]
    )
    return eroded


# The slices of a case for the report's slider: small pictures within the page.
#
# What a page holds is bounded: `MOST_CASES` cases, of each at most `MOST_SLICES` slices and
# `MOST_BYTES` of pictures.

MOST_CASES = 12
MOST_SLICES = 24
MOST_BYTES = 1_000_000  # of one case in the page
SLIDE_PIXELS = 256
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
        picture = draw_panels(view, k, SLIDE_PIXELS)
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
