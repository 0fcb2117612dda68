"""Small pictures of slices, image | reference | prediction: for animations and for the report.

A picture has a palette of at most 256 colours (greys, greys tinted by each class, outlines): it is
fast to draw, and its file is small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from autoseg.common.figures import enlarged, outline, picture_uri, window_of
from autoseg.common.files import replacing
from autoseg.common.parallel import in_parallel
from autoseg.evaluation.figures import views

PANEL_PIXELS = 192  # the longer side of one panel
MOST_FRAMES = 32
FRAME_MS = 120
TINT = 0.4  # opacity of the colour of a class
GAP = 4  # pixels between panels
CAPTION = 14  # pixels above the panels
MOST_COLOURS = 40  # further classes share the last of these

# Limits of what the report embeds.
MOST_CASES = 12
MOST_SLICES = 24  # per case
MOST_BYTES = 1_000_000  # per case
SLICE_PIXELS = 256
QUALITY = 82
MOST_JUMPS = 4
MARGIN = 0.3  # around the classes, as a share of their extent,
MARGIN_MM = 20.0  # but at least this
LARGEST_DIFFERENCE = "largest difference"

PaletteIndices = NDArray[np.uint8]


@dataclass(frozen=True)
class Palette:
    """The layout of a palette: greys, tinted greys of each colour, outline colours, white.

    Attributes:
        colours: `#RRGGBB`, without duplicates.
        levels: the number of greys.
    """

    colours: tuple[str, ...]
    levels: int

    @staticmethod
    def of(colours: Sequence[str]) -> Palette:
        """The palette with the largest possible number of greys."""
        known = tuple(dict.fromkeys(colours))[:MOST_COLOURS]
        return Palette(known, (255 - len(known)) // (1 + len(known)))

    @property
    def white(self) -> int:
        """The index of white."""
        return self.outline(len(self.colours) - 1) + 1

    def slot(self, colour: str) -> int:
        """The number of a colour."""
        return self.colours.index(colour) if colour in self.colours else len(self.colours) - 1

    def tinted(self, slot: int, grey: PaletteIndices) -> PaletteIndices:
        """The indices of greys tinted by a colour."""
        return (grey + (slot + 1) * self.levels).astype(np.uint8)

    def outline(self, slot: int) -> int:
        """The index of a pure colour."""
        return self.levels * (1 + len(self.colours)) + slot

    def table(self) -> bytes:
        """Red, green and blue of each index."""
        greys = np.linspace(0, 255, self.levels)[:, None].repeat(3, 1)
        pure = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in self.colours])
        tinted = [(1 - TINT) * greys + TINT * colour for colour in pure]
        rows = [greys, *tinted, pure.reshape(-1, 3), np.full((1, 3), 255)]
        return bytes(np.rint(np.concatenate(rows)).astype(np.uint8))


def draw_panels(view: views.View, k: int, pixels: int = PANEL_PIXELS) -> Image.Image:
    """Draw slice k as image | reference | prediction with captions.

    Args:
        view: the case.
        k: the index of the slice.
        pixels: the longer side of a panel; the other follows from the spacing.
    """
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
    drawing.fontmode = "1"  # no antialiasing, which would mix indices of the palette
    captions = (f"slice {k + 1} of {view.slices}", "reference", "prediction")
    for i, text in enumerate(captions):
        drawing.text((i * (columns + GAP) + 2, 1), text, fill=palette.white)
    return picture


def write_scroll(view: views.View, out: Path) -> None:
    """Write an animated PNG of at most `MOST_FRAMES` slices of a case."""
    frames = [draw_panels(view, k) for k in views.scroll_slices(view, MOST_FRAMES)]
    with replacing(out) as temporary:
        frames[0].save(
            temporary,
            format="PNG",
            save_all=True,
            append_images=frames[1:],
            duration=FRAME_MS,
            loop=0,  # endless
        )


def as_png(picture: Image.Image) -> bytes:
    """A picture as the content of a PNG file."""
    buffer = BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _grey(view: views.View, k: int, palette: Palette, pixels: int) -> PaletteIndices:
    """The image as indices of the palette, at the size of a panel."""
    low, high = view.window
    cut = np.clip((view.cut(view.image, k).astype(np.float32) - low) / (high - low), 0, 1)
    rows, columns = _size(view, pixels)
    method = Image.Resampling.NEAREST if rows >= cut.shape[0] else Image.Resampling.BILINEAR
    resized = Image.fromarray(cut).resize((columns, rows), method)
    return np.asarray(np.rint(np.asarray(resized) * (palette.levels - 1)), np.uint8)


def _size(view: views.View, pixels: int) -> tuple[int, int]:
    """The number of rows and columns of a panel."""
    height = view.image.shape[view.down] * view.spacing_mm[view.down]
    width = view.image.shape[view.across] * view.spacing_mm[view.across]
    scale = pixels / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _painted(
    grey: PaletteIndices, masks: views.SliceMasks, view: views.View, palette: Palette
) -> PaletteIndices:
    """A panel with each class filled and outlined."""
    painted = grey.copy()
    for name, mask in masks.items():
        slot = palette.slot(view.colours[name])
        inside = enlarged(mask, grey.shape)
        painted[inside] = palette.tinted(slot, grey[inside])
        painted[outline(inside)] = palette.outline(slot)
    return painted


@dataclass(frozen=True)
class SlicePicture:
    """One slice in the report.

    Attributes:
        number: from 1, among all slices of the case.
        uri: image | reference | prediction as a data URI.
    """

    number: int
    uri: str


@dataclass(frozen=True)
class CaseSlices:
    """The slices of one case in the report, in order along the slicing axis.

    Attributes:
        case: its name.
        title: its name and scores.
        count: the number of slices of the case.
        size: width and height of a picture in pixels.
        pictures: a selection of the slices.
        start: the index of the picture shown first: where reference and prediction differ most.
        jumps: description -> index of the picture that shows it best.
        colours: class -> colour.
    """

    case: str
    title: str
    count: int
    size: tuple[int, int]
    pictures: tuple[SlicePicture, ...]
    start: int
    jumps: Mapping[str, int]
    colours: Mapping[str, str]


def draw_case_slices(
    exhibits: Sequence[views.Exhibit],
    processes: int,
    most_slices: int = MOST_SLICES,
    most_bytes: int = MOST_BYTES,
) -> list[CaseSlices]:
    """Draw the slices of cases for the report.

    Args:
        exhibits: the cases.
        processes: worker processes; the pictures do not depend on it.
        most_slices: limit per case.
        most_bytes: limit per case; slices are dropped until the pictures fit.

    Raises:
        DataError: a file cannot be read, or the grids of a case differ.
        RunError: a worker process was killed.
    """
    draw = partial(_draw, most_slices=most_slices, most_bytes=most_bytes)
    return in_parallel(draw, exhibits, processes, "drawing slices for the report")


def _draw(exhibit: views.Exhibit, most_slices: int, most_bytes: int) -> CaseSlices:
    view = _close_up(views.read_view(exhibit))
    fullest = views.fullest_slices(view, max(1, min(MOST_JUMPS, most_slices - 1)))
    differences = [_count_differences(view, k) for k in range(view.slices)]
    first = max(range(view.slices), key=lambda k: (differences[k], k in fullest))
    chosen = fullest.keys() | {first}
    selected = set(views.scroll_slices(view, max(1, most_slices - len(chosen)))) | chosen
    pictures: dict[int, str] = {}
    size = (0, 0)
    for k in sorted(selected):
        picture = draw_panels(view, k, SLICE_PIXELS)
        size, pictures[k] = picture.size, _as_uri(picture)
    pictures = _thinned(pictures, set(fullest), first, most_bytes)
    shown = list(pictures)
    jumps = {LARGEST_DIFFERENCE: shown.index(first)} if differences[first] else {}
    for k, classes in fullest.items():
        if k in pictures and classes:
            jumps[f"most {', '.join(classes)}"] = shown.index(k)
    return CaseSlices(
        case=exhibit.case,
        title=exhibit.title,
        count=view.slices,
        size=size,
        pictures=tuple(SlicePicture(k + 1, uri) for k, uri in pictures.items()),
        start=shown.index(first),
        jumps=jumps,
        colours=dict(view.colours),
    )


def _close_up(view: views.View) -> views.View:
    """All slices, cropped to the extent of the classes with a margin."""
    box = [slice(None)] * 3
    for axis in {0, 1, 2} - {view.axis}:
        others = tuple({0, 1, 2} - {axis})
        hits = ((of != 0).any(others) for of in (view.reference, view.prediction))
        found = np.flatnonzero(np.logical_or(*hits))
        if len(found):
            extent = found[-1] - found[0] + 1
            margin = round(max(MARGIN_MM / view.spacing_mm[axis], MARGIN * extent))
            box[axis] = slice(max(0, found[0] - margin), found[-1] + margin + 1)
    cropped = view.crop(tuple(box))
    return replace(cropped, window=window_of(cropped.image))


def _count_differences(view: views.View, k: int) -> int:
    """The number of pixels of slice k where reference and prediction differ."""
    reference, prediction = view.masks(k)
    return sum(int(np.count_nonzero(reference[name] != prediction[name])) for name in reference)


def _thinned(
    pictures: dict[int, str], fullest: set[int], first: int, most_bytes: int
) -> dict[int, str]:
    """Drop every second picture until the rest fits, those of the fullest slices last."""
    for kept in (fullest | {first}, {first}):
        while sum(map(len, pictures.values())) > most_bytes:
            others = [k for k in pictures if k not in kept]
            if not others:
                break
            dropped = set(others[::2])
            pictures = {k: of for k, of in pictures.items() if k not in dropped}
    return pictures


def _as_uri(picture: Image.Image) -> str:
    """The smaller of PNG (better for large voxels) and WebP (better for small ones)."""
    buffer = BytesIO()
    picture.convert("RGB").save(buffer, format="WEBP", quality=QUALITY, method=4)
    png, webp = as_png(picture), buffer.getvalue()
    return picture_uri("png", png) if len(png) <= len(webp) else picture_uri("webp", webp)
