from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from autoseg.common.figures import COLOURS
from autoseg.evaluation.figures.slices import (
    CAPTION,
    GAP,
    MOST_FRAMES,
    TINT,
    Palette,
    as_png,
    draw_panels,
    write_scroll,
)
from autoseg.evaluation.figures.views import Exhibit, View

RED = (0xD5, 0x5E, 0x00)


def view_of(shape: tuple[int, int, int], spacing: tuple[float, ...] = (1, 1, 1)) -> View:
    """A ramp from black to white along x; class a is a box in the truth, and full in prediction."""
    image = np.broadcast_to(np.linspace(0, 1, shape[0])[:, None, None], shape)
    truth = np.zeros(shape, np.uint8)
    truth[2:6, 2:6] = 1
    prediction = np.ones(shape, np.uint8)
    exhibit = Exhibit("x", Path(), Path(), Path(), {"a": (1,)}, colours={"a": "#D55E00"})
    return View(exhibit, image, truth, prediction, spacing, 2, (0.0, 1.0))


def test_golden_panels() -> None:
    """Eight voxels a side at 16 pixels a side: each voxel is two pixels wide."""
    picture = draw_panels(view_of((8, 8, 3)), 1, pixels=16)
    assert picture.size == (3 * 16 + 2 * GAP, 16 + CAPTION)
    pixels = np.asarray(picture.convert("RGB"))[CAPTION:]
    image, truth, prediction = (pixels[:, a : a + 16] for a in (0, 16 + GAP, 2 * (16 + GAP)))
    ramp = np.linspace(0, 255, 8).repeat(2)
    assert np.abs(image[5].astype(int) - ramp[:, None]).max() <= 2
    assert tuple(truth[4, 4]) == RED  # the border
    assert tuple(truth[4, 11]) == RED
    assert np.array_equal(truth[4, 12:], image[4, 12:])
    expected = (1 - TINT) * image[6, 6] + TINT * np.array(RED)
    assert np.abs(truth[6, 6] - expected).max() <= 1
    assert not (prediction == RED).all(-1).any()  # what fills the slice has no border in it
    assert np.ptp(prediction.astype(int), axis=-1).min() > 30


def test_size_follows_the_spacing() -> None:
    assert draw_panels(view_of((8, 16, 3), (2, 1, 5)), 0, 40).size == (
        3 * 40 + 2 * GAP,
        40 + CAPTION,
    )
    assert draw_panels(view_of((30, 10, 3)), 0, 60).size == (3 * 60 + 2 * GAP, 20 + CAPTION)


@given(st.lists(st.sampled_from(COLOURS), max_size=60))
def test_palettes_fit_into_256_places(colours: list[str]) -> None:
    palette = Palette.of([*colours, *(f"#0000{i:02x}" for i in range(len(colours)))])
    assert len(palette.table()) == 3 * (palette.white + 1)
    assert palette.white < 256
    assert palette.levels >= 5
    for slot in range(len(palette.colours)):
        highest = palette.tinted(slot, np.array([palette.levels - 1], np.uint8))
        assert highest[0] < palette.outline(0)
    assert palette.slot("#ffffff") == len(palette.colours) - 1


def test_a_scroll_is_an_animation(tmp_path: Path) -> None:
    view = view_of((8, 8, 40))
    out = tmp_path / "new" / "scroll.png"
    write_scroll(view, out)
    scroll = Image.open(out)
    assert getattr(scroll, "n_frames", 1) == MOST_FRAMES
    scroll.seek(MOST_FRAMES - 1)
    last = draw_panels(view, 39).convert("RGB")
    assert np.array_equal(np.asarray(scroll.convert("RGB")), np.asarray(last))
    before = out.read_bytes()
    write_scroll(view, out)
    assert out.read_bytes() == before


def test_noise_stays_within_the_bound(tmp_path: Path) -> None:
    """The worst for compression: an image whose every pixel is random."""
    shape = (200, 200, 40)
    image = np.random.default_rng(0).random(shape)
    label = np.ones(shape, np.uint8)
    exhibit = Exhibit("x", Path(), Path(), Path(), {"a": (1,)})
    write_scroll(View(exhibit, image, label, label, (1, 1, 1), 2, (0, 1)), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 4_000_000


def test_png() -> None:
    picture = draw_panels(view_of((8, 8, 3)), 1, pixels=16)
    again = Image.open(io.BytesIO(as_png(picture)))
    assert np.array_equal(np.asarray(again.convert("RGB")), np.asarray(picture.convert("RGB")))
