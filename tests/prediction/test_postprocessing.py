from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import softmax as scipy_softmax

from autoseg.common.errors import AutosegError
from autoseg.common.files import write_json
from autoseg.image.geometry import Turn
from autoseg.image.image import Image
from autoseg.image.label_writer import write_label
from autoseg.plan.plan import Plan
from autoseg.prediction.model import load_model, load_postprocessing, save_previous
from autoseg.prediction.native_grid import Area, whole_area
from autoseg.prediction.postprocessing import (
    BINS,
    TEMPERATURES,
    KeepLargest,
    Postprocessing,
    Reliability,
)
from autoseg.prediction.predictor import Ensemble, Predictor
from autoseg.prediction.record import origin
from tests.making import CASCADE, REGIONS, grid, tiny_plan
from tests.prediction.making import Pointwise, model_of, save_model

LabelMap = NDArray[Any]
FOREGROUND, ONE, TWO = KeepLargest("all", (1, 2)), KeepLargest("A", (1,)), KeepLargest("B", (2,))
PLAN = tiny_plan()
CPU = torch.device("cpu")

label_maps = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.integers(0, 2)
)
step_lists = st.lists(st.sampled_from([FOREGROUND, ONE, TWO]), unique=True).map(tuple)


def postprocessed(label_map: LabelMap, *steps: KeepLargest) -> LabelMap:
    found = label_map.copy()
    Postprocessing("", steps).apply(found)
    return found


def slow(label_map: LabelMap, values: tuple[int, ...]) -> LabelMap:
    """The same with SciPy."""
    inside = np.isin(label_map, values)
    numbers, count = ndimage.label(inside, np.ones((3, 3, 3)))
    sizes = [np.sum(numbers == number) for number in range(1, count + 1)]
    found = label_map.copy()
    if sizes:
        found[inside & (numbers != 1 + int(np.argmax(sizes)))] = 0
    return found


@settings(max_examples=50, deadline=None)
@given(label_maps, st.sampled_from([FOREGROUND, ONE, TWO]))
def test_one_step_equals_scipy(label_map: LabelMap, step: KeepLargest) -> None:
    expected = slow(label_map, step.keep_largest)
    assert np.array_equal(postprocessed(label_map, step), expected)
    assert np.array_equal(postprocessed(np.asfortranarray(label_map), step), expected)


@settings(max_examples=50, deadline=None)
@given(label_maps, step_lists)
def test_voxels_only_become_background(label_map: LabelMap, steps: tuple[KeepLargest, ...]) -> None:
    found = postprocessed(label_map, *steps)
    assert found.dtype == label_map.dtype
    changed = found != label_map
    assert not found[changed].any()
    touched = {value for step in steps for value in step.keep_largest}
    assert set(np.unique(label_map[changed])) <= touched


@settings(max_examples=50, deadline=None)
@given(label_maps, st.sampled_from([FOREGROUND, ONE, TWO]))
def test_a_step_is_idempotent(label_map: LabelMap, step: KeepLargest) -> None:
    once = postprocessed(label_map, step)
    assert np.array_equal(postprocessed(once, step), once)


@settings(max_examples=50, deadline=None)
@given(label_maps)
def test_two_steps_are_idempotent(label_map: LabelMap) -> None:
    once = postprocessed(label_map, ONE, TWO)
    assert np.array_equal(postprocessed(once, ONE, TWO), once)


def test_corners_connect_and_equal_components_keep_the_first() -> None:
    label_map = np.zeros((5, 5, 5), np.uint8)
    label_map[0, 0, 0] = label_map[1, 1, 1] = 1
    label_map[3, 3, 3] = label_map[4, 4, 4] = 1
    found = postprocessed(label_map, ONE)
    assert found[0, 0, 0] == found[1, 1, 1] == 1
    assert found.sum() == 2


def test_an_empty_label_map_stays_empty() -> None:
    assert not postprocessed(np.zeros((3, 4, 5), np.uint16), FOREGROUND).any()


def learned(folder: Path, **changes: Any) -> Path:
    steps = [{"name": "organ", "keep_largest": [1]}]
    write_json(
        folder / "postprocessing.json",
        {"format_version": 1, "plan_id": PLAN.id, "steps": steps} | changes,
    )
    return folder


def two_boxes() -> Image:
    values = np.zeros((1, 12, 10, 8), np.float32)
    values[0, 1:6, 2:7, 2:6] = 1
    values[0, 8:10, 2:4, 2:4] = 1
    values[0, 8:10, 6:8, 2:4] = 2
    return Image(values, grid(values.shape[1:]))


def test_the_predictor_applies_learned_postprocessing(tmp_path: Path) -> None:
    image = two_boxes()
    raw = image.array[0].astype(np.uint8)
    model = model_of(PLAN, Pointwise(), folder=learned(tmp_path))
    assert np.array_equal(Predictor(model, device="cpu", postprocess=False).predict(image), raw)
    found = Predictor(model, device="cpu").predict(image)
    assert np.array_equal(found, postprocessed(raw, ONE))
    assert not np.array_equal(found, raw)


def test_a_model_without_postprocessing(tmp_path: Path) -> None:
    image = two_boxes()
    found = Predictor(model_of(PLAN, Pointwise(), folder=tmp_path), device="cpu").predict(image)
    assert np.array_equal(found, image.array[0])


def test_the_previous_stage_is_not_postprocessed(tmp_path: Path) -> None:
    previous = tiny_plan(name="tiny-3d_lowres", configuration="3d_lowres")
    save_model(previous, tmp_path / "tiny-3d_lowres", "0")
    learned(tmp_path / "tiny-3d_lowres", plan_id=previous.id)
    folder = save_model(tiny_plan(**CASCADE), tmp_path / "tiny-3d_cascade_fullres", "0")
    save_previous(folder, previous)
    before = Predictor(folder, device="cpu").previous
    assert before is not None
    assert before.postprocessing is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"plan_id": "another"}, ["another", PLAN.id]),
        ({"format_version": 2}, ["format 2", "not 1"]),
        ({"steps": None}, ["steps:"]),
        ({"steps": [{"name": "organ"}]}, ["steps.0.keep_largest:"]),
        ({"steps": [{"name": "organ", "keep_largest": [0]}]}, ["steps.0.keep_largest.0:"]),
        ({"steps": [{"name": "organ", "keep_largest": ["1"]}]}, ["steps.0.keep_largest.0:"]),
        ({"steps": [{"name": "organ", "keep_largest": []}]}, ["steps.0.keep_largest:"]),
        ({"steps": [[]]}, ["steps.0:"]),
    ],
)
def test_invalid_postprocessing_is_refused(
    tmp_path: Path, changes: dict[str, Any], named: list[str]
) -> None:
    model = load_model(learned(save_model(PLAN, tmp_path, "0"), **changes), None, CPU)
    with pytest.raises(AutosegError) as error:
        load_postprocessing(model)
    assert str(error.value).startswith(f"{tmp_path / 'postprocessing.json'}")
    assert all(text in str(error.value) for text in named)
    Predictor(tmp_path, device="cpu", postprocess=False)


def test_the_origin_names_the_postprocessing(tmp_path: Path) -> None:
    model = model_of(PLAN, Pointwise(), folder=learned(tmp_path))
    predictor = Predictor(model, device="cpu")
    assert origin(predictor)["postprocessing"] == ["organ"]
    assert "postprocessing" not in origin(Predictor(model, device="cpu", postprocess=False))
    (member,) = origin(Ensemble([predictor]))["ensemble"]
    assert "postprocessing" not in member  # which several models together do not get


def test_peak_memory_is_little_more_than_the_components() -> None:
    """Component numbers take four bytes per voxel, the masks of a step at most three."""
    label_map = np.zeros((128, 128, 128), np.uint8)
    label_map[:90:3, ::3, ::3] = 1
    label_map[92:, 80:, 80:] = 1
    tracemalloc.start()
    try:
        Postprocessing("", (ONE,)).apply(label_map)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.count_nonzero(label_map) == label_map[92:, 80:, 80:].sum()
    assert peak < 7.5 * label_map.size


# What outputs say, and how often they are right.


class Given:
    """Planes of given probabilities (class, x, y, z), at full resolution."""

    def __init__(self, probabilities: NDArray[np.float32], rows: slice) -> None:
        self.of, self.rows = probabilities[:, rows], rows
        self.shape = self.of.shape[1:]

    def area_above(self, index: int, threshold: float | None) -> Area | None:
        return whole_area(self.shape)

    def probabilities(self, index: int, area: Area) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.of[index][:, *area]
        return found


def watched(
    folder: Path, probabilities: NDArray[np.float32], truth: LabelMap, plan: Plan, logits: bool
) -> Reliability:
    write_label(folder / "a.nii.gz", truth, grid(truth.shape))
    found = Reliability({"a": folder / "a.nii.gz"}, plan)
    found.case = "a"
    planes = [Given(probabilities, slice(x, x + 4)) for x in range(0, truth.shape[0], 4)]
    assert list(found.watch(planes, Turn(), logits)) == planes
    return found


@pytest.mark.parametrize("logits", [False, True])
def test_reliability_counts_each_voxel_in_its_bin(tmp_path: Path, logits: bool) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, (3, 8, 8, 8)).astype(np.float32)
    truth = rng.integers(0, 3, (8, 8, 8)).astype(np.uint8)
    given = scores if logits else scipy_softmax(scores, axis=0)
    found = watched(tmp_path, given, truth, PLAN, logits)  # small enough: all voxels are taken
    for k, temperature in enumerate(TEMPERATURES):
        heated = scipy_softmax(scores.astype(float) / temperature, axis=0)
        for c in range(3):
            for b in range(BINS):
                inside = (heated[c] >= b / BINS) & (heated[c] < (b + 1) / BINS)
                expected = inside.sum(), heated[c][inside].sum(), (inside & (truth == c)).sum()
                # A voxel at the edge of two bins may be in either.
                assert np.abs(found.sums[k, c, b] - expected).max() <= 1.1
        assert found.sums[k, :, :, 0].sum() == 3 * 512


def test_reliability_leaves_out_ignored_voxels(tmp_path: Path) -> None:
    plan = tiny_plan(ignore_label=3)
    truth = np.random.default_rng(0).integers(0, 4, (8, 8, 8)).astype(np.uint8)
    given = np.full((3, 8, 8, 8), 1 / 3, np.float32)
    found = watched(tmp_path, given, truth, plan, False)
    assert found.sums[0, 0, :, 0].sum() == (truth != 3).sum()


def test_reliability_of_regions(tmp_path: Path) -> None:
    plan = tiny_plan(**REGIONS)
    values = list(plan.labels.values())[1:]
    truth = np.random.default_rng(0).integers(0, 3, (8, 8, 8)).astype(np.uint8)
    given = np.random.default_rng(1).random((len(values), 8, 8, 8)).astype(np.float32)
    found = watched(tmp_path, given, truth, plan, False)
    one = found.sums[TEMPERATURES.index(1.0)].sum(axis=1)
    for c, covered in enumerate(values):
        assert one[c, 2] == np.isin(truth, covered).sum()
        assert one[c, 1] == pytest.approx(given[c].sum(), rel=1e-3)
