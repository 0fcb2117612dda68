from __future__ import annotations

import base64
import io
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from autoseg.common.figures import COLOURS
from autoseg.evaluation.figures.slices import (
    CAPTION,
    GAP,
    LARGEST_DIFFERENCE,
    MOST_FRAMES,
    TINT,
    CaseSlices,
    Palette,
    as_png,
    draw_case_slices,
    draw_panels,
    write_scroll,
)
from autoseg.evaluation.figures.views import Exhibit, View
from tests.evaluation.scores import write

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


LABELS = {"a": (1,), "b": (2,)}


def exhibit(
    folder: Path, truth: NDArray[np.uint8], prediction: NDArray[np.uint8], noise: bool = False
) -> Exhibit:
    image = (truth * 50).astype(np.uint8)
    if noise:
        image = np.random.default_rng(0).integers(0, 255, truth.shape, np.uint8)
    return Exhibit(
        case="case",
        image=write(folder / "image.nii.gz", image),
        reference=write(folder / "truth.nii.gz", truth),
        prediction=write(folder / "prediction.nii.gz", prediction),
        labels=LABELS,
        title="a title",
    )


def phantom() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Class a in slices 5 to 34, most in 10; b in slices 30 and 31; wrong most in slice 20."""
    truth = np.zeros((12, 10, 40), np.uint8)
    truth[2:5, 2:5, 5:35] = 1
    truth[2:10, 2:8, 10] = 1
    truth[8:10, 8:10, 30:32] = 2
    truth[8:11, 8:10, 30] = 2
    prediction = truth.copy()
    prediction[:, :, 20] = 0
    prediction[2, 2, 12] = 0
    return truth, prediction


def decoded(slices: CaseSlices) -> list[NDArray[np.uint8]]:
    found = []
    for each in slices.pictures:
        kind, _, content = each.uri.partition(";base64,")
        picture = Image.open(BytesIO(base64.b64decode(content)))
        assert kind == f"data:image/{(picture.format or '').lower()}"
        assert picture.size == slices.size
        found.append(np.asarray(picture.convert("RGB")))
    return found


def test_slices_are_few_and_begin_where_it_is_wrong(tmp_path: Path) -> None:
    (slices,) = draw_case_slices([exhibit(tmp_path, *phantom())], 1, most_slices=10)
    numbers = [each.number for each in slices.pictures]
    assert len(numbers) <= 10
    assert numbers == sorted(set(numbers))
    assert slices.count == 40
    where = {what: numbers[place] for what, place in slices.jumps.items()}
    assert where["most a"] == 11
    assert where["most b"] == 31
    assert where[LARGEST_DIFFERENCE] == numbers[slices.start] == 21
    assert len(decoded(slices)) == len(numbers)


def test_truth_and_prediction_are_seen(tmp_path: Path) -> None:
    """The slice that was missed is coloured in the truth alone."""
    (slices,) = draw_case_slices([exhibit(tmp_path, *phantom())], 1, most_slices=50)
    shown = decoded(slices)[slices.start].astype(int)
    third = shown.shape[1] // 3
    coloured = np.ptp(shown, axis=2) > 30
    panels = [coloured[:, i * third : (i + 1) * third].sum() for i in range(3)]
    assert panels[1] > 100
    assert panels[0] == panels[2] == 0


def test_a_small_class_is_shown_close_up(tmp_path: Path) -> None:
    truth = np.zeros((120, 100, 5), np.uint8)
    truth[20:30, 60:64, 2] = 1
    (slices,) = draw_case_slices([exhibit(tmp_path, truth, truth)], 1)
    # x: 20 mm on both sides of 10 voxels; y: of 4 voxels; so 50 x 44 voxels, of which all is there
    width, height = 256, round(256 * 44 / 50)
    panel = (slices.size[0] - 8) / 3
    assert abs(panel - width) <= 1
    assert abs(slices.size[1] - height) <= 16  # the captions' height


def test_equal_maps_have_no_difference(tmp_path: Path) -> None:
    truth, _ = phantom()
    (slices,) = draw_case_slices([exhibit(tmp_path, truth, truth)], 1)
    assert LARGEST_DIFFERENCE not in slices.jumps
    assert slices.start in slices.jumps.values()


def test_nothing_at_all(tmp_path: Path) -> None:
    empty = np.zeros((6, 6, 9), np.uint8)
    (slices,) = draw_case_slices([exhibit(tmp_path, empty, empty, noise=True)], 1)
    assert slices.jumps == {}
    assert len(slices.pictures) == 9


@pytest.mark.parametrize("most_bytes", [1, 30_000, 100_000])
def test_bytes_are_bounded(tmp_path: Path, most_bytes: int) -> None:
    shown = exhibit(tmp_path, *phantom(), noise=True)
    (whole,) = draw_case_slices([shown], 1, most_slices=50, most_bytes=10**9)
    (slices,) = draw_case_slices([shown], 1, most_slices=50, most_bytes=most_bytes)
    size = sum(len(each.uri) for each in slices.pictures)
    assert size <= most_bytes or len(slices.pictures) == 1
    assert 1 <= len(slices.pictures) < len(whole.pictures)
    assert slices.pictures[slices.start].number == 21  # what matters most stays
    assert all(0 <= place < len(slices.pictures) for place in slices.jumps.values())


def test_the_same_bytes_again(tmp_path: Path) -> None:
    shown = exhibit(tmp_path, *phantom(), noise=True)
    assert draw_case_slices([shown], 1) == draw_case_slices([shown], 1)
