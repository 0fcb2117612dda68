"""Slices as small pictures, image | truth | prediction: for scrolls and for the report's slider.

A picture has a palette of at most 256 colours (greys, greys tinted by each class, borders): it is
drawn quickly, and its files are small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoseg.common.files import replacing
from autoseg.evaluation.views import Masks, View, scroll_slices

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
